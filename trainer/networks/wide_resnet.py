"""Pre-activation wide residual networks with biased convolutions ([L]; docs/mathematics.md, 5).

The stem has 16k channels and residual stage i has 16k·2ⁱ: one stage ends at width 32k, two at 64k.
Blocks are those of Zagoruyko & Komodakis (2016), with their dropout if it is asked for.
"""

import torch
from torch import nn
from torch.nn import functional

from trainer.errors import NetworkError
from trainer.networks.arguments import dropout_layer, require_counts

_NARROWEST = 16  # channels of the stem at a widen factor of 1


class _Block(nn.Module):
    """BN-ReLU-conv twice, plus the input; a change of shape goes through a 1×1 convolution.

    Dropout, where there is any, stands before the second convolution.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, dropout: float | int
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.dropout = dropout_layer("wide_resnet", dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, channels_in, height, width) → (batch, channels_out, height', width')."""
        active = functional.relu(self.norm1(inputs))
        inner = functional.relu(self.norm2(self.conv1(active)))
        residual = self.conv2(inner if self.dropout is None else self.dropout(inner))
        return residual + (inputs if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Stem, residual stages, BN-ReLU, mean over pixels, linear."""

    def __init__(
        self,
        channels: int,
        classes: int,
        stages: int,
        widen: float | int,
        blocks: int,
        dropout: float | int = 0,
    ) -> None:
        """Draw the initial weights from torch's generator; see `wide_resnet`."""
        super().__init__()
        width = int(_NARROWEST * widen)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        body: list[nn.Module] = []
        for _ in range(stages):
            body.append(_Block(width, 2 * width, 2, dropout))
            width *= 2
            body.extend(_Block(width, width, 1, dropout) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(*body)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) → (batch, classes) logits."""
        features = functional.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(features.mean(dim=(2, 3)))


def wide_resnet(
    input_shape: tuple[int, int, int],
    classes: int,
    stages: int = 1,
    widen: float | int = 2,
    blocks: int = 1,
    dropout: float | int = 0,
) -> WideResNet:
    """A wide residual network; 232,330 parameters at one stage, widen 4, 1 channel, 10 classes.

    Args:
        input_shape: (channels, height, width); any height and width.
        classes: how many logits.
        stages: residual stages; the papers' '1 layer' and '2 layers'.
        widen: the widen factor k; 16k channels to begin with, which has to be a whole number. The
            widest layer of one stage has 32k: [L]'s width of 40 is k = 1.25.
        blocks: residual blocks a stage; 1 is depth 10 of the WideResNet family.
        dropout: rate at which what the second convolution of a block is given is dropped in
            training; [L] has none.

    Raises:
        NetworkError: a count is not a whole number of at least 1, nor 16·widen; the rate is not in
            [0, 1).
    """
    require_counts("wide_resnet", stages=stages, blocks=blocks)
    number = isinstance(widen, int | float) and not isinstance(widen, bool)
    if not number or not _NARROWEST * widen >= 1 or _NARROWEST * widen % 1:
        raise NetworkError(
            f"wide_resnet: widen is {widen!r}; it must be a number of which {_NARROWEST} times is "
            "a whole number of at least 1, such as 0.5, 1.25 or 20"
        )
    return WideResNet(input_shape[0], classes, stages, widen, blocks, dropout)
