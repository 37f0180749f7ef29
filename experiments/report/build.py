"""Reports on studies: verdicts, statistics and figures as files and pages, records as an archive.

A report is a folder with report.html and report.md, figures as PNG and SVG, tables as CSV, and
verdicts.json, which has everything but the numbers of single runs.
"""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.markup import escape

from experiments.report.figures import Drawn, figures
from experiments.report.page import missing, page, summary_page
from experiments.report.results import PLACES, Results, Statistics, common, results, statistics
from experiments.statistics.claims import Judgement
from experiments.studies.study import Study
from experiments.sweep.records import find_records, pack, state
from kernel.files import write_files
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.json_io import plain
from pipelines.core.record import REPORT as PAGE
from pipelines.report.figures import DOTS

FORMAT = 1
_COLOURS = 128  # of a PNG
_DIGITS = "%.9g"  # of measured values in CSV
ARCHIVE, MARKDOWN, VERDICTS = "records.zip", "report.md", "verdicts.json"
_READ = {".json", ".jsonl", ".csv"}  # files of a finished trial that a report reads
_MACHINE = {*PLACES, "platform", "process"}  # keys in JSON that name a machine
_DATE = (1980, 1, 1, 0, 0, 0)  # constant, so that an archive follows from the records


@dataclass(frozen=True)
class StudyReport:
    """Files of a study's report.

    Attributes:
        study: the study.
        out: the folder.
        page: the HTML page, which needs no other file; report.md beside it is for hosts that show
            repositories.
        figures: PNG files, each with an SVG beside it.
        judgements: of the study's claims.
        warnings: trials not done or failed, trainings not fitted.
    """

    study: Study
    out: Path
    page: Path
    figures: tuple[Path, ...]
    judgements: tuple[Judgement, ...]
    warnings: tuple[str, ...]


class Summary(NamedTuple):
    """Files of the reports on several studies.

    Attributes:
        table: the page of all verdicts; verdicts.csv beside it has the same, a claim a row.
        reports: of the studies that have trials on record.
        absent: names of the studies that have none.
    """

    table: Path
    reports: tuple[StudyReport, ...]
    absent: tuple[str, ...]


def study_report(
    study: Study, size: str, root: Path, out: Path, places: bool = True, records: bool = False
) -> StudyReport:
    """Write the report on a study into a folder.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth.
        out: the folder, made if missing; files of an earlier report are replaced.
        places: whether the files name folders and machines of the records; without them they can
            be published.
        records: whether the records themselves are added, in one archive.

    Raises:
        UnknownNameError: no such size.
        PipelineError: no trial is on record, or the folder cannot be written.
    """
    found = results(study, size, root)
    if _nothing(found):
        raise PipelineError(
            f"no trial of the study {study.name!r}, size {size}, is on record in {root}: carry "
            f"some out with `python -m experiments.sweep {study.name} --size {size}`, or give "
            "--runs the folder that holds them."
        )
    return _write(found, out, places, records)


