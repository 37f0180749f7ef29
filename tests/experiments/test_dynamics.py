import copy
import dataclasses
import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy import stats

from bridge.module import weights_of
from experiments.dynamics import report
from experiments.dynamics.config import TheoryConfig, of_epochs
from experiments.dynamics.figures import bound_or_reason, with_labelled
from experiments.dynamics.report import column, sentences, tables, where
from experiments.dynamics.run import measure, mirrored, network_at, plan, read_gammas
from kernel.errors import KernelError
from pipelines.config import RunConfig, identity
from pipelines.core import json_io, record, terminal
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator
from pipelines.strategies.options import DynamicsConfig
from tests.kernel_cases import one_hot, scalar_kernel
from tests.report_cases import line
from trainer.errors import TrainerError
from trainer.fit import TrainConfig, fit
from trainer.predict import logits

TRAIN = TrainConfig(loss="cross_entropy", optimiser="adam", epochs=12, min_steps=0, extensions=0)
SMALL = TheoryConfig(
    initial=20,
    subset=30,
    queries=(5, 12),
    draws=10,
    repeats=3,
    epochs=(0, 3),
    network="tests.own_network:make",
    network_args=("hidden=6",),
    train=TRAIN,
)
ARGUMENTS = ["--initial", "20", "--subset", "30", "--queries", "5", "12", "--draws", "10"]
ARGUMENTS += ["--repeats", "3", "--epochs", "0", "3", "--network", "tests.own_network:make"]
ARGUMENTS += ["--network-args", "hidden=6", "--train.epochs", "12", "--train.min-steps", "0"]
ARGUMENTS += ["--train.extensions", "0"]


def small(folder: Path, **changes) -> TheoryConfig:
    return dataclasses.replace(SMALL, run=folder, **changes)


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["experiments.dynamics", *map(str, arguments)])
    runpy.run_module("experiments.dynamics", run_name="__main__")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measure(small(tmp_path_factory.mktemp("dynamics") / "whole"))


def test_the_command_leaves_tables_pictures_a_page_and_a_record(whole, monkeypatch, capsys):
    """On what the fixture measured: the same settings measure nothing again."""
    folder = whole.config.run_folder
    monkeypatch.setattr(json_io, "put", lambda *_: pytest.fail("it was measured again"))
    command(monkeypatch, *ARGUMENTS, "--run", folder)
    shown = " ".join(capsys.readouterr().out.split())
    written = json.loads((folder / report.RECORD).read_text())
    page = (folder / report.PAGE).read_text()
    for name, sentence in written["sentences"].items():
        assert " ".join(sentence.split()) in shown
        assert sentence in page
        assert sentence.count(". ") == 0, f"one sentence for {name}"
    for name in ("mmd", "tau", "envelope", "ratio"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in page
    assert "none were given with --runs" in written["sentences"]["gamma"]
    assert not (folder / "gamma.png").exists()
    table = pd.read_csv(folder / "mmd.csv")
    assert len(table) == 2 * 2 * (3 + 1)
    assert np.isfinite(table[["mmd", "bound", "smallest", "jitter"]]).all(axis=None)
    ratio = pd.read_csv(folder / "ratio.csv")
    assert set(ratio["epoch"]) == {0, 3}
    assert (
        written["figures"]["tau"]["trained"][0]["tau"]
        == pd.read_csv(folder / "tau.csv").query("network == 'trained'")["tau"].iloc[0]
    )


@pytest.mark.parametrize("state", ["initial", "trained"])
def test_tau_is_of_dynamics_and_alignment_of_this_network(whole, state):
    """From the certified mirror's literal Jacobian: the kernel is (1/C) Σ_c Θ_cc, normalised."""
    task = whole.task
    network = task.network if state == "initial" else task.trained(task.trainings, Stages())[0]
    images, labels = task.images, task.true_labels
    mirror = mirrored(task).with_weights(weights_of(network))
    pixels = jnp.asarray(images)
    jacobian = jax.jacobian(lambda params: mirror.apply(params, pixels))(mirror.params)
    rows = [np.asarray(leaf, np.float64).reshape(50, 10, -1) for leaf in jacobian.values()]
    rows = np.concatenate(rows, axis=2)
    kernel = np.einsum("icp,jcp->ij", rows, rows) / 10
    kernel /= kernel.diagonal().mean()
    targets = np.eye(10)[labels]
    residual = logits(network, images) - targets
    (row,) = where(whole.states["tau"][state], queries=5, measure="G_MSE")
    for name, vectors in (("alignment", targets), ("measured", residual)):
        expected = []
        for members in with_labelled(task.random_queries(5, 10), 20):
            own = vectors[members]
            expected.append(np.trace(own.T @ kernel[np.ix_(members, members)] @ own))
        np.testing.assert_allclose(row[name], expected, rtol=1e-4)
    assert row["tau"] == pytest.approx(stats.kendalltau(row["measured"], row["alignment"])[0])


def test_the_ratio_is_of_gradients_of_this_network(whole):
    """R of every random query from torch's own gradients, image by image."""
    task = whole.task
    network, _ = network_at(task, 3, Stages())
    images, labels = task.images, task.true_labels
    pseudo = logits(network, images).argmax(axis=1)
    labels = np.concatenate([labels[:20], pseudo[20:]])
    gradients = np.stack([torch_gradient(network, images[[i]], labels[[i]]) for i in range(50)])
    at_s = gradients[:20].sum(axis=0)

    def gain(of_query):
        return np.sum((at_s + of_query) ** 2) - np.sum(at_s**2)

    (row,) = where(whole.epochs[3]["rows"], queries=12, chosen="random")
    for members, found in zip(task.random_queries(12, 3), row["each"], strict=True):
        own = gradients[20:][members]
        expected = sum(gain(one) for one in own) / gain(own.sum(axis=0))
        assert found == pytest.approx(expected, rel=1e-3)
    assert row["median"] == pytest.approx(np.median(row["each"]))
    best = np.argsort([-gain(one) for one in gradients[20:]])[:12]
    own = gradients[20:][best]
    (row,) = where(whole.epochs[3]["rows"], queries=12, chosen="dynamical")
    expected = sum(gain(one) for one in own) / gain(own.sum(axis=0))
    assert row["median"] == pytest.approx(expected, rel=1e-3)
    assert whole.epochs[3]["dynamics"] == pytest.approx(np.sum(at_s**2), rel=1e-3)


def torch_gradient(network, images, labels):
    network = copy.deepcopy(network).double()
    answers = network(torch.tensor(images, dtype=torch.float64))
    torch.nn.functional.cross_entropy(answers, torch.tensor(labels)).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in network.parameters()])


