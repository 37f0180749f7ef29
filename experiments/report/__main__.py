"""The command line of reports on studies: python -m experiments.report STUDY."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.report import build
from experiments.studies import STUDIES, find
from experiments.studies.study import SIZES
from experiments.sweep.records import ROOT
from pipelines.core.terminal import plainly

ALL = "all"  # built-in studies


def main(
    studies: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STUDY…|all", help_behavior_hint="")],
    /,
    out: Path | None = None,
    size: str = SIZES[0],
    runs: Path = ROOT,
    places: bool = True,
    records: bool = False,
) -> None:
    """Report on a study: verdicts, statistics, curves, differences from random.

    Several studies, or `all`, have a report each, in a folder of its name, and verdicts.md and
    verdicts.csv with every claim.

    Args:
        studies: names, or module:STUDY; `all` studies that are built in.
        out: folder to write into, made if missing; by default reports/STUDY-SIZE or
            reports/SIZE.
        size: small or paper.
        runs: folder of the studies' records, at any depth.
        places: whether the files name folders and machines of the records; --no-places leaves that
            out of a report that is published.
        records: add the trials' records, in records.zip: unpacked below --runs, on any machine,
            they are reported on and resumed.
    """
    with plainly():
        chosen = [find(name) for name in (STUDIES if studies == (ALL,) else studies)]
        if len(chosen) == 1:
            folder = out or Path("reports") / f"{chosen[0].name}-{size}"
            report = build.study_report(chosen[0], size, runs, folder, places, records)
            build.print_report(report, Console())
        else:
            folder = out or Path("reports") / size
            summary = build.several_reports(chosen, size, runs, folder, places, records)
            build.print_summary(summary, Console())


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report")
