import contextlib
import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bridge.module import restore
from bridge.weights import read
from pipelines import digits, run
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.strategies import STRATEGIES, needing
from pipelines.strategies.options import KernelConfig
from trainer import data, networks
from trainer.dataset import Dataset, moments
from trainer.errors import NetworkError, TrainerError
from trainer.fit import TrainConfig
from trainer.predict import logits

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


def test_each_image_is_trained_on_with_its_own_label(tmp_path):
    result = run.run(small(tmp_path / "run", strategy="margin", cycles=1))
    truth, rng = data.load("digits", None), np.random.default_rng(1)
    network = networks.build(SMALL.network, truth.image_shape, 10, rng, {"hidden": 8})
    restore(network, read(result.weights(1)))
    initial = result.rounds[0]["initial"]["indices"]
    labelled = sum((line["indices"] for line in result.rounds), initial)
    answers = logits(network, truth.normalise(truth.train_images[labelled]))
    right = np.mean(answers.argmax(1) == truth.train_labels[labelled])
    assert right == result.rounds[-1]["train_accuracy"] > 0.5


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    """Rounds of a run that nothing interrupted."""
    return comparable(run.run(small(tmp_path_factory.mktemp("whole") / "run")))


def test_identical_commands_give_identical_records(tmp_path, whole):
    assert comparable(run.run(small(tmp_path / "again"))) == whole
    assert comparable(run.run(small(tmp_path / "other", seed=1))) != whole


@pytest.mark.parametrize("completed", [1, 2])
def test_a_run_that_stopped_goes_on_to_the_same_end(completed, tmp_path, whole, monkeypatch):

    def stop(console, line):
        if line["round"] == completed - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "print_round", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(small(tmp_path / "stopped"))
    monkeypatch.undo()
    assert len(record.read(tmp_path / "stopped").rounds) == completed
    resumed = run.run(small(tmp_path / "stopped"))
    assert comparable(resumed) == whole
    assert len(resumed.environment) == 2


def test_a_run_goes_on_elsewhere_on_another_machine(tmp_path, whole, monkeypatch):
    """Memory, devices and folders are no part of what a run is."""

    def stop(console, line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "print_round", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(small(tmp_path / "here"))
    moved = (tmp_path / "here").rename(tmp_path / "there")
    machine = KernelConfig(memory_gib=0.5, devices=1, chunk=7)
    resumed = run.run(small(moved, kernel=machine, data_dir=tmp_path, device="cpu"))
    assert comparable(resumed) == whole
    assert len(resumed.environment) == 2
    settings = resumed.config["machine"]
    assert (settings["kernel.memory_gib"], settings["kernel.devices"]) == (0.5, 1)
    assert (settings["run"], settings["data_dir"]) == (str(moved), str(tmp_path))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> record.Run:
    return run.run(small(tmp_path_factory.mktemp("short") / "run", strategy="random", cycles=0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "entropy"}, "strategy is 'random' there, 'entropy' here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"initial": 21}, "initial is 20 there, 21 here"),
        ({"network_args": ("hidden=9",)}, "network_args.hidden is 8 there, 9 here"),
        ({"kernel": KernelConfig(kind="sum")}, "kernel.kind is 'single' there, 'sum' here"),
        ({"train": dataclasses.replace(SMALL.train, epochs=6)}, "train.epochs is 5 there, 6 here"),
    ],
)
def test_what_changes_the_result_is_refused_in_words(changes, message, short):
    same = {"strategy": "random", "cycles": 0}
    with pytest.raises(PipelineError, match=re.escape(message)):
        run.run(small(short.path, **{**same, **changes}))


def test_other_data_are_refused_in_words(short):
    digits_with_another_label = data.load("digits", None)
    digits_with_another_label.train_labels[0] = 9 - digits_with_another_label.train_labels[0]
    with pytest.raises(PipelineError, match="data.train_labels hold other values than there"):
        run.run(
            small(short.path, strategy="random", cycles=0),
            read_dataset=lambda: digits_with_another_label,
        )


def test_a_complete_run_is_left_as_it_is(tmp_path):
    result = run.run(small(tmp_path))
    before = (tmp_path / "rounds.jsonl").read_bytes()
    assert run.run(small(tmp_path)).rounds == result.rounds
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_a_full_disk_loses_no_completed_round(tmp_path, whole, monkeypatch):
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
    assert comparable(run.run(small(tmp_path / "full"))) == whole


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
        ({"initial": 0}, "initial must be 1 or more, not 0"),
        ({"query": 0}, "query must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"network_args": ("hidden",)}, "not of the form name=value"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


class StoppedError(Exception):
    pass


def test_interrupted_beside_every_write_it_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """Each start is stopped before or after it replaces a file that none before it came to."""
    config = small(tmp_path / "whole", strategy="margin", cycles=1)
    expected, folder = comparable(run.run(config)), tmp_path / "stopped"
    real, tried, done = os.replace, set(), set()

    def stopping(source, target):
        write = (Path(target).name, rounds_in(folder))
        if folder in Path(target).parents and write not in tried:
            tried.add(write)
            raise StoppedError
        real(source, target)
        if folder in Path(target).parents and write not in done:
            done.add(write)
            raise StoppedError

    monkeypatch.setattr(os, "replace", stopping)
    for _ in range(30):
        with contextlib.suppress(StoppedError):
            run.run(dataclasses.replace(config, run=folder))
            break
    assert comparable(record.read(folder)) == expected
    names = {"config.json", "environment.json", "round.json", "rounds.jsonl"}
    assert names | {"weights-000.safetensors", "weights-001.safetensors"} == {n for n, _ in done}


def rounds_in(folder: Path) -> int:
    file = folder / "rounds.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_in_a_round_it_goes_on_to_the_same_end(tmp_path, whole):
    """SIGKILL from within, in the second round's training, when half of its weights are written."""
    code = f"""
import os, signal
from pathlib import Path
from tests.pipelines.test_run import run, small
real = os.fsync
def dying(descriptor):
    if "weights-001" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = dying
run.run(small(Path({str(tmp_path / "killed")!r})))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(record.read(tmp_path / "killed").rounds) == 1
    resumed = run.run(small(tmp_path / "killed"))
    assert comparable(resumed) == whole
    assert [path.name for path in resumed.path.glob("weights*")] == ["weights-002.safetensors"]
