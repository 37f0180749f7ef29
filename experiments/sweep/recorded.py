"""Which trials are on record already, wherever they lie and whoever made them.

From a folder of records to the directory of each trial, and how far it has come.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from experiments.studies.study import Trial, key_of
from experiments.sweep.carry import read_note
from experiments.sweep.kinds import WRITTEN
from pipelines import record
from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from pipelines.sequential import config as journal
from pipelines.sequential.config import SequentialConfig
from pipelines.strategies import SETTINGS, settings_of

ROOT = Path("runs") / "studies"
SHARED = "shared"  # below the root: what several trials begin with; no trial lies in it

Standing = Literal["done", "begun", "failed", "absent"]
_DESCRIBED = ("format", "data", record.MACHINE)  # in config.json, and no settings
_RECORDS = {record.CONFIG, record.NOTE, *WRITTEN.values()}  # that a directory may hold


def recorded(root: Path, trials: Iterable[Trial]) -> dict[str, Path]:
    """Where the record of each trial lies.

    A run is known by its settings, those left aside that its strategy does not look at, so that one
    made by hand is found too; a measurement by the key that a sweep wrote beside it or, once it is
    complete, by its settings as well. Of several records of a trial a complete one is taken, else
    the one that has come furthest. A run that is not complete counts only if the trial can go on
    with it: if all of its settings are the same.

    Args:
        root: a folder that holds records at any depth; it need not be there.
        trials: that are looked for.

    Returns:
        {key of the trial: directory}, without the trials of which there is no record.
    """
    wanted = {trial.key: trial for trial in trials}
    best: dict[str, tuple[tuple[int, int], Path]] = {}
    for path, measured in _directories(root):
        key = _key_at(path, measured)
        trial = wanted.get(key or "")
        if trial is None:
            continue
        rank = _rank(trial, path)
        if rank is not None and (trial.key not in best or rank > best[trial.key][0]):
            best[trial.key] = rank, path
    for key, trial in wanted.items():  # killed before the first word of its record
        if key not in best and (root / trial.folder).is_dir():
            best[key] = (0, 0), root / trial.folder
    return {key: path for key, (_, path) in best.items()}


def state(trial: Trial, path: Path | None) -> Standing:
    """How far a trial has come.

    Args:
        trial: which.
        path: directory of its record, as `recorded` finds it; None where there is none.

    Returns:
        `done`; `failed`, if the last attempt did or the record cannot be understood; `begun`, which
        the same trial goes on from; or `absent`.
    """
    if path is None or not path.is_dir():
        return "absent"
    said = (read_note(path) or {}).get("state")
    if trial.kind in WRITTEN:
        if said is None and _measured(path) == (trial.kind, trial.key):
            return "done"  # by hand
        return "done" if said == "done" else "failed" if said == "failed" else "begun"
    try:
        done = (path / record.CONFIG).is_file() and _complete(trial, path)
    except PipelineError:
        return "failed"
    return "done" if done else "failed" if said == "failed" else "begun"


def rounds_at(path: Path | None) -> int:
    """Completed rounds of the run in a directory; 0 where there is none."""
    try:
        return 0 if path is None else (path / record.ROUNDS).read_bytes().count(b"\n")
    except OSError:
        return 0


def _complete(trial: Trial, path: Path) -> bool:
    config = trial.config
    if not isinstance(config, SequentialConfig):
        return record.read(path).complete
    found = journal.read(path)
    if not found.run.rounds or len(found.given) < config.budget:
        return False
    since = found.of_round(len(found.run.rounds) - 1)
    return not (config.final_training and any(line["label"] is not None for line in since))


def _directories(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Those below a folder that hold a record, or what a sweep wrote of one.

    Each with the key of the complete measurement in it, if there is one.
    """
    for path, folders, files in os.walk(root):
        found = _RECORDS.intersection(files)
        of_measurements = found & {*WRITTEN.values()}
        # files of other programs may have the names that measurements write
        measured = _measured(Path(path))[1] if of_measurements else None
        if found - of_measurements or measured is not None:
            folders.clear()  # no record lies in another
            yield Path(path), measured
        folders[:] = sorted(name for name in folders if name[0] != "." and name != SHARED)


def _key_at(path: Path, measured: str | None) -> str | None:
    """Of the trial that a directory holds; None if it cannot be told.

    A measurement says it itself; a note that an older version wrote may have another key.
    """
    if not (path / record.CONFIG).is_file():
        return measured or (read_note(path) or {}).get("key")
    settings = _settings(path)
    if settings is None:
        return None
    kind = "sequential" if settings.get("mode") == "sequential" else "run"
    return key_of(kind, _canonical(settings) if kind == "run" else settings)


def _measured(path: Path) -> tuple[str, str | None]:
    """Kind and key of the complete measurement in a directory; no key where there is none."""
    for kind, name in WRITTEN.items():
        try:
            found = json.loads((path / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and isinstance(found.get("config"), dict):
            return kind, key_of(kind, found["config"])
    return "", None


def _settings(path: Path) -> dict[str, Any] | None:
    """The settings that identify the run in a directory."""
    try:
        config = json.loads((path / record.CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("format") != record.FORMAT:
        return None
    return {name: value for name, value in config.items() if name not in _DESCRIBED}


def _canonical(settings: dict[str, Any]) -> dict[str, Any]:
    """As `experiments.studies.study.canonical` has it, of what is on record."""
    arms = settings.get("albl", {}).get("arms", ())
    ignored = SETTINGS - settings_of(settings.get("strategy", ""), arms)
    default = RunConfig(dataset="").record()
    return settings | {name: default[name] for name in ignored}


def _rank(trial: Trial, path: Path) -> tuple[int, int] | None:
    """How good a record of the trial this is; None for a run that it cannot go on with."""
    standing = state(trial, path)
    if standing == "done":
        return 2, 0
    settings = _settings(path)
    if settings is not None and settings != trial.config.record():
        return None
    return 1, rounds_at(path)
