"""A network's architecture apart from its widths: its name in `NETWORKS` and its depths."""

from typing import NamedTuple

from torch import nn

from trainer.networks.cnn import CNN
from trainer.networks.vgg import VGG
from trainer.networks.wide_resnet import WideResNet


class Depths(NamedTuple):
    """A network without its widths.

    Attributes:
        name: of the network.
        arguments: (name, value) of what is not a width: stages and blocks of `wide_resnet`,
            halvings of `vgg11_bn`.
    """

    name: str
    arguments: tuple[tuple[str, int], ...] = ()


def depths_of(network: nn.Module) -> Depths | None:
    """The papers' network that a module is, or None where it is another."""
    if isinstance(network, CNN):
        return Depths("cnn")
    if isinstance(network, VGG):
        halvings = sum(isinstance(layer, nn.MaxPool2d) for layer in network.features)
        return Depths("vgg11_bn", (("halvings", halvings),))
    if isinstance(network, WideResNet):
        stages = sum(block.shortcut is not None for block in network.blocks)
        blocks = len(network.blocks) // stages
        return Depths("wide_resnet", (("stages", stages), ("blocks", blocks)))
    from trainer.torchvision_compat import torchvision  # seconds, which the others do not need

    if isinstance(network, torchvision.models.ResNet) and _is_resnet18(network):
        return Depths("resnet18")
    return None


def _is_resnet18(network: nn.Module) -> bool:
    """True for torchvision's ResNet18 with the stem for small images, as `resnet18` makes it."""
    stem = network.conv1
    plain = isinstance(stem, nn.Conv2d) and stem.stride == (1, 1) and stem.kernel_size == (3, 3)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    return (
        plain
        and isinstance(network.maxpool, nn.Identity)
        and all(isinstance(stage, nn.Sequential) and len(stage) == 2 for stage in stages)
        and not any(hasattr(block, "conv3") for block in network.layer1.children())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    )
