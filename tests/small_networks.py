"""Small networks of the constructs that image classifiers are written with, for the bridge."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """Pre-activation block with BatchNorm and a strided 1×1 shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding="same")
        self.shortcut = nn.Conv2d(channels, width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu_(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + self.shortcut(active)


class WideResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Residual(4, 8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.block(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1))


class Handwritten(nn.Module):
    """In-place operations, a bare parameter, a constant, a frozen layer, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 3)[:, None, None])
        self.head = nn.Linear(2 * 3 * 16, CLASSES)
        self.frozen = nn.Linear(CLASSES, CLASSES).requires_grad_(False)
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.tanh(self.conv(x))) * self.scale
        x = torch.cat([x, F.silu(x - self.shift)], dim=1)
        x = F.avg_pool2d(x, 2)
        x[:, 0] += 1.0
        x = self.frozen(self.head(x.flatten(1))).div_(2)
        return x + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).mean((2, 3)).squeeze()
        return self.head(F.gelu(self.second(F.gelu(self.first(x)))))


def vgg() -> nn.Module:
    """Max pooling down to images smaller than the kernel, and dropout."""
    layers: list[nn.Module] = []
    for channels, width in ((3, 4), (4, 8), (8, 8)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def normalised() -> nn.Module:
    """Grouped and dilated convolution, GroupNorm, LayerNorm, log-softmax."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, padding_mode="circular"),
        nn.GroupNorm(2, 6),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.LayerNorm(36),
        nn.Linear(36, CLASSES),
        nn.LogSoftmax(dim=1),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wide_resnet": WideResNet,
    "handwritten": Handwritten,
    "tied": Tied,
    "vgg": vgg,
    "normalised": normalised,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode whose BatchNorm statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = torch.randn(part.num_features) / 4
                part.running_var = torch.rand(part.num_features) + 0.5
                nn.init.normal_(part.weight, 1.0, 0.2)
                nn.init.normal_(part.bias, 0.0, 0.2)
    return network.eval()
