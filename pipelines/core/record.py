"""Records of runs: configuration, environment, one JSON line a round, weights.

Every file is replaced by `kernel.files`, so that a run killed at any moment is found whole, at its
last completed step.
"""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from kernel.files import remove_temporaries, write_file
from pipelines.core.entries import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    below,
    changed,
    check_entries,
    check_file,
    digest,
    list_of,
    object_of,
    optional,
)
from pipelines.core.errors import PipelineError

try:
    import fcntl
except ImportError:  # not POSIX: two processes in one run directory are not noticed
    fcntl = None


class HeldError(PipelineError):
    """Another process is working in the directory."""


FORMAT = 3
CONFIG, ENVIRONMENT, ROUNDS = "config.json", "environment.json", "rounds.jsonl"
MACHINE = "machine"  # in the configuration: settings that may differ at each start
NOTES = "data_notes"  # among them: sentences on the data, which qualify an accuracy
DIGEST = "sha256:"  # with which a value begins that stands for content too large to record
LOCK, IN_PROGRESS = ".lock", ".pending"
REPORT = "report.html"  # of reports, which may lie beside runs
NOTE = "trial.json"  # how a sweep's attempts at the run ended; may be there before the run is
_PACKAGES = ("ntk-lookahead", "torch", "torchvision", "jax", "jaxlib", "neural-tangents", "numpy")


_NUMBERS = list_of(NUMBER)
_DATA = {"train": list_of(COUNT), "classes": list_of(TEXT)}
_ROUND = {
    "labelled": COUNT,
    "test_accuracy": optional(NUMBER),
    "train_accuracy": NUMBER,
    "fit": ANY_OBJECT,
    "missing_classes": list_of(TEXT),
    "candidates": COUNT,
    "diagnostics": ANY_OBJECT,
    "weights": TEXT,
    "seconds": object_of(NUMBER),
    "peak_memory_mib": object_of(NUMBER),
}
_TRAINED = {name: _ROUND[name] for name in ("train_accuracy", "fit", "weights")}
_TRAINED |= {"seconds": NUMBER}
_FIT = {"steps": COUNT, "epochs": COUNT, "fitted": FLAG, "stopped": TEXT, "residual_rms": NUMBER}


