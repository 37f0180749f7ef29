"""Progress of a round: seconds and memory by stage, time limits, image names in errors, streams."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import kernel.errors
import trainer.predict
from pipelines.core.errors import PipelineError

_SECONDS = 0.5  # what compiles faster is not worth a file


def keep_compiled() -> Path | None:
    """Switch on JAX's persistent compilation cache, unless the user has set or disabled it.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=false` does
    without. By default it lies in the user's cache folder.

    Returns:
        The folder; None without a cache.
    """
    import jax  # here: not every command uses it

    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return None
    if settings["jax_compilation_cache_dir"] is not None:
        return Path(settings["jax_compilation_cache_dir"])
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "ntk-lookahead" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: everything works, only compiled anew
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    return folder


_NUMBERS = "numbered as in the data set"


@contextmanager
def named_images(
    indices: Sequence[int] | np.ndarray, tests: Sequence[int] | np.ndarray = ()
) -> Iterator[None]:
    """Name images by data-set index in NotFiniteErrors raised inside.

    Args:
        indices: of the images in the computation, in their order.
        tests: numbers of the test images that follow them.
    """
    try:
        yield
    except (trainer.predict.NotFiniteError, kernel.errors.NotFiniteError) as error:
        names = [int(index) for index in indices] + [f"test image {n}" for n in tests]
        raise error.renamed(names, _NUMBERS) from None


def generator(seed: int, name: str, round_number: int = 0) -> np.random.Generator:
    """The random stream of one purpose in one round of one run.

    It depends on the three arguments alone: a resumed run draws the same numbers.
    """
    return np.random.default_rng([seed, crc32(name.encode()), round_number])


Advance = Callable[..., None]
_TEXT = 24  # characters of a stage's own text beside the bar
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Stages:
    """Seconds and peak memory by stage, and a progress bar while one runs.

    Attributes:
        seconds: wall seconds by stage, in the order of their first start.
        peak_memory_mib: peak resident memory of the process by stage, in MiB; empty where the
            system does not report it.
    """

    def __init__(self, console: Console | None = None):
        """Start with no stage; without a console nothing is shown."""
        self.seconds: dict[str, float] = {}
        self.peak_memory_mib: dict[str, float] = {}
        self._console = console

    @contextmanager
    def __call__(self, name: str) -> Iterator[Advance]:
        """Run a stage; yields `advance(done, total, text="")` for its progress."""
        started = time.perf_counter()
        _reset_peak()
        try:
            with self._bar(name) as advance:
                yield advance
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            peak = _peak_mib()
            if peak is not None:
                self.peak_memory_mib[name] = max(self.peak_memory_mib.get(name, 0.0), peak)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        if self._console is None or not self._console.is_terminal:
            yield lambda done, total, text="": None
            return
        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task: TaskID = progress.add_task(name, total=None, text="")

            def advance(done: float, total: float, text: str = "") -> None:
                progress.update(task, completed=done, total=total, text=text[:_TEXT])

            yield advance


def _reset_peak() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        _RESET.write_text("5")  # 5: forget the peak of resident memory, see proc(5)
    except OSError:  # not allowed here: the peak is then that of the whole process
        return


def _peak_mib() -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None


_SETTLED = 5.0  # seconds after which the pace is extrapolated


class TimeLimit:
    """Progress of a slow strategy, stopped early if it would exceed its limit."""

    def __init__(self, advance: Advance, hours: float, remedies: str):
        """The clock starts at the first report, which comes when everything is compiled."""
        self._advance, self._hours, self._remedies = advance, hours, remedies
        self._began: tuple[float, float] | None = None
        self._judged = False

    def __call__(self, done: float, total: float) -> None:
        """Report progress.

        Raises:
            PipelineError: extrapolated from the pace so far, the limit would be exceeded.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        spent, since = now - self._began[0], done - self._began[1]
        if not self._judged and since > 0 and spent >= _SETTLED:
            self._judged = True
            hours = spent / since * (total - self._began[1]) / 3600
            if hours > self._hours:
                raise PipelineError(
                    f"this query would take about {hours:.3g} hours here and baseline.hours is "
                    f"{self._hours:g}: {self._remedies}, or raise baseline.hours."
                )
        self._advance(done, total)
