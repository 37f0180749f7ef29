"""VGG11 with BatchNorm for small images: eight convolutions and one linear layer ([D])."""

import torch
from torch import nn

from trainer.errors import NetworkError
from trainer.networks.arguments import dropout_layer

# Channels of each 3×3 convolution, in the five groups that a halving of the image follows.
_GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Convolutions, mean over the remaining pixels, perhaps dropout, linear."""

    def __init__(
        self, channels: int, classes: int, last_pool: bool, dropout: nn.Module | None = None
    ) -> None:
        """Draw the initial weights from torch's generator; `last_pool` is the fifth halving."""
        super().__init__()
        layers: list[nn.Module] = []
        for group in _GROUPS:
            for width in group:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*(layers if last_pool else layers[:-1]))
        self.dropout = dropout
        self.head = nn.Linear(channels, classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, classes) logits."""
        features = self.features(images).mean(dim=(2, 3))
        return self.head(features if self.dropout is None else self.dropout(features))


def vgg11_bn(input_shape: tuple[int, int, int], classes: int, dropout: float | int = 0) -> VGG:
    """VGG11-BN with one linear layer; 9.23M parameters at 3 channels and 10 classes.

    Five halvings turn 32×32 pixels into one. Images of 16 to 31 pixels are at one pixel after
    four, so the fifth is left out for them; larger ones end in a mean over what remains.

    Args:
        input_shape: (channels, height, width), height and width at least 16.
        classes: how many logits.
        dropout: rate at which what the linear layer is given is dropped in training.

    Raises:
        NetworkError: the images are too small to be halved four times; the rate is not in [0, 1).
    """
    channels, height, width = input_shape
    if min(height, width) < 16:
        raise NetworkError(
            f"vgg11_bn halves an image at least four times and needs 16×16 pixels; the images are "
            f"{height}×{width}: use wide_resnet, cnn or resnet18, or larger images"
        )
    layer = dropout_layer("vgg11_bn", dropout)
    return VGG(channels, classes, last_pool=min(height, width) >= 32, dropout=layer)
