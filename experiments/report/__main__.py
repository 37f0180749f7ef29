"""The command line of reports on studies: python -m experiments.report STUDY."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.report import several, study
from experiments.report.results import ROOT
from experiments.studies import STUDIES, find
from experiments.studies.study import SIZES
from pipelines.cli import plainly

ALL = "all"  # studies that are built in


def main(
    studies: Annotated[tuple[str, ...], tyro.conf.arg(metavar="STUDY…|all", help_behavior_hint="")],
    /,
    out: Path | None = None,
    size: str = SIZES[0],
    runs: Path = ROOT,
    places: bool = True,
    records: bool = False,
) -> None:
    """Curves, differences from random, verdicts: all that a study's records say of its question.

    Of several studies, or `all`: the report of each in a folder of its name, and verdicts.md and
    verdicts.csv with every claim.

    Args:
        studies: names, or module:STUDY; `all` studies that are built in.
        out: folder to write into, made if it is not there; by default reports/STUDY-SIZE or
            reports/SIZE.
        size: small or paper.
        runs: folder of the studies' records, at any depth.
        places: whether tables say where records lie and on which machines they were made;
            --no-places leaves that out of a report that is shown to others.
        records: put the trials' records beside the report, in records.zip: unpacked below --runs,
            on any machine, they are reported on and gone on with.
    """
    with plainly():
        chosen = [find(name) for name in (STUDIES if studies == (ALL,) else studies)]
        if len(chosen) == 1:
            folder = out or Path("reports") / f"{chosen[0].name}-{size}"
            made = study.study_report(chosen[0], size, runs, folder, places, records)
            study.show(made, Console())
        else:
            folder = out or Path("reports") / size
            made = several.several_reports(chosen, size, runs, folder, places, records)
            several.show(made, Console())


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report")
