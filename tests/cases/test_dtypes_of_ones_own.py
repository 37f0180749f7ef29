"""A network may cast and use autocast as it likes: a certified mirror, the same batch, or words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import BridgeError, ParityError
from bridge.parity import FLOAT64, GRADIENTS, certify
from bridge.trace import mirror
from pipelines.query import query

IMAGES = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)


class Net(nn.Module):
    """A convolution averaged over positions, and any forward behind it."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.rnn = nn.LSTM(6, 6, batch_first=True).requires_grad_(False)
        self.function, self.plain = function, torch.eye(6)  # no buffer

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def made(function: Callable[[Any, Tensor], Tensor]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(function).eval()


def autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.head(self.features(x))


@torch.autocast("cpu", dtype=torch.float16)
def decorated(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        features = self.features(x)
    return self.head(features)


def written(self: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 6)
    out[:, :3] = self.features(x)[:, 3:]
    return self.head(out + self.features(x))


def recurrent(self: Any, x: Tensor) -> Tensor:
    state = torch.zeros(1, x.shape[0], 6)
    return self.head(self.rnn(self.stem(x).mean(2).transpose(1, 2), (state, state))[0][:, -1])


def least(self: Any, x: Tensor) -> Tensor:
    """Scores masked by the least number of their dtype, which float32 does not have of float64."""
    tokens = self.stem(x).flatten(2).transpose(1, 2)
    scores = tokens @ tokens.transpose(1, 2)
    mask = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
    return self.head((scores.softmax(-1) @ tokens).mean(1))


NETWORKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "float at the end": lambda self, x: self.head(self.features(x)).float(),
    "half at the end": lambda self, x: self.head(self.features(x)).half(),
    "bfloat16 at the end": lambda self, x: self.head(self.features(x)).bfloat16(),
    "double at the end": lambda self, x: self.head(self.features(x)).double(),
    "autocast": autocast,
    "autocast, then float": lambda self, x: autocast(self, x).float(),
    "autocast as a decorator, off inside": decorated,
    "double inside": lambda self, x: self.head(F.softmax(self.features(x).double(), 1).to(x.dtype)),
    "half inside": lambda self, x: self.head(self.features(x).half().float()),
    "dtype of a weight": lambda self, x: self.head(self.features(x).to(self.head.weight.dtype)),
    "type_as": lambda self, x: self.head(self.features(x).double().type_as(self.head.weight)),
    "dtype of a softmax": lambda self, x: self.head(
        F.softmax(self.features(x), 1, dtype=torch.float32).type_as(x)
    ),
    "tensor type": lambda self, x: self.head(self.features(x).type(torch.FloatTensor)),
    "mask as float": lambda self, x: self.head((self.features(x) > 0.1).float() @ self.plain),
    "tensor that is no buffer": lambda self, x: self.head(self.features(x) @ self.plain),
    "zeros of the default dtype": recurrent,
    "zeros that are written": written,
    "the least number": least,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mirror_is_exact_whatever_forward_casts(name: str) -> None:
    network = made(NETWORKS[name])
    certificate = certify(network, mirror(network, IMAGES[:2]), IMAGES[:4])
    assert certificate.logits_float64 < FLOAT64 / 100
    assert certificate.gradients < GRADIENTS
    assert certificate.logits_float32 < 1e-5


@pytest.mark.parametrize("name", ["float at the end", "autocast, then float", "half inside"])
def test_a_query_gets_the_batch_of_the_network_without_casts(name: str) -> None:
    plain = made(lambda self, x: self.head(self.features(x)))
    expected = query(plain, IMAGES, {0: 0, 5: 1}, 2).indices.tolist()
    assert query(made(NETWORKS[name]), IMAGES, {0: 0, 5: 1}, 2).indices.tolist() == expected


def test_layers_of_different_dtypes() -> None:
    network = made(lambda self, x: self.head(self.features(x).double()))
    network.head.double()
    assert certify(network, mirror(network, IMAGES[:2]), IMAGES[:4]).gradients < GRADIENTS


def test_rounding_by_casts_is_noted() -> None:
    network = made(autocast)
    (note,) = certify(network, mirror(network, IMAGES[:2]), IMAGES[:4]).exceptions
    assert "forward casts to bfloat16, which changes its logits by" in note
    exact = made(NETWORKS["double inside"])
    assert certify(exact, mirror(exact, IMAGES[:2]), IMAGES[:4]).exceptions == ()


def test_casts_that_do_more_than_round_are_refused() -> None:
    network = made(
        lambda self, x: self.head(self.features(x) + (x[:, 0, 0, :6] + 1e5).bfloat16() - 1e5)
    )
    with pytest.raises(
        ParityError, match=r"forward casts to bfloat16.*where its rounding explains"
    ):
        certify(network, mirror(network, IMAGES[:2]), IMAGES[:4])


def test_logits_of_whole_numbers_are_refused() -> None:
    network = made(lambda self, x: self.head(self.features(x)).long())
    with pytest.raises(BridgeError, match=r"returns torch\.int64; it must return real logits"):
        mirror(network, IMAGES[:2])
