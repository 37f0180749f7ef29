"""Work beside two busy processes, and the cost of the rule of threads on an idle machine.

Each piece of work runs in a process of its own, alone and beside busy processes in turns: by the
rule of `trainer.threads`, and with every core and OpenMP's own spinning. Run it as

    python -m benchmarks.contention [--json FILE]
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.measuring import Times, apart, load, machine, markdown, turns, write
from kernel.linalg import cores

FAIR = 3.0  # times its fair share of the processor that work may take beside busy processes
HEAD = (
    "work",
    "threads",
    "alone, seconds",
    "processor",
    "beside, of its fair time",
    "of its processor alone",
    f"≤ {FAIR:g}",
)
EVERY = {"OMP_NUM_THREADS": str(cores()), "GOMP_SPINCOUNT": "300000"}
# Environments of the processes.
THREADS = {"the rule": {"GOMP_SPINCOUNT": "20000"}, "every core": EVERY}

FITS = ("fit-demo", "fit-16", "fit-32")  # the demonstration's network; 3×16×16; 3×32×32


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    busy: int = 2
    """Processes that compute without end."""
    candidates: int = 1000
    batch: int = 20
    steps: int = 300
    """Of training the demonstration's network."""
    repeats: int = 5
    """Turns."""
    works: tuple[str, ...] = (*FITS, "margin", "badge", "coreset", "uherding", "mlmoc")
    """Trainings, and queries by their strategies."""
    json: Path | None = None


@contextmanager
def busy(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Within it the stopped processes run."""
    for process in processes:
        process.send_signal(signal.SIGCONT)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGSTOP)


def measured(name: str, settings: Settings) -> dict[str, Times]:
    """Times alone and beside busy processes, for a process apart."""
    task = work(name, settings)
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(settings.busy)
    ]
    for process in processes:
        process.send_signal(signal.SIGSTOP)

    def beside() -> None:
        with busy(processes):
            task()

    try:
        return turns({"alone": task, "beside": beside}, settings.repeats)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def work(name: str, settings: Settings) -> Callable[[], object]:
    """A training or a query by name."""
    from pipelines import query
    from pipelines.core.progress import generator
    from pipelines.strategies.options import QueryOptions
    from trainer import data
    from trainer.config import TrainConfig
    from trainer.fit import fit
    from trainer.networks import build

    def training(shape: tuple[int, int, int], arguments: dict[str, int], count: int, steps: int):
        config = TrainConfig(augmentation="none", min_steps=steps, epochs=1, extensions=0)
        rng = np.random.default_rng(0)
        images = rng.normal(size=(count, *shape)).astype(np.float32)
        labels = rng.integers(0, 10, count)

        def train() -> None:
            network = build("wide_resnet", shape, 10, generator(0, "weights"), arguments)
            fit(network, images, labels, config, generator(0, "fit"))

        return train

    if name == "fit-demo":
        return training((1, 8, 8), {"stages": 1, "widen": 1}, 50, settings.steps)
    if name == "fit-16":
        return training((3, 16, 16), {"stages": 2, "widen": 2}, 128, -(-settings.steps // 10))
    if name == "fit-32":
        return training((3, 32, 32), {"stages": 3, "widen": 2}, 128, -(-settings.steps // 50))
    dataset = data.load("digits", None, download=False)
    images = dataset.normalise(dataset.train_images[:])
    labels = dataset.train_labels
    arguments = {"stages": 1, "widen": 1}
    network = build("wide_resnet", images.shape[1:], 10, generator(0, "weights"), arguments)
    config = TrainConfig(augmentation="none")
    fit(network, images[:50], labels[:50], config, generator(0, "fit"))
    labelled = dict(enumerate(labels[:50].tolist()))
    options = QueryOptions(subset=settings.candidates)
    return lambda: query(network, images, labelled, settings.batch, name, options)


def row(name: str, threads: str, times: dict[str, Times], settings: Settings) -> tuple[object, ...]:
    """Clock beside, as a ratio to a fair share's; processor beside, as a ratio to alone."""
    alone, beside = times["alone"], times["beside"]
    share = min(1.0, cores() / (settings.busy + 1))  # cores, of one thread
    processor = float(np.median(alone.processor))
    fair = max(alone.median, processor / share)
    ratio = beside.median / fair
    grown = beside.processor_over(alone)
    met = ("yes" if ratio <= FAIR else "**no**") if threads == "the rule" else ""
    return name, threads, f"{alone.median:.3g}", f"{processor:.3g}", f"{ratio:.2f}", grown, met


def main(settings: Settings) -> None:
    """Print the table and write the figures."""
    figures, rows = {}, []
    for name in settings.works:
        for threads, environment in THREADS.items():
            os.environ.pop("OMP_NUM_THREADS", None)
            os.environ.update(environment)
            times = apart(measured, name, settings)
            figures[f"{name}; {threads}"] = {key: each._asdict() for key, each in times.items()}
            rows.append(row(name, threads, times, settings))
    print(markdown(HEAD, rows))
    print(f"{settings.busy} busy processes, n = {settings.repeats} turns. {machine()}; {load()}.")
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
