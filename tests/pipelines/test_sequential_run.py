"""Sequential runs end to end: their record, interruptions, people, and what is refused."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from bridge.module import weights_of
from pipelines.core.errors import PipelineError
from pipelines.report.build import report
from pipelines.run import RunSetup, certified_mirror
from pipelines.sequential import __main__, journal, run
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.run import run as carry_out
from pipelines.sequential.session import SequentialSession
from pipelines.strategies.options import LookAheadConfig
from tests.sequential_cases import comparable, config
from trainer import data
from trainer.errors import DataError, UnknownNameError

ROOT = Path(__file__).parents[2]


def same(first: journal.Journal, second: journal.Journal) -> bool:
    return comparable(first.answers) == comparable(second.answers) and comparable(
        first.run.rounds
    ) == comparable(second.run.rounds)


@pytest.fixture(scope="module")
def mirrors():
    return {}


@pytest.fixture(autouse=True)
def _one_mirror(mirrors, monkeypatch):
    """Networks of one shape are traced once, not in every run."""

    def one_mirror(network, twin, probe):
        key = tuple(tuple(p.shape) for p in network.parameters())
        if key not in mirrors:
            mirrors[key] = certified_mirror(network, twin, probe)
        return mirrors[key].with_weights(weights_of(network)), None

    monkeypatch.setattr("pipelines.run.mirrored", one_mirror)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> journal.Journal:
    return carry_out(config(tmp_path_factory.mktemp("whole") / "run"))


def test_the_record_of_a_run(whole):
    truth = data.load("digits", None)
    assert [line["number"] for line in whole.answers] == list(range(12))
    assert [line["round"] for line in whole.answers] == [0] * 7 + [1] * 5
    assert [line["labelled"] for line in whole.run.rounds] == [20, 27, 32]
    assert [line["why"] for line in whole.run.rounds] == [
        "the labels at the start",
        "7 answers",
        "the budget is spent",
    ]
    asked = [line["image"] for line in whole.answers]
    assert len(set(asked)) == 12
    assert not set(asked) & set(whole.run.rounds[0]["initial"]["indices"])
    assert [line["label"] for line in whole.answers] == truth.train_labels[asked].tolist()
    for line in whole.answers:
        assert line["who"] == "dataset"
        assert 0 <= line["accuracy"] <= 1
        assert line["drift"] > 0
    assert whole.answers[-1]["labelled"] == 32
    assert whole.run.complete
    files = {path.name for path in whole.run.path.iterdir() if path.name != ".lock"}
    assert files == {
        *("config.json", "environment.json", "rounds.jsonl", "answers.jsonl"),
        *("curve.csv", "curve.png", "weights-002.safetensors"),
    }
    table = pd.read_csv(whole.run.path / "curve.csv")
    assert len(table) == 15
    assert len(table["linearised_accuracy"].dropna()) == 14
    assert len(table["sgd_accuracy"].dropna()) == 3
    with Image.open(whole.run.path / "curve.png") as picture:
        assert picture.width > 500


def test_a_report_reads_it(whole, tmp_path):
    made = report([whole.run.path], tmp_path / "report")
    assert pd.read_csv(made.rounds)["labelled"].tolist() == [20, 27, 32]


def test_a_complete_run_is_left_as_it_is_and_goes_on_with_a_larger_budget(tmp_path):
    few = carry_out(config(tmp_path / "run", budget=3, retrain_every=None, final_training=False))
    again = carry_out(config(tmp_path / "run", budget=3, retrain_every=None, final_training=False))
    assert same(few, again)
    more = carry_out(config(tmp_path / "run", budget=6, retrain_every=None, final_training=False))
    six = carry_out(config(tmp_path / "six", budget=6, retrain_every=None, final_training=False))
    assert same(more, six)
    assert len(more.run.environment) == 3
    with pytest.raises(PipelineError, match="another configuration: seed is 0 there, 1"):
        carry_out(config(tmp_path / "run", seed=1, retrain_every=None))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_while_an_answer_is_written_it_goes_on_to_the_same_end(tmp_path, whole):
    """SIGKILL from within, when the tenth write of answers is not yet in place of the ninth."""
    code = f"""
import os, signal
from pathlib import Path
from pipelines.sequential.run import run
from tests.sequential_cases import config
real, writes = os.replace, []
def dying(source, target):
    writes.extend(["answers"] * (Path(target).name == "answers.jsonl"))
    if len(writes) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = dying
