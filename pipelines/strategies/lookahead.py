"""NTK look-ahead: query the images whose label would change the network's outputs most ([L]).

From a situation to scores: the certified mirror's empirical kernel between the labelled images and
the candidates, its posterior, and the criterion for all candidates at once.
"""

import numpy as np

from kernel.lookahead import mlmoc as mlmoc_scores
from kernel.ntk import empirical_ntk
from kernel.posterior import posterior
from pipelines.strategies.situation import Query, Situation, top


def mlmoc(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Most likely model output change (docs/mathematics.md, 3): the batch is the highest scores."""
    settings, stages = situation.kernel, situation.stages
    with stages("certificate"):
        mirror, certificate = situation.mirror()
    with stages("kernel") as advance:
        images = situation.images(np.concatenate([situation.labelled, situation.candidates]))
        kernel = empirical_ntk(
            mirror.model(),
            images,
            settings.kind,
            probes=settings.probes,
            sketch=settings.sketch,
            rng=rng.spawn(1)[0],
            precision=settings.precision,
            chunk=settings.chunk,
            memory_gib=settings.memory_gib,
            progress=advance,
        )
    targets = np.eye(situation.labelled_logits.shape[1])[situation.labels]
    with stages("posterior"):
        result = posterior(
            kernel,
            targets,
            situation.labelled_logits.astype(np.float64),
            situation.candidate_logits.astype(np.float64),
            ridge=settings.ridge,
            identifiers=situation.labelled.tolist(),
        )
    with stages("score"):
        scores = mlmoc_scores(result, settings.reference)
    residual = targets - situation.labelled_logits
    diagnostics = {
        "kind": settings.kind,
        "sketch": settings.sketch,
        "reference": settings.reference,
        "ridge": settings.ridge,
        "jitter": result.jitter,
        "determined": int(np.asarray(result.determined).sum()),
        "residual_rms": _rms(residual),
        "drift_rms": _rms(np.asarray(result.drift)),
        "certificate": certificate,
    }
    return top(situation, scores, batch_size, rng, diagnostics)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
