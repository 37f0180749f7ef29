"""Records of trials: where each lies, how far it has come, how its attempts ended, its files."""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from experiments.approximation import report as approximation
from experiments.dynamics import report as dynamics
from experiments.studies.study import Trial, key_of, kind_of
from experiments.sweep.executors import Job, Outcome
from kernel.files import write_file, write_files
from pipelines.audit import report as audit
from pipelines.config import RunConfig, identity
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.json_io import plain
from pipelines.sequential import journal as sequential
from pipelines.sequential.config import SequentialConfig
from pipelines.strategies import SECTIONS, sections_of

ROOT = Path("runs") / "studies"
SHARED = "shared"  # below the root: first trainings of several trials; no trial lies in it
FORMAT = 1  # of the note

# The last file that each kind of measurement writes; its settings are in it.
MEASUREMENTS = {
    "audit": audit.RECORD,
    "dynamics": dynamics.RECORD,
    "approximation": approximation.RECORD,
}

State = Literal["done", "begun", "failed", "absent"]
Files = dict[str, bytes]
"""The files of a record: content by path below its directory, with slashes."""

_DESCRIBED = ("format", "data", record.MACHINE)  # in config.json, and no settings
_RECORDS = {record.CONFIG, record.NOTE, *MEASUREMENTS.values()}
# These say how far a record has come, and are written after the files that they speak of.
_LAST = (sequential.ANSWERS, record.ROUNDS, record.NOTE)


def find_records(root: Path, trials: Iterable[Trial]) -> dict[str, Path]:
    """Find the record of each trial.

    A run is known by its settings, without those that its strategy ignores, so that one made by
    hand is found too; a measurement by its settings once it is complete, before by the key that a
    sweep wrote beside it. Of several records of a trial a complete one is taken, else the one that
    has come furthest. An incomplete run counts only if the trial can go on with it: if all of its
    settings are the same.

    Args:
        root: a folder that holds records at any depth; it need not be there.
        trials: whose records are looked for.

    Returns:
        {key of the trial: directory}, without the trials of which there is no record.
    """
    wanted = {trial.key: trial for trial in trials}
    best: dict[str, tuple[tuple[int, int], Path]] = {}
    for key, path in _walk(root):
        if key in wanted:
            rank = _rank(wanted[key], path)
            if rank is not None and (key not in best or rank > best[key][0]):
                best[key] = rank, path
    for key, trial in wanted.items():  # killed before the first word of its record
        if key not in best and (root / trial.folder).is_dir():
            best[key] = (0, 0), root / trial.folder
    return {key: path for key, (_, path) in best.items()}


def state(trial: Trial, path: Path | None) -> State:
    """How far a trial has come.

    Args:
        trial: which.
        path: directory of its record, as `find_records` finds it; None where there is none.

    Returns:
        `done`; `failed`, if the last attempt did or the record cannot be understood; `begun`, which
        the same trial goes on from; or `absent`.
    """
    if path is None or not path.is_dir():
        return "absent"
    noted = (read_note(path) or {}).get("state")
    if trial.kind in MEASUREMENTS:
        by_hand = noted is None and _measurement(path) == (trial.kind, trial.key)
        done = noted == "done" or by_hand
    else:
        try:
            done = (path / record.CONFIG).is_file() and _complete(trial, path)
        except PipelineError:
            return "failed"
    return "done" if done else "failed" if noted == "failed" else "begun"


def rounds_at(path: Path) -> int:
    """Completed rounds of the run in a directory; 0 where there is none."""
    try:
        return (path / record.ROUNDS).read_bytes().count(b"\n")
    except OSError:
        return 0


def is_held(path: Path) -> bool:
    """Whether another process is working in a directory."""
    if not path.is_dir():
        return False
    try:
        with record.only_writer(path):
            return False
    except record.HeldError:
        return True