run(config(Path({str(tmp_path / "killed")!r})))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    begun = journal.read(tmp_path / "killed")
    assert 7 <= len(begun.answers) < 12
    assert comparable(begun.answers[:-1]) == comparable(whole.answers[: len(begun.answers) - 1])
    assert same(carry_out(config(tmp_path / "killed")), whole)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        *[("written", 0), ("written", 6), ("absorbed", 6), ("absorbed", 7), ("written", 11)],
        ("trained", 6),
    ],
)
def test_stopped_beside_an_answer_it_goes_on_to_the_same_end(
    place, answer, tmp_path, whole, monkeypatch
):
    """Between the disk and the absorption, and between that and the next training or question."""
    if place == "written":
        real = SequentialSession.add_label

        def add_label(self, image, label):
            if self.status.answered + 7 * (self.status.labelled >= 27) == answer:
                raise StoppedError
            real(self, image, label)

        monkeypatch.setattr(SequentialSession, "add_label", add_label)
    elif place == "absorbed":

        def shown(console, line, *rest):
            if line["number"] == answer:
                raise StoppedError

        monkeypatch.setattr(run, "print_answer", shown)
    else:

        def trained(console, line):
            if line["round"] == 1:
                raise StoppedError

        monkeypatch.setattr(run, "print_training", trained)
    with pytest.raises(StoppedError):
        carry_out(config(tmp_path / "here"))
    assert len(journal.read(tmp_path / "here").answers) == answer + 1
    monkeypatch.undo()
    moved = (tmp_path / "here").rename(tmp_path / "there")
    again = config(moved)  # with more memory, too
    again = dataclasses.replace(again, kernel=dataclasses.replace(again.kernel, memory_gib=5.0))
    assert same(carry_out(again), whole)


def test_an_answer_is_on_the_disk_before_it_is_absorbed(tmp_path):
    seen = []

    def answers(indices):
        file = tmp_path / "answers.jsonl"
        seen.append(len(file.read_text().splitlines()) if file.exists() else 0)
        return indices % 10

    made = carry_out(config(tmp_path, budget=4, retrain_every=None), oracle=answers)
    assert seen == [0, 1, 2, 3]
    assert [line["label"] for line in made.answers] == [a["image"] % 10 for a in made.answers]
    assert {line["who"] for line in made.answers} == {"function"}


def test_it_trains_again_when_the_linearised_network_is_stale(tmp_path):
    limits = {"retrain_every": None, "final_training": False, "budget": 6}
    never = carry_out(config(tmp_path / "never", **limits))
    drifts = [line["drift"] for line in never.answers]
    assert drifts == sorted(drifts)
    limit = (drifts[1] + drifts[2]) / 2
    made = carry_out(config(tmp_path / "stale", retrain_when_stale=limit, **limits))
    assert [line["round"] for line in made.answers][:4] == [0, 0, 0, 1]
    assert made.run.rounds[1]["why"].startswith("stale: drift")


