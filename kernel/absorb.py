"""Absorbing labels without training: the posterior as if they had been in the labelled set.

From a posterior, candidates B and their labels to the posterior given those too. With
FFᵀ = S_BB + λI and V = S[:,B]F⁻ᵀ: G += VF⁻¹(Y_B − G_B), S −= VVᵀ. One at a time, as a block and
factorising anew agree to rounding, in any order.
"""

import numpy as np
from jaxtyping import Float, Int64

from kernel.errors import KernelError
from kernel.posterior import Posterior
from kernel.regression.inputs import check_finite
from kernel.regression.linalg import Lower, solve_lower


def absorb(
    posterior: Posterior, candidate: int | np.integer, label_row: Float[np.ndarray, " classes"]
) -> Posterior:
    """Condition on the label of one candidate: S −= S_q S_qᵀ/(s_q+λ), G += S_q (y_q − G_q)/(s_q+λ).

    Args, Returns, Raises: as `absorb_block`, of which this is the case of one.
    """
    return absorb_block(posterior, np.array([candidate], np.int64), label_row[None])


def absorb_block(
    posterior: Posterior,
    candidates: Int64[np.ndarray, " chosen"],
    label_rows: Float[np.ndarray, "_ _"],
) -> Posterior:
    """Condition on the labels of several candidates together.

    The ridge applies to them as to the labelled set. A candidate that is determined when its turn
    comes (a duplicate of a labelled image, of one absorbed before, or that one again) changes
    nothing: its variance is rounding, and what it would say is already known. Candidates keep
    their places; one that was absorbed without a ridge is determined.

    Args:
        posterior: is consumed. Its S is updated in place; afterwards it refuses to be used, while
            its other arrays stay as they are.
        candidates: their places.
        label_rows: y, one-hot, (chosen, classes).

    Returns:
        The posterior given these labels too; `drift` holds what they added, `logits` stay.

    Raises:
        KernelError: places or labels that do not fit; entries that are not finite; a candidate
            whose column of S is neither held nor follows from features.
    """
    _check(posterior, candidates, label_rows)
    each = len(posterior.variance) // len(posterior.logits)  # rows of one candidate
    rows = (candidates[:, None] * each + np.arange(each)).reshape(-1)
    residual = (label_rows - posterior.predictions[candidates]).reshape(len(rows), -1)
    columns = posterior.covariance.columns(rows)
    factor, taken = _open_factor(columns[rows], posterior, rows)
    if not taken.any():
        return posterior
    open_factor = Lower(factor[taken][:, taken], int(taken.sum()))
    v = np.asarray(solve_lower(open_factor, columns[:, taken].T)).T
    step = np.asarray(solve_lower(open_factor, residual[taken]))
    return posterior._replace(
        covariance=posterior.covariance.downdated(v),
        variance=posterior.variance - np.einsum("ij,ij->i", v, v),
        drift=posterior.drift + (v @ step).reshape(posterior.drift.shape),
    )


def _open_factor(
    block: np.ndarray, posterior: Posterior, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factor of S_BB + λI, left-looking, that passes over rows determined by then.

    Returns:
        The factor with columns of zeros for those, and which rows are not of them.
    """
    block = block.copy()
    # s in float64, where columns may be streamed in less
    np.fill_diagonal(block, posterior.variance[rows])
    factor = np.zeros_like(block)
    taken = np.zeros(len(rows), bool)
    for place, floor in enumerate(posterior.floor[rows]):
        left = block[place:, place] - factor[place:] @ factor[place]
        if left[0] < floor:
            continue
        taken[place] = True
        left[0] += posterior.ridge
        factor[place:, place] = left / np.sqrt(left[0])
    return factor, taken


def _check(posterior: Posterior, candidates: np.ndarray, label_rows: np.ndarray) -> None:
    count, classes = posterior.logits.shape
    outside = candidates[(candidates < 0) | (candidates >= count)]
    if len(outside):
        raise KernelError(
            f"candidates {outside[:5].tolist()} do not exist: places run from 0 to {count - 1}."
        )
    if label_rows.shape != (len(candidates), classes):
        raise KernelError(
            f"labels of shape {label_rows.shape} do not fit {len(candidates)} candidates of "
            f"{classes} classes: give one one-hot row for each."
        )
    check_finite("labels", label_rows)
