"""Answers of a sequential run on disk, and the curve that they and the trainings make.

An answer is on the disk before it is absorbed and before the next query; accuracy and drift after
it are added to its line with the next write. Every file is replaced atomically.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kernel.files import write_file, write_files
from pipelines.core import record
from pipelines.core.entries import (
    ANY_OBJECT,
    COUNT,
    NUMBER,
    TEXT,
    below,
    check_entries,
    digest,
    optional,
)
from pipelines.core.errors import PipelineError
from pipelines.core.record import Run
from pipelines.report.drawing import SMALL, canvas, finish
from pipelines.sequential.config import GROWING

ANSWERS = "answers.jsonl"
CSV, CURVE_IMAGE = "curve.csv", "curve.png"
_LINEARISED, _TRAINED = "#0072b2", "#d55e00"


_ANSWER = {
    "number": COUNT,
    "round": optional(COUNT),
    "image": COUNT,
    "label": optional(COUNT),
    "name": optional(TEXT),
    "score": optional(NUMBER),
    "predicted": optional(COUNT),
    "who": TEXT,
    "seconds": NUMBER,
}
_FOLLOWS = {
    "labelled": COUNT,
    "accuracy": optional(NUMBER),
    "drift": NUMBER,
    "foreseen": COUNT,
    "rounding": NUMBER,
    "refreshed": COUNT,
}
_SEAL = {"count": COUNT, "sha256": TEXT}


def seal_of(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Number and digest of answers, as the last line of rounds.jsonl records them."""
    names = [name for name in _ANSWER if name != "seconds"]
    written = [{name: line[name] for name in names} for line in answers]
    return {"count": len(answers), "sha256": digest(record.json_lines(written))}


class Journal:
    """A run directory of the sequential mode.

    The last training's line names the answers so far by number and digest, so that files of
    different moments or runs are refused. One answer more is what a killed process may leave.

    Attributes:
        run: configuration, environment, and one line for each training.
        answers: one object for each answer or image set aside, in order.
    """

    def __init__(self, run: Run, answers: list[dict[str, Any]]):
        """Made by `open_journal` and `read`."""
        self.run = run
        self.answers = answers

    def add(self, line: dict[str, Any]) -> None:
        """Write an answer to the disk.

        Raises:
            OSError: it cannot be written; it is not in the journal then.
        """
        self._write([*self.answers, line])
        self.answers.append(line)

    def follow(self, entries: dict[str, Any]) -> None:
        """Add entries to the last answer; written with the next one, or by `flush`."""
        self.answers[-1] |= entries

    @property
    def unfollowed(self) -> bool:
        """Whether the process ended before the last answer was absorbed."""
        last = self.answers[-1] if self.answers else {"round": None}
        return last["round"] is not None and "drift" not in last

    def take_back(self) -> None:
        """Remove the last answer from the disk."""
        self._write(self.answers[:-1])
        self.answers.pop()

    def flush(self) -> None:
        """Write the entries of the last answer."""
        self._write(self.answers)

    def train(self, line: dict[str, Any]) -> None:
        """Add a training, whose weights are on the disk."""
        self.flush()
        self.run = record.append(self.run, line | {"answers": seal_of(self.answers)})

    @property
    def given(self) -> list[dict[str, Any]]:
        """The answers that count against the budget: labels since the first training."""
        return [
            line for line in self.answers if line["label"] is not None and line["round"] is not None
        ]

    def of_round(self, number: int | None) -> list[dict[str, Any]]:
        """Answers and images set aside after a training; None: before the first."""
        return [line for line in self.answers if line["round"] == number]

    def _write(self, answers: list[dict[str, Any]]) -> None:
        """Replace the answers and the line that names them, one file durably before the other.

        Whatever stops it, there are as many answers as named or one more.
        """
        run, files = self.run, [(ANSWERS, answers)]
        if run.rounds:
            last = run.rounds[-1] | {"answers": seal_of(answers)}
            run = replace(run, rounds=(*run.rounds[:-1], last))
            at = 0 if len(answers) < len(self.answers) else 1
            files.insert(at, (record.ROUNDS, [*run.rounds]))
        for name, lines in files:
            write_file(run.path / name, record.json_lines(lines))
        self.run = run


def open_journal(
    path: Path, config: Mapping[str, Any], machine: Mapping[str, Any] | None = None
) -> Journal:
    """Start a run in a directory, or resume the one that is there.

    Arguments are those of `record.open_run`; the budget in `config` may grow.

    Raises:
        PipelineError: the directory holds a run made with other settings, or other files, or files
            that disagree.
    """
    answers = read(path).answers if (path / record.CONFIG).is_file() else []
    run = record.open_run(path, config, machine, growing=GROWING, begun=bool(answers))
    return Journal(run, answers)