def test_other_candidates_are_drawn_by_training_again(tmp_path):
    made = carry_out(config(tmp_path / "a", subset=5, strategy="random"))
    assert [line["round"] for line in made.answers] == [0] * 5 + [1] * 5 + [2] * 2
    assert made.run.rounds[1]["why"] == "no candidate was left"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "mnits"}, UnknownNameError, "unknown data set 'mnits': did you mean"),
        ({"strategy": "mlmc"}, UnknownNameError, "unknown sequential strategy 'mlmc': did you"),
        ({"budget": -1}, PipelineError, "budget must be 0 or more"),
        ({"retrain_every": 0}, PipelineError, "retrain_every must be 1 or more"),
        ({"retrain_when_stale": 0.0}, PipelineError, "retrain_when_stale must be above 0"),
        ({"oracle": "me"}, PipelineError, "oracle is 'me'; it must be dataset, person, or"),
        ({"class_names": ("a", "b")}, PipelineError, "class_names are for your own images"),
        ({"subset": 5, "retrain_every": None}, PipelineError, "budget is 12 and subset is 5"),
        ({"seed": -1}, PipelineError, "seed must be 0 or more"),
        ({"lookahead": LookAheadConfig(batch="hybrid")}, PipelineError, "one at a time here"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes, error, message):
    with pytest.raises(error, match=message):
        config(Path("nowhere"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 5000}, "5000 queries of 1 need 5020 images"),
        ({"oracle": "person"}, "there is no console to ask them at"),
        ({"oracle": "tests.nothing:here"}, "cannot import 'tests.nothing'"),
        ({"initial": 1438, "budget": 0}, "all 1438 images are labelled at the start"),
    ],
)
def test_requests_that_cannot_be_carried_out(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        carry_out(config(tmp_path, **{"subset": None, **changes}))


def test_a_memory_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(RunSetup, "fit_and_save", lambda *_: pytest.fail("it was trained"))
    small = config(tmp_path)
    kernel = dataclasses.replace(small.kernel, memory_gib=1e-4)
    with pytest.raises(ValueError, match=r"give .* GiB.*counted with 30 test images"):
        carry_out(dataclasses.replace(small, kernel=kernel))
    kernel = dataclasses.replace(small.kernel, sample=10)
    with pytest.raises(PipelineError, match="Use a sketch with it"):
        carry_out(dataclasses.replace(small, kernel=kernel))


def typed(monkeypatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_a_person_answers_undoes_skips_and_stops(tmp_path, monkeypatch):
    shown = io.StringIO()
    asked = config(tmp_path / "run", oracle="person", budget=5, retrain_every=None)
    typed(monkeypatch, "3\nundo\n4\nskip\nundo\nskip\nfour\nquit\n")
    made = carry_out(asked, Console(file=shown, width=100))
    said = shown.getvalue()
    assert [(line["label"], line["name"], line["who"]) for line in made.answers] == [
        (4, "4", "person"),
        (None, None, "person"),
    ]
    assert "question 1 of 5 · 20 labels · linearised network" in said
    assert "taken back: image" in said
    assert "no class is called 'four'" in said
    assert "stopped with 4 questions left" in said
    typed(monkeypatch, "undo\nundo\nundo\n7\n")
    again = carry_out(asked, Console(file=shown, width=100))
    assert [line["label"] for line in again.answers] == [7]
    assert again.answers[0]["image"] == made.answers[0]["image"]
    assert "nothing was answered since the network was trained: no undo" in shown.getvalue()


def paint(folder: Path, names, rng) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size=(6, 6), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize("tests", [(), ("test/day/1.png", "test/night/2.png")])
def test_a_persons_own_images_without_labels(tests, tmp_path, monkeypatch, rng):
    paint(tmp_path / "mine", [*(f"unlabelled/{n}.png" for n in range(12)), *tests], rng)
    shown = io.StringIO()
    asked = config(
        tmp_path / "run",
        dataset="images",
        data_dir=tmp_path / "mine",
        class_names=("day", "night"),
        oracle="person",
        initial=4,
        budget=3,
        subset=None,
        retrain_every=None,
    )
    typed(monkeypatch, "day\nundo\nn\nskip\nd\n")  # and the end of the input: stop
    stopped = carry_out(asked, Console(file=shown, width=100))
    assert not stopped.run.rounds
    typed(monkeypatch, "d\nn\nd\nn\nd\n")
    made = carry_out(asked, Console(file=shown, width=100))
    labels = [line["label"] for line in made.answers]
    assert labels == [1, None, 0, 0, 1, 0, 1, 0]
    assert len({line["image"] for line in made.answers}) == 8
    assert [line["labelled"] for line in made.run.rounds] == [4, 7]
    assert (made.answers[-1]["accuracy"] is None) == (not tests)
    assert (made.run.path / "curve.png").exists()
    assert "label 1 of 4 to begin with" in shown.getvalue()


def test_labels_at_the_start_of_one_class_are_not_enough(tmp_path, monkeypatch, rng):
    paint(tmp_path / "mine", [f"{n}.png" for n in range(9)], rng)
    asked = config(
        tmp_path / "run",
        dataset="images",
        data_dir=tmp_path / "mine",
        class_names=("day", "night"),
        oracle="person",
        initial=2,
        budget=3,
        subset=None,
    )
    typed(monkeypatch, "d\nd\n")
    with pytest.raises(PipelineError, match="all 2 labels at the start are day"):
        carry_out(asked, Console(file=io.StringIO()))
    with pytest.raises(DataError, match=r"image \d+ has no label"):
        carry_out(dataclasses.replace(asked, run=tmp_path / "other", oracle="dataset"))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "keep_compiled", lambda: None)
    words = ["--dataset", "digits", "--budget", "2", "--initial", "20", "--subset", "30"]
    words += ["--network", "tests.own_network:make", "--test-subset", "20", "--strategy", "margin"]
    words += ["--train.epochs", "5", "--train.min-steps", "40", "--train.extensions", "0"]
    __main__.main([*words, "--run", str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert "digits · sequential · margin · seed 0 · tests.own_network:make" in shown
    assert "2/2 image" in shown
    assert "picture:" in shown
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["network_args"] == {}
    assert settings["mode"] == "sequential"
    with pytest.raises(SystemExit):
        __main__.main(["--dataset=mnits"])
    assert "did you mean 'mnist'" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        __main__.main(words)
    assert stopped.value.code == 130
    assert "every answer is on disk" in capsys.readouterr().err


def test_a_line_that_was_changed_is_noticed(tmp_path, whole):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "environment.json", "rounds.jsonl", "answers.jsonl"):
        (copy / name).write_bytes((whole.run.path / name).read_bytes())
    lines = (copy / "answers.jsonl").read_text().splitlines()
    (copy / "answers.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(PipelineError, match="does not hold answers 0, 1, 2"):
        journal.read(copy)
    (copy / "answers.jsonl").write_text("nonsense")
    with pytest.raises(PipelineError, match="line 1 is not valid JSON"):
        journal.read(copy)


def test_the_page_of_the_mode_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "sequential.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "sequential.md", "exec"), {})
    assert "answered=10" in capsys.readouterr().out
    for name in re.findall(r"`--([a-z.-]+)[ `]", page):
        field = name.replace("-", "_").split(".")
        settings = SequentialConfig()
        assert hasattr(getattr(settings, field[0]) if len(field) > 1 else settings, field[-1])
