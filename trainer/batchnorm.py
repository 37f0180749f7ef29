"""Frozen and recomputed BatchNorm statistics, and Monte Carlo dropout.

With frozen statistics the network is a function of one image, which the empirical NTK needs
(docs/mathematics.md, 2). Monte Carlo passes switch on dropout layers alone; BatchNorm keeps its
running statistics (Gal & Ghahramani 2016).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from trainer.predict import Images, answers, forward, hooks, placement, refuse_training, to_tensor
from trainer.randomness import seeded
from trainer.trainable import is_frozen

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def reestimate(
    network: nn.Module,
    images: Float[np.ndarray, "examples channels height width"],
    batch_size: int = 512,
) -> None:
    """Set running means and variances to those of the given images; leave it in eval mode.

    Those of layers that are frozen stay as they are.

    The statistics are exact for any batch size: layers are counted in the order in which they
    run, each on inputs that the layers before it have already normalised by their new statistics.
    The variance is the population's (divided by the count), so afterwards the frozen network gives
    these images the logits that it would give them in train mode as one batch.

    Args:
        network: its running statistics change, its parameters do not.
        images: normalised, not augmented, at least one.
        batch_size: how many images go through the network at once.
    """
    network.eval()
    tensor = to_tensor(images, network)
    batches = tensor.split(batch_size)
    with torch.no_grad():
        for norm in _in_order_of_use(network, batches[0][:1]):
            moments = _Moments()
            watch = norm.register_forward_pre_hook(moments.watch)
            with hooks(network, [watch]):
                for batch in batches:
                    forward(network, batch)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(moments.mean)
            norm.running_var.copy_(moments.variance())


class _Moments:
    """Count, sum and centred sum of squares for each channel, in float64, batch after batch."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def watch(self, _: object, inputs: tuple[torch.Tensor, ...]) -> None:
        """Merge the batch that a layer is given (Chan, Golub & LeVeque 1983)."""
        flat = inputs[0].double().transpose(0, 1).flatten(start_dim=1)
        count = flat.shape[1]
        mean = flat.mean(dim=1)
        squares = (flat - mean[:, None]).square().sum(dim=1)
        total = self.count + count
        difference = mean - self.mean.to(mean.device)
        self.squares = self.squares.to(mean.device) + squares
        self.squares = self.squares + difference.square() * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + difference * (count / total)
        self.count = total

    def variance(self) -> torch.Tensor:
        return self.squares / self.count


def _in_order_of_use(network: nn.Module, image: torch.Tensor) -> list[nn.BatchNorm2d]:
    """The layers with running statistics that a forward pass reaches, in its order, once each."""
    order: list[nn.BatchNorm2d] = []

    def note(module: nn.Module, _: object) -> None:
        if module not in order:
            order.append(module)  # pyright: ignore[reportArgumentType]

    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
    watched = [m for m in norms if m.running_mean is not None and not is_frozen(m)]
    registered = (m.register_forward_pre_hook(note) for m in watched)
    with hooks(network, registered):
        forward(network, image)
    return order


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """Dropout layers of torch with a rate above 0."""
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
