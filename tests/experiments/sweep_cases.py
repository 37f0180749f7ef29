"""A study of small runs that take a second, one method of which cannot be carried out."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.studies.study import Grid, Study, Trial, methods
from experiments.sweep.plan import SweepConfig
from pipelines.config import RunConfig
from pipelines.core import record
from pipelines.strategies.options import KernelConfig
from trainer.config import TrainConfig

NAME = "tests.experiments.sweep_cases:STUDY"
SMALL = RunConfig(
    "digits",
    initial=12,
    query=3,
    subset=40,
    cycles=2,
    network="tests.own_network:make",
    network_args=("hidden=8",),
    train=TrainConfig(epochs=2, min_steps=10, extensions=0),
    kernel=KernelConfig(chunk=32),
)
# one of its arguments is unknown to the network, which only the run can notice
BAD = {"strategy": "random", "network_args": ("nothing=1",)}
STUDY = Study(
    name="of-tests",
    title="Small runs",
    source="nowhere",
    question="Do they all come to an end?",
    paper="All but one do.",
    small=(Grid({"digits": SMALL}, {**methods(("random", "entropy")), "bad": BAD}, (0,)),),
    paper_size=(Grid({"digits": SMALL}, methods(("random", "mlmoc")), (0, 1)),),
)


def config(folder: Path, **changes: Any) -> SweepConfig:
    return SweepConfig(**{"study": NAME, "runs": folder, **changes})


def one(method: str) -> Trial:
    return next(trial for trial in STUDY.trials("small") if trial.method == method)


def settings(method: str, **changes: Any) -> RunConfig:
    """Those of a trial, as a person would give them."""
    config = one(method).config
    assert isinstance(config, RunConfig)
    return dataclasses.replace(config, **changes)


def comparable(path: Path, *without: str) -> list[dict[str, Any]]:
    """The rounds in a directory without what depends on the hour."""
    hidden = ("seconds", "peak_memory_mib", *without)
    rounds = record.read(path).rounds
    return [{k: v for k, v in line.items() if k not in hidden} for line in rounds]
