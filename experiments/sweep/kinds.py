"""How each kind of trial is carried out: the same work as its own command line, without its output.

From the settings of a trial to its record on disk.
"""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from experiments.approximation import report as of_approximation
from experiments.approximation.run import measure as approximate
from experiments.dynamics import report as of_dynamics
from experiments.dynamics.run import measure
from experiments.studies.study import Config, kind_of
from experiments.sweep.shared import FirstTrainings, read_dataset
from pipelines.audit import report as of_audit
from pipelines.audit.run import measure as audit
from pipelines.run import run
from pipelines.sequential.run import run as ask

# Of a measurement, the last file that it writes, with its settings in it.
WRITTEN = {
    "audit": of_audit.RECORD,
    "dynamics": of_dynamics.RECORD,
    "approximation": of_approximation.RECORD,
}


def do(config: Config, first: FirstTrainings | None = None) -> None:
    """Carry out a trial, or the rest of it, in the directory that its settings name.

    Args:
        config: of the trial.
        first: where a run's first training is kept for others that begin with it; None for none.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message.
        OSError: a file cannot be written; what was finished is safe.
    """
    _DO[kind_of(config)](config, Console(quiet=True), first)


def _run(config: Any, console: Console, first: FirstTrainings | None) -> None:
    run(config, console, first, lambda: read_dataset(config))


def _audit(config: Any, console: Console, _: FirstTrainings | None) -> None:
    of_audit.write(audit(config, console))


def _dynamics(config: Any, console: Console, _: FirstTrainings | None) -> None:
    of_dynamics.write(measure(config, console))


def _sequential(config: Any, console: Console, first: FirstTrainings | None) -> None:
    ask(config, console, first=first, read_dataset=lambda: read_dataset(config))


def _approximation(config: Any, console: Console, _: FirstTrainings | None) -> None:
    of_approximation.write(approximate(config, console))


_DO: dict[str, Callable[[Any, Console, FirstTrainings | None], object]] = {
    "run": _run,
    "sequential": _sequential,
    "audit": _audit,
    "dynamics": _dynamics,
    "approximation": _approximation,
}
