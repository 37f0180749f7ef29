"""Which trials are on record: by what was computed, wherever and by whomever."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.approximation.config import ApproximationConfig
from experiments.dynamics.config import TheoryConfig
from experiments.studies.study import Config, Trial, canonical
from experiments.sweep import records
from experiments.sweep.executors import Job, Outcome
from experiments.sweep.records import (
    MEASUREMENTS,
    find_records,
    pack,
    rounds_at,
    state,
    unpack,
    write_note,
)
from pipelines.audit.config import AuditConfig
from pipelines.config import identity
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.sequential.config import SequentialConfig
from pipelines.strategies.options import KernelConfig
from tests.experiments.sweep_cases import SMALL
from tests.report_cases import answer, line, store_answers

RANDOM = Trial("digits", "random", 0, canonical(dataclasses.replace(SMALL, strategy="random")))
MLMOC = Trial("digits", "mlmoc", 0, canonical(dataclasses.replace(SMALL, strategy="mlmoc")))
ASK = SequentialConfig(budget=3, subset=40, network=SMALL.network)
AUDIT = Trial("digits", "audit", 0, AuditConfig())


def written(path: Path, config: Config, rounds: int, **changes: Any) -> Path:
    """A run directory as a person's own run leaves it."""
    path.mkdir(parents=True)
    settings = {"format": record.FORMAT, **identity(config), "data": {"sha256": "x"}, **changes}
    known = {name: value for name, value in settings.items() if value is not ...}
    (path / record.CONFIG).write_text(json.dumps(known))
    lines = [line(number, 0.5, False) for number in range(rounds)]
    (path / record.ROUNDS).write_bytes(record.json_lines(lines))
    return path


def noted(path: Path, trial: Trial, ending: Any) -> Path:
    write_note(Job(trial.key, dataclasses.replace(trial.config, run=path)), ending)
    return path


def test_a_run_is_known_by_what_it_computes(tmp_path):
    theirs = written(tmp_path / "mine" / "first", RANDOM.config, 3)
    written(tmp_path / "mine" / "other", dataclasses.replace(SMALL, seed=5), 3)
    assert find_records(tmp_path, [RANDOM, MLMOC]) == {RANDOM.key: theirs}
    assert state(RANDOM, theirs) == "done"
    assert find_records(tmp_path / "nothing here", [RANDOM]) == {}


def test_settings_that_the_strategy_does_not_look_at_do_not_matter(tmp_path):
    ignored = dataclasses.replace(RANDOM.config, kernel=KernelConfig(kind="full"))
    theirs = written(tmp_path / "random", ignored, 3)
    written(tmp_path / "mlmoc", dataclasses.replace(MLMOC.config, kernel=KernelConfig("full")), 3)
    assert find_records(tmp_path, [RANDOM, MLMOC]) == {RANDOM.key: theirs}


def test_of_several_records_the_one_that_is_furthest(tmp_path):
    written(tmp_path / "a", RANDOM.config, 1)
    further = written(tmp_path / "b", RANDOM.config, 2)
    assert find_records(tmp_path, [RANDOM]) == {RANDOM.key: further}
    assert (state(RANDOM, further), rounds_at(further)) == ("begun", 2)
    whole = written(tmp_path / "0", RANDOM.config, 3)
    assert find_records(tmp_path, [RANDOM]) == {RANDOM.key: whole}


def test_what_cannot_be_gone_on_with_is_not_taken_unless_it_is_complete(tmp_path):
    ignored = dataclasses.replace(RANDOM.config, kernel=KernelConfig(kind="full"))
    written(tmp_path / "a", ignored, 2)
    assert find_records(tmp_path, [RANDOM]) == {}
    own = written(tmp_path / RANDOM.folder, RANDOM.config, 0)
    assert find_records(tmp_path, [RANDOM]) == {RANDOM.key: own}


def test_no_record_is_looked_for_in_another(tmp_path):
    inside = tmp_path / "run" / "copy"
    written(tmp_path / "run", dataclasses.replace(SMALL, seed=9), 3)
    written(inside, RANDOM.config, 3)
    written(tmp_path / "shared" / "run", RANDOM.config, 3)
    written(tmp_path / ".hidden" / "run", RANDOM.config, 3)
    assert find_records(tmp_path, [RANDOM]) == {}


def test_files_of_other_programs_hide_no_record(tmp_path):
    for text in ("{", "[]", '{"config": 1}', '{"mine": {}}'):
        for name in MEASUREMENTS.values():
            (tmp_path / name).write_text(text)
            (tmp_path / "theirs").mkdir(exist_ok=True)
            (tmp_path / "theirs" / name).write_text(text)
        path = tmp_path / "theirs" / "run"
        if not path.exists():
            written(path, RANDOM.config, 3)
        assert find_records(tmp_path, [RANDOM, AUDIT]) == {RANDOM.key: path}


def test_what_is_not_a_run_is_known_by_its_note(tmp_path):
    path = noted(tmp_path / "anywhere", AUDIT, Outcome(AUDIT.key, "done", 1.0))
    assert find_records(tmp_path, [AUDIT]) == {AUDIT.key: path}
    assert state(AUDIT, path) == "done"


