"""Tools of the benchmarks: turns of timed work, ratios with their spread, memory, a file.

From functions to medians and ratios: everything that is compared runs in turns in one process, so
that what else the machine does falls on all of it alike. Memory is measured in a process apart.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import torch

_T = TypeVar("_T")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Times(NamedTuple):
    """Seconds of one piece of work, one entry a turn.

    Attributes:
        seconds: on the clock.
        processor: of all threads of this process together, which other work prolongs less; empty
            where only the clock was read.
    """

    seconds: tuple[float, ...]
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """The middle one."""
        return float(np.median(self.seconds))

    def over(self, other: "Times") -> "Ratio":
        """How many times as long as the other, turn by turn."""
        return Ratio.of(self.seconds, other.seconds)

    def processor_over(self, other: "Times") -> "Ratio | None":
        """The same of the processor's seconds; None where one of them has none."""
        if not self.processor or not other.processor:
            return None
        return Ratio.of(self.processor, other.processor)


class Ratio(NamedTuple):
    """The median of the ratios of all turns, and the smallest and largest of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ones: Sequence[float], others: Sequence[float]) -> "Ratio":
        """Of each of some numbers to its partner."""
        ratios = np.array(ones) / np.array(others)
        return cls(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))

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
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            before = time.process_time()
            clock = seconds(work)
            taken[name].append((clock, time.process_time() - before))
    return {name: Times(*zip(*times, strict=True)) for name, times in taken.items()}


class Memory(NamedTuple):
    """Resident memory of this process around a piece of work, in GiB.

    Attributes:
        before: what was in use when it began.
        peak: the most while it ran.
    """

    before: float
    peak: float

    @property
    def grown(self) -> float:
        """Memory of the work beyond that before it."""
        return self.peak - self.before


def watched(work: Callable[[], _T]) -> tuple[_T, Memory]:
    """The result of a piece of work, and its memory, read from /proc on Linux."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # freed blocks kept for later are not in use
    _RESET.write_text("5")  # forget the peak of resident memory, see proc(5)
    before = _resident("VmRSS")
    result = work()
    return result, Memory(before, _resident("VmHWM"))


def _resident(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) / 2**20


def apart(work: Callable[..., _T], *arguments: Any) -> _T:
    """The result of a function in a process of its own, with fresh memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *arguments).result()


class Compiling:
    """Adds up the seconds that XLA compiles, from its making on."""

    def __init__(self):
        """Listen to JAX's own reports."""
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs


def load() -> str:
    """How many threads wanted to run, over the last 1, 5 and 15 minutes."""
    return "load " + ", ".join(f"{mean:.1f}" for mean in os.getloadavg())


def machine() -> str:
    """Processor, device and versions."""
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), {jax.devices()[0].device_kind}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, jax {jax.__version__}"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(path: Path | None, settings: Mapping[str, Any], figures: Any) -> None:
    """The figures as JSON, beside the machine and what was asked for; nothing without a path.

    Where files lie on that machine is left out: it is no part of what was measured.
    """
    if path is None:
        return
    asked = {name: value for name, value in settings.items() if not isinstance(value, Path)}
    record = {"machine": machine(), "load": load(), "settings": asked, "figures": figures}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")


def read(path: Path | None) -> dict[str, Any]:
    """The figures by name that an earlier run wrote to a file; none without one."""
    if path is None or not path.exists():
        return {}
    return json.loads(path.read_text("utf-8"))["figures"]
