"""Command lines: settings from arguments, failures in plain words.

Torch and JAX are imported after the arguments are parsed, so that errors and help come at once.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import tyro
from rich.console import Console

from pipelines.config import MeasurementSettings, NetworkSettings, RunConfig
from pipelines.core.terminal import GOES_ON, plainly

Settings = TypeVar("Settings")


def command(
    settings: type[Settings],
    carry_out: Callable[[Settings, Console], object],
    prog: str,
    description: str | None = None,
    *,
    defaults: Settings | None = None,
    arguments: Sequence[str] | None = None,
    interrupted: str = GOES_ON,
) -> None:
    """Parse the command line into settings, and carry them out.

    Args:
        settings: a dataclass.
        carry_out: does the work, given settings and a console; imports slow modules itself.
        prog: the command, for --help.
        description: for --help; the docstring of the settings if None.
        defaults: of the settings; their own if None.
        arguments: in place of those of the process.
        interrupted: message after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with plainly(interrupted):
        config: Settings = tyro.cli(
            settings, args=words, prog=prog, description=description, default=defaults
        )  # pyright: ignore[reportAssignmentType] - the default is not what is returned
        carry_out(without_foreign_arguments(config, defaults, words), Console())


def main(defaults: RunConfig) -> None:
    """Run a data set's script with its own default values."""
    command(
        RunConfig,
        _run,
        f"python -m pipelines.{defaults.dataset}",
        f"Active learning on {defaults.dataset}.",
        defaults=defaults,
    )


def _run(config: RunConfig, console: Console) -> None:
    if config.dry_run:
        from pipelines.dry_run import dry_run

        dry_run(config, console)
    else:
        from pipelines.run import run

        run(config, console)


def measurement(settings: type[MeasurementSettings], package: str, description: str) -> None:
    """Command line of a measurement.

    Args:
        settings: that arguments are parsed into.
        package: whose modules `run` and `report` have `plan` and `measure`, `write` and `show`;
            imported once the arguments are known to be right.
        description: for --help.
    """

    def measure(config: Any, console: Console) -> None:
        run, report = (import_module(f"{package}.{name}") for name in ("run", "report"))
        if config.dry_run:
            run.plan(config, console)
            return
        result = run.measure(config, console)
        report.write(result)
        report.show(result, console)

    words = sys.argv[1:]
    with plainly():
        defaults = settings.of_dataset(dataset_in(words, settings.dataset))
    command(settings, measure, f"python -m {package}", description, defaults=defaults)


def dataset_in(words: Sequence[str], default: str) -> str:
    """The data set named among the arguments, whose values are the defaults of the others."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--dataset":
            if equals:
                return value
            return words[position + 1] if position + 1 < len(words) else default
    return default


def without_foreign_arguments(
    config: Settings, defaults: Settings | None, given: Sequence[str]
) -> Settings:
    """Leave out what the script says for its own network where another is named.

    These are the network's arguments, and the augmentation where a pretrained one is finetuned.
    """
    if not isinstance(config, NetworkSettings) or not isinstance(defaults, NetworkSettings):
        return config
    augmented = any(word.startswith("--train.augmentation") for word in given)
    if config.train.recipe == "finetune" and not augmented:
        train = dataclasses.replace(config.train, augmentation="none")
        config = dataclasses.replace(config, train=train)
    if not (isinstance(config, RunConfig) and isinstance(defaults, RunConfig)):
        return config
    chosen = any(word.replace("_", "-").startswith("--network-args") for word in given)
    if chosen or config.network == defaults.network:
        return config
    return dataclasses.replace(config, network_args=())
