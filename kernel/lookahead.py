"""Look-ahead by criterion: scores of all candidates, and again after every further label.

An outlook has a criterion's scores for one state of the labels and absorbs labels into the next:
batches, conditioned batches and the mode without training all use it. `mlmoc_augmented` is the same
criterion without blocks, the augmented system solved candidate by candidate in O(L³ + MLC) (L
labels, M reference points, C classes), which [L] compares its own way with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64

from kernel import linalg
from kernel.covariance import Blocks, Features, Given
from kernel.criteria import (
    Seen,
    eer,
    emoc,
    ev_gp,
    flip,
    loss_change,
    mlmoc,
    one_hot,
    rebased,
    seen_by_variance,
)
from kernel.errors import KernelError
from kernel.herding import max_herding, ntkcpl, uherding
from kernel.options import CRITERIA, REFERENCES, Options
from kernel.plan import Report
from kernel.posterior import DETERMINED, Posterior, absorb_block, trusted_factor


def mlmoc_augmented(
    kernel: Given,
    targets: Float[np.ndarray, "labelled classes"],
    labelled_logits: Float[np.ndarray, "labelled classes"],
    candidate_logits: Float[np.ndarray, "candidates classes"],
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
        labelled_logits: f_L.
        candidate_logits: f_U.
        sample: places of the candidates over which changes are summed; all if None.
        scored: places of the candidates that are scored; all if None.
        ridge: λ ≥ 0; jitter is added as `kernel.posterior` adds it.
        reference: `network` or `linearised`, as for `mlmoc`.
        identifiers: how messages name the labelled images.
        progress: told candidates done and all of them.

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
    labelled, candidates = len(targets), len(candidate_logits)
    everywhere = np.arange(candidates)
    sample = everywhere if sample is None else sample
    scored = everywhere if scored is None else scored
    blocks = Blocks(kernel, labelled, 1)
    k_ll, k_lu, diagonal = blocks.labelled_block(), blocks.cross(0, candidates), blocks.diagonal()
    k_lu, k_su = np.asarray(k_lu, np.float64), _between(blocks, sample)
    names = list(range(labelled)) if identifiers is None else list(identifiers)
    _, jitter = trusted_factor(k_ll, ridge, kernel.precision, names, linalg.on_host())
    jittered = jitter * float(np.trace(k_ll)) / labelled
    noise = ridge + jittered
    floor = DETERMINED[kernel.precision] * diagonal + 2 * jittered
    residual = np.asarray(targets - labelled_logits, np.float64)
    wanted = np.eye(targets.shape[1])[candidate_logits.argmax(axis=1)] - candidate_logits
    drift = np.zeros((len(sample), targets.shape[1]))
    if reference == "linearised":
        drift = k_lu[:, sample].T @ np.linalg.solve(k_ll + noise * np.eye(labelled), residual)
    scores = np.zeros(len(scored))
    for number, place in enumerate(scored):
        if progress is not None:
            progress(number, len(scored))
        system = np.empty((labelled + 1, labelled + 1))
        system[:labelled, :labelled] = k_ll
        system[labelled, :labelled] = system[:labelled, labelled] = k_lu[:, place]
        system[labelled, labelled] = diagonal[place]
        system.flat[:: labelled + 2] += noise
        right = np.zeros((labelled + 1, targets.shape[1] + 1))
        right[:labelled, :-1], right[labelled, :-1] = residual, wanted[place]
        right[labelled, -1] = 1.0  # its solution ends in 1/(s + λ)
        try:
            solved = np.linalg.solve(system, right)
        except np.linalg.LinAlgError:  # nothing is left of its variance: it is determined
            continue
        if 1 / solved[labelled, -1] - noise < floor[place]:
            continue
        changes = k_lu[:, sample].T @ solved[:labelled, :-1] - drift
        changes += k_su[:, place, None] * solved[labelled, :-1]
        scores[number] = np.linalg.norm(changes, axis=1).sum()
    if progress is not None:
        progress(len(scored), len(scored))
    return scores * candidates / len(sample)


def _between(blocks: Blocks, sample: np.ndarray) -> np.ndarray:
    """K_SU."""
    if isinstance(blocks.given, Features):
        features = np.asarray(blocks.matrix[blocks.labelled :], np.float64)
        return features[sample] @ features.T
    return blocks.candidate_rows(sample, 0, len(sample))


@runtime_checkable
class Outlook(Protocol):
    """What a criterion sees from where the labels are now."""

    @property
    def posterior(self) -> Posterior:
        """Given the labels so far."""
        ...

    @property
    def predictions(self) -> Float[np.ndarray, "candidates classes"]:
        """G, of the linearised network fitted to the labels so far."""
        ...

    @property
    def variance(self) -> Float[np.ndarray, " rows"]:
        """Remaining variance s of every candidate."""
        ...

    @property
    def determined(self) -> Bool[np.ndarray, " rows"]:
        """Candidates that the labels so far determine."""
        ...

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """One score a candidate, higher = query first; the lowest for one that is determined."""
        ...

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "Outlook":
        """With the true labels of some candidates; from then on changes are those of G.

        Args:
            candidates: their places.
            label_rows: one-hot, (chosen, classes).

        Returns:
            The outlook from there; this one is consumed, as its posterior is.

        Raises:
            KernelError: as `kernel.posterior.absorb_block`.
        """
        ...

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "Outlook":
        """As if some candidates had been labelled as expected: how a batch is conditioned.

        Args, Returns, Raises: as `absorb`.
        """
        ...


@dataclass(frozen=True)
class Pointwise(Seen):
    """The outlook of a criterion that is a function of the posterior.

    Attributes:
        score: the criterion.
    """

    score: Callable[[Posterior, Options], Float[np.ndarray, " candidates"]]

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """One score a candidate."""
        return self.score(self.posterior, self.options)

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "Pointwise":
        """With true labels."""
        return replace(
            self, posterior=rebased(absorb_block(self.posterior, candidates, label_rows))
        )

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "Pointwise":
        """With the pseudo-labels of some candidates."""
        expected = one_hot(self.posterior.logits[candidates])
        return replace(self, posterior=absorb_block(self.posterior, candidates, expected))


Maker = Callable[[Given, Posterior, Float[np.ndarray, "labelled classes"], Options], Outlook]


def _pointwise(score: Callable[[Posterior, Options], Float[np.ndarray, " candidates"]]) -> Maker:
    def make(
        kernel: Given,
        posterior: Posterior,
        targets: Float[np.ndarray, "labelled classes"],
        options: Options,
    ) -> Outlook:
        return Pointwise(posterior, options, score)

    return make


def _mlmoc(posterior: Posterior, options: Options) -> Float[np.ndarray, " candidates"]:
    return mlmoc(posterior, options.reference)


def _max_det(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Outlook:
    return seen_by_variance(posterior, options)


_OUTLOOKS: Mapping[str, Maker] = MappingProxyType(
    {
        "mlmoc": _pointwise(_mlmoc),
        "emoc": _pointwise(emoc),
        "eer": _pointwise(eer),
        "flip": _pointwise(flip),
        "ev_gp": _pointwise(ev_gp),
        "loss_change": _pointwise(loss_change),
        "max_det": _max_det,
        "max_herding": max_herding,
        "uherding": uherding,
        "ntkcpl": ntkcpl,
    }
)


def outlook(
    criterion: str,
    kernel: Given,
    posterior: Posterior,
    options: Options | None = None,
    *,
    targets: Float[np.ndarray, "labelled classes"],
) -> Outlook:
    """What a criterion sees.

    Args:
        criterion: one of `CRITERIA`.
        kernel: what the posterior was made of.
        posterior: given the labelled set; is consumed by `absorb` and `assume`.
        options: of the criterion; the defaults if None.
        targets: Y, one-hot labels of the labelled set.

    Raises:
        KernelError: an unknown criterion; a kernel that it has no form for.
    """
    if criterion not in CRITERIA:
        raise KernelError(f"unknown criterion {criterion!r}; known: {', '.join(CRITERIA)}.")
    return _OUTLOOKS[criterion](kernel, posterior, targets, options or Options())
