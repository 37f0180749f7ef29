"""The command line of reports: python -m pipelines.report runs/*, or of one study by its name.

What is given is a study where it is no path and the name of a study, module:STUDY or `all`.
"""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pipelines.cli import plainly
from pipelines.errors import PipelineError
from pipelines.report import report, several, show, study
from pipelines.report.results import ROOT
from pipelines.studies import STUDIES, find
from pipelines.studies.study import SIZES, Study
from trainer.errors import UnknownNameError

ALL = "all"  # studies that are built in


def main(
    what: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="RUN…|STUDY…|all", help_behavior_hint="")
    ],
    /,
    out: Path | None = None,
    size: str | None = None,
    runs: Path | None = None,
    places: bool = True,
    records: bool = False,
) -> None:
    """Learning curves, differences from random, query times and tables; of a study also verdicts.

    Of runs: they are averaged over seeds where everything but strategy, seed and length is equal,
    and stand in groups apart where it is not. Of a study: everything its records say of its
    question, what the paper claims and what became of it. Writes figures, the data as CSV, and
    report.html, which needs no other file. Of several studies, or `all`: the report of each in a
    folder of its name, and verdicts.md and verdicts.csv with every claim.

    Args:
        what: run directories, or folders that hold some at any depth; or studies, by their names
            or as module:STUDY; or `all` studies that are built in.
        out: folder to write into, made if it is not there; by default report, reports/STUDY-SIZE
            or reports/SIZE.
        size: of a study, small (by default) or paper.
        runs: folder of a study's records, at any depth; by default runs/studies.
        places: whether a study's tables say where its records lie and on which machines they were
            made; --no-places leaves that out of what is to be shown to others.
        records: of a study, put its trials' records beside the report, in records.zip: unpacked
            below --runs, on any machine, they are reported on and gone on with.
    """
    with plainly():
        names = tuple(STUDIES) if what == (ALL,) and _is_study(ALL) else what
        if names and all(map(_is_study, names)):
            _of_studies(
                list(map(_study, names)), size or SIZES[0], runs or ROOT, out, places, records
            )
            return
        if size is not None or runs is not None or not places or records:
            raise PipelineError(
                "--size, --runs, --no-places and --records are for reports of studies alone, and "
                f"{', '.join(what) or 'nothing'} is something else: give names of studies "
                f"({', '.join(STUDIES)}, or {ALL}), or leave them out."
            )
        show(report([Path(name) for name in what], out or Path("report")), Console())


def _of_studies(
    studies: list[Study], size: str, root: Path, out: Path | None, places: bool, records: bool
) -> None:
    folder = Path("reports")
    if len(studies) == 1:
        out = out or folder / f"{studies[0].name}-{size}"
        made = study.study_report(studies[0], size, root, out, places, records)
        study.show(made, Console())
    else:
        out = out or folder / size
        several.show(several.several_reports(studies, size, root, out, places, records), Console())


def _study(name: str) -> Study:
    try:
        return find(name)
    except UnknownNameError as error:
        raise PipelineError(f"{name} is no directory, and: {error}") from error


def _is_study(name: str) -> bool:
    """Whether it names a study; what exists on disk is a path, whatever else it is called."""
    if Path(name).exists():
        return False
    return name in STUDIES or ":" in name or Path(name).name == name


if __name__ == "__main__":
    tyro.cli(main, prog="python -m pipelines.report")