def test_killed_before_its_first_word(tmp_path):
    (tmp_path / AUDIT.folder).mkdir()
    assert find_records(tmp_path, [AUDIT]) == {AUDIT.key: tmp_path / AUDIT.folder}
    assert state(AUDIT, tmp_path / AUDIT.folder) == "begun"


@pytest.mark.parametrize("trial", [RANDOM, AUDIT])
def test_what_failed(trial, tmp_path):
    path = noted(tmp_path / "x", trial, Outcome(trial.key, "failed", 1.0, "no"))
    assert find_records(tmp_path, [trial]) == {trial.key: path}
    assert state(trial, path) == "failed"


def test_what_failed_and_was_then_completed_by_hand(tmp_path):
    path = written(tmp_path / "x", RANDOM.config, 3)
    noted(path, RANDOM, Outcome(RANDOM.key, "failed", 1.0, "no"))
    assert state(RANDOM, path) == "done"


def test_absent(tmp_path):
    assert state(RANDOM, None) == "absent"
    assert state(RANDOM, tmp_path / "gone") == "absent"
    assert rounds_at(tmp_path / "gone") == 0


def test_files_that_cannot_be_understood(tmp_path):
    path = written(tmp_path / "x", RANDOM.config, 1)
    (path / record.ROUNDS).write_text("{")
    assert find_records(tmp_path, [RANDOM]) == {RANDOM.key: path}
    assert state(RANDOM, path) == "failed"  # the sweep says why when it tries
    for text in ("{", "[]", '{"format": 99}'):
        (path / record.CONFIG).write_text(text)
        assert find_records(tmp_path, [RANDOM]) == {}


@pytest.mark.parametrize(
    ("changes", "rounds", "given", "expected"),
    [
        ({}, 1, 3, "done"),
        ({}, 1, 2, "begun"),
        ({}, 0, 0, "begun"),
        ({"final_training": True}, 1, 3, "begun"),
        ({"final_training": True}, 2, 3, "done"),
        ({"budget": 0}, 1, 0, "done"),
    ],
)
def test_when_a_sequential_run_is_complete(changes, rounds, given, expected, tmp_path):
    config = dataclasses.replace(ASK, **changes)
    trial = Trial("digits", "mlmoc", 0, config)
    path = written(tmp_path / "x", config, rounds)
    store_answers(path, [answer(n) for n in range(given)])
    assert find_records(tmp_path, [trial, RANDOM]) == {trial.key: path}
    assert state(trial, path) == expected


@pytest.mark.parametrize("made", [AuditConfig(), TheoryConfig(), ApproximationConfig()])
def test_a_measurement_made_by_hand_is_taken(made, tmp_path):
    trial, other = (Trial("t", "m", seed, dataclasses.replace(made, seed=seed)) for seed in (0, 1))
    folder = tmp_path / "deep" / "whatever"
    folder.mkdir(parents=True)
    content = {"format": 1, "config": json.loads(json.dumps(identity(trial.config)))}
    (folder / MEASUREMENTS[trial.kind]).write_text(json.dumps(content))
    assert find_records(tmp_path, [trial, other]) == {trial.key: folder}
    assert state(trial, folder) == "done"
    assert state(other, folder) == "begun"  # another's
    (folder / MEASUREMENTS[trial.kind]).write_text('{"config": {"half"')
    assert find_records(tmp_path, [trial, other]) == {}
    assert state(trial, folder) == "begun"


def test_a_record_as_bytes(tmp_path):
    folder, other = tmp_path / "one", tmp_path / "other"
    for name in ("rounds.jsonl", "results/deep.json", ".lock", ".pending/round.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    files = pack(folder)
    assert files == {name: name.encode() for name in ("results/deep.json", "rounds.jsonl")}
    assert pack(tmp_path / "none") == {}
    written(other, RANDOM.config, 1)
    (other / "weights-000.safetensors").touch()
    (other / "mine.txt").touch()
    (other / ".pending").mkdir()
    unpack(other, files, {"weights-000.safetensors", "rounds.jsonl"})
    names = sorted(path.relative_to(other).as_posix() for path in other.rglob("*.*"))
    assert names == ["config.json", "mine.txt", "results/deep.json", "rounds.jsonl"]
    assert (other / "rounds.jsonl").read_bytes() == b"rounds.jsonl"


def test_a_record_says_how_far_it_is_when_all_else_is_there(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(records, "write_files", lambda files: order.extend(p.name for p in files))
    names = ["trial.json", "a.csv", "rounds.jsonl", "weights-001.safetensors", "answers.jsonl"]
    unpack(tmp_path, dict.fromkeys([*names, "results/x.json"], b""))
    assert order[-3:] == ["answers.jsonl", "rounds.jsonl", "trial.json"]
    assert set(order[:3]) == {"a.csv", "weights-001.safetensors", "x.json"}


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x",
        "../x",
        "a/../../x",
        "a//b",
        "",
        ".",
        ".lock",
        "a/.x",
        "link/x",
        "own",
        "a\\b",
        "C:x",
        "\0",
    ],
)
def test_names_outside_a_record_are_refused(name, tmp_path):
    folder = tmp_path / "record"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_text("theirs")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "own").symlink_to(tmp_path / "elsewhere" / "x")
    with pytest.raises(PipelineError, match="none inside the record"):
        unpack(folder, {"good": b"", name: b"mine"})
    assert not (folder / "good").exists()
    assert (tmp_path / "elsewhere" / "x").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "record"]
