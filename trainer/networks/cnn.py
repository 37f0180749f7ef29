"""The plain convolutional network of [D]: three convolutions and a linear layer."""

import torch
from torch import nn

from trainer.networks.arguments import dropout_layer


class CNN(nn.Module):
    """3×3 convolutions 32 → 64 → 128 with ReLU, mean over pixels, perhaps dropout, linear."""

    def __init__(self, channels: int, classes: int, dropout: nn.Module | None = None) -> None:
        """Draw the initial weights from torch's generator."""
        super().__init__()
        layers: list[nn.Module] = []
        for width in (32, 64, 128):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.dropout = dropout
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, classes) logits."""
        features = self.features(images).mean(dim=(2, 3))
        return self.head(features if self.dropout is None else self.dropout(features))


def cnn(input_shape: tuple[int, int, int], classes: int, dropout: float | int = 0) -> CNN:
    """The CNN of [D]: 94,538 parameters at 3 channels and 10 classes.

    Args:
        input_shape: (channels, height, width); any height and width.
        classes: how many logits.
        dropout: rate at which what the linear layer is given is dropped in training; [D] has none.

    Raises:
        NetworkError: the rate is not in [0, 1).
    """
    return CNN(input_shape[0], classes, dropout_layer("cnn", dropout))
