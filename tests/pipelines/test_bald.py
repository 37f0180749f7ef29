"""BALD: mutual information by hand, passes with dropout alone switched on, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import entropy
from torch import nn

from bridge.parity import certify
from bridge.trace import mirror
from pipelines import digits
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.run import prepared
from pipelines.strategies.options import BaldConfig, QueryOptions
from trainer.batchnorm import dropout_layers, dropped_logits
from trainer.errors import NetworkError
from trainer.networks import build
from trainer.predict import logits

LABELLED = {2: 0, 11: 1, 5: 2}


@pytest.fixture
def images(rng):
    return rng.normal(size=(20, 1, 16, 16)).astype(np.float32)


@pytest.fixture
def network():
    return build("cnn", (1, 16, 16), 3, np.random.default_rng(0), {"dropout": 0.5})


def test_the_score_is_the_mutual_information_of_the_passes(network, images, monkeypatch):
    drawn = np.random.default_rng(3).normal(size=(4, 17, 3)).astype(np.float32)
    answers = iter(drawn)
    monkeypatch.setattr("pipelines.strategies.bald.dropped_logits", lambda *_: next(answers))
    settings = BaldConfig(samples=4)
    result = query(
        network,
        images,
        LABELLED,
        5,
        "bald",
        options=QueryOptions(loss="cross_entropy", bald=settings),
    )
    p = np.exp(drawn.astype(float)) / np.exp(drawn.astype(float)).sum(2, keepdims=True)
    expected = entropy(p.mean(0), axis=1) - entropy(p, axis=2).mean(0)
    np.testing.assert_allclose(result.candidate_scores, expected, rtol=1e-9)
    order = np.argsort(-expected)[:5]
    np.testing.assert_array_equal(result.indices, result.candidates[order])
    assert result.diagnostics == {"samples": 4, "dropout_layers": 1}


def test_more_samples_come_nearer_to_each_other(network, images):
    def scores(samples, seed):
        settings = BaldConfig(samples=samples)
        found = query(
            network, images, LABELLED, 1, "bald", options=QueryOptions(bald=settings), seed=seed
        )
        return found.candidate_scores

    few = np.abs(scores(2, 0) - scores(2, 1)).mean()
    many = np.abs(scores(100, 0) - scores(100, 1)).mean()
    assert many < few / 2
    assert (scores(2, 0) >= 0).all()


def test_only_dropout_is_switched_on_and_all_is_as_before(images):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.5)
    )
    network.append(nn.Linear(4 * 14 * 14, 3)).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = torch.random.get_rng_state()
    modes = []
    for part in network:
        part.register_forward_hook(lambda part, *_: modes.append(part.training))
    one = dropped_logits(network, images, np.random.default_rng(0))
    assert modes == [False, False, True, False, True, False]
    assert not any(part.training for part in network.modules())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    same = dropped_logits(network, images, np.random.default_rng(0))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, dropped_logits(network, images, np.random.default_rng(1)))


def test_a_pass_by_hand():
    """A linear network with p = ½: every input is dropped or doubled."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 4, bias=False)).eval()
    network.load_state_dict({"2.weight": torch.eye(4)})
    given = np.arange(1, 13, dtype=np.float32).reshape(3, 1, 2, 2)
    found = dropped_logits(network, given, np.random.default_rng(0))
    flat = given.reshape(3, 4)
    assert ((found == 0) | (found == 2 * flat)).all()
    assert len(np.unique(found == 0)) == 2


def test_modes_are_restored_when_a_pass_fails(network, images):
    with pytest.raises(NetworkError, match="failed on images of shape"):
        dropped_logits(network, np.zeros((2, 3, 4, 4), np.float32), np.random.default_rng(0))
    assert not any(part.training for part in network.modules())
    with pytest.raises(NetworkError, match="train mode"):
        dropped_logits(network.train(), images, np.random.default_rng(0))


def test_a_network_without_dropout_is_refused_before_it_answers(images):
    for network in (
        build("cnn", (1, 16, 16), 3, np.random.default_rng(0)),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(256, 3)).eval(),
    ):
        network.register_forward_hook(lambda *_: pytest.fail("it was asked"))
        with pytest.raises(PipelineError, match=r"no layer of dropout .* --network-args dropout=0"):
            query(network, images, LABELLED, 2, "bald")
    config = RunConfig(dataset="digits", strategy="bald", network="cnn", cycles=1)
    with pytest.raises(PipelineError, match="this CNN has no layer of dropout"):
        prepared(config, Console(quiet=True))


def test_from_settings_to_a_network_with_dropout():
    config = RunConfig(
        dataset=digits.DEFAULTS.dataset,
        strategy="bald",
        network="cnn",
        network_args=("dropout=0.2",),
        cycles=1,
    )
    _, network = prepared(config, Console(quiet=True))
    assert [layer.p for layer in dropout_layers(network)] == [0.2]
    with pytest.raises(PipelineError, match="bald.samples must be 2 or more, not 1"):
        BaldConfig(samples=1)


@pytest.mark.parametrize(
    ("name", "arguments"), [("cnn", {}), ("wide_resnet", {"widen": 1}), ("resnet18", {})]
)
def test_the_bridge_mirrors_a_network_with_dropout(name, arguments, rng):
    few = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    network = build(name, (3, 8, 8), 3, np.random.default_rng(0), {"dropout": 0.3, **arguments})
    made = mirror(network, few)
    if name == "wide_resnet":  # the one with dropout between convolutions
        certify(network, made, few)
    model = made.model()
    np.testing.assert_allclose(
        model.function(model.params, model.frozen, jnp.asarray(few)),
        logits(network, few),
        rtol=1e-3,
        atol=1e-4,
    )
