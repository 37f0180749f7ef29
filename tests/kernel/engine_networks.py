"""Tiny networks that have every layer with a rule, and most without, for the kernel's engine."""

import warnings
from functools import cache

import jax
import numpy as np
import torch
from jax import numpy as jnp
from torch import Tensor, nn

from bridge.trace import mirror
from kernel.model import Model

CLASSES = 3
SHAPE = (2, 5, 5)


class Convolutions(nn.Module):
    """`same` with an even kernel, depthwise, dilated, 1×1, and one as large as its image."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(2, 4, 2, padding="same")
        self.norm, self.slope = nn.BatchNorm2d(4), nn.PReLU(4)
        self.deep = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.dilated = nn.Conv2d(8, 3, 2, dilation=2, padding=1)
        self.point, self.groups = nn.Conv2d(3, 4, 1, bias=False), nn.GroupNorm(2, 4)
        self.whole, self.head = nn.Conv2d(4, 5, 3), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.slope(self.norm(self.same(x))))
        x = self.groups(self.point(torch.tanh(self.dilated(x))))
        return self.head(torch.tanh(self.whole(x)).flatten(1))


class Sequences(nn.Module):
    """Tokens: positions, a class token, tied and half frozen layers, an axis folded away."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.LayerNorm(4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 6, 4))
        self.mix, self.again, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.again.weight = self.mix.weight
        self.last.weight.requires_grad_(False)
        self.narrow = nn.Linear(4, 4)
        self.folded, self.head = nn.Conv1d(2, 3, 2), nn.Linear(27, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.mean(-1)).transpose(1, 2))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.again(torch.tanh(self.mix(x)))
        x = torch.tanh(self.narrow(torch.tanh(self.last(x))))
        x = self.folded(x.reshape(-1, 2, 4))  # three copies an image
        return self.head(x.reshape(-1, 27))


class Volumes(nn.Module):
    """Axes that differ in everything, after a layer of one number an output channel."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv3d(1, 2, 1, bias=False)
        self.volume = nn.Conv3d(2, 2, (2, 3, 1), (1, 2, 3), (1, 0, 1), (1, 2, 1))
        self.head = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.volume(self.widen(x[:, None]))).flatten(1))


class Words(nn.Module):
    """Embeddings of tokens that repeat, one of them with an entry for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(4, 3, padding_idx=1), nn.Embedding(4, 3)
        with torch.no_grad():
            self.words.weight.normal_()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        places = (x.flatten(1)[:, :6].abs() * 2).long().clamp(max=3)
        mixed = torch.tanh(self.words(places)) * self.kinds(places.flip(1))
        return self.head(mixed.mean(1))


NETWORKS = {cls.__name__: cls for cls in (Convolutions, Sequences, Volumes, Words)}


def images(count: int, seed: int = 3) -> np.ndarray:
    """In float64."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE))


@cache
def model(name: str) -> Model:
    """In float64, the same function each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = NETWORKS[name]()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = torch.randn(part.num_features) / 4
                part.running_var = torch.rand(part.num_features) + 0.5
    with warnings.catch_warnings():  # torch says that it pads an image for an even kernel
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel", UserWarning)
        twin = mirror(network.eval(), images(2).astype("float32"))
    return twin.astype(jnp.float64).model()


@cache
def plain(name: str) -> Model:
    """The same network without taps."""
    own = model(name)

    def function(params, frozen, x):
        return own.function(params, frozen, x)

    return Model(function, *own[1:])


@cache
def jacobian(name: str, count: int) -> dict[str, np.ndarray]:
    """∂ of every logit of `images(count)` by parameter: (images, classes, …), by jax alone."""
    own = plain(name)

    def logits(params, image):
        return own.function(params, own.frozen, image[None])[0]

    one = jax.jit(jax.vmap(jax.jacrev(logits), (None, 0)))
    return {k: np.asarray(v) for k, v in one(own.params, jnp.asarray(images(count))).items()}


def flat_jacobian(name: str, count: int) -> np.ndarray:
    """(images, classes, parameters)."""
    own = jacobian(name, count)
    return np.concatenate([own[k].reshape(count, CLASSES, -1) for k in sorted(own)], axis=2)