@dataclass(frozen=True)
class Run:
    """A run directory as read.

    Attributes:
        path: the directory.
        config: as in config.json: what identifies the run, and under `machine` the settings of its
            last start that do not.
        environment: one entry for each time the run was started or resumed.
        rounds: one object for each completed round, in order.
        key: digest of what identifies the run, once it is open; recorded with each round.
    """

    path: Path
    config: dict[str, Any]
    environment: tuple[dict[str, Any], ...]
    rounds: tuple[dict[str, Any], ...]
    key: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The configuration without the settings of one start."""
        return {name: value for name, value in self.config.items() if name != MACHINE}

    @property
    def complete(self) -> bool:
        """Whether the budget is spent and the last network evaluated."""
        return len(self.rounds) == self.config["cycles"] + 1

    def weights(self, round_number: int) -> Path:
        """The file that holds the weights trained in a round."""
        return self.path / f"weights-{round_number:03d}.safetensors"

    def auxiliary_weights(self, round_number: int) -> Path:
        """The file of the module trained along with the network in a round, if any was."""
        return self.path / f"auxiliary-{round_number:03d}.safetensors"

    def check_weights(self, number: int, trained: Mapping[str, Any] | None = None) -> None:
        """Refuse weights of a round, or of a training not yet complete, that it did not record.

        Raises:
            PipelineError: one is missing or was changed.
        """
        line = self.rounds[number] if trained is None else trained
        recorded = self.path / (ROUNDS if trained is None else IN_PROGRESS)
        check_file(self.weights(number), line["weights"], recorded)
        if "auxiliary_weights" in line:
            check_file(self.auxiliary_weights(number), line["auxiliary_weights"], recorded)


def read(path: Path) -> Run:
    """Read a run directory, complete or not.

    Raises:
        PipelineError: it is not a run directory, or one of its files cannot be understood.
    """
    if not (path / CONFIG).is_file():
        raise PipelineError(f"{path} is not a run directory: it has no {CONFIG}.")
    config = _parse(path / CONFIG, _text(path / CONFIG))
    if config.get("format") != FORMAT:
        raise PipelineError(
            f"{path} was written in record format {config.get('format')!r}, and this version reads "
            f"and resumes format {FORMAT} only. Give --run a new directory and start again, or use "
            "the version of ntk-lookahead that wrote it."
        )
    environment = path / ENVIRONMENT
    starts = _parse(environment, _text(environment), list) if environment.is_file() else []
    rounds = path / ROUNDS
    parsed = tuple(read_lines(rounds))
    if [line.get("round") for line in parsed] != list(range(len(parsed))):
        raise PipelineError(f"{rounds} does not hold rounds 0, 1, 2, … in order; it was edited.")
    _check_rounds(rounds, config, parsed)
    return Run(path, config, tuple(starts), parsed)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run directories among the paths, or at any depth in the folders given.

    Raises:
        PipelineError: there are none, or one of the paths does not exist or is a file.
    """
    found: dict[Path, Path] = {}  # by resolved path: the same run given twice counts once
    for path in paths:
        if not path.is_dir():
            what = "is a file, not a run directory" if path.exists() else "does not exist"
            raise PipelineError(f"{path} {what}; give run directories, or a folder that has some.")
        inside = sorted(path.rglob(CONFIG))
        here = [path] if (path / CONFIG).is_file() else [file.parent for file in inside]
        if not here and not (path / REPORT).is_file():  # an earlier report is no error
            raise PipelineError(
                f"no run found in {path}: neither it nor a folder below it has a {CONFIG}. "
                "Give run directories, or a folder that has some."
            )
        for run in here:
            found.setdefault(run.resolve(), run)
    if not found:
        raise PipelineError("no run given; give run directories, or a folder that has some.")
    return list(found.values())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; none of a file that is not there.

    Raises:
        PipelineError: a line is no JSON object.
    """
    lines = _text(path).splitlines() if path.is_file() else []
    return [_parse(path, line, dict, number) for number, line in enumerate(lines, start=1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise changed(f"{path} is not UTF-8 text ({error})") from error


def _parse(path: Path, text: str, kind: type = dict, line: int | None = None) -> Any:
    where = f"{path}, line {line}" if line else f"{path}"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise changed(f"{where} is not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise changed(f"{where} holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def _check_rounds(where: Path, config: Mapping[str, Any], rounds: Sequence[dict[str, Any]]) -> None:
    """Refuse rounds with entries that are missing, of another type or out of range.

    Raises:
        PipelineError: saying which.
    """
    check_entries(f"{where.parent / CONFIG}", config, {"cycles": COUNT, "data": ANY_OBJECT})
    data = config["data"]
    index, label = COUNT, COUNT
    if {"train", "classes"} <= data.keys():
        check_entries(f"{where.parent / CONFIG}, data", data, _DATA)
        index = below(data["train"][0], "an index of an image")
        label = below(len(data["classes"]), "a class")
    batch = {"indices": list_of(index), "labels": list_of(label)}
    sequential = config.get("mode") == "sequential"
    for number, line in enumerate(rounds):
        at = f"{where}, line {number + 1}"
        check_entries(at, line, _ROUND if sequential else _ROUND | batch | {"scores": _NUMBERS})
        check_entries(f"{at}, 'fit'", line["fit"], _FIT)
        if "initial" in line:
            check_entries(f"{at}, 'initial'", line["initial"], batch)
    if not sequential and len(rounds) > config["cycles"] + 1:
        raise changed(
            f"{where} has {len(rounds)} rounds and {where.parent / CONFIG} {config['cycles']} "
            f"cycles, which end with round {config['cycles']}"
        )


def open_run(
    path: Path,
    config: Mapping[str, Any],
    machine: Mapping[str, Any] | None = None,
    *,
    growing: Set[str] = frozenset(),
    begun: bool = False,
) -> Run:
    """Start a run in a directory, or resume the one that is there.

    Args:
        path: the directory, made if missing.
        config: identifies the run; JSON-able.
        machine: settings of this start that do not identify it; recorded and never compared.
        growing: names in `config` that may change on resume.
        begun: whether something depends on the settings although no round is complete.

    Raises:
        PipelineError: the directory holds a run made with another configuration, or other files.
    """
    asked = json.loads(json.dumps({"format": FORMAT, **config, MACHINE: dict(machine or {})}))
    ignored = dict.fromkeys((MACHINE, *growing))
    path.mkdir(parents=True, exist_ok=True)
    if (path / CONFIG).exists():
        found = read(path)
        differing = differences(found.config | ignored, asked | ignored)
        # before anything was computed with the old settings, the new ones replace them
        if differing and (found.rounds or begun):
            raise PipelineError(
                f"{path} holds a run made with another configuration: {'; '.join(differing)}. "
                "Resume it with the settings it was started with, or give --run another directory."
            )
    else:
        names = [entry.name for entry in path.iterdir() if entry.name != NOTE]
        foreign = [name for name in names if not name.startswith(".")]
        if foreign:
            raise PipelineError(
                f"{path} is not empty and holds no {CONFIG} (found {', '.join(foreign[:3])}); "
                "give --run an empty or new directory."
            )
    for later in path.glob("weights-*.safetensors"):
        number, rounds = later.stem.rpartition("-")[2], len(read_lines(path / ROUNDS))
        if number.isdecimal() and int(number) > rounds:
            raise changed(f"{later} is there, and {path / ROUNDS} has {rounds} rounds")
    key = digest(json.dumps(asked | ignored, sort_keys=True).encode())
    _write(path / CONFIG, json.dumps(asked, indent=1) + "\n")
    run = replace(read(path), key=key)
    for line in run.rounds:
        if line.get("config") != key:
            raise changed(
                f"{path / ROUNDS} has, in round {line['round']}, the configuration "
                f"{line.get('config')}, and {path / CONFIG} is {key}: they are of different runs"
            )
    starts = [*run.environment, environment()]
    _write(path / ENVIRONMENT, json.dumps(starts, indent=1) + "\n")
    return replace(run, environment=tuple(starts))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings in which two configurations differ, in words; nested names joined by dots."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{prefix}{key}.")
        elif all(isinstance(value, str) and value.startswith(DIGEST) for value in (before, now)):
            if before != now:
                found.append(f"{prefix}{key} hold other values than there ({before}, here {now})")
        elif before != now:
            found.append(f"{prefix}{key} is {before!r} there, {now!r} here")
    return found


def append(run: Run, line: dict[str, Any]) -> Run:
    """Add a completed round and drop the weights of the rounds before it."""
    line = json.loads(json.dumps(line | {"config": run.key}, allow_nan=False))
    rounds = (*run.rounds, line)
    write_file(run.path / ROUNDS, json_lines(rounds))
    for kind, latest in (("weights", run.weights), ("auxiliary", run.auxiliary_weights)):
        for stale in run.path.glob(f"{kind}-*.safetensors"):
            if stale != latest(len(rounds) - 1):
                stale.unlink()
    return replace(run, rounds=rounds)


@contextmanager
def only_writer(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a run directory; a second process that wants it is refused, or waits.

    Raises:
        HeldError: another process is working in it, and `wait` is false.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _open_lock(path / LOCK) as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise HeldError(
                    f"another process is working in {path}; wait for it, or give --run another "
                    "directory."
                ) from error
            remove_temporaries(path)
        yield


def _open_lock(path: Path) -> IO[str]:
    """Open for locking, and leave the file as it is; a link is not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o666), "r+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise PipelineError(
            f"{path} is a symbolic link, and the run's lock must be a file of its own: delete it."
        ) from error


