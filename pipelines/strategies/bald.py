"""BALD by Monte Carlo dropout (Houlsby et al. 2011; Gal, Islam & Ghahramani 2017).

The score is the mutual information between a candidate's label and the weights.
"""

import numpy as np
from scipy.special import entr
from torch import nn

from pipelines.core.errors import PipelineError
from pipelines.core.progress import named_images
from pipelines.strategies.base import Oracle, Query, QueryContext, probabilities, top
from pipelines.strategies.options import StrategyOptions
from trainer.batchnorm import dropout_layers, dropped_logits
from trainer.predict import Piecewise


def bald(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """H(mean_t p_t) − mean_t H(p_t) over `bald.samples` passes, in nats; p by the loss."""
    samples, candidates = context.options.bald.samples, context.candidates
    (passes_rng,) = rng.spawn(1)
    images = Piecewise(context.images, candidates)
    total, uncertain = np.zeros(()), np.zeros(len(candidates))
    with context.progress("score") as advance:
        for number, own in enumerate(passes_rng.spawn(samples)):
            with named_images(candidates):
                f = dropped_logits(context.network, images, own)
            p = probabilities(f, context.train.loss)
            total = total + p
            uncertain += entr(p).sum(axis=1)
            advance(number + 1, samples)
        # (38) H(mean_t p_t) − mean_t H(p_t)
        scores = entr(total / samples).sum(axis=1) - uncertain / samples
    # never below 0 but for rounding, as entropy is concave
    diagnostics = {"samples": samples, "dropout_layers": len(dropout_layers(context.network))}
    return top(context, np.maximum(scores, 0), batch_size, rng, diagnostics)


def require(
    network: nn.Module, probe: np.ndarray, options: StrategyOptions, oracle: Oracle | None
) -> None:
    """Refuse a network that answers alike in every pass.

    Raises:
        PipelineError: it has no layer of dropout with a rate above 0.
    """
    if not dropout_layers(network):
        raise PipelineError(
            f"bald asks the network several times with dropout at work, and this "
            f"{type(network).__name__} has no layer of dropout with a rate above 0: give the "
            "networks of the table one by --network-args dropout=0.2, and your own an nn.Dropout "
            "(torch.nn.functional.dropout cannot be switched on alone)."
        )
