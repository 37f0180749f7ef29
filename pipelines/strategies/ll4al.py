"""LL4AL: the images whose loss is predicted to be largest (Yoo & Kweon 2019).

Losses of all candidates are predicted in one forward pass of the network and the module that was
trained along with it; formulas, training and differences from the paper are in
`trainer.networks.loss_prediction`.

The score is l̂, higher = query first: the largest predicted loss. It orders images and has no
scale. Cost: the module's training along with the network (a few small matrix products a step),
and U forward passes, O(U) memory. The paper scores a random subset of the pool, which is `subset`
here, and queries the top of it with no term for diversity.
"""

import numpy as np
import torch

from pipelines.core.errors import PipelineError
from pipelines.core.progress import named_images
from pipelines.strategies.base import Query, QueryContext, top
from trainer.fit import losses
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import Piecewise


def ll4al(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """The largest predicted losses.

    Raises:
        PipelineError: no module was trained along with the network.
        NetworkError: it was trained with another; logits or predictions that are not finite.
    """
    module = context.resources.auxiliary_module
    if module is None:
        raise PipelineError(
            "ll4al queries by a module that is trained together with the network, and there is "
            "none: make one, module = LossPrediction.of(network, images, rng) of "
            "trainer.networks.loss_prediction, train with "
            "trainer.fit.fit(…, auxiliary_module=module), and ask "
            "query(…, auxiliary_module=module)."
        )
    with context.progress("score"):
        scores = _predicted_losses(context, module, context.candidates)
        known = _predicted_losses(context, module, context.labelled)
    diagnostics = {"taps": list(module.taps), "rank_correlation": _rank_correlation(context, known)}
    return top(context, scores, batch_size, rng, diagnostics)


def _predicted_losses(
    context: QueryContext, module: LossPrediction, indices: np.ndarray
) -> np.ndarray:
    with named_images(indices):
        return module.predict(context.network, Piecewise(context.images, indices))


def _rank_correlation(context: QueryContext, predicted: np.ndarray) -> float | None:
    """Spearman's between predicted and true losses of the labelled images; None if one is flat."""
    from scipy.stats import rankdata  # a second, for one number

    answers = torch.from_numpy(np.array(context.labelled_logits))
    targets = torch.from_numpy(np.asarray(context.labels, np.int64))
    true = losses(answers, targets, context.train.loss).numpy()
    if np.ptp(true) == 0 or np.ptp(predicted) == 0 or not np.isfinite(predicted).all():
        return None
    return float(np.corrcoef(rankdata(true), rankdata(predicted))[0, 1])
