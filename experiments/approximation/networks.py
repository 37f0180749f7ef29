"""Networks of any width, as [P]'s theory has them: from a width to a module for `--network`.

Gaussian weights of variance 2/fan-in (He) under ReLU and no biases, so that nothing but the width
changes what the network is like at its first weights.
"""

from torch import nn


def convnet(
    input_shape: tuple[int, int, int], classes: int, width: int = 32, depth: int = 3
) -> nn.Sequential:
    """3×3 convolutions of one width with ReLU, mean over pixels, linear.

    Args:
        input_shape: (channels, height, width) of an image.
        classes: how many logits.
        width: channels of every convolution.
        depth: how many convolutions.
    """
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
        channels = width
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes, bias=False)]
    return _he(nn.Sequential(*layers, *pooled))


def fcn(
    input_shape: tuple[int, int, int], classes: int, width: int = 128, depth: int = 2
) -> nn.Sequential:
    """Fully connected layers of one width with ReLU, then linear.

    Args:
        input_shape: (channels, height, width) of an image.
        classes: how many logits.
        width: of every hidden layer.
        depth: how many hidden layers.
    """
    channels, height, wide = input_shape
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = channels * height * wide
    for _ in range(depth):
        layers += [nn.Linear(inputs, width, bias=False), nn.ReLU()]
        inputs = width
    return _he(nn.Sequential(*layers, nn.Linear(inputs, classes, bias=False)))


def _he(network: nn.Sequential) -> nn.Sequential:
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network
