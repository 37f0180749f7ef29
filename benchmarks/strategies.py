"""What does a query by each strategy cost, in seconds and in memory?

From random images and an untrained network, the same for all, to a table of every strategy of
`pipelines.strategies.STRATEGIES`, with 10 classes and with 100. Seconds are of whole queries in
turns, predictions and certificate included; memory is what a query adds to a process apart, the
second time it is asked. Run it as

    python -m benchmarks.strategies [--json FILE]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

from benchmarks.measuring import Times, apart, load, machine, markdown, turns, watched, write
from bridge.export import weights_of
from bridge.mirror import Mirror
from bridge.parity import certify
from bridge.trace import mirror
from pipelines.seeds import generator
from pipelines.stages import Stages
from pipelines.strategies import STRATEGIES, needing, needs_of
from pipelines.strategies.albl_config import ALBLConfig
from pipelines.strategies.baseline_config import BaselineConfig
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.situating import situate
from pipelines.strategies.situation import Query
from trainer.memory import keep_freed_blocks
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.train_config import TrainConfig

SLOW = needing("training", "infinite")  # asked once, after one query that is not counted


@dataclass(frozen=True)
class Settings:
    """What is measured."""

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
    """Turns; of the slow strategies there is one."""
    threads: int = 2
    """Of torch."""
    memory_gib: float = 4.0
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
        self.companion = LossPrediction.of(self.network, self.images[:2], rng)
        self.pool = Pool.initial(examples, settings.labelled, rng)
        self.labels = np.arange(settings.labelled) % classes
        self._mirror: Mirror | None = None

    def _mirrored(self, probe: np.ndarray) -> tuple[Mirror, dict]:
        self._mirror = self._mirror or mirror(self.network, probe)
        self._mirror = self._mirror.with_weights(weights_of(self.network))
        return self._mirror, certify(self.network, self._mirror, probe).summary()

    def ask(self, name: str) -> Query:
        """A whole query by a strategy."""
        settings = self.settings
        situation = situate(
            self.network,
            lambda indices: self.images[indices],
            self.pool,
            self.labels,
            self.pool.unlabelled,
            train=TrainConfig(min_steps=0, extensions=0),
            mirror=self._mirrored,
            kernel=KernelConfig(memory_gib=settings.memory_gib),
            stages=Stages(),
            needs=needs_of(name, ALBLConfig().arms),
            baseline=BaselineConfig(
                epochs=settings.epochs,
                candidates=settings.scored,
                image_size=settings.infinite_side,
                test=0,
            ),
            companion=self.companion,
        )
        return STRATEGIES[name](situation, settings.batch, generator(settings.seed, name))


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
    """What every strategy takes with this many classes."""
    memory = apart(memory_of, settings, classes)
    bench, scored = Bench(settings, classes), {}

    def asking(name: str) -> Callable[[], None]:
        def work() -> None:
            scored[name] = len(bench.ask(name).candidates)

        return work

    quick = {name: asking(name) for name in settings.strategies if name not in SLOW}
    slow = {name: asking(name) for name in settings.strategies if name in SLOW}
    times = turns(quick, settings.repeats) | turns(slow, 1)
    return {name: Cost(times[name], scored[name], *memory[name]) for name in settings.strategies}


def memory_of(settings: Settings, classes: int) -> dict[str, tuple[float, float]]:
    """GiB that the first and the second query by each strategy add to this process."""
    torch.set_num_threads(settings.threads)
    bench = Bench(settings, classes)
    grown = {}
    for name in settings.strategies:
        first, again = (watched(lambda name=name: bench.ask(name))[1].grown for _ in range(2))
        grown[name] = first, again
    return grown


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
