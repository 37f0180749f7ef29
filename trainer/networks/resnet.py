"""ResNet18 with the stem for small images (docs/mathematics.md, 5): torchvision's, restemmed."""

from torch import nn

from trainer.networks.arguments import dropout_layer


def resnet18(
    input_shape: tuple[int, int, int], classes: int, dropout: float | int = 0
) -> nn.Module:
    """ResNet18 with a 3×3 stem of stride 1 and no max pool; 11.17M parameters at 10 classes.

    Args:
        input_shape: (channels, height, width); any height and width.
        classes: how many logits.
        dropout: rate at which what the linear layer is given is dropped in training.

    Raises:
        NetworkError: the rate is not in [0, 1).
    """
    from trainer.torchvision_compat import torchvision  # seconds, for this network alone

    layer = dropout_layer("resnet18", dropout)
    network = torchvision.models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if layer is not None:  # after the mean over pixels, so that no weight changes its name
        network.avgpool = nn.Sequential(network.avgpool, layer)  # pyright: ignore[reportAttributeAccessIssue]
    return network
