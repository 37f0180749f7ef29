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
from kernel.plan import Plan, linear_head
from kernel.posterior import posterior
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Advance, named_images
from pipelines.strategies.base import (
    Oracle,
    Pair,
    Query,
    QueryContext,
    check_numbers,
    checked_label,
    reference_sample,
)
from pipelines.strategies.options import LookAheadConfig, StrategyOptions
from trainer.predict import Piecewise


def require(
    network: nn.Module, probe: np.ndarray, options: StrategyOptions, oracle: Oracle | None
) -> None:
    """Refuse the batch mode `hybrid` without an oracle.

    Raises:
        PipelineError: there is no oracle.
    """
    if options.lookahead.batch == "hybrid" and oracle is None:
        raise PipelineError(
            "lookahead.batch is hybrid, which asks for true labels while the batch is chosen, and "
            "there is no oracle: give one, or use top or conditioned."
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
        return context.query(found.positions, found.scores, diagnostics | found.diagnostics)


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
        images = Piecewise(context.images, both)
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
        "sketch": plan.request.sketch,
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

    A sketch goes through it once, a linear head not at all. Strategies asked together all read the
    network's, so that none of them depends on the others.
    """
    settings = context.options.kernel
    return (
        settings.sketch is not None
        and settings.kind != "full"
        and context.resources.shared_seed is None
        and linear_head(context.mirror.mirror.model(), settings) is None
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
        batch_size: how many to pick, at most as many as there are candidates.
        config: how.
        rng: breaks ties.
        candidates: data-set indices, for the oracle.
        oracle: data-set indices → true labels, for the mode `hybrid`.
        advance: shows progress.

    Raises:
        PipelineError: scores that are not numbers; answers that are not classes.
    """
    mode = config.mode(criterion)
    step = {"top": batch_size, "conditioned": 1, "hybrid": config.interval}[mode]
    order, scores = rng.permutation(len(candidates)), np.zeros(len(candidates))
    positions, answers = np.zeros(0, np.int64), []

    def take(state: AcquisitionState, count: int) -> np.ndarray:
        """Pick the highest scores among the others; ties are broken by one random order."""
        nonlocal positions, scores
        others = ~np.isin(np.arange(len(candidates)), positions)
        scores = np.where(others, _scores(state, candidates), scores)
        best = np.lexsort((order, -np.where(others, scores, -np.inf)))[:count]
        positions = np.concatenate([positions, best])
        advance(len(positions), batch_size)
        return best

    while True:
        count = min(step, batch_size - len(positions))
        ahead, best = state, take(state, 1 if criterion in GREEDY and mode != "top" else count)
        while len(best) < count:  # a greedy criterion: each pick counts for the next
            ahead = ahead.assume(best[-1:])
            best = np.concatenate([best, take(ahead, 1)])
        if len(positions) == batch_size:
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
    return Batch(positions, scores, diagnostics)


def _scores(state: AcquisitionState, candidates: np.ndarray) -> np.ndarray:
    scores = np.asarray(state.scores(), np.float64)
    check_numbers(scores, candidates)
    return scores


def _ask(oracle: Oracle, indices: np.ndarray, classes: int) -> tuple[np.ndarray, list[int]]:
    """The oracle's answers, one-hot and as a list."""
    answers = oracle(indices)
    ordered = isinstance(answers, list | tuple) or np.ndim(answers) == 1  # no mapping, set or text
    if not ordered or len(answers) != len(indices):
        raise PipelineError(
            f"asked for the labels of images {indices[:5].tolist()}, the oracle answered "
            f"{str(answers)[:40]}; one class for each of {len(indices)} is needed, in their order."
        )
    own = [checked_label(one, index, classes) for one, index in zip(answers, indices, strict=True)]
    return np.eye(classes)[own], own
