"""The demonstration: two strategies on scikit-learn's digits, then the report. Nothing to download.

Each run is an ordinary run directory under `runs/demo`; a demonstration that was stopped goes on
where it was.
"""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console

from pipelines import digits
from pipelines.cli import plainly
from pipelines.report import print_report, report
from pipelines.run import run


@dataclasses.dataclass(frozen=True)
class Demo:
    """Active learning on scikit-learn's digits, compared with random choice.

    Attributes:
        strategies: which ones to compare.
        seeds: how many runs of each, with seeds 0, 1, …
        out: where the runs and their report are written.
    """

    strategies: tuple[str, ...] = ("random", "mlmoc")
    seeds: int = 2
    out: Path = Path("runs/demo")


def main() -> None:
    """Run what is missing of the demonstration and show its report."""
    console = Console()
    with plainly():
        demo = tyro.cli(Demo, prog="python -m pipelines.demo")
        folders = []
        for seed in range(demo.seeds):
            for strategy in demo.strategies:
                folder = demo.out / f"{strategy}-seed{seed}"
                config = dataclasses.replace(
                    digits.DEFAULTS, strategy=strategy, seed=seed, run=folder
                )
                run(config, console)
                folders.append(folder)
        print_report(report(folders, demo.out / "report"), console)


if __name__ == "__main__":
    main()
