"""LL4AL in runs and in loops of one's own: the largest predicted loss, weights kept, resumed."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr

from bridge.weights import read
from pipelines import dry_run, run
from pipelines import run as rounds
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies.options import LL4ALConfig, QueryOptions
from tests.pipelines.test_run import comparable, small
from trainer.errors import NetworkError
from trainer.fit import TrainConfig, fit, losses
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import logits

LABELLED = {4: 0, 17: 1, 2: 2, 21: 1, 9: 0, 11: 2}


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 1, 6, 6)).astype(np.float32)
    network = build("cnn", (1, 6, 6), 3, rng)
    auxiliary_module = LossPrediction.of(network, images[:2], rng)
    known, labels = (np.array([*part]) for part in (LABELLED, LABELLED.values()))
    config = TrainConfig(epochs=4, min_steps=0, extensions=0, learning_rate=0.1)
    fit(network, images[known], labels, config, rng, auxiliary_module=auxiliary_module)
    return network, images, auxiliary_module


@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
def test_the_largest_predicted_loss_is_queried(trained, loss):
    network, images, auxiliary_module = trained
    found = query(
        network,
        images,
        LABELLED,
        5,
        "ll4al",
        options=QueryOptions(loss=loss),
        auxiliary_module=auxiliary_module,
    )
    predicted = auxiliary_module.predict(network, images)
    unlabelled = [i for i in range(30) if i not in LABELLED]
    assert set(found.indices) == set(sorted(unlabelled, key=lambda i: -predicted[i])[:5])
    np.testing.assert_allclose(found.candidate_scores, predicted[unlabelled], rtol=1e-5)
    assert found.diagnostics["taps"] == ["features.1", "features.3", "features.5"]
    known = np.array([*sorted(LABELLED)])
    true = losses(
        torch.tensor(logits(network, images[known])),
        torch.tensor([LABELLED[i] for i in known.tolist()]),
        loss,
    ).numpy()
    agreement = spearmanr(true, predicted[known])[0]
    assert found.diagnostics["rank_correlation"] == pytest.approx(agreement, abs=1e-6)


def test_without_a_module_it_says_how_to_train_one(trained):
    with pytest.raises(
        PipelineError, match=r"LossPrediction.of.*fit\(…, auxiliary_module=module\)"
    ):
        query(trained[0], trained[1], LABELLED, 5, "ll4al")


def test_a_module_of_another_network_is_refused(trained):
    other = build("wide_resnet", (1, 6, 6), 3, np.random.default_rng(0), {"widen": 1})
    with pytest.raises(NetworkError, match="the loss prediction module was made for"):
        query(other, trained[1], LABELLED, 5, "ll4al", auxiliary_module=trained[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "ll4al.width must be 1 or more"),
        ({"margin": -1.0}, "ll4al.margin must be 0 or more"),
        ({"weight": float("inf")}, "ll4al.weight must be 0 or more"),
        ({"detach": 1.5}, "ll4al.detach must be from 0 to 1"),
        ({"grad_scale": -0.1}, "ll4al.grad_scale must be from 0 to 1"),
        ({"learning_rate": 0.0}, "ll4al.learning_rate must be above 0"),
        ({"taps": ("a", "a")}, "ll4al.taps names something twice: a, a"),
    ],
)
def test_settings_that_nothing_can_be_trained_with(changes, message):
    with pytest.raises(PipelineError, match=message):
        LL4ALConfig(**changes)


def test_the_gradient_is_scaled_as_the_loss_is_a_mean_over_classes():
    assert LL4ALConfig().resolved("l2", 10).grad_scale == 0.1
    assert LL4ALConfig().resolved("cross_entropy", 10).grad_scale == 1.0
    assert LL4ALConfig(grad_scale=0.5).resolved("l2", 10).grad_scale == 0.5


# Runs


def test_a_run_keeps_the_module_beside_the_network(tmp_path):
    settings = LL4ALConfig(taps=("1",), width=6)
    result = run.run(small(tmp_path / "run", strategy="ll4al", ll4al=settings))
    files = sorted(path.name for path in result.path.glob("*.safetensors"))
    assert files == ["auxiliary-002.safetensors", "weights-002.safetensors"]
    kept = read(result.auxiliary_weights(2))
    assert kept.params["maps.0.weight"].shape == (6, 8)
    assert result.rounds[0]["diagnostics"]["taps"] == ["1"]
    assert result.config["ll4al"]["width"] == 6
    other = run.run(small(tmp_path / "other", strategy="ll4al"))
    assert other.rounds[0]["indices"] != result.rounds[0]["indices"]
    again = run.run(small(tmp_path / "again", strategy="ll4al"))
    assert comparable(again) == comparable(other)


def test_with_weight_0_the_networks_of_a_run_are_those_of_any_other(tmp_path):
    alone = run.run(small(tmp_path / "alone", strategy="random", cycles=1))
    settings = LL4ALConfig(weight=0.0)
    along = run.run(small(tmp_path / "along", strategy="ll4al", cycles=1, ll4al=settings))
    assert along.rounds[0]["test_accuracy"] == alone.rounds[0]["test_accuracy"]
    assert along.rounds[0]["fit"] == alone.rounds[0]["fit"]


@pytest.mark.parametrize("moment", ["after a round", "after a training"])
def test_a_run_that_stopped_goes_on_with_the_same_module(moment, tmp_path, monkeypatch):
    whole = run.run(small(tmp_path / "whole", strategy="ll4al"))

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    def second(*arguments, **options):
        if len(list((tmp_path / "stopped").glob("weights-001*"))):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = rounds.build_context
    if moment == "after a round":
        monkeypatch.setattr(run, "print_round", stop)
    else:
        monkeypatch.setattr(rounds, "build_context", second)
    with pytest.raises(KeyboardInterrupt):
        run.run(small(tmp_path / "stopped", strategy="ll4al"))
    monkeypatch.undo()
    trainings, real_fit = [], rounds.RunSetup.fit_and_save
    monkeypatch.setattr(
        rounds.RunSetup, "fit_and_save", lambda *a: trainings.append(a) or real_fit(*a)
    )
    resumed = run.run(small(tmp_path / "stopped", strategy="ll4al"))
    assert comparable(resumed) == comparable(whole)
    assert len(trainings) == (2 if moment == "after a round" else 1)  # that of round 1 is taken up


def test_taps_that_are_not_there_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(NetworkError, match="no part 'layer4' to tap"):
        run.run(small(tmp_path / "run", strategy="ll4al", ll4al=LL4ALConfig(taps=("layer4",))))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_what_is_trained_along(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)
    config = RunConfig(
        "digits", strategy="ll4al", network="cnn", initial=20, query=5, cycles=1, run=tmp_path / "r"
    )
    told = io.StringIO()
    dry_run.dry_run(config, Console(file=told, width=200))
    parameters = (32 + 64 + 128) * 128 + 3 * 128 + 3 * 128 + 1
    assert f"{parameters:,} parameters, reading features.1, features.3" in told.getvalue()
    plain = dataclasses.replace(config, strategy="margin")
    told = io.StringIO()
    dry_run.dry_run(plain, Console(file=told, width=200))
    assert "trained along" not in told.getvalue()


@pytest.mark.parametrize(
    ("part", "what"), [("head", "logits"), ("module", "predictions of the loss")]
)
def test_what_is_not_finite_is_refused(trained, part, what):
    """Logits too, though the feature maps before them are finite."""
    network, images, auxiliary_module = (copy.deepcopy(one) for one in trained)
    layer = auxiliary_module.head if part == "module" else network.head
    with torch.no_grad():
        layer.weight.fill_(1e25)  # of feature maps of ordinary size still finite
    images[13] *= 1e20
    said = rf"{what} of image 13 \(numbered as in the data set\) are not finite"
    with pytest.raises(NetworkError, match=said):
        query(network, images, LABELLED, 5, "ll4al", auxiliary_module=auxiliary_module)


def test_candidates_go_through_the_network_once(trained):
    """Their logits are not asked for beside the feature maps."""
    network, images, auxiliary_module = trained
    seen = []
    handle = network.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    query(network, images, LABELLED, 5, "ll4al", auxiliary_module=auxiliary_module)
    handle.remove()
    known = len(LABELLED)
    # a few to count the classes, the two passes of the module, the labelled images for their losses
    assert sorted(seen) == sorted([4, 30 - known, known, known])
