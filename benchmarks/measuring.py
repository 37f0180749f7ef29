"""What every benchmark needs: turns of timed work, ratios with their spread, the machine, a file.

From functions to medians and ratios: everything that is compared runs in turns in one process, so
that what else the machine does falls on all of it alike.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch


class Times(NamedTuple):
    """Seconds of one piece of work, one entry a turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return float(np.median(self.seconds))

    def over(self, other: "Times") -> "Ratio":
        """How many times as long as the other, turn by turn."""
        ratios = np.array(self.seconds) / np.array(other.seconds)
        return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


class Ratio(NamedTuple):
    """The median of the ratios of all turns, and the smallest and largest of them."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.median:.2f} ({self.least:.2f}–{self.most:.2f})"


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes, its arrays awaited."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def turns(
    works: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True
) -> dict[str, Times]:
    """Time each piece of work once a turn, after one turn that compiles and is not counted."""
    if warm:
        for work in works.values():
            seconds(work)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: Times(tuple(times)) for name, times in taken.items()}


def machine() -> str:
    """What this ran on."""
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {jax.devices()[0].device_kind}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, jax {jax.__version__}"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(path: Path | None, settings: Any, figures: Any) -> None:
    """The figures as JSON, beside the machine and what was asked for; nothing without a path."""
    if path is None:
        return
    record = {"machine": machine(), "settings": settings, "figures": figures}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")
