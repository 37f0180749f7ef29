"""Demonstration: strategies compared on scikit-learn's digits; nothing to download.

Each run is an ordinary run directory under `runs/demo`; a demonstration that was stopped goes on
where it was.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from pipelines import digits
from pipelines.cli import command


@dataclass(frozen=True)
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


def demonstrate(demo: Demo, console: Console) -> None:
    """Run what is missing of the demonstration and show its report."""
    configs = [
        replace(
            digits.DEFAULTS, strategy=strategy, seed=seed, run=demo.out / f"{strategy}-seed{seed}"
        )
        for seed in range(demo.seeds)
        for strategy in demo.strategies
    ]
    from pipelines.report.build import print_report, report
    from pipelines.run import run

    for config in configs:
        run(config, console)
    print_report(report([config.run_folder for config in configs], demo.out / "report"), console)


def main() -> None:
    """The command line."""
    command(Demo, demonstrate, "python -m pipelines.demo")


if __name__ == "__main__":
    main()
