"""MaxHerding and UHerding: label what covers most of what is not covered yet, or not certain.

From a kernel, its posterior and the labels to the gain in (uncertainty) coverage of every
candidate: Bae, Oliveira, Sutherland, ECCV 2024 and ICLR 2025, on the empirical NTK
(docs/mathematics.md, 3, which says where this departs from them).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int64

from kernel.absorb import absorb_block
from kernel.errors import KernelError
from kernel.lookahead.calibration import leave_one_out, temperature, uncertainty
from kernel.lookahead.coverage import Coverage, coverage
from kernel.lookahead.options import Options
from kernel.lookahead.seen import Seen, rebased
from kernel.lookahead.sweeps import refuse_full
from kernel.posterior import Posterior
from kernel.regression.inputs import Given

# Roundings of the kernel by which a gain may be off that is the difference of two.
_SETTLED = 64


@dataclass(frozen=True)
class Herding(Seen):
    """The outlook of both; it reads the kernel, and columns of S once a label is absorbed.

    Attributes:
        cover: what is covered.
        weights: u of every candidate; ones for MaxHerding.
        warmth: T of the probabilities of u; None takes the rule of labels.
        uncertain: whether u is the uncertainty of the predictions.
        known: the gains, where they follow from those before the last pick.
    """

    cover: Coverage
    weights: Float[np.ndarray, " candidates"]
    warmth: float | None
    uncertain: bool
    known: Float[np.ndarray, " candidates"] | None = None

    def scores(self) -> Float[np.ndarray, " candidates"]:
        """Gain in coverage, from 0 to the largest u; 0 for a determined candidate."""
        return np.where(self.determined, 0.0, self.gains)

    @cached_property
    def gains(self) -> Float[np.ndarray, " candidates"]:
        """Of every candidate, determined or not."""
        if self.known is not None:
            return self.known
        return self.cover.gains(self.weights, self.options.radius)

    def absorb(
        self, candidates: Int64[np.ndarray, " chosen"], label_rows: Float[np.ndarray, "_ _"]
    ) -> "Herding":
        """With true labels: they cover, the radius follows, and u comes from the new G."""
        posterior = rebased(absorb_block(self.posterior, candidates, label_rows))
        weights = self.weights
        if self.uncertain:
            weights = uncertainty(posterior.logits, self.options, self.warmth)
        cover = self.cover.labelled(candidates)
        return replace(self, posterior=posterior, cover=cover, weights=weights, known=None)

    def assume(self, candidates: Int64[np.ndarray, " chosen"]) -> "Herding":
        """They cover; nothing is learnt of labels, and S is not read."""
        cover = self.cover.picked(candidates)
        if 2 * len(cover.nearer(self.cover)) > len(cover.before.sample):
            return replace(self, cover=cover, known=None)  # no less work than all of them anew
        left = self.gains - cover.lost(self.cover, self.weights, self.options.radius)
        # a duplicate of the pick has nothing left: what there is, is rounding
        settled = left <= _SETTLED * cover.rounding * self.gains
        return replace(self, cover=cover, known=np.where(settled, 0.0, left))


def max_herding(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Herding:
    """Mean over x of [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel.
    """
    refuse_full("max_herding", posterior)
    cover = coverage(kernel, posterior, len(targets))
    return Herding(posterior, options, cover, np.ones(len(posterior.logits)), None, False)


def uherding(
    kernel: Given,
    posterior: Posterior,
    targets: Float[np.ndarray, "labelled classes"],
    options: Options,
) -> Herding:
    """Mean over x of u(x) [k_σ(x,x') − m(x)]₊.

    Raises:
        KernelError: the full kernel; S has taken the memory of the kernel; fewer than two classes;
            label probabilities that leave nothing uncertain.
    """
    refuse_full("uherding", posterior)
    if targets.shape[1] < 2:
        raise KernelError("uherding needs at least two classes to be uncertain between.")
    warmth = options.temperature
    if warmth is None and options.labels == "one_hot":
        raise KernelError(
            "uherding without a temperature takes its uncertainty from the rule of labels, and "
            "one_hot leaves none: give a temperature, or the rule simplex or softmax."
        )
    cover = coverage(kernel, posterior, len(targets))
    if isinstance(warmth, str):
        k_ll = cover.blocks.labelled_block()
        warmth = temperature(leave_one_out(k_ll, targets, posterior.ridge), targets)
    weights = uncertainty(posterior.logits, options, warmth)
    return Herding(posterior, options, cover, weights, warmth, True)