def read(path: Path) -> Journal:
    """Read a run directory, complete or not.

    Raises:
        PipelineError: it is not one, one of its files cannot be understood, or the answers are not
            those that the trainings name.
    """
    run, file = record.read(path), path / ANSWERS
    if run.config.get("mode") != "sequential":
        return Journal(run, [])
    answers = record.read_lines(file)
    data = run.config["data"]
    kinds = dict(_ANSWER)
    if {"train", "classes"} <= data.keys():
        label = optional(below(len(data["classes"]), "a class"))
        kinds |= {"image": below(data["train"][0], "an index of an image")}
        kinds |= {"label": label, "predicted": label}
    for number, line in enumerate(answers, start=1):
        where = f"{file}, line {number}"
        check_entries(where, line, kinds)
        if "drift" in line or (number < len(answers) and line["round"] is not None):
            check_entries(where, line, _FOLLOWS)
    if [line["number"] for line in answers] != list(range(len(answers))):
        raise PipelineError(f"{file} does not hold answers 0, 1, 2, … in order; it was edited.")
    _check_seal(run, file, answers)
    return Journal(run, answers)


def _check_seal(run: Run, file: Path, answers: list[dict[str, Any]]) -> None:
    """Refuse answers that are not those that the trainings name."""
    rounds = run.path / record.ROUNDS
    if not run.rounds:
        later = [line for line in answers if line["round"] is not None]
        if later:
            raise _disagree(
                f"{file} has {len(later)} answers given after a training, and {rounds} has none"
            )
        return
    last = run.rounds[-1]
    where = f"{rounds}, line {len(run.rounds)}"
    check_entries(where, last, {"answers": ANY_OBJECT})
    check_entries(f"{where}, 'answers'", last["answers"], _SEAL)
    count = last["answers"]["count"]
    if not count <= len(answers) <= count + 1:
        raise _disagree(f"{file} has {len(answers)} answers, and {rounds} was written with {count}")
    if seal_of(answers[:count]) != last["answers"]:
        raise _disagree(f"{file} has other answers than those that {rounds} was written with")
    beyond = [line["round"] for line in answers if (line["round"] or 0) >= len(run.rounds)]
    if beyond:
        raise _disagree(
            f"{file} has an answer given after training {beyond[0]}, and {rounds} ends with "
            f"training {len(run.rounds) - 1}"
        )


def _disagree(what: str) -> PipelineError:
    return PipelineError(
        f"{what}: one of them was deleted, changed, or replaced by one of another moment or run. "
        "Restore both from the same moment, or start in a new directory."
    )


def curve(journal: Journal) -> pd.DataFrame:
    """One row a label, and one a training: accuracies of the linearised and the trained network.

    Columns: round, labelled, image, label, name, score, who, seconds, linearised_accuracy,
    sgd_accuracy (on the same test images), test_accuracy (of SGD on all), drift, foreseen.
    """
    rows = []
    for line in journal.run.rounds:
        rows.append(
            {
                "round": line["round"],
                "labelled": line["labelled"],
                "linearised_accuracy": line["linearised_accuracy"],
                "sgd_accuracy": line["subset_accuracy"],
                "test_accuracy": line["test_accuracy"],
                "drift": 0.0,
            }
        )
        for answer in journal.of_round(line["round"]):
            if answer["label"] is None:
                continue
            own = {key: answer.get(key) for key in ("round", "labelled", "image", "label", "name")}
            own |= {key: answer.get(key) for key in ("score", "who", "seconds", "drift")}
            own["linearised_accuracy"] = answer.get("accuracy")
            own["foreseen"] = answer["predicted"] == answer["label"]
            rows.append(own)
    return pd.DataFrame(rows)


def write_curve(journal: Journal) -> Path:
    """Write the curve into the run directory as CSV and PNG; without test images, of the drift.

    Returns:
        The picture.

    Raises:
        OSError: one of them cannot be written.
    """
    rows, config = curve(journal), journal.run.config
    tests = journal.run.rounds[0]["tests"]
    caption = (
        f"{config['data']['name']}, {config['network']}, {config['strategy']}, seed "
        f"{config['seed']}. "
    )
    caption += (
        f"Both on the same {tests} test images. The linearised network absorbs each label without "
        "training; n = 1 run."
        if tests
        else "There are no test images. Drift is |Δθ|/|θ| since the last training."
    )
    figure, (axes,) = canvas(caption, 2.9)
    value, scale = ("linearised_accuracy", 100) if tests else ("drift", 1)
    for number, own in rows.groupby("round"):
        label = "linearised network, after each label" if number == 0 else None
        axes.plot(own["labelled"], scale * own[value].astype(float), color=_LINEARISED, label=label)
    if tests:
        points = rows[rows["sgd_accuracy"].notna()]
        y = scale * points["sgd_accuracy"].astype(float)
        axes.plot(
            points["labelled"], y, "o--", color=_TRAINED, linewidth=0.8, label="trained by SGD"
        )
        axes.legend(fontsize=SMALL, frameon=False)
    finish(axes, "One label at a time", "labels", "test accuracy, %" if tests else "drift")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    path, table = journal.run.path / CURVE_IMAGE, rows.to_csv(index=False).encode()
    write_files({journal.run.path / CSV: table, path: stream.getvalue()})
    return path
