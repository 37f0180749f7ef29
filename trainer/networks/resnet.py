"""ResNet18 with the stem for small images (docs/mathematics.md, 5): torchvision's, restemmed."""

from torch import nn

from trainer.torchvision_compat import torchvision


def resnet18(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet18 with a 3×3 stem of stride 1 and no max pool; 11.17M parameters at 10 classes.

    Args:
        input_shape: (channels, height, width); any height and width.
        classes: how many logits.
    """
    network = torchvision.models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return network
