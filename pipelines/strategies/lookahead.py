"""NTK look-ahead: query the images whose labels would do most, by one of many criteria ([L]).

From a situation to a batch: the certified mirror's empirical kernel between the labelled images and
the candidates, its posterior, and a criterion for all candidates at once, as often as the batch
mode asks for it.

From an outlook to a batch: the highest scores, or one pick after another.

Three modes: `top`; `conditioned`, where each pick is assumed to be labelled as expected before the
next; `hybrid`, where true labels are asked for every few picks (docs/mathematics.md, 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from kernel.covariance import Features, Given
from kernel.herding import Herding
from kernel.lookahead import Outlook, outlook
from kernel.ntk import Decision, query_kernel
from kernel.options import GREEDY, STREAMED
from kernel.posterior import posterior
from kernel.sharded import product_error
from pipelines.errors import PipelineError
from pipelines.progress import Advance, numbered
from pipelines.strategies.base import Pair, Query, Situation, Strategy
from pipelines.strategies.options import LookAheadConfig

Ask = Callable[[np.ndarray], np.ndarray]


class Picked(NamedTuple):
    """A batch.

    Attributes:
        places: of the picks among the candidates, in their order.
        scores: of every candidate: of a pick when it was picked, of others at the last look.
        diagnostics: what is recorded of it.
    """

    places: np.ndarray
    scores: np.ndarray
    diagnostics: dict[str, Any]


class _Open:
    """What may still be picked; ties are broken by one random order."""

    def __init__(self, candidates: int, rng: np.random.Generator):
        self.order = rng.permutation(candidates)
        self.open = np.ones(candidates, bool)
        self.scores = np.zeros(candidates)
        self.places: list[int] = []

    def take(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The places of the highest scores, noted."""
        self.scores = np.where(self.open, scores, self.scores)
        ranked = np.where(self.open, scores, -np.inf)
        best = np.lexsort((self.order, -ranked))[:count]
        self.open[best] = False
        self.places += best.tolist()
        return best


def pick(
    outlook: Outlook,
    criterion: str,
    batch_size: int,
    config: LookAheadConfig,
    rng: np.random.Generator,
    candidates: np.ndarray,
    ask: Ask | None,
    advance: Advance,
) -> Picked:
    """Choose a batch one pick, or a few, after another.

    Args:
        outlook: of the criterion; is consumed.
        criterion: its name.
        batch_size: how many to pick.
        config: how.
        rng: breaks ties.
        candidates: data-set indices, for `ask`.
        ask: data-set indices → true labels, for the mode `hybrid`.
        advance: told how many have been picked.

    Raises:
        PipelineError: more than there are candidates; scores that are not numbers; answers that
            are not classes.
    """
    if not 1 <= batch_size <= len(candidates):
        raise PipelineError(
            f"a query of {batch_size} images was asked for and there are {len(candidates)} "
            "candidates."
        )
    mode = config.mode(criterion)
    left, answers = _Open(len(candidates), rng), []
    step = {"top": batch_size, "conditioned": 1, "hybrid": config.interval}[mode]
    while (remaining := batch_size - len(left.places)) > 0:
        count = min(step, remaining)
        if mode == "hybrid" and criterion in GREEDY:
            best = _greedily(outlook, left, count, candidates)
        else:
            best = left.take(_scores(outlook, candidates), count)
        advance(len(left.places), batch_size)
        if remaining == count:
            break
        if mode == "conditioned":
            outlook = outlook.assume(best)
        else:
            assert ask is not None
            rows, own = _asked(ask, candidates[best], outlook.predictions.shape[1])
            outlook, answers = outlook.absorb(best, rows), answers + own
    diagnostics: dict[str, Any] = {"batch": mode}
    if mode == "hybrid":
        diagnostics |= {"interval": config.interval, "answers": answers}
    return Picked(np.array(left.places, np.int64), left.scores, diagnostics)


def _greedily(outlook: Outlook, left: _Open, count: int, candidates: np.ndarray) -> np.ndarray:
    """Some picks, each counting for the next, before their labels are asked for."""
    best = np.zeros(0, np.int64)
    for _ in range(count):
        best = np.concatenate([best, left.take(_scores(outlook, candidates), 1)])
        outlook = outlook.assume(best[-1:])
    return best


def _scores(outlook: Outlook, candidates: np.ndarray) -> np.ndarray:
    scores = np.asarray(outlook.scores(), np.float64)
    if np.isnan(scores).any():
        bad = candidates[np.isnan(scores)][:5].tolist()
        raise PipelineError(f"the scores of images {bad} are not numbers.")
    return scores


def _asked(ask: Ask, indices: np.ndarray, classes: int) -> tuple[np.ndarray, list[int]]:
    """One-hot rows and classes that somebody answered."""
    answers = np.asarray(ask(indices))
    fits = answers.shape == indices.shape and np.issubdtype(answers.dtype, np.integer)
    if not fits or not ((answers >= 0) & (answers < classes)).all():
        raise PipelineError(
            f"asked for the labels of images {indices[:5].tolist()}, the oracle answered "
            f"{answers[:5].tolist()}; one whole number from 0 to {classes - 1} is needed for each."
        )
    return np.eye(classes)[answers], answers.tolist()


def looking(criterion: str) -> Strategy:
    """The strategy of a criterion, one of `kernel.options.CRITERIA`."""

    def choose(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        return look(situation, criterion, batch_size, rng)

    return choose


def look(situation: Situation, criterion: str, batch_size: int, rng: np.random.Generator) -> Query:
    """Choose a batch by a criterion (docs/mathematics.md, 3).

    Args:
        situation: with the settings of the kernel and of look-ahead.
        criterion: one of `kernel.options.CRITERIA`.
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
        options = ahead.criterion_options(settings.reference, int(cluster_rng.integers(2**31)))
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
            error = product_error(mirror.model(), images, settings, error_rng)
            rounded["tf32_error"] = error
        with numbered(both):
            kernel, held = query_kernel(
                mirror.model(),
                images,
                len(situation.labelled),
                settings,
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
