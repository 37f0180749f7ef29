"""LL4AL: query the images whose loss is predicted to be largest (Yoo & Kweon 2019).

From a situation with a trained loss prediction module to scores: the predicted loss of every
candidate, in one forward pass of the network and the module. The formulas, the training of the
module and what of the paper is done otherwise are in `trainer.networks.loss_prediction`.

The score is l̂, higher = query first: the largest predicted loss. It orders images and has no
scale. Cost: the module's training along with the network (a few small matrix products a step),
and U forward passes, O(U) memory. The paper scores a random subset of the pool, which is `subset`
here, and queries the top of it with no term for diversity.
"""

import numpy as np
import torch

from pipelines.errors import PipelineError
from pipelines.progress import numbered
from pipelines.strategies.base import Query, Situation, top
from trainer.fit import losses
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import Piecewise


def ll4al(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """The largest predicted losses.

    Raises:
        PipelineError: no module was trained along with the network.
        NetworkError: it was trained with another; logits or predictions that are not finite.
    """
    companion = situation.companion
    if companion is None:
        raise PipelineError(
            "ll4al queries by a module that is trained together with the network, and there is "
            "none: make one, companion = LossPrediction.of(network, images, rng) of "
            "trainer.networks.loss_prediction, train with trainer.fit.fit(…, companion=companion), "
            "and ask query(…, companion=companion)."
        )
    with situation.stages("score"):
        scores = _predicted(situation, companion, situation.candidates)
        known = _predicted(situation, companion, situation.labelled)
    diagnostics = {"taps": list(companion.taps), "rank_correlation": _agreement(situation, known)}
    return top(situation, scores, batch_size, rng, diagnostics)


def _predicted(situation: Situation, companion: LossPrediction, indices: np.ndarray) -> np.ndarray:
    with numbered(indices):
        return companion.predict(situation.network, Piecewise(situation.images, indices))


def _agreement(situation: Situation, predicted: np.ndarray) -> float | None:
    """Spearman's between predicted and true losses of the labelled images; None if one is flat."""
    from scipy.stats import rankdata  # a second, for one number

    answers = torch.from_numpy(np.array(situation.labelled_logits))
    targets = torch.from_numpy(np.asarray(situation.labels, np.int64))
    true = losses(answers, targets, situation.train.loss).numpy()
    if np.ptp(true) == 0 or np.ptp(predicted) == 0 or not np.isfinite(predicted).all():
        return None
    return float(np.corrcoef(rankdata(true), rankdata(predicted))[0, 1])
