"""Look-ahead with the NTK: the images whose labels would change the network most ([L]).

The certified mirror's empirical kernel between the labelled images and the candidates, its
posterior, and a criterion for all candidates at once, as often as the batch mode asks for it:
`top`; `conditioned`, where each pick is assumed to be labelled as expected before the next;
`hybrid`, where true labels are asked for every few picks (docs/mathematics.md, 3).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from kernel.covariance import AnyKernel, Features
from kernel.criteria import AcquisitionState
from kernel.herding import HerdingState
from kernel.lookahead import acquisition_state
from kernel.ntk import query_kernel, tf32_error
from kernel.options import GREEDY, STREAMED
from kernel.plan import Plan
from kernel.posterior import posterior
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Advance, named_images
from pipelines.strategies.base import (
    Oracle,
    Pair,
    Query,
    QueryContext,
    check_numbers,
    reference_sample,
)
from pipelines.strategies.options import LookAheadConfig, StrategyOptions


def require(
    network: nn.Module, probe: np.ndarray, options: StrategyOptions, oracle: Oracle | None
) -> None:
    """Refuse the batch mode `hybrid` where nobody answers.

    Raises:
        PipelineError: there is no oracle.
    """
    if options.lookahead.batch == "hybrid" and oracle is None:
        raise PipelineError(
            "lookahead.batch is hybrid, which asks for true labels while the batch is chosen, and "
            "nobody answers here: give an oracle, or use top or conditioned."
        )


def look_ahead(
    context: QueryContext, batch_size: int, rng: np.random.Generator, criterion: str
) -> Query:
    """Choose a batch by a criterion (docs/mathematics.md, 3).

    Args:
        context: with the settings of the kernel and of look-ahead.
        criterion: one of `kernel.options.CRITERIA`.
        batch_size: how many to choose.
        rng: of projections, signs, samples, clusters and ties.

    Raises:
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    settings, ahead = context.options.kernel, context.options.lookahead
    if not _leaves_logits(context):
        context.logits()
    *rngs, cluster_rng = rng.spawn(4)
    made = empirical_kernel(context, rngs, streamed=criterion in STREAMED)
    kernel, plan, sample = made.kernel, made.plan, made.sample
    context = replace(context, known_logits=made.logits or context.logits())
    targets = np.eye(context.labelled_logits.shape[1])[context.labels]
    with context.progress("posterior"):
        result = posterior(
            kernel,
            targets,
            context.labelled_logits.astype(np.float64),
            context.candidate_logits.astype(np.float64),
            sample=sample,
            keep=plan.keep,
            consume=sample is None and plan.keep and context.resources.shared_seed is None,
            ridge=settings.ridge,
            identifiers=context.labelled.tolist(),
        )
    residual = targets - context.labelled_logits
    diagnostics = made.diagnostics | {
        "jitter": result.jitter,
        "determined": int(np.asarray(result.determined).sum()),
        "residual_rms": _rms(residual),
        "drift_rms": _rms(np.asarray(result.drift)),
    }
    with context.progress("score") as advance:
        options = ahead.criterion_options(settings.reference, int(cluster_rng.integers(2**31)))
        state = acquisition_state(criterion, kernel, result, options, targets=targets)
        if isinstance(state, HerdingState):
            radius = state.cover.sigma(ahead.radius)
            diagnostics |= {"temperature": state.temperature, "radius": radius}
        found = pick(
            state,
            criterion,
            batch_size,
            ahead,
            rng,
            context.candidates,
            context.resources.oracle,
            advance,
        )
    with context.progress("select"):
        return Query(
            indices=context.candidates[found.positions],
            scores=found.scores[found.positions],
            candidates=context.candidates,
            candidate_scores=found.scores,
            diagnostics=diagnostics | found.diagnostics,
        )


class EmpiricalKernel(NamedTuple):
    """The kernel of a query.

    Attributes:
        kernel: between the labelled images and the candidates.
        plan: how it was computed and is held.
        sample: positions of candidates over which changes are summed; None for all.
        diagnostics: recorded of it, JSON-able.
        logits: f_L and f_U, where the kernel's own pass through the mirror left them; strategies
            asked together all read the network's.
    """

    kernel: AnyKernel
    plan: Plan
    sample: np.ndarray | None
    diagnostics: dict[str, Any]
    logits: Pair | None


def empirical_kernel(
    context: QueryContext, rngs: Sequence[np.random.Generator], *, streamed: bool = False
) -> EmpiricalKernel:
    """The mirror's kernel between the labelled images and the candidates.

    Strategies asked together share one kernel, drawn from `Resources.shared_seed`.

    Args:
        context: of the query.
        rngs: of projections and signs, of the reference sample, of the error of TF32.
        streamed: S may be read without being kept.

    Raises:
        KernelError: the kernel cannot be computed in the memory given.
    """
    if context.resources.shared_seed is None:
        return _empirical_kernel(context, rngs, streamed)
    common = np.random.default_rng(context.resources.shared_seed).spawn(3)
    name = "kernel, streamed" if streamed else "kernel"
    return context.get_or_compute(name, lambda: _empirical_kernel(context, common, streamed))


