"""Cost of a whole query, against strategies that need no kernel.

From MNIST, a WideResNet trained on a few labels and the same candidates to seconds: MLMOC with the
exact and the sketched kernel, entropy, BADGE and coreset, in turns, with predictions, certificate,
kernel, posterior and selection all counted. Run it as

    python -m benchmarks.query --data-dir DIR [--json FILE]
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.measuring import Compiling, Times, load, machine, markdown, turns, write
from pipelines.config import defaults_of
from pipelines.core.progress import Stages, generator
from pipelines.strategies import STRATEGIES
from pipelines.strategies.base import Labelling, Resources, build_context
from pipelines.strategies.options import KernelConfig, StrategyOptions
from trainer import data
from trainer.fit import fit, keep_freed_blocks
from trainer.networks import build
from trainer.pool import Pool

LIMIT = 6.0  # entropy queries that one of MLMOC may take
EXACT = "MLMOC, exact"
HEAD = (
    "query",
    "seconds",
    "entropy queries (least–most)",
    "of processor time",
    "target",
    "met",
    "as exact",
)


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    data_dir: Path | None = None
    dataset: str = "mnist"
    image_size: int | None = None
    widen: int = 2
    """Of the WideResNet of one stage."""
    labelled: int = 200
    candidates: int = 4000
    batch: int = 20
    sketches: tuple[int, ...] = (4096, 16384)
    min_steps: int = 300
    """Of training."""
    repeats: int = 5
    """Turns."""
    threads: int = 2
    """Of torch."""
    memory_gib: float = 6.0
    seed: int = 0
    json: Path | None = None


class Queries:
    """The same query by every strategy, as a round of the pipelines makes it."""

    def __init__(self, settings: Settings):
        """Draw labels and candidates, and train the network."""
        self.settings = settings
        self.dataset = data.load(
            settings.dataset, settings.data_dir, image_size=settings.image_size, download=False
        )
        examples = len(self.dataset.train_labels)
        self.pool = Pool.initial(examples, settings.labelled, generator(settings.seed, "initial"))
        self.labels = self.dataset.train_labels[self.pool.labelled]
        rng = generator(settings.seed, "subset")
        self.candidates = self.pool.candidates(settings.candidates, rng)
        shape = self.images(self.candidates[:1]).shape[1:]
        arguments = {"stages": 1, "widen": settings.widen}
        rng = generator(settings.seed, "weights")
        self.network: nn.Module = build("wide_resnet", shape, self.dataset.classes, rng, arguments)
        script = defaults_of(settings.dataset).train
        self.train = replace(script, min_steps=settings.min_steps, epochs=1, extensions=0)
        given, rng = self.images(self.pool.labelled), generator(settings.seed, "fit")
        self.fitted = fit(self.network, given, self.labels, self.train, rng)
        self.mirror: Any = None
        self.stages: dict[str, list[dict[str, float]]] = {}

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the network takes them."""
        return self.dataset.normalise(self.dataset.train_images[indices])

    def strategy(
        self, label: str, name: str, kernel: KernelConfig | None = None
    ) -> Callable[[], np.ndarray]:
        """A query by a strategy of the pipelines; its stages' seconds are noted under a label."""

        def work() -> np.ndarray:
            stages = Stages()
            context = build_context(
                self.network,
                self.images,
                Labelling(self.pool.labelled, self.labels, self.candidates),
                [STRATEGIES[name]],
                train=self.train,
                options=StrategyOptions(kernel=kernel or KernelConfig()),
                resources=Resources(progress=stages),
                mirror=self.mirror,
            )
            if context.certified is not None:
                self.mirror = context.certified.mirror
            rng = generator(self.settings.seed, name)
            chosen = STRATEGIES[name](context, self.settings.batch, rng).indices
            self.stages.setdefault(label, []).append(dict(stages.seconds))
            return chosen

        return work


def works(queries: Queries) -> dict[str, Callable[[], np.ndarray]]:
    """Every query by what the table calls it."""
    settings = queries.settings
    exact = KernelConfig(kind="single", memory_gib=settings.memory_gib)
    named = {
        "entropy": queries.strategy("entropy", "entropy"),
        "BADGE": queries.strategy("BADGE", "badge"),
        "coreset": queries.strategy("coreset", "coreset"),
        EXACT: queries.strategy(EXACT, "mlmoc", exact),
    }
    for size in settings.sketches:
        label, kernel = f"MLMOC, sketch {size:,}", replace(exact, sketch=size)
        named[label] = queries.strategy(label, "mlmoc", kernel)
    return named


def table(measured: dict[str, Times], chosen: dict[str, np.ndarray]) -> list[tuple[object, ...]]:
    """A row a query, as ratios to entropy, and how much of its batch the exact kernel chose too."""
    rows: list[tuple[object, ...]] = []
    for name, times in measured.items():
        ratio = times.over(measured["entropy"])
        target = f"≤ {LIMIT:g}" if name.startswith("MLMOC") else ""
        met = ("yes" if ratio.median <= LIMIT else "**no**") if target else ""
        processor = times.processor_over(measured["entropy"])
        common = len(np.intersect1d(chosen[name], chosen[EXACT]))
        same = f"{common} of {len(chosen[name])}" if target else ""
        rows.append((name, f"{times.median:.3g}", ratio, processor, target, met, same))
    return rows


def shares(stages: dict[str, list[dict[str, float]]], repeats: int) -> list[tuple[object, ...]]:
    """A row a query, with the median seconds of every stage over the last turns."""
    rows: list[tuple[object, ...]] = []
    for name, runs in stages.items():
        counted = runs[-repeats:]
        medians = {key: np.median([run[key] for run in counted]) for key in counted[0]}
        rows.append((name, ", ".join(f"{key} {value:.2f}" for key, value in medians.items())))
    return rows


def main(settings: Settings) -> None:
    """Print the tables and write the figures."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    queries = Queries(settings)
    compiler = Compiling()
    named = works(queries)
    # everything is compiled in the first round of a run; what the second still compiles is shown
    early: dict[str, list[float]] = {name: [] for name in named}
    chosen: dict[str, np.ndarray] = {}
    for _ in range(2):
        for name, work in named.items():
            began, compiled = time.perf_counter(), compiler.seconds
            chosen[name] = work()
            early[name] += [time.perf_counter() - began, compiler.seconds - compiled]
    measured = turns(named, settings.repeats, warm=False)
    rows = table(measured, chosen)
    print(markdown(HEAD, rows))
    cells = [(name, *(f"{seconds:.2f}" for seconds in found)) for name, found in early.items()]
    head = ("query", "first, seconds", "of which compiling", "second", "of which compiling")
    print(markdown(head, cells))
    parts = shares(queries.stages, settings.repeats)
    print(markdown(("query", "seconds by stage"), parts))
    print(
        f"L = {settings.labelled:,}, U = {settings.candidates:,}, b = {settings.batch}; trained "
        f"{queries.fitted.steps} steps, accuracy on labels {queries.fitted.train_accuracy:.2f}; "
        f"n = {settings.repeats} turns, seed {settings.seed}. {machine()}; {load()}."
    )
    figures = {
        "seconds": {name: times._asdict() for name, times in measured.items()},
        "ratios": {name: times.over(measured["entropy"]) for name, times in measured.items()},
        "first and second": early,
        "stages": queries.stages,
    }
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings))
