"""NTK look-ahead: query the images whose label would change the network's outputs most ([L]).

From a situation to scores: the certified mirror's empirical kernel between the labelled images and
the candidates, its posterior, and the criterion for all candidates at once.
"""

import numpy as np

from kernel.engine.tf32 import product_error
from kernel.lookahead import mlmoc as mlmoc_scores
from kernel.pool import query_kernel
from kernel.posterior import posterior
from pipelines.strategies.situation import Query, Situation, top


def mlmoc(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Most likely model output change (docs/mathematics.md, 3): the batch is the highest scores."""
    settings, stages = situation.kernel, situation.stages
    with stages("certificate"):
        mirror, certificate = situation.mirror()
    kernel_rng, sample_rng, error_rng = rng.spawn(3)
    sample = reference_sample(len(situation.candidates), settings.sample, sample_rng)
    with stages("kernel") as advance:
        images = situation.images(np.concatenate([situation.labelled, situation.candidates]))
        rounded = {}
        if settings.precision == "tf32":
            error = product_error(mirror.model(), images, settings.request, error_rng)
            rounded["tf32_error"] = error
        kernel, held = query_kernel(
            mirror.model(),
            images,
            len(situation.labelled),
            settings.request,
            sample=sample,
            sketch=settings.sketch,
            rng=kernel_rng,
            progress=advance,
            folder=situation.folder,
        )
    targets = np.eye(situation.labelled_logits.shape[1])[situation.labels]
    with stages("posterior"):
        result = posterior(
            kernel,
            targets,
            situation.labelled_logits.astype(np.float64),
            situation.candidate_logits.astype(np.float64),
            sample=sample,
            keep=held.keep,
            consume=sample is None,
            ridge=settings.ridge,
            identifiers=situation.labelled.tolist(),
        )
    with stages("score"):
        scores = mlmoc_scores(result, settings.reference)
    residual = targets - situation.labelled_logits
    diagnostics = {
        "kind": settings.kind,
        "sketch": settings.sketch,
        "sample": settings.sample,
        "held": held.form if held.keep else f"{held.form}, streamed",
        "predicted_gib": round(held.peak_gib, 3),
        "reference": settings.reference,
        "ridge": settings.ridge,
        "jitter": result.jitter,
        "determined": int(np.asarray(result.determined).sum()),
        "residual_rms": _rms(residual),
        "drift_rms": _rms(np.asarray(result.drift)),
        "certificate": certificate,
    }
    diagnostics |= rounded
    return top(situation, scores, batch_size, rng, diagnostics)


def reference_sample(
    candidates: int, size: int | None, rng: np.random.Generator
) -> np.ndarray | None:
    """Places of the candidates over which changes are summed, in order; None for all of them."""
    if size is None or size >= candidates:
        return None
    return np.sort(rng.choice(candidates, size, replace=False))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
