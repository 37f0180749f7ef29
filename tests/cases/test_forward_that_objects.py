"""A network that refuses its images in its own words: status 2, the shape and the words."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge import check
from bridge.errors import BridgeError
from bridge.parity import certify
from bridge.trace import mirror
from pipelines.query import query
from trainer.errors import NetworkError

IMAGES = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
OWN = """
import torch
from torch import nn


class Patches(nn.Module):
    def __init__(self, channels, classes, size):
        super().__init__()
        self.size, self.patch, self.head = size, nn.Conv2d(channels, 8, 4, 4), nn.Linear(8, classes)

    def forward(self, x):
        fits = x.shape[-1] == self.size
        torch._assert(fits, f"image of {x.shape[-1]} pixels, {self.size} wanted")
        return self.head(self.patch(x).flatten(2).mean(-1))


def vit(input_shape, classes, size=224):
    return Patches(input_shape[0], classes, size)
"""


@pytest.fixture
def objecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objecting.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "objecting", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("objecting")
def test_the_check_ends_with_2_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check", "objecting:vit", "--shape", "3,32,32"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "images of shape (2, 3, 32, 32)" in said
    assert "AssertionError: image of 32 pixels, 224 wanted" in said
    assert len(said.splitlines()) == 1


class Net(nn.Module):
    def __init__(self, body: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(192, 4), body

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.head(x.flatten(1))


def raising(error: Exception, when: Callable[[Tensor], bool] = lambda x: True) -> Net:
    def body(x: Tensor) -> None:
        if when(x):
            raise error

    return Net(body).eval()


ERRORS = [
    AssertionError("224 wanted"),
    ValueError("224 wanted"),
    RuntimeError("224 wanted"),
    NotImplementedError("224 wanted"),
    TypeError("224 wanted"),
    KeyError("224 wanted"),
    AttributeError("224 wanted"),
    IndexError("224 wanted"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("strategy", ["margin", "coreset", "mlmoc"])
def test_a_query_names_shape_and_words(error: Exception, strategy: str) -> None:
    with pytest.raises(
        NetworkError, match=rf"shape \(\d, 3, 8, 8\).*{type(error).__name__}.*224 w"
    ):
        query(raising(error), IMAGES, {0: 0, 1: 1}, 2, strategy)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_mirror_names_shape_and_words(error: Exception) -> None:
    with pytest.raises(BridgeError, match=rf"shape \(2, 3, 8, 8\).*{type(error).__name__}.*224 w"):
        mirror(raising(error), IMAGES[:2])


def test_an_objection_to_float64_is_named_by_the_certificate() -> None:
    network = raising(ValueError("no doubles"), lambda x: x.dtype is torch.float64 and len(x) > 2)
    with pytest.raises(BridgeError, match=r"in torch\.float64, which its certificate.*no doubles"):
        certify(network, mirror(network, IMAGES[:2]), IMAGES[:4])


def test_an_error_without_words_is_named() -> None:
    with pytest.raises(NetworkError, match=r"shape \(\d, 3, 8, 8\).*AssertionError"):
        query(raising(AssertionError()), IMAGES, {0: 0, 1: 1}, 2, "margin")
