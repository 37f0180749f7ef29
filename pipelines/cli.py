"""The command line of a data set's script: settings from arguments, failures in plain words."""

import dataclasses
import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TypeVar

import tyro
from rich.console import Console

from bridge.errors import BridgeError
from kernel.errors import KernelError
from pipelines.config import MeasurementSettings, RunConfig
from pipelines.dry_run import dry_run
from pipelines.errors import PipelineError
from pipelines.run import run
from trainer.errors import TrainerError

EXPECTED = (TrainerError, BridgeError, KernelError, PipelineError)
FAILED, INTERRUPTED = 2, 130

Config = TypeVar("Config", bound=RunConfig)


def main(defaults: RunConfig) -> None:
    """Run a data set's script with its own default values."""
    with plainly():
        config = tyro.cli(
            RunConfig,
            default=defaults,
            prog=f"python -m pipelines.{defaults.dataset}",
            description=f"Active learning on {defaults.dataset}.",
        )
        config = without_foreign_arguments(config, defaults, sys.argv[1:])
        if config.dry_run:
            dry_run(config, Console())
        else:
            run(config, Console())


def measurement(settings: type[MeasurementSettings], package: str, description: str) -> None:
    """Command line of a measurement.

    Args:
        settings: that arguments are parsed into.
        package: whose modules `run` and `report` have `plan` and `measure`, `write` and `show`;
            imported once the arguments are known to be right.
        description: for --help.
    """
    with plainly():
        config = tyro.cli(settings, prog=f"python -m {package}", description=description)
        run, report = (import_module(f"{package}.{name}") for name in ("run", "report"))
        console = Console()
        if config.dry_run:
            run.plan(config, console)
            return
        result = run.measure(config, console)
        report.write(result)
        report.show(result, console)


def without_foreign_arguments(config: Config, defaults: RunConfig, given: Sequence[str]) -> Config:
    """Another network than the script's has none of the script's arguments for it."""
    chosen = any(word.replace("_", "-").startswith("--network-args") for word in given)
    if chosen or config.network == defaults.network:
        return config
    return dataclasses.replace(config, network_args=())


@contextmanager
def plainly() -> Iterator[None]:
    """Say what went wrong in plain words instead of a traceback.

    Exits with status 2 after a failure that has a message, 130 after Ctrl-C. Whatever else is
    raised is a defect and keeps its traceback.
    """
    try:
        yield
    except EXPECTED as error:
        _fail(str(error))
    except OSError as error:
        _fail(_explain(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on after the last round shown", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}). Every completed round is on disk: make room and give "
            "the same command again."
        )
    return f"{error}. Completed rounds are on disk: mend this and give the same command again."