def _empirical_kernel(
    context: QueryContext, rngs: Sequence[np.random.Generator], streamed: bool
) -> EmpiricalKernel:
    settings = context.options.kernel
    kernel_rng, sample_rng, error_rng = rngs
    mirror, certificate = context.mirror
    sample = reference_sample(len(context.candidates), settings.sample, sample_rng)
    rounded = {}
    both = np.concatenate([context.labelled, context.candidates])
    with context.progress("kernel") as advance:
        images = context.images(both)
        if settings.precision == "tf32":
            error = tf32_error(mirror.model(), images, settings, error_rng)
            rounded["tf32_error"] = error
        with named_images(both):
            kernel, plan = query_kernel(
                mirror.model(),
                images,
                len(context.labelled),
                settings,
                sample=sample,
                streamed=streamed,
                rng=kernel_rng,
                progress=advance,
                folder=context.resources.folder,
            )
    diagnostics = {
        "kind": settings.kind,
        "sketch": settings.sketch,
        "sample": settings.sample,
        "held": plan.form if plan.keep else f"{plan.form}, streamed",
        "predicted_gib": round(plan.peak_gib, 3),
        "reference": settings.reference,
        "ridge": settings.ridge,
        "certificate": certificate,
    }
    logits = None
    if _leaves_logits(context):
        assert isinstance(kernel, Features)
        assert kernel.logits is not None
        f_l, f_u = np.split(np.asarray(kernel.logits, np.float32), [len(context.labelled)])
        logits = f_l, f_u
    return EmpiricalKernel(kernel, plan, sample, diagnostics | rounded, logits)


def _leaves_logits(context: QueryContext) -> bool:
    """Whether the kernel's own pass through the mirror is read for logits, too.

    A sketch goes through it once. Strategies asked together all read the network's, so that none
    of them depends on the others.
    """
    settings = context.options.kernel
    return (
        settings.sketch is not None
        and settings.kind != "full"
        and context.resources.shared_seed is None
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


class Batch(NamedTuple):
    """The picks of a query.

    Attributes:
        positions: int64 (batch,), among the candidates, in their order.
        scores: float64 (candidates,): of a pick when it was picked, of others at the end.
        diagnostics: recorded of it, JSON-able.
    """

    positions: np.ndarray
    scores: np.ndarray
    diagnostics: dict[str, Any]


class _Remaining:
    """Candidates that may still be picked; ties are broken by one random order."""

    def __init__(self, candidates: int, rng: np.random.Generator):
        self.order = rng.permutation(candidates)
        self.open = np.ones(candidates, bool)
        self.scores = np.zeros(candidates)
        self.positions: list[int] = []

    def take(self, scores: np.ndarray, count: int) -> np.ndarray:
        """Pick the positions of the highest scores."""
        self.scores = np.where(self.open, scores, self.scores)
        ranked = np.where(self.open, scores, -np.inf)
        best = np.lexsort((self.order, -ranked))[:count]
        self.open[best] = False
        self.positions += best.tolist()
        return best


def pick(
    state: AcquisitionState,
    criterion: str,
    batch_size: int,
    config: LookAheadConfig,
    rng: np.random.Generator,
    candidates: np.ndarray,
    oracle: Oracle | None,
    advance: Advance,
) -> Batch:
    """Choose a batch one pick, or a few, after another.

    Args:
        state: of the criterion; is consumed.
        criterion: its name.
        batch_size: how many to pick.
        config: how.
        rng: breaks ties.
        candidates: data-set indices, for the oracle.
        oracle: data-set indices → true labels, for the mode `hybrid`.
        advance: shows progress.

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
    left, answers = _Remaining(len(candidates), rng), []
    step = {"top": batch_size, "conditioned": 1, "hybrid": config.interval}[mode]
    while (remaining := batch_size - len(left.positions)) > 0:
        count = min(step, remaining)
        if mode == "hybrid" and criterion in GREEDY:
            best = _greedily(state, left, count, candidates)
        else:
            best = left.take(_scores(state, candidates), count)
        advance(len(left.positions), batch_size)
        if remaining == count:
            break
        if mode == "conditioned":
            state = state.assume(best)
        else:
            assert oracle is not None
            rows, own = _ask(oracle, candidates[best], state.posterior.predictions.shape[1])
            state, answers = state.absorb(best, rows), answers + own
    diagnostics: dict[str, Any] = {"batch": mode}
    if mode == "hybrid":
        diagnostics |= {"interval": config.interval, "answers": answers}
    return Batch(np.array(left.positions, np.int64), left.scores, diagnostics)


def _greedily(
    state: AcquisitionState, left: _Remaining, count: int, candidates: np.ndarray
) -> np.ndarray:
    """Some picks, each counting for the next, before their labels are asked for."""
    best = np.zeros(0, np.int64)
    for _ in range(count):
        best = np.concatenate([best, left.take(_scores(state, candidates), 1)])
        state = state.assume(best[-1:])
    return best


def _scores(state: AcquisitionState, candidates: np.ndarray) -> np.ndarray:
    scores = np.asarray(state.scores(), np.float64)
    check_numbers(scores, candidates)
    return scores


def _ask(oracle: Oracle, indices: np.ndarray, classes: int) -> tuple[np.ndarray, list[int]]:
    """The oracle's answers, one-hot and as a list."""
    answers = np.asarray(oracle(indices))
    fits = answers.shape == indices.shape and np.issubdtype(answers.dtype, np.integer)
    if not fits or not ((answers >= 0) & (answers < classes)).all():
        raise PipelineError(
            f"asked for the labels of images {indices[:5].tolist()}, the oracle answered "
            f"{answers[:5].tolist()}; one whole number from 0 to {classes - 1} is needed for each."
        )
    return np.eye(classes)[answers], answers.tolist()
