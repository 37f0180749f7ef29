import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from experiments.approximation import report
from experiments.approximation.config import ApproximationConfig
from experiments.approximation.kernels import diagonals, distances, flat, spectrum
from experiments.approximation.report import by_width, rows
from experiments.approximation.run import measure, plan, scalar_kernels
from experiments.studies.study import Grid
from experiments.sweep.executors import Job
from experiments.sweep.run import carry_out
from kernel.errors import KernelError
from pipelines.core import json_io
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages
from trainer.errors import TrainerError
from trainer.fit import TrainConfig

TRAIN = TrainConfig(optimiser="adam", epochs=4, min_steps=0, extensions=0)
SMALL = ApproximationConfig(
    initial=8,
    test=5,
    ridges=(0.0, 0.5),
    network="tests.experiments.approximation_networks:two_layers",
    widths=(12, 8),
    width_argument="width",
    train=TRAIN,
)
ARGUMENTS = ["--initial", "8", "--test", "5", "--ridges", "0", "0.5"]
ARGUMENTS += ["--network", SMALL.network, "--widths", "12", "8", "--width-argument", "width"]
ARGUMENTS += ["--train.optimiser", "adam", "--train.epochs", "4", "--train.min-steps", "0"]
ARGUMENTS += ["--train.extensions", "0"]


def closed_form(last, gram, hidden):
    """Θ of two linear layers from V, XXᵀ and the hidden units' XUᵀUXᵀ."""
    classes = len(last)
    return np.einsum("ij,cd->icjd", hidden, np.eye(classes)) + np.einsum(
        "ij,cd->icjd", gram, last @ last.T
    )


