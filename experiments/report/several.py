"""Several studies → the report of each in a folder of its name, and one table of all verdicts.

From the records below a folder to verdicts.md and verdicts.csv beside those folders.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from bridge.weights import replace
from experiments.report import study_words as told
from experiments.report.results import results
from experiments.report.study import MARKDOWN, StudyReport, nothing, written
from experiments.report.study_markdown import table
from experiments.statistics.judgement import Judgement
from experiments.studies.study import Study
from pipelines.errors import PipelineError

TABLE, ROWS = "verdicts.md", "verdicts.csv"


class Several(NamedTuple):
    """What the reports of several studies wrote.

    Attributes:
        table: the page of all verdicts; verdicts.csv beside it has the same, a claim a row.
        reports: of the studies that have trials on record.
        absent: names of the studies that have none.
    """

    table: Path
    reports: tuple[StudyReport, ...]
    absent: tuple[str, ...]


def several_reports(
    studies: Sequence[Study],
    size: str,
    root: Path,
    out: Path,
    places: bool = True,
    records: bool = False,
) -> Several:
    """Report each study that has trials on record, and all their verdicts together.

    Args:
        studies: in the order of the table.
        size: small or paper.
        root: a folder that holds records at any depth.
        out: the folder; the report of a study is in out/NAME.
        places: as for `study_report`.
        records: likewise.

    Raises:
        UnknownNameError: no such size.
        PipelineError: two studies of one name, no trial of any of them is on record, or the folder
            cannot be written.
    """
    names = [study.name for study in studies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PipelineError(
            f"{', '.join(twice)} is named more than once, and each report is written into a "
            "folder of its study's name: name every study once, and rename one of two that differ."
        )
    read = [results(study, size, root) for study in studies]
    made = [
        (found.study, written(found, out / found.study.name, places, records))
        for found in read
        if not nothing(found)
    ]
    if not made:
        raise PipelineError(
            f"no trial of {', '.join(names)}, size {size}, is on record "
            f"in {root}: carry some out with `python -m experiments.sweep STUDY --size {size}`, or "
            "give --runs the folder that holds them."
        )
    absent = tuple(found.study.name for found in read if nothing(found))
    try:
        replace(out / TABLE, _page(made, size, absent).encode())
        replace(out / ROWS, _rows(made).encode())
    except OSError as error:
        raise PipelineError(
            f"the verdicts cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return Several(out / TABLE, tuple(report for _, report in made), absent)


def _page(made: list[tuple[Study, StudyReport]], size: str, absent: tuple[str, ...]) -> str:
    header = ["study", "of", *told.verdicts(())[0]]
    rows = []
    for study, report in made:
        _, judged = told.verdicts(report.judgements)
        named = [f"[{study.name}]({study.name}/{MARKDOWN})", study.source]
        rows += [[*(named if not n else ["", ""]), *row] for n, row in enumerate(judged)]
    parts = [
        "# Verdicts",
        f"{len(rows)} claims of {len(made)} studies, size `{size}`. A verdict is that of the "
        "two-sided 95% interval; p by Holm is corrected for the claims of one study.",
        table((header, rows)),
    ]
    if absent:
        parts.append(f"Without trials on record: {', '.join(absent)}.")
    return "\n\n".join(parts) + "\n"


def _rows(made: list[tuple[Study, StudyReport]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["study", "source", *Judgement._fields])
    for study, report in made:
        writer.writerows([study.name, study.source, *one] for one in report.judgements)
    return stream.getvalue()


def show(made: Several, console: Console) -> None:
    """Print how many claims became what, what is absent, and where the files are."""
    verdicts = [one.verdict for report in made.reports for one in report.judgements]
    for verdict in dict.fromkeys(verdicts):
        console.print(f"{verdicts.count(verdict)} {verdict}", highlight=False)
    for report in made.reports:
        for warning in report.warnings:
            said = f"{report.out.name}: {warning}"
            console.print(f"[yellow]![/yellow] {escape(said)}", highlight=False)
    for name in made.absent:
        console.print(f"[yellow]![/yellow] {name}: no trial is on record", highlight=False)
    console.print(escape(str(made.table)), style="bold", soft_wrap=True)
