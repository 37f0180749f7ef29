"""Every strategy on networks and pools that it may not serve: an answer, or one sentence.

Equal scores are never passed off as a choice: picks among them are reported as `ties`.
"""

import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bridge.errors import BridgeError
from bridge.trace import mirror
from kernel.errors import KernelError
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, needing, needs_mirror
from pipelines.strategies.base import Query
from pipelines.strategies.options import BaselineConfig, QueryOptions
from trainer.errors import TrainerError
from trainer.networks import build

SHAPE, IMAGES, CLASSES = (1, 6, 6), 12, 3
LABELLED = {10: 0, 3: 1, 7: 2, 0: 0}
ERRORS = (PipelineError, TrainerError, BridgeError, KernelError)
OPTIONS = {
    "naive": BaselineConfig(epochs=1),
    "gp": BaselineConfig(image_size=2),
    "infinite_ntk": BaselineConfig(image_size=2),
}
every = pytest.mark.parametrize("name", STRATEGIES)


class Scaled(nn.Module):
    """A network that no linear layer ends."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.tensor(3.0))

    def forward(self, images):
        return self.scale * torch.tanh(self.inner(images))


def cnn(classes: int = CLASSES) -> nn.Module:
    return build("cnn", SHAPE, classes, np.random.default_rng(0), {"dropout": 0.3}).eval()


def filled(value: float) -> nn.Module:
    network = cnn()
    *_, weight, bias = network.parameters()  # of the last layer
    with torch.no_grad():
        weight.zero_()
        bias.fill_(value)
    return network


def plain(*last: nn.Module, width: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, width), *last).eval()


NETWORKS = {
    "dropout and head": cnn,
    "one logit": functools.partial(plain, width=1),
    "two logits": functools.partial(cnn, 2),
    "constant logits": functools.partial(filled, 0.25),
    "NaN logits": functools.partial(filled, float("nan")),
    "infinite logits": functools.partial(filled, float("inf")),
    "no dropout": plain,
    "no linear head": lambda: Scaled(plain()).eval(),
    "no parameters": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten()).eval(),
    "frozen parameters": lambda: plain().requires_grad_(False),
}
# what a network does not serve, whatever else the strategy could do with it
REFUSALS: dict[str, tuple[frozenset[str], str]] = {
    "one logit": (
        needing("classes", "dropout", "infinite"),
        "compares classes|no layer of dropout|no counterpart",
    ),
    "NaN logits": (frozenset(STRATEGIES) - {"random"}, "not finite|trained together"),
    "infinite logits": (frozenset(STRATEGIES) - {"random"}, "not finite|trained together"),
    "no dropout": (needing("dropout", "infinite"), "no layer of dropout|no counterpart"),
    "no parameters": (needing("kernel", "gradients", "training"), "set requires_grad on"),
    "frozen parameters": (needing("kernel", "gradients", "training"), "set requires_grad on"),
    "no linear head": (needing("features"), "no such layer|feature"),
}


@functools.cache
def network_and_mirror(kind: str) -> tuple[nn.Module, Any]:
    network = NETWORKS[kind]()
    try:
        return network, mirror(network, pictures()[:2])
    except BridgeError:
        return network, None


def pictures() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(IMAGES, *SHAPE)).astype(np.float32)


def ask(name: str, kind: str, **changes: Any) -> Query | Exception:
    """The query, or the error of ours that was raised for it."""
    network, twin = network_and_mirror(kind)
    labelled = {i: c % network(torch.tensor(pictures()[:1])).shape[1] for i, c in LABELLED.items()}
    given: dict[str, Any] = {"images": pictures(), "labelled": labelled, "batch_size": 3}
    options = QueryOptions(baseline=OPTIONS.get(name, BaselineConfig()))
    if needs_mirror(STRATEGIES[name].needs):
        given["mirror"] = twin
    try:
        return query(network, strategy=name, options=options, **given | changes)
    except ERRORS as error:
        return error


def check(found: Query | Exception, batch_size: int = 3) -> None:
    """A batch of different candidates with finite scores, equal ones reported; or a sentence."""
    if isinstance(found, Exception):
        said = str(found)
        assert len(said) > 20
        assert ": " in said or "; " in said, said  # what was found, and what to do
        return
    assert len(set(found.indices.tolist())) == batch_size
    assert set(found.indices.tolist()) <= set(found.candidates.tolist())
    assert np.isfinite(found.candidate_scores).all()
    others = found.candidate_scores[~np.isin(found.candidates, found.indices)]
    if len(others) and np.ptp(found.candidate_scores) == 0:
        assert "same score, to rounding" in found.diagnostics["ties"]


@every
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks(name, kind):
    found = ask(name, kind)
    check(found)
    names, message = REFUSALS.get(kind, (frozenset(), ""))
    if name in names:
        assert isinstance(found, Exception)
        assert re.search(message, str(found))
    elif kind == "two logits" and name != "ll4al":
        assert isinstance(found, Query), found


POOLS: dict[str, tuple[dict[str, Any], str | None]] = {
    "a pool of one": ({"labelled": {i: i % 3 for i in range(1, IMAGES)}, "batch_size": 1}, None),
    "the batch is the pool": ({"batch_size": IMAGES - len(LABELLED)}, None),
    "a batch beyond the pool": (
        {"batch_size": IMAGES - len(LABELLED) + 1},
        "query of 9 images was asked for and 8 are not labelled yet",
    ),
    "everything labelled": (
        {"labelled": {i: i % 3 for i in range(IMAGES)}},
        "query of 3 images was asked for and 0 are not labelled yet",
    ),
    "nothing labelled": ({"labelled": {}}, "the labelled set is empty"),
    "one labelled class": ({"labelled": dict.fromkeys(LABELLED, 1)}, None),
    "one label": ({"labelled": {3: 1}}, None),
    "identical images": ({"images": np.ones((IMAGES, *SHAPE), np.float32)}, None),
}


@every
@pytest.mark.parametrize("pool", POOLS)
def test_pools(name, pool):
    changes, message = POOLS[pool]
    found = ask(name, "dropout and head", **changes)
    if name == "ll4al" and message is None:  # its module is a matter of its own tests
        return
    check(found, changes.get("batch_size", 3))
    if message is None:
        assert isinstance(found, Query), found
    else:
        assert isinstance(found, Exception)
        assert message in str(found)


@every
def test_identical_images_are_reported(name):
    """All candidates alike, and none like a labelled image."""
    images = pictures()
    images[[i for i in range(IMAGES) if i not in LABELLED]] = images[1]
    found = ask(name, "dropout and head", images=images)
    if name in ("random", "albl", "bald", "ll4al"):  # which draw for each image
        return
    assert isinstance(found, Query), found
    # of greedy criteria the first pick has another score than its copies have after it
    assert re.search("same score, to rounding|have the scores of", found.diagnostics["ties"])
