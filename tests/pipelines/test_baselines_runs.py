"""The look-ahead baselines in runs, dry runs and their benchmark; patience; settings refused."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from benchmarks import baselines
from benchmarks.measuring import read
from pipelines import digits, dry_run, run
from pipelines.config import RunConfig
from pipelines.core import progress
from pipelines.core.errors import PipelineError
from pipelines.core.progress import TimeLimit
from pipelines.core.record import Run
from pipelines.strategies import needing
from pipelines.strategies.options import BaselineConfig, KernelConfig
from trainer.config import TrainConfig

# in runs


@pytest.mark.parametrize("name", sorted(needing("infinite")))
def test_a_run(name, tmp_path):
    settings = dataclasses.replace(
        digits.DEFAULTS,
        strategy=name,
        initial=20,
        query=5,
        subset=30,
        cycles=1,
        network="cnn",
        network_args=(),
        train=TrainConfig(epochs=1, min_steps=2, extensions=0),
        baseline=BaselineConfig(image_size=4, test=40),
        run=tmp_path / "run",
    )
    result = run.run(settings)
    assert result.complete
    assert "hours" not in result.config["baseline"]
    diagnostics = result.rounds[0]["diagnostics"]
    assert diagnostics["architecture"] == "cnn"
    if name == "gp":
        assert 0.2 < diagnostics["test_accuracy"] <= 1  # ten classes, two labels of each
        assert diagnostics["tested"] == 40


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("naive", r"naive .* 12 retrainings of 3 epochs"),
        ("one_step", r"one_step .* 12 steps of SGD"),
        ("infinite_ntk", r"tiles .* of 32×32 images"),
        ("ntk_no_blocks", r"ntk_no_blocks .* 12 systems of linear equations"),
    ],
)
def test_a_dry_run_counts_the_work(name, row, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)
    config = RunConfig(
        dataset="digits",
        strategy=name,
        initial=20,
        query=5,
        subset=50,
        cycles=1,
        network="cnn",
        baseline=BaselineConfig(epochs=3, candidates=12, image_size=4),
        run=tmp_path / "run",
    )
    told = io.StringIO()
    dry_run.dry_run(config, Console(file=told, width=200))
    assert re.search(row, told.getvalue()), told.getvalue()
    assert ("No kernel is computed." in told.getvalue()) == (name in ("naive", "one_step"))
    assert not (tmp_path / "run").exists()


# patience


def test_what_would_take_too_long_is_stopped_once_its_pace_is_known(monkeypatch):
    clock = iter([0.0, 4.0, 8.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    told = []
    patient = TimeLimit(lambda done, total: told.append(done), 1.0, "score fewer")
    patient(0, 3600)
    patient(1, 3600)  # four hours, after four seconds: not believed yet
    with pytest.raises(PipelineError, match=r"about 4 hours here .* is 1: score fewer, or raise"):
        patient(2, 3600)
    assert told == [0, 1]


def test_what_is_in_time_goes_on(monkeypatch):
    clock = iter([0.0, 10.0, 9e9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    told = []
    patient = TimeLimit(lambda done, total: told.append(done), 1.0, "score fewer")
    for done in (5, 7, 8):
        patient(done, 10)
    assert told == [5, 7, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "baseline.epochs must be 1 or more, not 0"),
        ({"candidates": 0}, "baseline.candidates must be 1 or more"),
        ({"step": 0.0}, "baseline.step must be above 0"),
        ({"learning_rate": -1.0}, "baseline.learning_rate must be above 0"),
        ({"hours": float("nan")}, "baseline.hours must be above 0"),
        ({"test": -1}, "baseline.test must be 0 or more"),
    ],
)
def test_settings_that_nothing_can_be_computed_with(settings, message):
    with pytest.raises(PipelineError, match=message):
        BaselineConfig(**settings)


def test_without_blocks_needs_a_scalar_kernel():
    with pytest.raises(PipelineError, match=r"ntk_no_blocks .* kernel.kind is full"):
        RunConfig(dataset="digits", strategy="ntk_no_blocks", kernel=KernelConfig(kind="full"))


# the benchmark


def test_the_benchmark_goes_on_from_its_records(tmp_path, capsys):
    settings = baselines.Settings(
        runs=tmp_path / "runs",
        dataset="digits",
        image_size=None,
        network="tests.own_network:make",
        network_args=("hidden=4",),
        strategies=("random", "naive", "one_step"),
        initial=15,
        query=2,
        candidates=4,
        cycles=1,
        min_steps=2,
        epochs=1,
        seeds=2,
        json=tmp_path / "figures.json",
        figure=tmp_path / "figure.png",
    )
    baselines.main(settings)
    shown = capsys.readouterr().out
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| random", "| naive", "| one_step"]
    assert "n = 2 seeds (0 to 1)" in shown
    assert (tmp_path / "figure.png").stat().st_size > 1000
    figures = read(tmp_path / "figures.json")
    assert figures["random"]["above"] is None
    assert len(figures["naive"]["seconds"]) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.run.one_round", lambda *_: pytest.fail("it was run again"))
        baselines.main(settings)
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line in shown.splitlines() and "|" in line]


def test_bars_by_hand(tmp_path):
    def recorded(accuracies, seconds):
        lines = [
            {"test_accuracy": a, "seconds": s} for a, s in zip(accuracies, seconds, strict=True)
        ]
        return Run(tmp_path, {}, (), tuple(lines))

    spent = {"fit": 100.0, "predict": 1.0, "score": 3.0}
    runs = {
        "random": [recorded((0.5, 0.6), (spent, {})), recorded((0.5, 0.7), (spent, {}))],
        "naive": [recorded((0.5, 0.7), (spent, {})), recorded((0.5, 0.7), (spent, {}))],
        "mlmoc": [recorded((0.5, 0.8), ({"score": 2.0}, {})), recorded((0.5, 0.8), ({}, {}))],
    }
    made = baselines.bars(runs)
    assert made["random"].above is None
    assert made["naive"].seconds == (4.0, 4.0)
    assert made["naive"].above is not None
    assert made["naive"].above.mean == pytest.approx(0.05)
    assert made["mlmoc"].accuracy.mean == pytest.approx(0.8)
    assert baselines.table(made)[2][-1] == "4"
