"""NTK look-ahead: query the images whose labels would do most, by one of many criteria ([L]).

From a situation to a batch: the certified mirror's empirical kernel between the labelled images and
the candidates, its posterior, and a criterion for all candidates at once, as often as the batch
mode asks for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kernel.engine.tf32 import product_error
from kernel.lookahead import STREAMED, outlook
from kernel.lookahead.herding import Herding
from kernel.pool import Decision, query_kernel
from kernel.posterior import posterior
from kernel.regression.inputs import Features, Given
from pipelines.errors import PipelineError
from pipelines.numbered import numbered
from pipelines.strategies.batches import pick
from pipelines.strategies.held import Pair
from pipelines.strategies.situation import Query, Situation, Strategy


def looking(criterion: str) -> Strategy:
    """The strategy of a criterion, one of `kernel.lookahead.CRITERIA`."""

    def choose(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        return look(situation, criterion, batch_size, rng)

    return choose


def look(situation: Situation, criterion: str, batch_size: int, rng: np.random.Generator) -> Query:
    """Choose a batch by a criterion (docs/mathematics.md, 3).

    Args:
        situation: with the settings of the kernel and of look-ahead.
        criterion: one of `kernel.lookahead.CRITERIA`.
        batch_size: how many to choose.
        rng: of projections, signs, samples, clusters and ties.

    Raises:
        PipelineError: settings that do not go together; `hybrid` where nobody answers.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    settings, ahead, stages = situation.kernel, situation.lookahead, situation.stages
    ahead.check(criterion, settings)
    if ahead.mode(criterion) == "hybrid" and situation.ask is None:
        raise PipelineError(
            "lookahead.batch is hybrid, which asks for true labels while the batch is chosen, and "
            "nobody answers here: give an oracle, or use top or conditioned."
        )
    if not _leaves_logits(situation):
        situation.logits()
    *rngs, cluster_rng = rng.spawn(4)
    given = kernel_of(situation, rngs, streamed=criterion in STREAMED)
    kernel, held, sample = given.kernel, given.held, given.sample
    situation = replace(situation, answered=given.logits or situation.logits())
    targets = np.eye(situation.labelled_logits.shape[1])[situation.labels]
    with stages("posterior"):
        result = posterior(
            kernel,
            targets,
            situation.labelled_logits.astype(np.float64),
            situation.candidate_logits.astype(np.float64),
            sample=sample,
            keep=held.keep,
            consume=sample is None and held.keep and situation.shared is None,
            ridge=settings.ridge,
            identifiers=situation.labelled.tolist(),
        )
    residual = targets - situation.labelled_logits
    diagnostics = given.diagnostics | {
        "jitter": result.jitter,
        "determined": int(np.asarray(result.determined).sum()),
        "residual_rms": _rms(residual),
        "drift_rms": _rms(np.asarray(result.drift)),
    }
    with stages("score") as advance:
        options = ahead.options(settings.reference, int(cluster_rng.integers(2**31)))
        seen = outlook(criterion, kernel, result, options, targets=targets)
        if isinstance(seen, Herding):
            diagnostics |= {"temperature": seen.warmth, "radius": seen.cover.sigma(ahead.radius)}
        found = pick(
            seen, criterion, batch_size, ahead, rng, situation.candidates, situation.ask, advance
        )
    with stages("select"):
        return Query(
            indices=situation.candidates[found.places],
            scores=found.scores[found.places],
            candidates=situation.candidates,
            candidate_scores=found.scores,
            diagnostics=diagnostics | found.diagnostics,
        )


class Looked(NamedTuple):
    """The kernel of a query.

    Attributes:
        kernel: between the labelled images and the candidates.
        held: how it is held.
        sample: places of the candidates over which changes are summed; None for all.
        diagnostics: what is recorded of it.
        logits: f_L and f_U, where the kernel's own pass through the mirror left them; strategies
            that are asked together all read the network's.
    """

    kernel: Given
    held: Decision
    sample: np.ndarray | None
    diagnostics: dict[str, Any]
    logits: Pair | None


def kernel_of(
    situation: Situation, rngs: Sequence[np.random.Generator], *, streamed: bool = False
) -> Looked:
    """The certified mirror's kernel between the labelled images and the candidates.

    Strategies that are asked together (`Situation.shared`) have one kernel, from a seed of its own.

    Args:
        situation: with the settings of the kernel.
        rngs: of projections and signs, of the reference sample, of the error of TF32.
        streamed: S may be read without being kept.

    Raises:
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given.
    """
    if situation.shared is None:
        return _kernel_of(situation, rngs, streamed)
    common = np.random.default_rng(situation.shared).spawn(3)
    need = "kernel, streamed" if streamed else "kernel"
    return situation.once(need, lambda: _kernel_of(situation, common, streamed))


def _kernel_of(situation: Situation, rngs: Sequence[np.random.Generator], streamed: bool) -> Looked:
    settings, stages = situation.kernel, situation.stages
    kernel_rng, sample_rng, error_rng = rngs
    with stages("certificate"):
        mirror, certificate = situation.mirror()
    sample = reference_sample(len(situation.candidates), settings.sample, sample_rng)
    rounded = {}
    both = np.concatenate([situation.labelled, situation.candidates])
    with stages("kernel") as advance:
        images = situation.images(both)
        if settings.precision == "tf32":
            error = product_error(mirror.model(), images, settings.request, error_rng)
            rounded["tf32_error"] = error
        with numbered(both):
            kernel, held = query_kernel(
                mirror.model(),
                images,
                len(situation.labelled),
                settings.request,
                sample=sample,
                sketch=settings.sketch,
                streamed=streamed,
                rng=kernel_rng,
                progress=advance,
                folder=situation.folder,
            )
    diagnostics = {
        "kind": settings.kind,
        "sketch": settings.sketch,
        "sample": settings.sample,
        "held": held.form if held.keep else f"{held.form}, streamed",
        "predicted_gib": round(held.peak_gib, 3),
        "reference": settings.reference,
        "ridge": settings.ridge,
        "certificate": certificate,
    }
    logits = None
    if _leaves_logits(situation):
        assert isinstance(kernel, Features)
        assert kernel.logits is not None
        f_l, f_u = np.split(np.asarray(kernel.logits, np.float32), [len(situation.labelled)])
        logits = f_l, f_u
    return Looked(kernel, held, sample, diagnostics | rounded, logits)


def _leaves_logits(situation: Situation) -> bool:
    """Whether the kernel's own pass through the mirror is read for logits, too.

    A sketch goes through it once. Strategies that are asked together all read the network's, so
    that none of them depends on the others.
    """
    settings = situation.kernel
    return settings.sketch is not None and settings.kind != "full" and situation.shared is None


def reference_sample(
    candidates: int, size: int | None, rng: np.random.Generator
) -> np.ndarray | None:
    """Places of the candidates over which changes are summed, in order; None for all of them."""
    if size is None or size >= candidates:
        return None
    return np.sort(rng.choice(candidates, size, replace=False))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
