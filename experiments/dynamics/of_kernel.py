"""What a kernel says of queries: MMD against the bound, G_MSE against alignment, the envelope.

From a kernel between labelled images and candidates, labels and sets of candidates to rows of
numbers. Nothing is computed anew for a query: all are quadratic forms of one matrix.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernel.covariance import Kernel
from kernel.diagnostics import (
    between_images,
    bound,
    energies,
    extremes,
    flow,
    interactions,
    kendall,
    mmd,
    residual_spectrum,
)
from kernel.errors import SingularKernelError
from pipelines.progress import Advance

RANDOM, DYNAMICAL = "random", "dynamical"
# Times of the envelope, in units of 1/λ_max of S.
_TIMES = np.concatenate([[0.0], np.logspace(-2, 4, 61)])


class Queries(NamedTuple):
    """Queries of one size.

    Attributes:
        size: b.
        random: bool (draws, candidates).
        best: bool (candidates,), the one that dynamicAL makes.
    """

    size: int
    random: np.ndarray
    best: np.ndarray


def with_labelled(sets: np.ndarray, labelled: int) -> np.ndarray:
    """S ∪ Q: bool (sets, labelled + candidates)."""
    return np.concatenate([np.ones((len(sets), labelled), bool), sets], axis=1)


def mmd_rows(
    kernel: Kernel,
    targets: np.ndarray,
    labelled: int,
    queries: Sequence[Queries],
    advance: Advance,
) -> list[dict[str, Any]]:
    """MMD(S, S ∪ Q) and B(S ∪ Q) of every query, with true labels.

    Args:
        kernel: normalised to a mean diagonal of 1.
        targets: Y of all images, one-hot.
        labelled: |S|; its images come first.
        queries: with as many random ones of each size as are measured.
        advance: told how many are done.
    """
    values = between_images(kernel)
    whole = sum(len(one.random) + 1 for one in queries)
    rows = []
    for one in queries:
        sets = with_labelled(np.concatenate([one.random, one.best[None]]), labelled)
        alone = np.zeros_like(sets)
        alone[:, :labelled] = True
        apart = mmd(values, alone, sets)
        chosen = [RANDOM] * len(one.random) + [DYNAMICAL]
        for number, (members, name) in enumerate(zip(sets, chosen, strict=True)):
            rows.append({"queries": one.size, "chosen": name, "mmd": float(apart[number])})
            rows[-1] |= bounded(kernel, targets, np.flatnonzero(members))
            advance(len(rows), whole)
    return rows


def bounded(kernel: Kernel, targets: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """B of some images; where their kernel has no factor, none, and the reason."""
    own = part(kernel, places)
    try:
        found = bound(own, targets[places], places.tolist())
    except SingularKernelError as error:
        smallest, largest = extremes(own)
        known = {"smallest": smallest, "largest": largest}
        return {"bound": float("nan"), **known, "jitter": float("nan"), "note": str(error)}
    values = found._asdict()
    return {"bound": values.pop("value"), **values, "note": ""}


def part(kernel: Kernel, places: np.ndarray) -> Kernel:
    """The kernel between some of its images."""
    if kernel.values.ndim == 2:
        return Kernel(kernel.values[np.ix_(places, places)], kernel.precision)
    return Kernel(kernel.values[places][:, :, places], kernel.precision)


def tau_rows(
    kernel: Kernel,
    targets: np.ndarray,
    measures: dict[str, np.ndarray],
    labelled: int,
    queries: Mapping[int, np.ndarray],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Kendall's τ between measures of S ∪ Q and its alignment, over the random queries.

    Args:
        kernel: between all images.
        targets: Y of all images, one-hot, true labels.
        measures: names, and the vectors of all images whose energy they are: f − Y for G_MSE.
        labelled: |S|.
        queries: by size, bool (draws, candidates), random ones.
        rng: of the bootstrap.
    """
    aligned = interactions(kernel, targets)
    matrices = {name: interactions(kernel, vectors) for name, vectors in measures.items()}
    rows = []
    for size, random in queries.items():
        sets = with_labelled(random, labelled)
        alignment = energies(aligned, sets)
        for name, matrix in matrices.items():
            measured = energies(matrix, sets)
            found = kendall(measured, alignment, rng)
            row = {"queries": size, "measure": name, "draws": len(sets)}
            row |= {"tau": found.value, "tau_low": found.low, "tau_high": found.high}
            rows.append(row | {"measured": measured, "alignment": alignment})
    return rows


def envelope_rows(
    kernel: Kernel, targets: np.ndarray, labelled: int, query: Queries
) -> list[dict[str, Any]]:
    """How fast gradient flow could fit Y from zero: S alone, and with a random and the best query.

    Args:
        kernel: between all images.
        targets: Y of all images, one-hot.
        labelled: |S|.
        query: of which the first random one is taken.
    """
    sets = with_labelled(
        np.stack([np.zeros_like(query.best), query.random[0], query.best]), labelled
    )
    rows, scale = [], 0.0
    for members, name in zip(sets, ("S", RANDOM, DYNAMICAL), strict=True):
        places = np.flatnonzero(members)
        seen = residual_spectrum(part(kernel, places), targets[places])
        scale = scale or float(seen.values[-1])
        found = flow(seen, _TIMES / scale)
        rows.append(
            {
                "set": name,
                "images": len(places),
                "mean_rate": seen.alignment / seen.total,
                "smallest": float(seen.values[0]),
                "largest": float(seen.values[-1]),
                "times": _TIMES,
                **{end: values / seen.total for end, values in found._asdict().items()},
            }
        )
    return rows
