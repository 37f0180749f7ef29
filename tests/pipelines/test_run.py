import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipelines import digits, record, run, table
from pipelines.errors import PipelineError
from pipelines.strategies import STRATEGIES, needing
from pipelines.strategies.options import KernelConfig
from trainer import data
from trainer.dataset import Dataset, moments
from trainer.errors import NetworkError, TrainerError
from trainer.fit import TrainConfig

ROOT = Path(__file__).parents[2]
SMALL = dataclasses.replace(
    digits.DEFAULTS,
    initial=20,
    query=5,
    subset=60,
    cycles=2,
    network="tests.own_network:make",
    network_args=("hidden=8",),
    train=TrainConfig(epochs=5, min_steps=40, extensions=0),
)


def small(folder: Path, **changes):
    return dataclasses.replace(SMALL, run=folder, **changes)


def comparable(result: record.Run) -> list[dict]:
    """The rounds without what depends on the hour."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "peak_memory_mib")}
        for line in result.rounds
    ]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - needing("infinite", "dropout")))
def test_a_run_of_every_strategy(strategy, tmp_path):
    result = run.run(small(tmp_path / "run", strategy=strategy))
    assert result.complete
    assert [line["labelled"] for line in result.rounds] == [20, 25, 30]
    truth = data.load("digits", None)
    queried = sum((line["indices"] for line in result.rounds), [])
    assert len(set(queried)) == 10
    assert not set(queried) & set(result.rounds[0]["initial"]["indices"])
    for line in result.rounds[:-1]:
        assert line["labels"] == truth.train_labels[line["indices"]].tolist()
        if strategy not in needing("draws"):  # badge draws its picks one after another
            assert line["scores"] == sorted(line["scores"], reverse=True)
        assert line["candidates"] == 60
        assert {"fit", "evaluate", "select"} <= set(line["seconds"])
        assert ("predict" in line["seconds"]) == (strategy != "random")  # which asks for no logits
    last = result.rounds[-1]
    assert last["indices"] == last["scores"] == last["labels"] == []
    assert [path.name for path in result.path.glob("weights*")] == ["weights-002.safetensors"]
    if strategy == "mlmoc":
        diagnostics = result.rounds[0]["diagnostics"]
        assert diagnostics["certificate"]["logits_float64"] < 1e-10
        assert diagnostics["kind"] == "single"
        assert {"certificate", "kernel", "posterior"} <= set(result.rounds[0]["seconds"])


def test_identical_commands_give_identical_records(tmp_path):
    first, second = (run.run(small(tmp_path / name)) for name in "ab")
    assert comparable(first) == comparable(second)
    other = run.run(small(tmp_path / "c", seed=1))
    assert comparable(first) != comparable(other)


@pytest.mark.parametrize("completed", [1, 2])
def test_a_run_that_stopped_goes_on_to_the_same_end(completed, tmp_path, monkeypatch):
    whole = run.run(small(tmp_path / "whole"))

    def stop(console, line):
        if line["round"] == completed - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(table, "row", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(small(tmp_path / "stopped"))
    monkeypatch.undo()
    assert len(record.read(tmp_path / "stopped").rounds) == completed
    resumed = run.run(small(tmp_path / "stopped"))
    assert comparable(resumed) == comparable(whole)
    assert len(resumed.environment) == 2


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, monkeypatch):
    def stop(console, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "row", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(small(tmp_path, kernel=KernelConfig(devices=1)))
    monkeypatch.undo()
    resumed = run.run(small(tmp_path))
    assert resumed.complete
    assert len(resumed.environment) == 2
    assert "devices" not in resumed.config["kernel"]
    with pytest.raises(PipelineError, match="ridge"):
        run.run(small(tmp_path, kernel=KernelConfig(ridge=0.5)))


def test_a_complete_run_is_left_as_it_is(tmp_path):
    result = run.run(small(tmp_path))
    before = (tmp_path / "rounds.jsonl").read_bytes()
    assert run.run(small(tmp_path)).rounds == result.rounds
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_a_full_disk_loses_no_completed_round(tmp_path, monkeypatch):
    whole = run.run(small(tmp_path / "whole"))
    real, calls = os.fsync, []

    def full_after_a_while(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises((OSError, ValueError), match="No space left"):
        run.run(small(tmp_path / "full"))
    monkeypatch.undo()
    assert not list((tmp_path / "full").glob(".*-*"))
    assert comparable(run.run(small(tmp_path / "full"))) == comparable(whole)


def test_what_a_person_sees(tmp_path, capsys):
    run.run(small(tmp_path, initial=3, strategy="random"), Console(width=120))
    shown = capsys.readouterr().out
    assert "digits · random · seed 0" in shown
    assert "no label yet of" in shown  # three labels cannot hold ten classes
    assert str(tmp_path) in shown.replace("\n", "")
    again = run.run(small(tmp_path, initial=3, strategy="random"))
    assert len(again.rounds[0]["missing_classes"]) >= 7


def test_training_that_did_not_fit_is_said(tmp_path, capsys):
    hopeless = TrainConfig(epochs=1, min_steps=1, extensions=0, learning_rate=1e-6)
    result = run.run(
        small(tmp_path, strategy="random", cycles=0, train=hopeless), Console(width=200)
    )
    assert not result.rounds[0]["fit"]["fitted"]
    assert "the labels were not fitted" in capsys.readouterr().out


def test_duplicates_of_labelled_images_are_never_queried_first(tmp_path, monkeypatch, rng):
    images = rng.integers(0, 256, size=(40, 1, 6, 6), dtype=np.uint8)
    images[20:] = images[:20]  # every image is there twice
    labels = np.tile(np.arange(20) % 2, 2).astype(np.int64)
    mean, std = moments(images)
    twice = Dataset("twice", images, labels, images, labels, ("a", "b"), mean, std, True)
    monkeypatch.setattr(run.data, "load", lambda *args, **options: twice)
    result = run.run(small(tmp_path, initial=12, query=4, subset=None, cycles=1))
    line = result.rounds[0]
    known = {index % 20 for index in line["initial"]["indices"]}
    left = 20 - len(known)
    assert line["diagnostics"]["determined"] > 0
    assert all(index % 20 not in known for index in line["indices"][: min(left, 4)])
    assert np.isfinite(line["scores"]).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cycles": 1000}, PipelineError, "5000 need 5020 images|need 5020 images and digits has"),
        ({"network": "resnet81"}, TrainerError, "unknown network 'resnet81': did you mean"),
        ({"network": "tests.own_network:nothing"}, NetworkError, "has no attribute 'nothing'"),
        ({"network_args": ("depth=2",)}, NetworkError, "has no argument 'depth'"),
        (
            {"network": "tests.own_network:too_few_classes", "network_args": ()},
            NetworkError,
            "returns 9 logits an image; the data have 10 classes",
        ),
        (
            {"train": TrainConfig(augmentation="flip_crop")},
            PipelineError,
            "mirror image of digits is not of the same class",
        ),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run.run(small(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "mlmc"}, "unknown strategy 'mlmc': did you mean 'mlmoc'"),
        ({"subset": 3}, "subset is 3 and query is 5"),
        ({"initial": 0}, "labelled set would be empty"),
        ({"query": 0}, "query must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"network_args": ("hidden",)}, "not of the form name=value"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_a_directory_of_another_configuration_is_refused(tmp_path):
    run.run(small(tmp_path, strategy="random", cycles=1))
    with pytest.raises(PipelineError, match="strategy is 'random' there, 'entropy' here"):
        run.run(small(tmp_path, strategy="entropy", cycles=1))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_at_ten_random_moments(tmp_path):
    """Three runs, killed three or four times each and then left alone, end as one never killed."""

    def start(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "pipelines.digits", "--run", str(folder)]
        command += ["--initial", "20", "--query", "5", "--subset", "60", "--cycles", "5"]
        command += ["--network", "tests.own_network:make", "--network-args", "hidden=8"]
        command += ["--train.epochs", "20", "--train.min-steps", "400", "--train.extensions", "0"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took = time.monotonic() - began
    whole = comparable(record.read(tmp_path / "whole"))
    waits = np.random.default_rng(0).uniform(0.3, 0.9, size=10) * took
    killed = 0
    for number, waits_here in enumerate(np.array_split(waits, 3)):
        folder = tmp_path / f"killed{number}"
        for wait in waits_here:
            process = start(folder)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        assert start(folder).wait() == 0
        assert comparable(record.read(folder)) == whole
        left = [path.name for path in folder.iterdir() if path.suffix == ".safetensors"]
        assert left == ["weights-005.safetensors"]
    assert killed >= 3, "every run ended before its moment came"
