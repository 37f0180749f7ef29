"""A small study and records of its trials with known numbers, for the tests of a study's report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.approximation.config import ApproximationConfig
from experiments.dynamics.config import TheoryConfig
from experiments.studies.study import Grid, Study, Trial, methods
from pipelines.audit.config import AuditConfig
from pipelines.config import RunConfig, identity
from pipelines.core import record
from pipelines.sequential.config import SequentialConfig
from tests.report_cases import ENVIRONMENT, answer, line, store_answers

TASK = "digits, CNN"
RUN = RunConfig(dataset="digits", initial=10, query=5, subset=50, cycles=2, network="cnn")
RUNS = Grid({TASK: RUN}, methods(["random", "margin"]), (0, 1, 2))


def study(*grids: Grid, **changes: Any) -> Study:
    """A study with these grids as its small size."""
    values: dict[str, Any] = {
        "name": "tiny",
        "title": "Margin on digits",
        "source": "[L] Figure 2",
        "question": "Is margin better than random?",
        "paper": "It says that it is.",
    }
    return Study(**values | changes, small=grids or (RUNS,), paper_size=())


def store(trial: Trial, root: Path, accuracies: list[float], **changes: Any) -> Path:
    """Write the record of a run as it would stand after so many rounds."""
    folder, config = root / trial.folder, trial.config
    folder.mkdir(parents=True)
    settings = {"format": record.FORMAT, **identity(config), "data": {"name": "digits"}}
    (folder / record.CONFIG).write_text(json.dumps(settings))
    (folder / record.ENVIRONMENT).write_text(json.dumps([ENVIRONMENT]))
    lines = [
        line(number, accuracy, number == settings["cycles"], **changes)
        for number, accuracy in enumerate(accuracies)
    ]
    (folder / record.ROUNDS).write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


def store_sequential(trial: Trial, root: Path, accuracies: list[float]) -> Path:
    """A sequential run of one training, with the accuracy after each answer."""
    folder = store(trial, root, accuracies[:1], tests=20, queried=0)
    lines = [answer(n, accuracy=accuracy) for n, accuracy in enumerate(accuracies[1:])]
    store_answers(folder, lines)
    return folder


def one_by_one(budget: int) -> SequentialConfig:
    """A sequential run without a training after the first."""
    fields = {field.name: getattr(RUN, field.name) for field in dataclasses.fields(RunConfig)}
    own = {"dataset": "digits", "query": 1, "cycles": 0, "budget": budget, "subset": None}
    return SequentialConfig(**fields | own)


def measured(trial: Trial, root: Path, tables: dict[str, str]) -> Path:
    """The tables that a measurement ended with, and its note that it did."""
    folder = root / trial.folder
    folder.mkdir(parents=True)
    for name, text in tables.items():
        (folder / name).write_text(text)
    note(trial, folder, "done")
    return folder


def note(trial: Trial, folder: Path, state: str, message: str = "") -> None:
    """How a sweep's attempt at a trial ended."""
    attempt = {"state": state, "message": message, "traceback": "Traceback\n", "seconds": 1.0}
    content = {"format": 1, "key": trial.key, "kind": trial.kind, "state": state}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / record.NOTE).write_text(json.dumps(content | {"attempts": [attempt]}))


THEORY = TheoryConfig(dataset="digits", queries=(5, 10), subset=50, network="cnn")
KINDS = ApproximationConfig(dataset="digits", network="cnn")
AUDIT = AuditConfig(dataset="digits", widths=(1, 2), network="wide_resnet")
