"""The command line of reports on runs: python -m pipelines.report runs/*."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pipelines.core.record import find_runs
from pipelines.core.terminal import plainly


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN…", help_behavior_hint="")],
    /,
    out: Path = Path("report"),
) -> None:
    """Learning curves, differences from random, query times and tables.

    Runs are averaged over seeds where everything but strategy, seed and length is equal, and
    otherwise form separate groups. Writes figures, the data as CSV, and report.html, which needs
    no other file.

    Args:
        runs: run directories, or folders that hold some at any depth.
        out: folder to write into, made if it is not there.
    """
    with plainly():
        found = find_runs(runs)
        from pipelines.report.build import (
            print_report,
            report,  # takes seconds to import
        )

        print_report(report(found, out), Console())


if __name__ == "__main__":
    tyro.cli(main, prog="python -m pipelines.report")
