"""Forward passes with dropout at work: samples of what a network might answer.

From a network in eval mode and images to logits that differ from pass to pass. Only the layers of
dropout are switched on; BatchNorm keeps to its running statistics (Gal & Ghahramani 2016).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float32
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from trainer.piecewise import Images
from trainer.predict import answers, placement, refuse_training
from trainer.randomness import seeded


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """Those of torch's own layers of dropout that drop anything."""
    return [part for part in network.modules() if isinstance(part, _DropoutNd) and part.p > 0]


def dropped_logits(
    network: nn.Module,
    images: Images,
    rng: np.random.Generator,
    batch_size: int = 512,
) -> Float32[np.ndarray, "examples classes"]:
    """Logits of every image in one pass with dropout at work.

    Args:
        network: in eval mode; it is left in eval mode, and torch's random state as it was.
        images: (examples, channels, height, width), as the network takes them; read batch by batch.
        rng: what is dropped follows from it alone, and from the batch size.
        batch_size: how many images go through the network at once.

    Raises:
        NetworkError: as `trainer.predict.logits`.
        DataError: the images are not floating point.
    """
    refuse_training(network)
    with seeded(rng, placement(network)[0]), _dropping(network):
        return answers(network, images, batch_size)


@contextmanager
def _dropping(network: nn.Module) -> Iterator[None]:
    layers = dropout_layers(network)
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer in layers:
            layer.eval()