def json_lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries).encode()


def _write(path: Path, content: str) -> None:
    write_file(path, content.encode())


def environment() -> dict[str, Any]:
    """Versions, machine, commit and command line of this process."""
    import jax  # here: a report reads records without it

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": f"{jax.default_backend()} {jax.devices()[0].device_kind}",
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout: nothing to record
        return None
    return answer.stdout.strip()


class RoundInProgress:
    """Finished parts of a round that is not yet recorded: its training, chunks of its kernel."""

    def __init__(self, run: Run, labelled: Mapping[int, int]):
        """Keep the parts of the next round, with these labels, and delete those of any other."""
        self._run, self._folder = run, run.path / IN_PROGRESS
        self._state = self._folder / "round.json"
        labels = digest(json.dumps([*labelled.items()]).encode())
        self._of = {"round": len(run.rounds), "config": run.identity, "labels": labels}
        if not self._state.is_file() or self._read()["of"] != self._of:
            clear_round_in_progress(run.path)

    @property
    def kernel_folder(self) -> Path:
        """Folder for finished chunks of the kernel."""
        return self._folder / "kernel"

    def training(self) -> dict[str, Any] | None:
        """The record of the round's training, if its weights are on disk as it left them."""
        if not self._state.is_file():
            return None
        trained = self._read()["trained"]
        try:
            self._run.check_weights(len(self._run.rounds), trained)
        except PipelineError:  # trained again, which gives the same
            return None
        return trained

    def save_training(self, trained: dict[str, Any]) -> None:
        """Record the round's training, whose weights are on disk.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(exist_ok=True)
        _write(self._state, json.dumps({"of": self._of, "trained": trained}))

    def _read(self) -> dict[str, Any]:
        try:
            state = _parse(self._state, _text(self._state))
            check_entries(f"{self._state}", state, {"of": ANY_OBJECT, "trained": ANY_OBJECT})
            check_entries(f"{self._state}", state["trained"], _TRAINED)
            check_entries(f"{self._state}, 'fit'", state["trained"]["fit"], _FIT)
        except PipelineError as error:
            raise PipelineError(
                f"{error} Or delete the folder {self._folder}, and give the same command again."
            ) from error
        return state


def clear_round_in_progress(path: Path) -> None:
    """Delete what the run in this directory has finished of an unrecorded round."""
    shutil.rmtree(path / IN_PROGRESS, ignore_errors=True)
