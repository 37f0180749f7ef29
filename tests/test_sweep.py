"""A study carried out: once each, whatever fails, is killed, or was done before."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.approximation.config import ApproximationConfig
from experiments.dynamics.config import TheoryConfig
from experiments.studies.study import Trial
from experiments.sweep import __main__ as command
from experiments.sweep import shared
from experiments.sweep import sweep as sweeping
from experiments.sweep.carry import read_note
from experiments.sweep.executor import Said, Started, Tick
from experiments.sweep.executors import EXECUTORS, executor_of
from experiments.sweep.inline import Inline
from experiments.sweep.kinds import WRITTEN
from experiments.sweep.plan import chosen, planned, task_of
from experiments.sweep.progress import Progress
from experiments.sweep.recorded import recorded, state
from experiments.sweep.remaining import Durations, clock
from experiments.sweep.sweep import plan, sweep, to_do
from experiments.sweep.task import Outcome
from pipelines import run
from pipelines.audit.config import AuditConfig
from pipelines.errors import PipelineError
from pipelines.record import only_writer
from tests.experiments.sweep_cases import NAME, STUDY, comparable, config, one, settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study carried out without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    told = io.StringIO()
    summary = sweep(config(folder), Inline(), Console(file=told, width=200))
    return folder, summary, told.getvalue()


def names(rows):
    return [(row.trial.arm, row.trial.seed) for row in rows]


def test_what_fails_is_told_and_the_rest_goes_on(whole):
    folder, summary, told = whole
    both = [("random", 0), ("entropy", 0), ("random", 1), ("entropy", 1)]
    assert names(summary.done) == both
    assert names(summary.failed) == [("bad", 0), ("bad", 1)]
    note = read_note(folder / one("bad").folder)
    assert note is not None
    assert note["state"] == "failed"
    (attempt,) = note["attempts"]
    assert "has no argument 'nothing'" in attempt["message"]
    assert attempt["traceback"].startswith("Traceback")
    assert "NetworkError" in attempt["traceback"]
    assert note["settings"]["network_args"] == {"nothing": 1}
    done = read_note(folder / one("random").folder)
    assert done is not None
    assert (done["key"], done["kind"], done["state"]) == (one("random").key, "run", "done")
    assert "failed   digits/bad/seed0" in told
    assert "[6/6 trials, about 0 s left]" in told


def test_each_record_is_that_of_a_run_by_itself(whole, tmp_path):
    folder, _, _ = whole
    for arm in ("random", "entropy"):
        run.run(settings(arm, run=tmp_path / arm))
        mine = comparable(folder / one(arm).folder, "shared")
        assert mine == comparable(tmp_path / arm)


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    folder, _, _ = whole
    monkeypatch.setattr(run, "fit", lambda *_: pytest.fail("it was trained"))
    asked = config(folder, retry=False)
    assert to_do(asked, plan(asked)) == []
    summary = sweep(asked, Inline())
    assert len(summary.done) == 4
    assert names(to_do(config(folder), plan(config(folder)))) == [("bad", 0), ("bad", 1)]
    before = read_note(folder / one("bad", 1).folder)
    sweep(config(folder, only=("bad/seed1",)), Inline())
    after = read_note(folder / one("bad", 1).folder)
    assert before is not None
    assert after is not None
    assert len(after["attempts"]) == len(before["attempts"]) + 1


def test_a_run_made_by_hand_is_taken_and_gone_on_with(whole, tmp_path, monkeypatch):
    folder, _, _ = whole
    mine, begun = tmp_path / "mine" / "random", tmp_path / "begun"
    run.run(settings("random", run=mine))
    with monkeypatch.context() as patch:
        patch.setattr(run, "logits", lambda *_: 1 / 0)  # after the training
        with pytest.raises(ZeroDivisionError):
            run.run(settings("entropy", run=begun))
    asked = config(tmp_path, only=("random/seed0", "entropy/seed0"))
    assert [(row.path, row.state) for row in plan(asked)] == [(mine, "done"), (begun, "begun")]
    assert [row.path for row in sweep(asked, Inline()).done] == [mine, begun]
    assert comparable(begun, "shared") == comparable(folder / one("entropy").folder, "shared")
    assert not (tmp_path / one("random").folder).exists()


def test_an_interrupted_trial_is_gone_on_with_where_it_lies(whole, tmp_path, monkeypatch):
    folder, _, _ = whole
    real, calls = run.fit, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    asked = config(tmp_path, only=("random/seed0",))
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(asked, Inline())
    (row,) = plan(asked)
    assert row.state == "begun"
    moved = tmp_path / "moved"
    row.path.rename(moved)
    assert [row.path for row in sweep(asked, Inline()).done] == [moved]
    assert comparable(moved) == comparable(folder / one("random").folder)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the sweep is forked")
def test_killed_at_random_moments(whole, tmp_path):
    folder, _, _ = whole
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_sweep", tmp_path, "8", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 4, "it ended before its moments came"
    summary = sweep(config(tmp_path, retry=False), Inline())
    assert names(summary.failed) == [("bad", 0), ("bad", 1)]
    for row in summary.done:
        assert comparable(row.path) == comparable(folder / row.trial.folder)
    assert len(summary.done) == 4


def test_a_trial_in_other_hands_is_waited_for(tmp_path, monkeypatch):
    told, waited = io.StringIO(), []
    asked = config(tmp_path, only=("random/seed0", "entropy/seed0"))
    theirs = only_writer(tmp_path / one("random").folder)
    theirs.__enter__()

    def let_go(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            theirs.__exit__(None, None, None)

    monkeypatch.setattr(sweeping, "time", SimpleNamespace(sleep=let_go))
    summary = sweep(asked, Inline(), Console(file=told, width=200))
    assert len(waited) == 2
    assert names(summary.done) == [("random", 0), ("entropy", 0)]
    words = told.getvalue()
    assert words.index("held     digits/random/seed0") < words.index("done     digits/entropy")
    assert "1 trials are in the hands of another process: waiting" in words


def test_data_are_read_once_and_the_first_network_is_trained_once(tmp_path, monkeypatch):
    read, fit, calls = shared.data.load, run.fit, {"read": 0, "fit": 0}

    def counting(name, function):
        def call(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(shared.data, "load", counting("read", read))
    monkeypatch.setattr(run, "fit", counting("fit", fit))
    shared.load_dataset.cache_clear()
    asked = ("random/seed0", "entropy/seed0")
    sweep(config(tmp_path / "sharing", only=asked), Inline())
    assert calls == {"read": 1, "fit": 5}  # three trainings each, the first of both the same
    sweep(config(tmp_path / "alone", only=asked, share=False), Inline())
    assert calls == {"read": 1, "fit": 11}
    for arm in ("random", "entropy"):
        mine, theirs = (tmp_path / name / one(arm).folder for name in ("sharing", "alone"))
        assert comparable(mine, "shared") == comparable(theirs)


def test_which_trials_a_pattern_is_of():
    trials = STUDY.trials("small")
    assert chosen(trials, ()) == list(trials)
    assert {t.arm for t in chosen(trials, ("r*", "bad"))} == {"random", "bad"}
    assert len(chosen(trials, ("DIG*",))) == 6
    assert [(t.arm, t.seed) for t in chosen(trials, ("digits/entropy/seed1",))] == [("entropy", 1)]
    with pytest.raises(PipelineError, match=r"'mnist/\*'.*digits.*random, entropy, bad"):
        chosen(trials, ("random", "mnist/*"))


def test_trials_that_compute_the_same_are_one(tmp_path):
    mine = one("random")
    twin = dataclasses.replace(mine, subject="another")
    rows = planned([mine, twin], tmp_path)
    assert [row.trial for row in rows] == [mine]


def test_where_a_task_is_carried_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = config(Path("runs"), data_dir=Path("data"), device="cpu", download=False)
    (row,) = planned([one("random")], asked.runs)
    task = task_of(row, asked)
    assert task.folder == tmp_path / "runs" / one("random").folder
    assert task.config.data_dir == tmp_path / "data"
    assert (task.config.device, task.config.download) == ("cpu", False)
    assert task.config.record() == one("random").config.record()


def shown(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    status = 0
    try:
        command.main()
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_dry_run_tells_what_there_is_to_do(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "sweep", lambda *_: pytest.fail("it was carried out"))
    status, out, _ = shown([NAME, "--dry-run", "--runs", tmp_path], monkeypatch, capsys)
    assert status == 0
    assert "6 of 6 trials to do." in out
    assert not list(tmp_path.iterdir())
    _, out, _ = shown([NAME, "--dry-run", "--runs", whole[0]], monkeypatch, capsys)
    rows = {line.split()[1]: line.split()[2:] for line in out.splitlines() if "digits" in line}
    assert rows["random"] == ["2", "2", "0", "0", "0"]
    assert rows["bad"] == ["2", "0", "0", "2", "2"]
    assert "2 of 6 trials to do, about" in out


def test_the_command(whole, monkeypatch, capsys):
    arguments = [NAME, "--runs", whole[0], "--no-retry"]
    status, out, _ = shown(arguments, monkeypatch, capsys)
    assert status == 1
    assert "4 trials done, 2 failed." in out
    assert "failed: digits/bad/seed0: see" in out
    status, out, _ = shown([*arguments, "--only", "random"], monkeypatch, capsys)
    assert status == 0
    assert "2 trials done, 0 failed." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown study 'nothing'"),
        ([NAME, "--size", "big"], "unknown size 'big'"),
        ([NAME, "--executor", "procesess"], "did you mean 'processes'?"),
        ([NAME, "--workers", "0"], "workers must be 1 or more, not 0"),
        ([NAME, "--only", "mnist"], "no trial is of 'mnist'"),
    ],
)
def test_what_cannot_be_asked(arguments, message, tmp_path, monkeypatch, capsys):
    arguments = [*arguments, "--runs", tmp_path / "runs"]
    status, _, err = shown(arguments, monkeypatch, capsys)
    assert status == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_executors_by_name(tmp_path):
    assert {"here", "processes"} <= set(EXECUTORS)
    assert executor_of(config(tmp_path)).workers == 1
    assert executor_of(config(tmp_path, executor="processes", workers=3)).workers == 3


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_told(terminal, tmp_path):
    rows = planned(STUDY.trials("small"), tmp_path)
    told = io.StringIO()
    console = Console(file=told, width=160, force_terminal=terminal)
    durations = Durations()
    done, half, *rest = rows
    with Progress(rows, 2, durations, console) as progress:
        progress.started(done.trial.key, "worker 1")
        assert progress.seconds_left() is None
        progress.ended(Outcome(done.trial.key, "done", 30.0))
        # two of its three rounds are done, and others take as long as the one that has ended
        progress.know({half.trial.key: 2})
        assert progress.seconds_left() == pytest.approx((30 / 3 + 4 * 30) / 2)
        progress.started(half.trial.key, "worker 2")
        progress.say("worker 2 [was] lost")
        if terminal:
            console.print(progress._board())
        for row in rest:
            progress.ended(Outcome(row.trial.key, "failed", 0.0, "no [luck]"))
        progress.ended(Outcome(half.trial.key, "done", 3.0))
        assert progress.seconds_left() == 0
        assert (progress.done, progress.failed) == (2, 4)
    words = told.getvalue()
    assert "worker 2 [was] lost" in words
    assert "no [luck]" in words
    if terminal:
        assert "1 of 6 trials · 0 failed · 5 of 18 rounds" in words
        assert "round 2 of 3" in words
    else:
        assert "begun    digits/random/seed0 (worker 1) [0/6 trials]" in words


def test_remaining_time_is_that_of_the_most_alike():
    def trial(subject, arm):
        return Trial(subject, arm, 0, one("random").config)

    durations = Durations()
    assert durations.of(trial("a", "x")) is None
    for subject, arm, seconds in (("a", "x", 1), ("a", "x", 3), ("b", "x", 10), ("b", "y", 100)):
        durations.add(trial(subject, arm), seconds)
    assert durations.of(trial("a", "x")) == 2
    assert durations.of(trial("c", "x")) == pytest.approx(14 / 3)
    assert durations.of(trial("b", "z")) == 55
    assert durations.of(trial("c", "z")) == pytest.approx(114 / 4)


def test_a_time_for_people():
    assert [clock(s) for s in (0.4, 59.6, 125, 7500)] == [
        "0 s",
        "1 min 00 s",
        "2 min 05 s",
        "2 h 05 min",
    ]


def test_what_an_executor_tells_without_a_note_is_noted(tmp_path):
    class Losing:
        workers = 1

        def __call__(self, tasks, work):
            for task in tasks:
                yield Started(task.key, "x")
                yield Said("lost")
                yield Tick({task.key: 1})
                yield Outcome(task.key, "failed", 2.0, "killed", noted=False)

    asked = config(tmp_path, only=("random/seed0",))
    summary = sweep(asked, Losing())
    assert names(summary.failed) == [("random", 0)]
    note = json.loads((summary.failed[0].path / "trial.json").read_text())
    assert note["attempts"][0]["message"] == "killed"
    assert note["attempts"][0]["traceback"] is None


@pytest.mark.slow
def test_several_processes_end_as_this_one(whole, tmp_path):
    folder, _, _ = whole
    command = [sys.executable, "-m", "experiments.sweep", NAME, "--executor", "processes"]
    command += ["--runs", str(tmp_path), "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 1
    rows = plan(config(tmp_path))
    assert [row.state for row in rows] == ["done", "done", "failed"] * 2
    for row in rows:
        if row.state == "done":
            mine = comparable(row.path, "shared")
            assert mine == comparable(folder / row.trial.folder, "shared")


@pytest.mark.parametrize("made", [AuditConfig(), TheoryConfig(), ApproximationConfig()])
def test_a_measurement_made_by_hand_is_taken(made, tmp_path):
    trial, other = (Trial("s", "a", seed, dataclasses.replace(made, seed=seed)) for seed in (0, 1))
    folder = tmp_path / "deep" / "whatever"
    folder.mkdir(parents=True)
    content = {"format": 1, "config": json.loads(json.dumps(trial.config.record()))}
    (folder / WRITTEN[trial.kind]).write_text(json.dumps(content))
    assert recorded(tmp_path, [trial, other]) == {trial.key: folder}
    assert state(trial, folder) == "done"
    assert state(other, folder) == "begun"  # another's
    (folder / WRITTEN[trial.kind]).write_text('{"config": {"half"')
    assert recorded(tmp_path, [trial, other]) == {}
    assert state(trial, folder) == "begun"