def small(folder: Path, **changes) -> ApproximationConfig:
    return dataclasses.replace(SMALL, run=folder, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measure(small(tmp_path_factory.mktemp("approximation") / "whole"))


def value(table, state, width, measure, series):
    """The number of one row."""
    keys = ("state", "width", "measure", "series")
    (found,) = (
        row["value"]
        for row in table
        if tuple(row[key] for key in keys) == (state, width, measure, series)
    )
    return found


@pytest.mark.parametrize("state", ["initial", "trained"])
def test_what_is_found_is_of_these_networks(whole, state):
    """Two linear layers have a kernel in closed form, from their weights and the images."""
    table = rows(whole)
    assert [own.task.width for own in whole.widths] == [8, 12]
    for own in whole.widths:
        task, width = own.task, own.task.width
        network = task.network if state == "initial" else task.trained(task.trainings, Stages())[0]
        first, last = (layer.weight.detach().double().numpy() for layer in (network[1], network[2]))
        images = task.images.reshape(13, -1).astype(np.float64)
        hidden = images @ first.T
        full = closed_form(last, images @ images.T, hidden @ hidden.T)
        kernel = np.einsum("icjd->ij", full) / 10
        near = distances(full[:8, :, :8], {"sum": kernel[:8, :8]})["sum"]
        assert value(table, state, width, "frobenius error", "sum") == pytest.approx(near)
        near = distances(full[8:, :, :8], {"sum": kernel[8:, :8]})["sum"]
        found = value(table, state, width, "frobenius error, test images", "sum")
        assert found == pytest.approx(near)
        ends = spectrum(flat(full[:8, :, :8]), "float64"), spectrum(kernel[:8, :8], "float64")
        found = value(table, state, width, "largest eigenvalue error", "sum")
        assert found == pytest.approx(1 - ends[1].largest / ends[0].largest, rel=1e-6)
        found = value(table, state, width, "condition number", "sum")
        assert found == pytest.approx(ends[1].condition, rel=1e-4)
        mean, apart = diagonals(full[:8, :, :8], kernel[:8, :8])
        assert value(table, state, width, "diagonal", "full") == pytest.approx(mean)
        assert value(table, state, width, "diagonal difference", "sum") == pytest.approx(apart)
        logits = hidden @ last.T
        predicted = {}
        for name, (labelled, cross) in {
            "full": (flat(full[:8, :, :8]), flat(full[8:, :, :8])),
            "sum": (kernel[:8, :8], kernel[8:, :8]),
        }.items():
            shifted = labelled + 0.5 * mean * np.eye(len(labelled))
            right = (np.eye(10)[task.labels] - logits[:8]).reshape(len(labelled), -1)
            predicted[name] = logits[8:] + (cross @ np.linalg.solve(shifted, right)).reshape(5, 10)
            right = predicted[name].argmax(1) == task.test_labels
            found = value(table, state, width, "regression accuracy", f"{name}, ridge 0.5, network")
            assert found == np.mean(right)
        away = np.linalg.norm(predicted["sum"] - predicted["full"])
        expected = away / np.linalg.norm(predicted["full"])
        found = value(table, state, width, "regression error", "sum, ridge 0.5, network")
        assert found == pytest.approx(expected, rel=1e-4)
        if state == "trained":
            away = np.linalg.norm(predicted["full"] - logits[8:]) / np.linalg.norm(logits[8:])
            series = "full, ridge 0.5, network"
            found = value(table, state, width, "distance from the trained network", series)
            assert found == pytest.approx(away, rel=1e-4)


def test_of_a_linear_network_every_kind_is_exact(tmp_path):
    """Θ = (x·x' + 1) I: nothing is lost, at initialisation and after training, with any ridge."""
    config = small(tmp_path, network="tests.experiments.approximation_networks:linear", widths=())
    table = rows(measure(config))
    assert {row["state"] for row in table} == {"initial", "trained"}
    for name in ("frobenius error", "largest eigenvalue error", "regression error"):
        own = [row["value"] for row in table if row["measure"] == name]
        assert len(own) >= 10
        assert max(own) < 1e-6, name
    ratios = [row["value"] for row in table if row["measure"] == "condition number ratio"]
    np.testing.assert_allclose(ratios, 1, rtol=1e-5)


def test_the_command_leaves_a_table_a_picture_a_page_and_a_record(whole, monkeypatch, capsys):
    """On what the fixture measured: the same settings measure nothing again."""
    folder = whole.config.run_folder
    monkeypatch.setattr(json_io, "put", lambda *_: pytest.fail("it was measured again"))
    monkeypatch.setattr("sys.argv", ["approximation", *ARGUMENTS, "--run", str(folder)])
    runpy.run_module("experiments.approximation", run_name="__main__")
    shown = " ".join(capsys.readouterr().out.split())
    record = json.loads((folder / report.RECORD).read_text())
    page = (folder / report.PAGE).read_text()
    for sentence in record["sentences"].values():
        assert " ".join(sentence.split()) in shown
        assert sentence in page
    assert (folder / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert [one["width"] for one in record["widths"]] == [8, 12]
    table = pd.read_csv(folder / report.TABLE)
    kept = [row["value"] for row in rows(whole)]
    np.testing.assert_array_equal(table["value"], np.array(kept, np.float64))
    widths, values = by_width(rows(whole), "initial", "frobenius error", "sum")
    np.testing.assert_array_equal(widths, [8, 12])
    ends = f"{values[0]:.3g} at width 8 to {values[1]:.3g} at 12 at initialisation"
    assert ends in record["sentences"]["frobenius"]
    assert "NOT fitted to their labels: width 8, 12" in record["sentences"]["training"]


def test_a_trial_of_a_study_may_be_one(whole, monkeypatch):
    """It leaves what the command leaves, here from what is measured already."""
    monkeypatch.setattr(json_io, "put", lambda *_: pytest.fail("it was measured again"))
    (trial,) = Grid({"digits": SMALL}, {"kinds": {}}, (0,)).trials()
    assert trial.kind == "approximation"
    table = whole.config.run_folder / report.TABLE
    table.unlink(missing_ok=True)
    job = Job(trial.key, dataclasses.replace(trial.config, run=whole.config.run_folder))
    assert carry_out(job).state == "done"
    assert len(pd.read_csv(table)) == len(rows(whole))


def test_stopped_and_given_again_it_ends_with_the_same_numbers(whole, tmp_path, monkeypatch):
    real, written = json_io.put, []
    part = small(tmp_path, widths=(8,))

    def stop(folder, name, value):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return real(folder, name, value)

    monkeypatch.setattr(json_io, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(part)
    assert plan(part, Console(quiet=True)) == 1
    monkeypatch.setattr(json_io, "put", lambda f, n, v: (written.append(n), real(f, n, v))[1])
    assert rows(measure(part)) == [row for row in rows(whole) if row["width"] == 8]
    assert len(written) == len(set(written)) == 3
    assert not list(tmp_path.rglob("kernel-*"))


def test_other_settings_measure_anew_and_train_only_where_they_must(whole, monkeypatch):
    folder, written = whole.config.run_folder, []
    real = json_io.put
    monkeypatch.setattr(json_io, "put", lambda f, n, v: (written.append(n), real(f, n, v))[1])
    found = measure(small(folder, widths=(8,), kinds=("sum",), ridges=(2.0,), states=("trained",)))
    assert written == ["trained"]
    assert list(found.widths[0].states) == ["trained"]


def test_a_dry_run_tells_what_is_left_and_writes_nothing(whole, tmp_path, capsys):
    assert plan(small(tmp_path / "new"), Console(width=200)) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "width 8: 592 parameters; left: initial, trained, about" in said
    assert not list(tmp_path.iterdir())
    assert plan(whole.config, Console(quiet=True)) == 0


def test_first_projections_of_many_are_those_of_few(rng):
    jacobian = rng.normal(size=(6, 3, 40))
    full = np.einsum("icp,jdp->icjd", jacobian, jacobian)
    config = small(Path(), kinds=("rademacher",), probes=(1, 2))
    one, two = scalar_kernels(config, full).values()
    second = 2 * two - one
    # the other one is a projection too: of rank one in classes
    vectors = [np.array([1.0, a, b]) for a in (-1, 1) for b in (-1, 1)]
    candidates = [np.einsum("icjd,c,d->ij", full, v, v) / 3 for v in vectors]
    assert any(np.allclose(second, each) for each in candidates)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"states": ("train",)}, TrainerError, "unknown state 'train'"),
        ({"kinds": ("full",)}, TrainerError, "unknown kind of scalar-valued kernel 'full'"),
        ({"kinds": ()}, PipelineError, "kinds is empty"),
        ({"widths": (4, 4)}, PipelineError, "widths names something twice: 4, 4"),
        ({"widths": (0,)}, PipelineError, "widths must be 1 or more, not 0"),
        ({"ridges": (-0.1,)}, PipelineError, "ridges must be 0 or more and finite"),
        ({"ridges": (float("nan"),)}, PipelineError, "ridges must be 0 or more and finite"),
        ({"initial": 1}, PipelineError, "initial must be 2 or more, not 1"),
        ({"memory_gib": 0.0}, PipelineError, "memory_gib must be above 0"),
        ({"test": 100_000}, PipelineError, "100000 test images were asked for and digits has"),
        ({"memory_gib": 1e-4}, KernelError, "full kernel of 13 images of 10 classes.*GiB are"),
        ({"width_argument": "widen"}, TrainerError, "no argument 'widen'. Known: width"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        measure(small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
