"""The command line of reports: python -m pipelines.report runs/*, or of one study by its name.

What is given is a study's name where it is no path and the name of a study, or module:STUDY.
"""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pipelines.cli import plainly
from pipelines.errors import PipelineError
from pipelines.report import report, show, study
from pipelines.report.results import ROOT
from pipelines.studies import STUDIES, find
from pipelines.studies.study import SIZES, Study
from trainer.errors import UnknownNameError


def main(
    what: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN…|STUDY", help_behavior_hint="")],
    /,
    out: Path | None = None,
    size: str | None = None,
    runs: Path | None = None,
) -> None:
    """Learning curves, differences from random, query times and tables; of a study also verdicts.

    Of runs: they are averaged over seeds where everything but strategy, seed and length is equal,
    and stand in groups apart where it is not. Of a study: everything its records say of its
    question, what the paper claims and what became of it. Writes figures, the data as CSV, and
    report.html, which needs no other file.

    Args:
        what: run directories, or folders that hold some at any depth; or one study, by its name or
            as module:STUDY.
        out: folder to write into, made if it is not there; by default report, or
            reports/STUDY-SIZE.
        size: of a study, small (by default) or paper.
        runs: folder of a study's records, at any depth; by default runs/studies.
    """
    with plainly():
        if len(what) == 1 and _is_study(what[0]):
            chosen, size = _study(what[0]), size or SIZES[0]
            folder = out or Path("reports") / f"{chosen.name}-{size}"
            made = study.study_report(chosen, size, runs or ROOT, folder)
            study.show(made, Console())
            return
        if size is not None or runs is not None:
            raise PipelineError(
                "--size and --runs are for the report of one study, and "
                f"{', '.join(what) or 'nothing'} is none: give the name of a study "
                f"({', '.join(STUDIES)}), or leave them out."
            )
        show(report([Path(name) for name in what], out or Path("report")), Console())


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
