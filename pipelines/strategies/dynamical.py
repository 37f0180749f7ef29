"""dynamicAL: the images that would speed the training up most ([D]).

Scores are Δ(x_u) = ‖g_u‖² + γ g_u·g_S, with the loss gradient g_S of the labelled set from one
backward pass through the certified mirror, and candidates a block at a time. Nothing of the size
candidates × parameters is ever formed (docs/mathematics.md, 6).
"""

import math
from typing import Any

import jax
import numpy as np

from kernel.dynamics import Measured, cotangents, dissimilar, folded, folding, joined, measure
from kernel.gradients import squared_length, total
from kernel.model import Model, Params
from kernel.plan import Report, cast
from pipelines.core.progress import Advance, named_images
from pipelines.strategies.base import Query, QueryContext, top

BLOCK = 1024  # candidates whose images are in memory at a time
# Share of ‖g_u‖² below which the part of the labelled set in Δ is negligible.
_VANISHED = 0.01


def dynamical(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Choose a batch by Δ, with the options `dynamics`.

    Raises:
        PipelineError: more are asked for than there are candidates.
        KernelError: gradients that are not finite, naming the images.
    """
    settings = context.options.dynamics
    sign_rng, tie_rng = rng.spawn(2)
    # before other stages, whose seconds are their own
    labelled_logits = context.labelled_logits
    logits = context.candidate_logits if _reads_network(context) else None
    mirror, certificate = context.mirror
    model = cast(mirror.model(), settings.precision)
    with context.progress("gradients") as advance:
        own = cotangents(labelled_logits, context.labels, context.train.loss)
        images = context.images(context.labelled)
        with named_images(context.labelled):
            direction = total(
                model,
                images,
                own,
                chunk=settings.chunk,
                progress=lambda done, of: advance(done, of, "the labelled set"),
            )
        measured, rows = _measured(context, model, logits, direction, sign_rng, advance)
    scores = measured.delta(settings.weight)
    query = top(context, scores, batch_size, tie_rng)
    if settings.batch == "dissimilar":
        with context.progress("select"):
            chosen = dissimilar(scores, rows, batch_size, tie_rng.permutation(len(scores)))
            query = context.query(chosen.positions, chosen.scores)
    diagnostics = _diagnostics(context, measured, squared_length(direction), query.indices)
    return query._replace(diagnostics=diagnostics | {"certificate": certificate})


def _measured(
    context: QueryContext,
    model: Model,
    logits: np.ndarray | None,
    direction: Params,
    rng: np.random.Generator,
    advance: Advance,
) -> tuple[Measured, np.ndarray]:
    """Every candidate, and for `dissimilar` its gradient, folded."""
    settings, loss = context.options.dynamics, context.train.loss
    candidates = context.candidates
    how, rows = None, np.zeros((len(candidates), 0))
    pieces = []
    for start in range(0, len(candidates), BLOCK):
        part = slice(start, start + BLOCK)
        images = context.images(candidates[part])
        image = jax.ShapeDtypeStruct(images.shape[1:], settings.precision)
        with named_images(candidates[part]):
            piece = measure(
                model,
                images,
                None if logits is None else logits[part],
                direction,
                loss,
                chunk=settings.chunk,
                progress=_offset(advance, start, len(images), len(candidates)),
            )
        pieces.append(piece)
        if settings.batch == "dissimilar":
            if how is None:
                how = folding(model, image, settings.sketch, rng)
                rows = np.zeros((len(candidates), how.buckets), settings.precision)
            own = cotangents(piece.logits, piece.pseudo, loss)
            rows[part] = folded(model, images, own, how, chunk=settings.chunk)
    return joined(pieces), rows


def _reads_network(context: QueryContext) -> bool:
    """Whether the candidates' logits are the network's own, which other strategies read as well.

    Else they are those of the pass through the mirror that measures the candidates anyway.
    """
    return context.known_logits is not None or context.resources.shared_seed is not None


def _offset(advance: Advance, before: int, count: int, candidates: int) -> Report:
    """Progress of a block as that of all candidates."""
    return lambda done, of: advance(before + count * done / of, candidates)


def _diagnostics(
    context: QueryContext, measured: Measured, dynamics: float, picked: np.ndarray
) -> dict[str, Any]:
    """How large both terms of Δ are, and a warning when one of them means nothing."""
    settings, gamma = context.options.dynamics, context.options.dynamics.weight
    chosen = np.isin(context.candidates, picked)
    norm = float(measured.norms[chosen].sum())
    inner = float(np.abs(measured.inner[chosen]).sum())
    whole = norm + gamma * inner if math.isfinite(gamma) else math.inf
    mean = float(measured.norms.mean())
    residual = cotangents(context.labelled_logits, context.labels, context.train.loss)
    return {
        "gamma": settings.gamma,
        "batch": settings.batch,
        "sketch": settings.sketch if settings.batch == "dissimilar" else None,
        "labelled_gradient": math.sqrt(dynamics),
        "mean_norm": mean,
        "norm_share": norm / whole if whole > 0 else 0.0,
        "residual_rms": float(np.sqrt(np.mean(residual**2))),
        "warning": _warning(context, gamma, dynamics, mean),
    }


def _warning(context: QueryContext, gamma: float, dynamics: float, mean: float) -> str | None:
    """A warning when the labelled set says little or too much, or None."""
    right = context.labelled_logits.argmax(axis=1) == context.labels
    accuracy, target = float(right.mean()), context.train.target_accuracy
    if accuracy < target:
        return (
            f"the network has not fitted its labels (accuracy {accuracy:.3f}, target {target:g}): "
            "the gradient of the labelled set is that of labels still to be learnt"
        )
    weight = gamma if math.isfinite(gamma) else 1.0
    # |γ g_u·g_S| ≤ γ ‖g_u‖ ‖g_S‖
    if gamma > 0 and weight * math.sqrt(dynamics) < _VANISHED * math.sqrt(mean):
        return (
            "the network has interpolated its labels: their gradient is nearly zero, so that Δ is "
            "the candidates' own norm alone, or with gamma inf a remainder of rounding"
        )
    return None