def several_reports(
    studies: Sequence[Study],
    size: str,
    root: Path,
    out: Path,
    places: bool = True,
    records: bool = False,
) -> Summary:
    """Report on each study that has trials on record, and tabulate all verdicts.

    Args are those of `study_report`; the report of a study is written into out/NAME.

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
    reports = [
        _write(found, out / found.study.name, places, records)
        for found in read
        if not _nothing(found)
    ]
    if not reports:
        raise PipelineError(
            f"no trial of {', '.join(names)}, size {size}, is on record "
            f"in {root}: carry some out with `python -m experiments.sweep STUDY --size {size}`, or "
            "give --runs the folder that holds them."
        )
    absent = tuple(found.study.name for found in read if _nothing(found))
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["study", "source", *Judgement._fields])
    for report in reports:
        rows.writerows([report.study.name, report.study.source, *j] for j in report.judgements)
    text = summary_page([(r.study, r.judgements) for r in reports], size, absent)
    try:
        write_files(
            {
                out / "verdicts.md": text.encode(),
                out / "verdicts.csv": stream.getvalue().encode(),
            }
        )
    except OSError as error:
        raise PipelineError(
            f"the verdicts cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return Summary(out / "verdicts.md", tuple(reports), absent)


def _nothing(found: Results) -> bool:
    return set(found.trials["state"]) <= {"absent"}


def _write(found: Results, out: Path, places: bool, records: bool) -> StudyReport:
    if not places:  # the machines in captions of query times are part of the result
        found = dataclasses.replace(found, trials=found.trials.assign(path=""))
    made = statistics(found)
    drawn = figures(found, made)
    pngs = [(one, _encoded(one.figure, "png")) for one in drawn]
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = {}
        for one, png in pngs:
            files[f"{one.name}.png"] = png
            files[f"{one.name}.svg"] = _encoded(one.figure, "svg")
        for name, table in _tables(found, made).items():
            kept = table if places else table.drop(columns=[*PLACES], errors="ignore")
            files[f"{name}.csv"] = kept.to_csv(index=False, float_format=_DIGITS).encode()
        files[VERDICTS] = _verdicts(found, made, drawn, places).encode()
        if records:
            files[ARCHIVE] = archive(found.study, found.size, found.root, places)
        files[PAGE] = page("study.html", found, made, pngs).encode()
        files[MARKDOWN] = page("study.md", found, made, pngs).encode()
        write_files({out / name: data for name, data in files.items()})
    except OSError as error:
        raise PipelineError(
            f"the report cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return StudyReport(
        study=found.study,
        out=out,
        page=out / PAGE,
        figures=tuple(out / f"{one.name}.png" for one in drawn),
        judgements=made.judgements,
        warnings=tuple(missing(found)),
    )


def _encoded(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "png":  # a palette of 128 colours takes a third of the bytes
        figure.savefig(stream, format=kind, dpi=DOTS)
        picture = Image.open(stream).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        small = io.BytesIO()
        picture.save(small, kind, optimize=True)
        return small.getvalue()
    # reproducible bytes: no date, and a fixed salt for the ids inside
    with matplotlib.rc_context({"svg.hashsalt": "ntk-lookahead"}):
        figure.savefig(stream, format=kind, dpi=DOTS, metadata={"Date": None})
    return stream.getvalue()


def _tables(found: Results, made: Statistics) -> dict[str, pd.DataFrame]:
    """Tables by file name, without those that have no rows."""
    pairs = [ranking.pairs.assign(tasks="; ".join(ranking.tasks)) for ranking in made.rankings]
    tables = {
        "trials": found.trials,
        "rounds": found.curves,
        "answers": found.answers,
        "measures": found.measures,
        "summary": made.summary,
        "pairs": pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(),
        "saved": made.saving,
        "costs": made.costs,
        "models": made.models,
    }
    return {name: table for name, table in tables.items() if len(table)}


def _verdicts(found: Results, made: Statistics, drawn: list[Drawn], places: bool) -> str:
    study, trials = found.study, found.planned
    content: dict[str, Any] = {
        "format": FORMAT,
        "study": study.name,
        "size": found.size,
        "title": study.title,
        "source": study.source,
        "question": study.question,
        "paper": study.paper,
        "verdicts": [one._asdict() for one in made.judgements],
        "friedman": [
            {"tasks": r.tasks, "methods": r.methods, "why": r.why}
            | ({} if r.friedman is None else _with(r.friedman, ranks=r.friedman.ranks.to_dict()))
            for r in made.rankings
        ],
        "trials": {str(state): int(n) for state, n in found.trials["state"].value_counts().items()},
        "missing": missing(found),
        "seeds": sorted({trial.seed for trial in trials}),
        "settings": {
            task: common(trial for trial in trials if trial.task == task)
            for task in dict.fromkeys(trial.task for trial in trials)
        },
        "figures": [{"name": d.name, "seen": d.alt, "caption": d.caption} for d in drawn],
        "environment": {
            name: value
            for name, value in record.environment().items()
            if places or name not in PLACES
        },
    }
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


def _with(values: NamedTuple, **changes: Any) -> dict[str, Any]:
    return values._asdict() | changes


# Records


def archive(study: Study, size: str, root: Path, places: bool = True) -> bytes:
    """Records of all trials that are done or begun, as a ZIP archive.

    Unpacked below any `--runs` it is reported on and resumed like the records themselves. Of a
    finished trial it has what a report reads, not the weights; of one that is begun everything.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth.
        places: whether it names folders and machines of the records.

    Raises:
        UnknownNameError: no such size.
        OSError: a record cannot be read.
    """
    trials = {trial.key: trial for trial in study.trials(size)}
    found = find_records(root, trials.values())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for key, trial in trials.items():
            standing = state(trial, found.get(key))
            if standing not in ("done", "begun"):
                continue
            for name, content in pack(found[key]).items():
                suffix = Path(name).suffix
                if standing == "done" and suffix not in _READ:
                    continue
                named = places or suffix != ".json"  # lines of JSON name no machine
                entry = zipfile.ZipInfo(f"{trial.folder}/{name}", _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(entry, content if named else _anonymous(content))
    return stream.getvalue()


def _anonymous(content: bytes) -> bytes:
    """JSON without the keys that name a machine."""
    keep = lambda found: {key: value for key, value in found.items() if key not in _MACHINE}
    return (json.dumps(json.loads(content, object_hook=keep), indent=1) + "\n").encode()


# Terminal


def print_report(made: StudyReport, console: Console) -> None:
    """Print the verdicts, warnings and paths of the files."""
    for one in made.judgements:
        console.print(f"[bold]{escape(one.verdict)}[/bold]: {escape(one.claim)}", highlight=False)
        console.print(f"  {escape(one.sentence)}", style="dim", highlight=False)
    for warning in made.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", highlight=False)
    console.print(f"{len(made.figures)} figures (PNG and SVG), CSV, {VERDICTS} and")
    console.print(escape(str(made.page)), style="bold", soft_wrap=True)


def print_summary(made: Summary, console: Console) -> None:
    """Print the number of claims by verdict, warnings and the path of the table."""
    verdicts = [one.verdict for report in made.reports for one in report.judgements]
    for verdict in dict.fromkeys(verdicts):
        console.print(f"{verdicts.count(verdict)} {verdict}", highlight=False)
    warnings = [f"{report.out.name}: {text}" for report in made.reports for text in report.warnings]
    for warning in [*warnings, *(f"{name}: no trial is on record" for name in made.absent)]:
        console.print(f"[yellow]![/yellow] {escape(warning)}", highlight=False)
    console.print(escape(str(made.table)), style="bold", soft_wrap=True)
