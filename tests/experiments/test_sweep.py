"""A study carried out: once each, whatever fails, is killed, or was done before."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.sweep import __main__ as command
from experiments.sweep import run as sweeping
from experiments.sweep import shared
from experiments.sweep.executors import Notice, Outcome, Started, inline
from experiments.sweep.plan import job_of, locate, plan, select, to_do
from experiments.sweep.records import read_note
from experiments.sweep.run import EXECUTORS, Progress, executor_of, sweep
from pipelines import run
from pipelines.config import identity
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.record import only_writer
from tests.experiments.sweep_cases import NAME, STUDY, comparable, config, one, settings

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study carried out without an interruption: its folder, rows, output, and calls made."""
    folder, told = tmp_path_factory.mktemp("whole"), io.StringIO()
    calls = {"load": 0, "fit": 0}

    def counting(name, function):
        def call(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.data, "load", counting("load", shared.data.load))
        patch.setattr(run, "fit", counting("fit", run.fit))
        shared.load_dataset.cache_clear()
        rows = sweep(config(folder), inline, Console(file=told, width=200))
    return folder, rows, told.getvalue(), calls


def states(rows):
    return {row.trial.method: row.state for row in rows}


def test_a_failure_is_noted_and_the_rest_goes_on(whole):
    folder, rows, told, _ = whole
    assert states(rows) == {"random": "done", "entropy": "done", "bad": "failed"}
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
    assert "[3/3 trials]" in told


def test_data_are_read_once_and_the_first_network_is_trained_once(whole):
    assert whole[3] == {"load": 1, "fit": 5}  # three trainings each, the first of both the same


def test_each_record_is_that_of_a_run_by_itself(whole, tmp_path):
    for method in ("random", "entropy"):
        run.run(settings(method, run=tmp_path / method))
        mine = comparable(whole[0] / one(method).folder, "shared")
        assert mine == comparable(tmp_path / method)


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    monkeypatch.setattr(run, "fit", lambda *_: pytest.fail("it was trained"))
    asked = config(whole[0], retry=False)
    assert to_do(asked, plan(asked)) == []
    assert [row.state for row in sweep(asked, inline)] == ["done", "done", "failed"]
    before = read_note(whole[0] / one("bad").folder)
    sweep(config(whole[0]), inline)
    after = read_note(whole[0] / one("bad").folder)
    assert before is not None
    assert after is not None
    assert len(after["attempts"]) == len(before["attempts"]) + 1


def test_an_interrupted_trial_is_gone_on_with_where_it_lies(whole, tmp_path, monkeypatch):
    real, calls = run.fit, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    asked = config(tmp_path, only=("random",))
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(asked, inline)
    (row,) = plan(asked)
    assert row.state == "begun"
    moved = tmp_path / "moved"
    row.path.rename(moved)
    assert [(row.path, row.state) for row in sweep(asked, inline)] == [(moved, "done")]
    assert comparable(moved) == comparable(whole[0] / one("random").folder)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the sweep is forked")