def write_note(job: Job, outcome: Outcome, trace: str | None = None) -> None:
    """Add the end of an attempt to the trial's note.

    Args:
        job: the trial.
        outcome: how the attempt ended.
        trace: the traceback of a failure.

    Raises:
        OSError: it cannot be written.
    """
    before = read_note(job.folder) or {"attempts": []}
    attempt = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": outcome.seconds,
        "host": platform.node(),
        "process": os.getpid(),
        "state": outcome.state,
        "message": outcome.message,
        "traceback": trace,
    }
    content = {
        "format": FORMAT,
        "key": job.key,
        "kind": kind_of(job.config),
        "settings": identity(job.config),
        "state": outcome.state,
        "attempts": [*before["attempts"], attempt],
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    write_file(job.folder / record.NOTE, text.encode())


def read_note(folder: Path) -> dict[str, Any] | None:
    """How the attempts at the trial in a directory ended; None if no such note can be read."""
    found = _read_json(folder / record.NOTE)
    return found if found.get("format") == FORMAT and "attempts" in found else None


def pack(folder: Path) -> Files:
    """The record in a directory; empty where there is none.

    Hidden files are left out: locks, files half written, and the intermediate results of an
    unfinished query, which are large and are computed again.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path.read_bytes()
    return found


def unpack(folder: Path, files: Files, stale: Iterable[str] = ()) -> None:
    """Put a record in place, over an earlier state of the same.

    The files are replaced together, those that say how far the record has come last.

    Args:
        folder: the directory, made if it is not there.
        files: the record.
        stale: files of the earlier state; those that are not in `files` are removed.

    Raises:
        PipelineError: a name that is not of a file inside the directory; nothing is written.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: _target(folder, name) for name in files}
    order = sorted(files, key=lambda name: 1 + _LAST.index(name) if name in _LAST else 0)
    for name in order:
        targets[name].parent.mkdir(parents=True, exist_ok=True)
    write_files({targets[name]: files[name] for name in order})
    for name in set(stale) - set(files):
        _target(folder, name).unlink(missing_ok=True)
    record.clear_round_in_progress(folder)  # which has been completed elsewhere


def _target(folder: Path, name: str) -> Path:
    """The path of a file of a record: below the folder, through no link, and not hidden."""
    parts = name.split("/")
    bad = any(not part or part.startswith(".") for part in parts) or {*name} & {*"\\:\0"}
    path = folder.joinpath(*parts)
    if bad or path.resolve() != folder.resolve().joinpath(*parts):
        raise PipelineError(
            f"a worker sent a file named {name!r}, which is none inside the record {folder}: "
            "nothing of it was written."
        )
    return path


def _walk(root: Path) -> Iterator[tuple[str | None, Path]]:
    """Directories of records below a folder, each with its key; no record lies in another."""
    for name, folders, files in os.walk(root):
        path, found = Path(name), _RECORDS.intersection(files)
        key = _key_at(path) if found else None
        # other programs' files may have the names of measurements
        if key is not None or found & {record.CONFIG, record.NOTE}:
            folders.clear()
            yield key, path
        folders[:] = sorted(name for name in folders if name[0] != "." and name != SHARED)


def _key_at(path: Path) -> str | None:
    """Key of the trial that a directory holds; None if it cannot be told."""
    if not (path / record.CONFIG).is_file():
        return _measurement(path)[1] or (read_note(path) or {}).get("key")
    settings = _settings(path)
    if settings.get("mode") == "sequential":
        return key_of("sequential", settings)
    return key_of("run", _canonical(settings)) if settings else None


def _measurement(path: Path) -> tuple[str, str | None]:
    """Kind and key of the complete measurement in a directory; no key where there is none."""
    for kind, name in MEASUREMENTS.items():
        config = _read_json(path / name).get("config")
        if isinstance(config, dict):
            return kind, key_of(kind, config)
    return "", None


def _settings(path: Path) -> dict[str, Any]:
    """The settings in a run directory; empty where they cannot be understood."""
    config = _read_json(path / record.CONFIG)
    known = config.get("format") == record.FORMAT
    return {name: value for name, value in config.items() if known and name not in _DESCRIBED}


def _canonical(settings: dict[str, Any]) -> dict[str, Any]:
    """As `experiments.studies.study.canonical` of recorded settings."""
    arms = settings.get("albl", {}).get("arms", ())
    ignored = SECTIONS - sections_of(settings.get("strategy", ""), arms)
    default = identity(RunConfig(dataset=""))
    return settings | {name: default[name] for name in ignored}


def _rank(trial: Trial, path: Path) -> tuple[int, int] | None:
    """Order among records of the trial; None for a run that it cannot go on with."""
    if state(trial, path) == "done":
        return 2, 0
    settings = _settings(path)
    return None if settings and settings != identity(trial.config) else (1, rounds_at(path))


def _complete(trial: Trial, path: Path) -> bool:
    config = trial.config
    if not isinstance(config, SequentialConfig):
        return record.read(path).complete
    found = sequential.read(path)
    if not found.run.rounds or len(found.given) < config.budget:
        return False
    since = found.of_round(len(found.run.rounds) - 1)
    return not (config.final_training and any(line["label"] is not None for line in since))


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
