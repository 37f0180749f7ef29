"""Settings of a measurement → the run whose first round has its network and labelled set.

What audits and measurements of one network share: they begin where a run with the same seed does.
"""
# ruff: noqa: D102 - the properties are fields of a run, which RunConfig tells of

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pipelines.config import RunConfig
from pipelines.errors import PipelineError
from trainer.fit import TrainConfig

# Settings that say where and how something is computed, and not what.
_MACHINE = ("data_dir", "run", "download", "device", "memory_gib", "dry_run")


class Begun(Protocol):
    """Settings that name a data set, a network and a training: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def dataset(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def initial(self) -> int: ...
    @property
    def network(self) -> str: ...
    @property
    def network_args(self) -> tuple[str, ...]: ...
    @property
    def twin(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def run(self) -> Path | None: ...


def first_round(
    settings: Begun,
    network_args: tuple[str, ...] | None = None,
    train: TrainConfig | None = None,
) -> RunConfig:
    """A run without queries, of these settings.

    Args:
        settings: whose network it is.
        network_args: in place of its own.
        train: in place of its own.

    Raises:
        UnknownNameError: a name that is not there.
        PipelineError: a number out of range.
    """
    return RunConfig(
        dataset=settings.dataset,
        strategy="random",
        seed=settings.seed,
        initial=settings.initial,
        query=1,
        cycles=0,
        network=settings.network,
        network_args=settings.network_args if network_args is None else network_args,
        twin=settings.twin,
        image_size=settings.image_size,
        data_dir=settings.data_dir,
        download=settings.download,
        device=settings.device,
        train=settings.train if train is None else train,
    )


def computed(settings: Begun) -> dict[str, Any]:
    """What is computed, by name and JSON-able: every setting but the machine's own places."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in _MACHINE}


def at_width(arguments: tuple[str, ...], name: str, width: int | None) -> tuple[str, ...]:
    """Arguments of a network with another width; None leaves them as they are."""
    if width is None:
        return arguments
    others = (text for text in arguments if text.partition("=")[0] != name)
    return (*others, f"{name}={width}")


def folder(settings: Begun, parent: str) -> Path:
    """Where the record of a measurement is written."""
    name = settings.network.replace(":", ".")
    return settings.run or Path(parent) / f"{settings.dataset}-{name}-seed{settings.seed}"


def check_list(
    name: str, values: tuple[Any, ...], least: float | None = 1, empty: bool = False
) -> None:
    """Refuse a list that names nothing or something twice, or a number in it out of range.

    Args:
        name: of the list, for the messages.
        values: what it holds; what is no number is not compared.
        least: the least that a number may be; None where there are none.
        empty: whether the list may be.

    Raises:
        PipelineError: saying what was found and what is needed.
    """
    if not values and not empty:
        raise PipelineError(f"{name} is empty: name at least one.")
    if len(set(values)) < len(values):
        raise PipelineError(f"{name} names something twice: {', '.join(map(str, values))}.")
    for value in values:
        if least is None or not isinstance(value, int | float):
            continue
        if not least <= value < math.inf:
            finite = " and finite" if isinstance(value, float) else ""
            raise PipelineError(f"{name} must be {least} or more{finite}, not {value}.")
