"""Look-ahead criteria by name, and the look-ahead that solves each candidate's system whole.

`acquisition_state` makes the state of a criterion, which batches, conditioned batches and the mode
without training all use. `mlmoc_augmented` has the scores of `mlmoc`, the same to rounding, in the
way that [L] compares its own with: O(L³ + MLC) for every candidate.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int64

from kernel import linalg
from kernel.covariance import AnyKernel, Features, KernelBlocks
from kernel.criteria import (
    AcquisitionState,
    MaxDetState,
    PointwiseState,
    eer,
    emoc,
    ev_gp,
    flip,
    loss_change,
    mlmoc,
    one_hot,
)
from kernel.errors import KernelError
from kernel.herding import max_herding, uherding
from kernel.ntkcpl import ntkcpl
from kernel.options import CRITERIA, REFERENCES, Options
from kernel.plan import Report
from kernel.posterior import DETERMINED, Posterior, trusted_factor

Targets = Float[np.ndarray, "labelled classes"]
# Criteria that are functions of the posterior.
POINTWISE: Mapping[str, Callable[[Posterior, Options], Float[np.ndarray, " candidates"]]]
POINTWISE = MappingProxyType(
    {
        "mlmoc": lambda posterior, options: mlmoc(posterior, options.reference),
        "emoc": emoc,
        "eer": eer,
        "flip": flip,
        "ev_gp": ev_gp,
        "loss_change": loss_change,
    }
)
# Criteria with a state of their own.
STATES: Mapping[str, Callable[[AnyKernel, Posterior, Targets, Options], AcquisitionState]]
STATES = MappingProxyType(
    {
        "max_det": lambda kernel, posterior, targets, options: MaxDetState.start(
            posterior, options
        ),
        "max_herding": max_herding,
        "uherding": uherding,
        "ntkcpl": ntkcpl,
    }
)


def acquisition_state(
    criterion: str,
    kernel: AnyKernel,
    posterior: Posterior,
    options: Options | None = None,
    *,
    targets: Targets,
) -> AcquisitionState:
    """A criterion given the labelled set.

    Args:
        criterion: one of `kernel.options.CRITERIA`.
        kernel: that the posterior was made of.
        posterior: given the labelled set; is consumed by `absorb` and `assume`.
        options: of the criterion; the defaults if None.
        targets: Y, one-hot labels of the labelled set.

    Raises:
        KernelError: an unknown criterion; a kernel that it has no form for.
    """
    if criterion not in CRITERIA:
        raise KernelError(f"unknown criterion {criterion!r}; known: {', '.join(CRITERIA)}.")
    options = options or Options()
    if criterion in POINTWISE:
        return PointwiseState(posterior, options, POINTWISE[criterion])
    return STATES[criterion](kernel, posterior, targets, options)


def mlmoc_augmented(
    kernel: AnyKernel,
    targets: Float[np.ndarray, "labelled classes"],
    logits: Float[np.ndarray, "examples classes"],
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    scored: Int64[np.ndarray, " scored"] | None = None,
    ridge: float = 0.0,
    reference: str = "network",
    identifiers: Sequence[int] | None = None,
    progress: Report | None = None,
) -> Float[np.ndarray, " scored"]:
    """Most likely model output change, each candidate by a system of its own ([L] Eqs. 11, 13).

    Args:
        kernel: scalar-valued, between the labelled images followed by the candidates.
        targets: Y, one-hot.
        logits: f, of the labelled images followed by the candidates.
        sample: candidates over which changes are summed; all if None.
        scored: candidates that are scored; all if None.
        ridge: λ ≥ 0; jitter is added as `kernel.posterior` adds it.
        reference: `network` or `linearised`, as for `mlmoc`.
        identifiers: how messages name the labelled images.
        progress: called with candidates done and all of them.

    Raises:
        KernelError: the kind `full`, or an unknown reference.
        SingularKernelError: the labelled block has no factor with the largest jitter.
    """
    if reference not in REFERENCES:
        raise KernelError(f"unknown reference {reference!r}; known: {', '.join(REFERENCES)}.")
    if kernel.values.ndim == 4:
        raise KernelError(
            "look-ahead without blocks is for scalar-valued kernels and this one is full: use "
            "single, sum, trace or rademacher."
        )
    labelled, candidates = len(targets), len(logits) - len(targets)
    every = np.arange(candidates)
    sample = every if sample is None else sample
    scored = every if scored is None else scored
    blocks = KernelBlocks(kernel, labelled, 1)
    k_ll, k_lu, diagonal = blocks.labelled_block(), blocks.cross(0, candidates), blocks.diagonal()
    k_lu, k_su = np.asarray(k_lu, np.float64), _between(blocks, sample)
    names = list(range(labelled)) if identifiers is None else list(identifiers)
    _, jitter = trusted_factor(k_ll, ridge, kernel.precision, names, linalg.on_host())
    jittered = jitter * float(np.trace(k_ll)) / labelled
    noise = ridge + jittered
    floor = DETERMINED[kernel.precision] * diagonal + 2 * jittered
    residual = np.asarray(targets - logits[:labelled], np.float64)
    own = logits[labelled:]
    pseudo = one_hot(own) - own
    drift = np.zeros((len(sample), targets.shape[1]))
    if reference == "linearised":
        drift = k_lu[:, sample].T @ np.linalg.solve(k_ll + noise * np.eye(labelled), residual)
    scores = np.zeros(len(scored))
    for number, candidate in enumerate(scored):
        if progress is not None:
            progress(number, len(scored))
        system = np.empty((labelled + 1, labelled + 1))
        system[:labelled, :labelled] = k_ll
        system[labelled, :labelled] = system[:labelled, labelled] = k_lu[:, candidate]
        system[labelled, labelled] = diagonal[candidate]
        system.flat[:: labelled + 2] += noise
        right = np.zeros((labelled + 1, targets.shape[1] + 1))
        right[:labelled, :-1], right[labelled, :-1] = residual, pseudo[candidate]
        right[labelled, -1] = 1.0  # its solution ends in 1/(s + λ)
        try:
            solved = np.linalg.solve(system, right)
        except np.linalg.LinAlgError:  # nothing is left of its variance: it is determined
            continue
        if 1 / solved[labelled, -1] - noise < floor[candidate]:
            continue
        changes = k_lu[:, sample].T @ solved[:labelled, :-1] - drift
        changes += k_su[:, candidate, None] * solved[labelled, :-1]
        scores[number] = np.linalg.norm(changes, axis=1).sum()
    if progress is not None:
        progress(len(scored), len(scored))
    return scores * candidates / len(sample)


def _between(blocks: KernelBlocks, sample: np.ndarray) -> np.ndarray:
    """K_SU."""
    if isinstance(blocks.kernel, Features):
        features = np.asarray(blocks.matrix[blocks.labelled :], np.float64)
        return features[sample] @ features.T
    return blocks.candidate_rows(sample, 0, len(sample))