def test_killed_at_random_moments(whole, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.killed_sweep", tmp_path, "3", "0"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 2, "it ended before its moments came"
    rows = sweep(config(tmp_path, retry=False), inline)
    assert states(rows) == {"random": "done", "entropy": "done", "bad": "failed"}
    for row in rows[:2]:
        assert comparable(row.path) == comparable(whole[0] / row.trial.folder)


def test_a_trial_held_by_another_process_is_waited_for(whole, tmp_path, monkeypatch):
    told, waited = io.StringIO(), []
    theirs = only_writer(tmp_path / one("random").folder)
    theirs.__enter__()

    def let_go(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            theirs.__exit__(None, None, None)

    def quick(made, first):
        with only_writer(made.run_folder):
            source = whole[0] / made.run_folder.name
            shutil.copytree(source, made.run_folder, dirs_exist_ok=True)

    monkeypatch.setitem(vars(sweeping), "_CARRY_OUT", {"run": quick})
    clock = SimpleNamespace(sleep=let_go, time=lambda: 0.0)
    monkeypatch.setattr(sweeping, "time", clock)
    asked = config(tmp_path, only=("random", "entropy"))
    rows = sweep(asked, inline, Console(file=told, width=200))
    assert len(waited) == 2
    assert [row.state for row in rows] == ["done", "done"]
    words = told.getvalue()
    assert words.index("held     digits/random/seed0") < words.index("done     digits/entropy")
    assert "1 trials are held by another process: waiting" in words


def test_which_trials_a_pattern_matches():
    trials = STUDY.trials("small")
    assert select(trials, ()) == list(trials)
    assert {t.method for t in select(trials, ("r*", "bad"))} == {"random", "bad"}
    assert len(select(trials, ("DIG*",))) == 3
    both = STUDY.trials("paper")
    assert [(t.method, t.seed) for t in select(both, ("digits/mlmoc/seed1",))] == [("mlmoc", 1)]
    with pytest.raises(PipelineError, match=r"'mnist/\*'.*digits.*random, entropy, bad"):
        select(trials, ("random", "mnist/*"))


def test_trials_that_compute_the_same_are_one(tmp_path):
    mine = one("random")
    rows = locate([mine, dataclasses.replace(mine, task="another")], tmp_path)
    assert [row.trial for row in rows] == [mine]


def test_where_a_job_is_carried_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NTK_DATA_DIR", raising=False)
    asked = config(Path("runs"), data_dir=Path("mine"), device="cpu", download=False)
    (row,) = locate([one("random")], asked.runs)
    job = job_of(row, asked)
    assert job.folder == tmp_path / "runs" / one("random").folder
    assert job.config.data_dir == tmp_path / "mine"
    assert job.shared == tmp_path / "runs" / "shared"
    assert (job.config.device, job.config.download) == ("cpu", False)
    assert identity(job.config) == identity(one("random").config)
    other = job_of(row, config(Path("runs"), share=False))
    assert (other.shared, other.config.data_dir) == (None, tmp_path / "data")


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


def test_a_dry_run_prints_what_there_is_to_do(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "sweep", lambda *_: pytest.fail("it was carried out"))
    arguments = [NAME, "--dry-run", "--executor", "ray", "--runs"]
    status, out, _ = shown([*arguments, tmp_path], monkeypatch, capsys)
    assert status == 0
    assert "3 of 3 trials to do." in out
    assert not list(tmp_path.iterdir())
    _, out, _ = shown([*arguments, whole[0]], monkeypatch, capsys)
    rows = {line.split()[1]: line.split()[2:] for line in out.splitlines() if "digits" in line}
    assert rows["random"] == ["1", "1", "0", "0", "0"]
    assert rows["bad"] == ["1", "0", "0", "1", "1"]
    assert "1 of 3 trials to do." in out


def test_the_command(whole, monkeypatch, capsys):
    arguments = [NAME, "--runs", whole[0], "--no-retry"]
    status, out, _ = shown(arguments, monkeypatch, capsys)
    assert status == 1
    assert "2 trials done, 1 failed." in out
    assert "failed: digits/bad/seed0: see" in out
    status, out, _ = shown([*arguments, "--only", "random"], monkeypatch, capsys)
    assert status == 0
    assert "1 trials done, 0 failed." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown study 'nothing'"),
        ([NAME, "--size", "big"], "unknown size 'big'"),
        ([NAME, "--executor", "procesess"], "did you mean 'processes'?"),
        ([NAME, "--workers", "0"], "workers must be 1 or more, not 0"),
        ([NAME, "--cpus", "0"], "a trial cannot have 0 cores"),
        ([NAME, "--gpus", "-1"], "and -1 GPUs"),
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
    assert set(EXECUTORS) == {"inline", "processes", "ray"}
    assert executor_of(config(tmp_path)) is inline
    made = executor_of(config(tmp_path, executor="processes", workers=3))
    assert len(made.keywords["shares"]) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown(terminal, tmp_path):
    rows = locate(STUDY.trials("small"), tmp_path)
    told = io.StringIO()
    console = Console(file=told, width=160, force_terminal=terminal)
    first, second, third = rows
    (first.path / record.ROUNDS).parent.mkdir()
    (first.path / record.ROUNDS).write_text("{}\n{}\n")
    with Progress(rows, console) as progress:
        progress.update(Started(first.trial.key, "worker 1"))
        if terminal:
            console.print(progress._bars.get_renderable())
        progress.update(Notice("worker 2 [was] lost"))
        progress.update(Outcome(second.trial.key, "failed", 0.0, "no [luck]"))
        progress.update(Outcome(first.trial.key, "done", 61.0))
        progress.update(Outcome(third.trial.key, "held", 0.0))
    words = told.getvalue()
    assert "worker 2 [was] lost" in words
    assert "no [luck]" in words
    assert "done     digits/random/seed0, 0:01:01" in words
    if terminal:
        assert "2 of 3" in words
        assert "0 of 3" in words
    else:
        assert "begun    digits/random/seed0 (worker 1) [0/3 trials]" in words


def test_what_an_executor_yields_without_a_note_is_noted(tmp_path):
    def losing(jobs, work):
        for job in jobs:
            yield Started(job.key, "x")
            yield Notice("lost")
            yield Outcome(job.key, "failed", 2.0, "killed", noted=False)

    (row,) = sweep(config(tmp_path, only=("random",)), losing)
    assert row.state == "failed"
    note = read_note(row.path)
    assert note is not None
    assert note["attempts"][0]["message"] == "killed"
    assert note["attempts"][0]["traceback"] is None


@pytest.mark.slow
def test_a_process_from_another_directory_ends_as_this_one(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", ENVIRONMENT["OMP_NUM_THREADS"])
    rows = sweep(config(Path("runs"), executor="processes", workers=1, only=("random", "bad")))
    assert states(rows) == {"random": "done", "bad": "failed"}
    mine = tmp_path / "runs" / one("random").folder
    assert comparable(mine, "shared") == comparable(whole[0] / one("random").folder, "shared")
