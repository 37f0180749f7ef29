"""Cost of a query by each strategy, in seconds and in memory.

From random images and an untrained network, the same for all, to a table of every strategy of
`pipelines.strategies.STRATEGIES`, with 10 classes and with 100. Seconds are of whole queries in
turns, predictions and certificate included; memory is what a query adds to a process apart, the
second time it is asked. With `--repeats 0`, and a `--sketch` and a `--sample` for look-ahead, pools
of 50,000 candidates are measured in an hour. Run it as

    python -m benchmarks.strategies [--json FILE]
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

from benchmarks.measuring import Times, apart, load, machine, markdown, turns, watched, write
from bridge.mirror import Mirror
from pipelines.core.progress import generator
from pipelines.strategies import STRATEGIES, needing
from pipelines.strategies.base import Labelling, Query, Resources, build_context
from pipelines.strategies.options import (
    BaselineConfig,
    DynamicsConfig,
    KernelConfig,
    StrategyOptions,
)
from trainer.config import TrainConfig
from trainer.fit import keep_freed_blocks
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool

SLOW = needing("training", "infinite")  # asked once, after one query that is not counted


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    strategies: tuple[str, ...] = tuple(STRATEGIES)
    classes: tuple[int, ...] = (10, 100)
    labelled: int = 100
    candidates: int = 300
    batch: int = 10
    side: int = 12
    """Pixels of a side, of three channels."""
    scored: int = 10
    """Candidates that naive, one_step and ntk_no_blocks score."""
    epochs: int = 2
    """Of naive, for each of these; its own default is 15."""
    infinite_side: int = 4
    """Pixels of a side for the kernels of infinite width."""
    repeats: int = 3
    """Turns; of the slow strategies there is one. With 0 the queries whose memory is measured are
    timed instead: each strategy is then asked twice in all, for large pools."""
    threads: int = 2
    """Of torch."""
    memory_gib: float = 4.0
    sketch: int | None = None
    """Dimensions that gradients are folded to for a kernel; none keeps them whole."""
    sample: int | None = None
    """Candidates over which look-ahead sums; none sums over all of them."""
    dissimilar: bool = False
    """Batches of dynamical whose gradients differ, in place of the highest scores."""
    seed: int = 0
    json: Path | None = None


class Bench:
    """The same situation for every strategy, as a round of a run makes it."""

    def __init__(self, settings: Settings, classes: int):
        """Draw images and weights."""
        self.settings = settings
        rng = generator(settings.seed, "benchmark", classes)
        examples = settings.labelled + settings.candidates
        shape = (3, settings.side, settings.side)
        self.images = rng.standard_normal((examples, *shape), np.float32)
        # dropout for bald; the other strategies see the plain network
        self.network = build("cnn", shape, classes, rng, {"dropout": 0.1})
        self.auxiliary_module = LossPrediction.of(self.network, self.images[:2], rng)
        self.pool = Pool.initial(examples, settings.labelled, rng)
        self.labels = np.arange(settings.labelled) % classes
        self._mirror: Mirror | None = None

    def ask(self, name: str) -> Query:
        """A whole query by a strategy."""
        settings = self.settings
        options = StrategyOptions(
            kernel=KernelConfig(
                memory_gib=settings.memory_gib, sketch=settings.sketch, sample=settings.sample
            ),
            baseline=BaselineConfig(
                epochs=settings.epochs,
                candidates=settings.scored,
                image_size=settings.infinite_side,
                test=0,
            ),
            dynamics=DynamicsConfig(batch="dissimilar" if settings.dissimilar else "top"),
        )
        context = build_context(
            self.network,
            lambda indices: self.images[indices],
            Labelling(self.pool.labelled, self.labels, self.pool.unlabelled),
            [STRATEGIES[name]],
            train=TrainConfig(min_steps=0, extensions=0),
            options=options,
            resources=Resources(auxiliary_module=self.auxiliary_module),
            mirror=self._mirror,
        )
        if context.certified is not None:
            self._mirror = context.certified.mirror
        return STRATEGIES[name](context, settings.batch, generator(settings.seed, name))


class Cost(NamedTuple):
    """Of a strategy with one number of classes.

    Attributes:
        times: of its queries.
        scored: how many candidates.
        first: GiB that the first query in a process of its own added, with all that it compiles.
        again: GiB of the second.
    """

    times: Times
    scored: int
    first: float
    again: float


def costs(settings: Settings, classes: int) -> dict[str, Cost]:
    """Time and memory of every strategy with this many classes."""
    found = apart(alone, settings, classes)
    if not settings.repeats:
        return found
    bench = Bench(settings, classes)

    def asking(name: str) -> Callable[[], object]:
        return lambda: bench.ask(name)

    quick = {name: asking(name) for name in settings.strategies if name not in SLOW}
    slow = {name: asking(name) for name in settings.strategies if name in SLOW}
    times = turns(quick, settings.repeats) | turns(slow, 1)
    return {name: cost._replace(times=times[name]) for name, cost in found.items()}


def alone(settings: Settings, classes: int) -> dict[str, Cost]:
    """Memory that two queries by each strategy add to this process, and the time of the second."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    bench = Bench(settings, classes)

    def timed(name: str) -> Times:
        return turns({name: lambda: bench.ask(name)}, 1, warm=False)[name]

    found = {}
    for name in settings.strategies:
        query, first = watched(lambda name=name: bench.ask(name))
        times, again = watched(lambda name=name: timed(name))
        found[name] = Cost(times, len(query.candidates), first.grown, again.grown)
        told = f"C = {classes}, {name}: {times.median:.3g} s, {again.grown:.3f} GiB"
        print(told, file=sys.stderr, flush=True)
    return found


def table(found: Mapping[int, Mapping[str, Cost]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Head and rows: a row a strategy, with seconds and GiB for each number of classes."""
    head = ["strategy", "scored", "n"]
    for classes in found:
        head += [f"C = {classes}: seconds (least–most)", f"C = {classes}: GiB"]
    rows = []
    for name, any_ in next(iter(found.values())).items():
        cells = [name, f"{any_.scored:,}", str(len(any_.times.seconds))]
        for costs_ in found.values():
            seconds = costs_[name].times.seconds
            spread = f" ({min(seconds):.3g}–{max(seconds):.3g})" if len(seconds) > 1 else ""
            cells.append(f"{costs_[name].times.median:.3g}{spread}")
            cells.append(f"{costs_[name].again:.3f}")
        rows.append(tuple(cells))
    return head, rows


def main(settings: Settings) -> None:
    """Print the table and write the figures."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    found = {classes: costs(settings, classes) for classes in settings.classes}
    print(markdown(*table(found)))
    print(
        f"L = {settings.labelled:,}, U = {settings.candidates:,}, b = {settings.batch}, cnn, "
        f"3×{settings.side}×{settings.side} pixels; scored: how many of the candidates (naive: by "
        f"{settings.epochs} epochs each), n: counted queries, seed {settings.seed}. "
        f"{machine()}; {load()}."
    )
    figures = {
        classes: {
            name: cost._asdict() | {"times": cost.times._asdict()} for name, cost in of.items()
        }
        for classes, of in found.items()
    }
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings))
