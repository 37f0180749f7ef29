"""Runs, sequential runs, audits and dry runs of a network with pretrained weights."""

import dataclasses
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from bridge.weights import read
from pipelines import cli
from pipelines.audit.config import AuditConfig
from pipelines.audit.retraining import build_tasks, read_pretrained, trained
from pipelines.config import RunConfig, defaults_of, identity
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages
from pipelines.dry_run import dry_run
from pipelines.run import prepared, run
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.run import run as sequential_run
from trainer.config import TrainConfig
from trainer.errors import NetworkError
from trainer.fit import FitResult
from trainer.networks.weights import read_state
from trainer.predict import logits

SETTINGS = {"dataset": "digits", "initial": 20, "network": "pretrained_nets:make", "subset": 60}
SETTINGS |= {"test_subset": 50, "strategy": "mlmoc"}
OF_RUN = {name: value for name, value in SETTINGS.items() if name != "test_subset"}


def make(classes):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    vars(network)["default_cfg"] = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.2, 0.2)}
    return network


@pytest.fixture(autouse=True)
def module(monkeypatch):
    nets = ModuleType("pretrained_nets")
    vars(nets)["make"] = make
    monkeypatch.setitem(sys.modules, "pretrained_nets", nets)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    network = make(7)
    with torch.no_grad():
        network.get_buffer("1.running_var").mul_(2)
    save_file(network.state_dict(), tmp_path / "seven.safetensors")
    return str(tmp_path / "seven.safetensors")


@pytest.fixture
def config(weights, tmp_path):
    return RunConfig(
        **OF_RUN, weights=weights, mean=(0.5, 0.5, 0.5), query=4, cycles=1, run=tmp_path / "run"
    )


def printed(work, *arguments):
    console = Console(file=io.StringIO(), width=200)
    result = work(*arguments, console)
    return result, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_defaults_of_a_pretrained_network(config):
    assert (config.trainable, config.train.recipe) == ("head", "finetune")
    assert (config.train.init, config.train.augmentation) == ("pretrained", "none")
    plain = RunConfig(**OF_RUN)
    assert (plain.trainable, plain.train.recipe, plain.train.init) == (None, None, None)
    changed = dataclasses.replace(defaults_of("cifar10"), network="timm:resnet18")
    assert changed.train.recipe == "finetune"
    scratch = RunConfig(**OF_RUN, weights="w", train=TrainConfig(recipe="scratch"))
    assert (scratch.train.init, scratch.trainable) == (None, "head")


def test_a_script_leaves_its_augmentation_to_its_own_network(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda config, _: seen.append(config))
    for words in ([], ["--train.augmentation", "crop"]):
        cli.command(
            RunConfig,
            lambda config, _: seen.append(config),
            "images",
            defaults=defaults_of("images"),
            arguments=["--network", "torchvision:resnet18", *words],
        )
    assert [one.train.augmentation for one in seen] == ["none", "crop"]
    assert all(one.network_args == () and one.trainable == "head" for one in seen)


def test_a_run_from_pretrained_weights(config, weights):
    result, text = printed(run, config)
    given = read_state_of(weights)
    found = read(result.weights(1))
    for name, tensor in given.items():
        if not name.startswith("6."):
            array = {**found.params, **found.buffers}[name]
            np.testing.assert_array_equal(array, tensor.numpy())
    assert "trainable head · recipe finetune (l2) · rounds start from pretrained" in text
    assert "6.weight of 7 × 32" in text
    assert "3 equal channels" in text
    assert result.rounds[1]["fit"]["stopped"].endswith("steps of L-BFGS on the head")
    again, _ = printed(run, config)  # complete: nothing is trained
    assert again.rounds == result.rounds


def read_state_of(weights):
    return read_state(Path(weights))


def test_other_weights_are_another_run(config, weights):
    run(config)
    state = read_state_of(weights)
    before = identity(config)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights)
    assert identity(config)["weights"] != before["weights"]
    with pytest.raises(PipelineError, match="another configuration: weights"):
        run(config)


def test_preprocessing_of_the_network_and_of_options(config):
    quiet = Console(quiet=True)
    dataset, _ = prepared(config, quiet)
    assert (dataset.mean, dataset.std) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    own, network = prepared(dataclasses.replace(config, mean=()), quiet)
    assert own.mean == (0.3, 0.4, 0.5)
    assert next(network.parameters()).shape[1] == 3
    with pytest.raises(PipelineError, match="std must be above 0"):
        dataclasses.replace(config, std=(0.0,))


@pytest.mark.parametrize("init", ["previous", "initial", "pretrained"])
def test_what_a_round_starts_from(config, init, monkeypatch):
    starts = []

    def fit(network, images, labels, train, rng, *_):
        starts.append({n: t.clone() for n, t in network.state_dict().items()})
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
        return FitResult(1, 1, 0.1, 1.0, 0.0, (0.0,), True, "")

    monkeypatch.setattr("pipelines.run.fit", fit)
    train = TrainConfig(recipe="scratch", init=init)
    run(dataclasses.replace(config, train=train, strategy="random", cycles=2, trainable="6|0"))
    zero = {name: not tensor.any() for name, tensor in starts[0].items()}
    assert zero["6.weight"] == zero["6.bias"] == (init == "pretrained")
    grown = 1.0 if init == "previous" else 0.0
    for later, earlier in zip(starts[1:], starts, strict=False):
        for name in ("0.weight", "6.bias"):
            torch.testing.assert_close(later[name], earlier[name] + grown)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": "none", "train": TrainConfig(init="pretrained")}, PipelineError, "no pretr"),
        ({"trainable": "last:0"}, NetworkError, "after last:"),
        ({"strategy": "ll4al"}, PipelineError, "recipe finetune does not"),
        ({"mean": (float("nan"),)}, PipelineError, "mean must be finite"),
    ],
)
def test_settings_that_exclude_each_other(change, error, message):
    with pytest.raises(error, match=message):
        RunConfig(**(OF_RUN | {"weights": "w"} | change))


def test_a_dry_run_counts_what_is_trained(config):
    _, text = printed(dry_run, config)
    assert "330 parameters" in text
    assert "trainable head · recipe finetune" in text


def test_a_sequential_run(config, tmp_path):
    shared = {**SETTINGS, "weights": config.weights, "mean": config.mean}
    settings = SequentialConfig(**shared, budget=2, retrain_every=1, run=tmp_path / "seq")
    journal = sequential_run(settings)
    last = read(journal.run.weights(1))
    given = read_state_of(config.weights)
    assert np.array_equal(given["0.weight"], last.params["0.weight"])
    assert len(journal.run.rounds) == 2


def test_an_audit_takes_over_a_run(config, tmp_path):
    result = run(config)
    settings = AuditConfig(
        trained=config.run, subset=20, candidates=8, controls=2, repeats=1, kinds=("single",)
    )
    found = read_pretrained(settings)
    assert found.config.train.recipe == "finetune"
    assert (found.config.trainable, found.config.mean) == ("head", (0.5, 0.5, 0.5))
    (task,) = build_tasks(found, Console(quiet=True))
    network, notes = trained(task, Stages(Console(quiet=True)))
    assert notes["train_accuracy"] == result.rounds[-1]["train_accuracy"]
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["6.weight", "6.bias"]
    assert logits(network, task.labelled_images).shape == (24, 10)
    with pytest.raises(PipelineError, match="train_steps are of the recipe scratch"):
        AuditConfig(weights="w", train_steps=(10,))
