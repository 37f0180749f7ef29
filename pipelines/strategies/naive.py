"""Look-ahead by really retraining: a copy of the network for every candidate ([L] Figure 1).

From a situation to scores: each candidate with its pseudo-label joins the labelled set, a copy of
the network is trained on it for a few epochs, and the score is how far its outputs moved.
"""

import copy
import dataclasses

import numpy as np
from torch import nn

from kernel.engine.scratch import Scratch, key_of
from pipelines.numbered import numbered
from pipelines.strategies.baseline_config import BaselineConfig
from pipelines.strategies.lookahead import reference_sample
from pipelines.strategies.pace import Pace
from pipelines.strategies.situation import Query, Situation, top
from trainer.fit import fit
from trainer.predict import logits
from trainer.train_config import TrainConfig

_REMEDIES = "score fewer candidates (baseline.candidates), sum over fewer (kernel.sample)"


def naive(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Most likely model output change, by SGD: Σ_x ‖f_{L+x'}(x) − f_ref(x)‖.

    Copies start from the trained weights and see the same order of images, so that candidates
    differ by themselves alone. The reference is the trained network, or with kernel.reference
    `linearised` a copy that was trained on as the others were, without any candidate.

    Raises:
        PipelineError: it would take longer than baseline.hours.
        FitError: a copy diverges at every learning rate.
    """
    settings, stages = situation.baseline, situation.stages
    sample_rng, scored_rng, fit_rng = rng.spawn(3)
    sample = reference_sample(len(situation.candidates), situation.kernel.sample, sample_rng)
    sample = np.arange(len(situation.candidates)) if sample is None else sample
    scored = scored_places(len(situation.candidates), settings.candidates, scored_rng)
    config, seed = retraining(situation.train, settings), int(fit_rng.integers(2**63))
    labelled = situation.images(situation.labelled)
    asked = situation.candidates[sample]
    points = situation.images(asked)
    pseudo = situation.candidate_logits.argmax(axis=1)
    state = [tensor.cpu().numpy() for tensor in situation.network.state_dict().values()]
    given = (*state, situation.labels, labelled, situation.candidates[scored], points)
    kept = Scratch()
    if situation.folder is not None:
        kept = Scratch(situation.folder, key_of(given, ("naive", config, seed)))
    scores = kept.array("scores", (len(scored),), np.float64)
    with stages("score") as advance:
        pace = Pace(advance, settings.hours, _REMEDIES)
        base = situation.candidate_logits[sample]
        if situation.kernel.reference == "linearised":
            alone = retrained(situation.network, labelled, situation.labels, config, seed)
            with numbered(asked):
                base = logits(alone, points)
        for number in range(kept.done("scores"), len(scored)):
            pace(number, len(scored))
            image = situation.images(situation.candidates[scored[number : number + 1]])
            images = np.concatenate([labelled, image])
            labels = np.append(situation.labels, pseudo[scored[number]])
            copied = retrained(situation.network, images, labels, config, seed)
            with numbered(asked):
                after = logits(copied, points).astype(np.float64)
            moved = np.linalg.norm(after - base, axis=1)
            scores[number] = moved.sum() * len(situation.candidates) / len(sample)
            kept.mark("scores", number + 1)
        pace(len(scored), len(scored))
    diagnostics = {
        "epochs": config.epochs,
        "learning_rate": config.peak_learning_rate,
        "reference": situation.kernel.reference,
        "sample": situation.kernel.sample,
        "scored": len(scored),
    }
    chosen = dataclasses.replace(situation, candidates=situation.candidates[scored])
    return top(chosen, np.array(scores), batch_size, rng, diagnostics)


def retraining(train: TrainConfig, settings: BaselineConfig) -> TrainConfig:
    """How a copy is trained: as the network was, one short schedule without a floor on steps."""
    return dataclasses.replace(
        train,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate or train.learning_rate,
        min_steps=0,
        extensions=0,
        stop="schedule",
    )


def retrained(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, config: TrainConfig, seed: int
) -> nn.Module:
    """A copy of the network, trained on from its weights; the network stays as it is."""
    copied = copy.deepcopy(network)
    fit(copied, images, labels, config, np.random.default_rng(seed))
    return copied


def scored_places(candidates: int, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Places of the candidates that are scored, in order; all without a limit."""
    if limit is None or limit >= candidates:
        return np.arange(candidates)
    return np.sort(rng.choice(candidates, limit, replace=False))
