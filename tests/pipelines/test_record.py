import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.core import record
from pipelines.core.errors import PipelineError
from tests.report_cases import line

CONFIG = {"dataset": "digits", "cycles": 2, "train": {"epochs": 3}, "data": {}}
FIRST = line(0, 0.5, False)


def test_round_trip(tmp_path):
    run = record.open_run(tmp_path / "run", CONFIG)
    assert run.rounds == ()
    assert not run.complete
    for number in range(3):
        run.weights(number).write_bytes(b"weights")
        run = record.append(run, line(number, 0.5, number == 2))
    assert run.complete
    again = record.read(tmp_path / "run")
    assert again.rounds == run.rounds
    assert again.config == {"format": 3, **CONFIG, "machine": {}}
    assert [path.name for path in sorted(again.path.glob("weights*"))] == [
        "weights-002.safetensors"
    ]


def test_environment_is_noted_at_every_start(tmp_path):
    record.open_run(tmp_path, CONFIG)
    run = record.append(record.open_run(tmp_path, CONFIG), FIRST)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert len(starts) == len(run.environment) == 2
    assert starts[0]["versions"]["torch"]


def test_another_configuration_is_refused_by_setting(tmp_path):
    record.append(record.open_run(tmp_path, CONFIG), FIRST)
    changed = CONFIG | {"train": {"epochs": 4}}
    with pytest.raises(PipelineError, match=r"train\.epochs is 3 there, 4 here"):
        record.open_run(tmp_path, changed)


def test_a_run_without_a_round_takes_the_new_configuration(tmp_path):
    record.open_run(tmp_path, CONFIG)
    assert record.open_run(tmp_path, CONFIG | {"cycles": 9}).config["cycles"] == 9


def test_settings_of_the_machine_are_recorded_and_not_compared(tmp_path):
    record.append(record.open_run(tmp_path, CONFIG, {"device": "cpu"}), FIRST)
    again = record.open_run(tmp_path, CONFIG, {"device": "cuda"})
    assert again.rounds == (FIRST | {"config": again.key},)
    assert again.config["machine"] == {"device": "cuda"}
    assert again.identity == {"format": 3, **CONFIG}


def test_what_may_grow_is_not_compared_and_what_has_begun_is(tmp_path):
    record.open_run(tmp_path, CONFIG)
    more = CONFIG | {"cycles": 5}
    assert record.open_run(tmp_path, more, growing={"cycles"}, begun=True).config["cycles"] == 5
    with pytest.raises(PipelineError, match="cycles is 5 there, 2 here"):
        record.open_run(tmp_path, CONFIG, begun=True)


def test_a_run_of_the_format_before_is_refused_in_words(tmp_path):
    record.open_run(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, **CONFIG}))
    with pytest.raises(PipelineError, match=r"format 1, and .* format 3 only\. Give --run a"):
        record.open_run(tmp_path, CONFIG)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(PipelineError, match="thesis.tex"):
        record.open_run(tmp_path, CONFIG)
    with pytest.raises(PipelineError, match="is not a run directory"):
        record.read(tmp_path)


def test_broken_files_are_named(tmp_path):
    record.append(record.open_run(tmp_path, CONFIG), FIRST)
    whole = (tmp_path / "rounds.jsonl").read_text()
    (tmp_path / "rounds.jsonl").write_text(whole + '{"round": \n')
    with pytest.raises(PipelineError, match=r"rounds\.jsonl, line 2 is not valid JSON"):
        record.read(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(PipelineError, match="in order"):
        record.read(tmp_path)
    (tmp_path / "rounds.jsonl").write_text("3")
    with pytest.raises(PipelineError, match="line 1 holds a JSON int, not a dict"):
        record.read(tmp_path)
    (tmp_path / "rounds.jsonl").write_bytes(b"\xff")
    with pytest.raises(PipelineError, match="is not UTF-8"):
        record.read(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 99}')
    with pytest.raises(PipelineError, match="record format 99, and this version"):
        record.read(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    run = record.append(record.open_run(tmp_path, CONFIG), FIRST)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record.append(run, line(1, 0.5, False))
    monkeypatch.undo()
    assert record.read(tmp_path).rounds == run.rounds
    assert not list(tmp_path.glob(".rounds*"))


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        record.append(record.open_run(tmp_path, CONFIG), FIRST | {"score": float("nan")})


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX")
def test_a_second_process_is_refused(tmp_path):
    code = f"""
from pathlib import Path
from pipelines.core.record import only_writer
with only_writer(Path({str(tmp_path)!r})): pass
"""
    root = Path(__file__).parents[2]
    with record.only_writer(tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
        )
    assert "another process is working in" in second.stderr
    after = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
    )
    assert after.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_planted_lock_is_refused_and_leftovers_are_removed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".rounds.jsonl.0123456789abcdef.new").write_bytes(b"half")
    (run / record.LOCK).symlink_to(theirs)
    with pytest.raises(PipelineError, match="is a symbolic link"), record.only_writer(run):
        pass
    assert theirs.read_bytes() == b"precious"
    (run / record.LOCK).unlink()
    with record.only_writer(run):
        assert [path.name for path in run.iterdir()] == [record.LOCK]
