"""Look-ahead by retraining, without blocks and with blocks: accuracy and seconds ([L] Figure 1a).

From MNIST made smaller and a WideResNet of one stage, which two cores carry, to a table and bars:
the accuracy after some queries and what one query takes, for every look-ahead baseline, `mlmoc` and
`random`. Every strategy of a seed starts from the same labels and weights. Each run is recorded in
a folder of its own, so that the same command goes on where an interrupted one stood. Run it as

    python -m benchmarks.baselines --data-dir DIR --runs FOLDER [--json FILE] [--figure FILE]
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from rich.console import Console

from benchmarks.measuring import load, machine, markdown, write
from pipelines.config import RunConfig, defaults_of
from pipelines.core.record import Run
from pipelines.report.curves import QUERY_STAGES, Interval, interval
from pipelines.run import run
from pipelines.strategies.options import BaselineConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend without a display comes first

RANDOM, RETRAINING = "random", "naive"
HEAD = (
    "strategy",
    "accuracy after the last query, %",
    "points above random, paired",
    "seconds a query (least–most)",
    "times as fast as naive",
)


@dataclass(frozen=True)
class Settings:
    """Methods, sizes, turns and output."""

    data_dir: Path | None = None
    runs: Path = Path("runs/baselines")
    """Folder of the runs' records; what is complete there is not run again."""
    dataset: str = "mnist"
    image_size: int | None = 14
    """Pixels of a side."""
    infinite_size: int = 7
    """Pixels of a side for the kernels of infinite width."""
    network: str = "wide_resnet"
    network_args: tuple[str, ...] = ("stages=1", "widen=1")
    strategies: tuple[str, ...] = (
        "random",
        "naive",
        "ntk_no_blocks",
        "mlmoc",
        "one_step",
        "infinite_ntk",
        "gp",
    )
    initial: int = 100
    query: int = 20
    candidates: int = 300
    """Drawn anew for each query; naive retrains once for each."""
    cycles: int = 3
    min_steps: int = 600
    """Of training."""
    epochs: int = 15
    """Of naive."""
    step: float = 0.01
    """The learning rate of one_step."""
    seeds: int = 6
    first_seed: int = 0
    threads: int = 1
    """Of torch."""
    json: Path | None = None
    figure: Path | None = None


@dataclass(frozen=True)
class Bar:
    """One strategy.

    Attributes:
        accuracy: on the test set after the last query, over seeds.
        above: the same minus random's of the same seed; None for random and without it.
        seconds: of every query of every seed, without training.
    """

    accuracy: Interval
    above: Interval | None
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the middle query; compiling falls on the first of each seed."""
        return float(np.median(self.seconds))


def configuration(settings: Settings, strategy: str, seed: int) -> RunConfig:
    """Of one run."""
    script = defaults_of(settings.dataset)
    return replace(
        script,
        strategy=strategy,
        seed=seed,
        initial=settings.initial,
        query=settings.query,
        subset=settings.candidates,
        cycles=settings.cycles,
        network=settings.network,
        network_args=settings.network_args,
        image_size=settings.image_size,
        data_dir=settings.data_dir,
        download=False,
        run=settings.runs / f"{strategy}-seed{seed}",
        train=replace(script.train, min_steps=settings.min_steps),
        baseline=BaselineConfig(
            epochs=settings.epochs, step=settings.step, image_size=settings.infinite_size
        ),
    )


def bars(runs: dict[str, list[Run]]) -> dict[str, Bar]:
    """One a strategy, from its runs in the order of the seeds."""
    last = {
        name: [one.rounds[-1]["test_accuracy"] for one in found] for name, found in runs.items()
    }
    made = {}
    for name, found in runs.items():
        paired = name != RANDOM and RANDOM in last
        above = np.subtract(last[name], last[RANDOM]) if paired else None
        queries = [line["seconds"] for one in found for line in one.rounds[:-1]]
        made[name] = Bar(
            interval(last[name]),
            None if above is None else interval(above),
            tuple(sum(spent.get(stage, 0.0) for stage in QUERY_STAGES) for spent in queries),
        )
    return made


def table(made: dict[str, Bar]) -> list[tuple[object, ...]]:
    """A row a strategy."""
    rows: list[tuple[object, ...]] = []
    for name, bar in made.items():
        faster = ""
        if RETRAINING in made and name != RETRAINING:
            faster = f"{made[RETRAINING].median / bar.median:.3g}"
        seconds = f"{bar.median:.3g} ({min(bar.seconds):.3g}–{max(bar.seconds):.3g})"
        above = "" if bar.above is None else _percent(bar.above)
        rows.append((name, _percent(bar.accuracy), above, seconds, faster))
    return rows


def _percent(values: Interval) -> str:
    if values.n < 2:
        return f"{100 * values.mean:.2f}"
    return f"{100 * values.mean:.2f} ± {100 * (values.high - values.mean):.2f}"


def draw(made: dict[str, Bar], path: Path | None) -> None:
    """The two sets of bars; nothing without a path."""
    if path is None:
        return
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    names, places = list(made), np.arange(len(made))
    means = [100 * bar.accuracy.mean for bar in made.values()]
    ends = [bar.accuracy.high - bar.accuracy.mean for bar in made.values()]
    halves = 100 * np.nan_to_num(ends)  # one seed has no interval
    axes[0].barh(places, means, xerr=halves, color="0.7", edgecolor="black", capsize=3)
    axes[0].set_xlim(left=max(0.0, float(np.min(means - halves)) - 2))
    axes[0].set_xlabel("test accuracy after the last query, %")
    axes[1].barh(places, [bar.median for bar in made.values()], color="0.7", edgecolor="black")
    axes[1].set_xscale("log")
    axes[1].set_xlabel("seconds a query")
    axes[0].set_yticks(places, names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(settings: Settings) -> None:
    """Run what is not recorded yet, and print the table of what is."""
    torch.set_num_threads(settings.threads)
    console = Console()
    runs: dict[str, list[Run]] = {name: [] for name in settings.strategies}
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    for seed in seeds:
        for name in settings.strategies:
            runs[name].append(run(configuration(settings, name, seed), console))
    made = bars(runs)
    print(markdown(HEAD, table(made)))
    print(
        f"{settings.dataset}, {settings.initial} labels and {settings.cycles} queries of "
        f"{settings.query} from {settings.candidates}; n = {len(seeds)} seeds "
        f"({seeds[0]} to {seeds[-1]}), mean ± half of the 95% interval; {machine()}; {load()}."
    )
    draw(made, settings.figure)
    figures: dict[str, Any] = {name: asdict(bar) for name, bar in made.items()}
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings))