def test_a_shorter_training_is_the_beginning_of_the_whole_one(whole):
    """So that R is measured along one training, though each length is trained from the start."""
    task, histories, answers = whole.task, [], []
    images, labels = task.images[:20], task.labels[:20]
    for train in (of_epochs(TRAIN, 3, 20), of_epochs(TRAIN, 7, 20), TRAIN):
        network = copy.deepcopy(task.network)
        done = fit(network, images, labels, train, generator(0, "fit"))
        histories.append(done.loss_history)
        answers.append(logits(network, images))
    assert histories[1][:3] == histories[0]
    assert histories[2][:7] == histories[1][: len(histories[2])]
    for network, expected in (
        (network_at(task, 3, Stages())[0], answers[0]),
        (task.trained(task.trainings, Stages())[0], answers[2]),
    ):
        np.testing.assert_array_equal(logits(network, images), expected)
    few = dataclasses.replace(TrainConfig(loss="cross_entropy", optimiser="adam"), extensions=0)
    assert of_epochs(few, 9, 100).plan(100) == (few.plan(100)[0], 9)


def test_stopped_and_given_again_it_ends_with_the_same_numbers(whole, tmp_path, monkeypatch):
    real, written = json_io.put, []
    part = small(tmp_path, figures=("tau", "ratio"))

    def stop(folder, name, value):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return real(folder, name, value)

    monkeypatch.setattr(json_io, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(part)
    monkeypatch.setattr(json_io, "put", lambda f, n, v: (written.append(n), real(f, n, v))[1])
    again = measure(part)
    expected = tables(whole)
    assert tables(again) == {name: expected[name] for name in ("tau", "ratio")}
    assert again.states["tau"] == whole.states["tau"]
    assert len(written) == len(set(written)) == 1 + 2 + 2


def test_a_dry_run_tells_what_is_left_and_writes_nothing(whole, tmp_path, capsys):
    assert plan(small(tmp_path / "new"), Console(width=200)) == 3 * 2 + 2
    said = " ".join(capsys.readouterr().out.split())
    assert "8 measurements left" in said
    assert "2 trainings of 15 epochs in all" in said
    assert not list(tmp_path.iterdir())
    assert plan(whole.config, Console(quiet=True)) == 0


def test_a_full_kernel_and_an_l2_network(tmp_path):
    train = TrainConfig(epochs=5, min_steps=0, extensions=0)
    config = small(
        tmp_path,
        kind="full",
        subset=12,
        queries=(3,),
        train=train,
        figures=("tau", "envelope"),
    )
    found = measure(config)
    assert {row["measure"] for row in tables(found)["tau"]} == {"G_MSE"}
    said = sentences(found)
    assert set(said) == {"tau", "envelope", "training"}
    assert "NOT fitted its labels" in said["training"]
    assert set(report_files(found)) >= {"tau.png", "envelope.png"}


def report_files(found):
    report.write(found)
    return [path.name for path in found.config.run_folder.iterdir()]


def test_a_kernel_without_a_bound_is_said_not_hidden(rng):
    kernel = scalar_kernel(6, rng)
    kernel.values[0, 1] = kernel.values[1, 0] = 10 * kernel.values.max()
    row = bound_or_reason(kernel, one_hot(np.arange(6) % 2, 2), np.arange(6))
    assert np.isnan(row["bound"])
    assert "not positive definite" in row["note"]
    assert row["smallest"] < 0


# --- accuracy by γ


def run_of(folder, gamma, seed, accuracies, **changes):
    strategy = "random" if gamma is None else "dynamical"
    dynamics = DynamicsConfig() if gamma is None else DynamicsConfig(gamma=gamma)
    config = RunConfig(
        dataset="digits",
        strategy=strategy,
        seed=seed,
        initial=10,
        query=5,
        cycles=2,
        dynamics=dynamics,
        **changes,
    )
    path = folder / f"{strategy}-{gamma}-{seed}"
    run = record.open_run(path, identity(config) | {"data": {}})
    for number, accuracy in enumerate(accuracies):
        run = record.append(run, line(number, accuracy, number == 2))
    return path


def test_accuracy_by_gamma_is_the_mean_of_the_runs(tmp_path):
    paths = [
        run_of(tmp_path, 0.0, 0, [0.1, 0.2, 0.4]),
        run_of(tmp_path, float("inf"), 0, [0.1, 0.3]),
        run_of(tmp_path, 2.0, 1, [0.2, 0.5, 0.9]),
        run_of(tmp_path, 2.0, 0, [0.1, 0.4, 0.8]),
        run_of(tmp_path, None, 0, [0.1, 0.1, 0.2]),
    ]
    found = read_gammas(paths)
    assert [row["gamma"] for row in found.averages] == ["random", "0", "2", "∞"]
    own = where(found.curves, gamma="2")
    np.testing.assert_allclose(column(own, "mean"), [0.15, 0.45])  # as far as all have come
    assert [row["labelled"] for row in own] == [10, 15]
    assert where(found.averages, gamma="2")[0]["mean"] == pytest.approx(0.45)
    config = TheoryConfig(figures=("gamma",), runs=tuple(paths), run=tmp_path / "found")
    whole = measure(config)
    said = sentences(whole)
    assert "γ = ∞ 30.0%, n = 1" in said["gamma"]
    assert {"gamma.png", "gamma.csv"} <= set(report_files(whole))


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    first = run_of(tmp_path, 2.0, 0, [0.1, 0.2])
    with pytest.raises(PipelineError, match="network is 'wide_resnet' there, 'cnn' here"):
        read_gammas([first, run_of(tmp_path / "cnn", 1.0, 0, [0.1, 0.2], network="cnn")])
    with pytest.raises(PipelineError, match="of the same gamma and seed"):
        read_gammas([first, run_of(tmp_path / "again", 2.0, 0, [0.1, 0.2])])
    with pytest.raises(PipelineError, match="no completed round"):
        read_gammas([run_of(tmp_path / "empty", 2.0, 0, [])])
    with pytest.raises(PipelineError, match="none of the runs given is of the strategy dynamical"):
        read_gammas([run_of(tmp_path, None, 0, [0.1, 0.2])])
    other = record.open_run(
        tmp_path / "entropy",
        identity(RunConfig(dataset="digits", strategy="entropy")) | {"data": {}},
    )
    with pytest.raises(PipelineError, match="a run of entropy, which has no gamma"):
        read_gammas([record.append(other, line(0, 0.5, False)).path])


# --- what cannot be


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"figures": ("mdm",)}, TrainerError, "unknown figure 'mdm': did you mean"),
        ({"kind": "trase"}, TrainerError, "unknown kernel kind 'trase'"),
        ({"figures": ()}, PipelineError, "figures is empty"),
        ({"queries": (5, 5)}, PipelineError, "queries names something twice"),
        ({"queries": (0,)}, PipelineError, "queries must be 1 or more, not 0"),
        ({"epochs": (-1,)}, PipelineError, "epochs must be 0 or more"),
        ({"queries": (30,)}, PipelineError, "a query of 30 is to be drawn from 30 candidates"),
        ({"draws": 3}, PipelineError, "draws must be 8 or more, not 3"),
        ({"figures": ("gamma",)}, PipelineError, "none are given: name their directories"),
        (
            {"figures": ("mmd",), "runs": (Path("r"),)},
            PipelineError,
            "runs are read for the figure gamma",
        ),
        ({"subset": 1790}, PipelineError, "1790 candidates were asked for"),
        ({"memory_gib": 1e-5}, KernelError, "GiB are given"),
        ({"runs": (Path("nowhere"),)}, PipelineError, "not a run directory"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        measure(small(tmp_path / "found", **changes))
    assert not (tmp_path / "found").exists()


def test_a_damaged_piece_is_named(whole, tmp_path):
    folder = tmp_path / "pieces"
    json_io.put(folder, "one", {"a": [1.0, float("nan")]})
    assert json_io.get(folder, "one") == {"a": [1.0, None]}
    json_io.path_of(folder, "one").write_text("{")
    with pytest.raises(PipelineError, match="one.json is not valid JSON"):
        json_io.get(folder, "one")


def test_what_is_wrong_is_said_in_plain_words(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "--queries", "900")
    assert stop.value.code == terminal.FAILED
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert "a query of 900 is to be drawn from 500 candidates" in said
