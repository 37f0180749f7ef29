"""A study's name → one page with verdicts, statistics and figures, and all of it as files.

From the records below a folder to a folder that holds report.html, PNG and SVG, CSV, verdicts.json.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.markup import escape

from bridge.weights import replace
from experiments.report import study_markdown, study_page
from experiments.report.records import ARCHIVE, archive
from experiments.report.results import PLACES, Results, results
from experiments.report.study_figures import Drawn, figures
from experiments.report.study_settings import common
from experiments.report.study_tables import Tables, tables
from experiments.statistics.judgement import Judgement
from experiments.studies.study import Study
from pipelines import record
from pipelines.errors import PipelineError
from pipelines.json_io import plain
from pipelines.report.build import PAGE
from pipelines.report.figures import DOTS

FORMAT = 1
_COLOURS = 128
_DIGITS = "%.9g"  # of what is measured nothing is known better
VERDICTS, MARKDOWN = "verdicts.json", "report.md"


@dataclass(frozen=True)
class StudyReport:
    """What a study's report wrote.

    Attributes:
        out: the folder.
        page: the HTML page, which needs no other file; report.md beside it is for hosts that show
            repositories.
        figures: PNG files; beside each is the same as SVG.
        judgements: of the study's claims.
        warnings: what is missing, failed or untrained.
    """

    out: Path
    page: Path
    figures: tuple[Path, ...]
    judgements: tuple[Judgement, ...]
    warnings: tuple[str, ...]


def study_report(
    study: Study, size: str, root: Path, out: Path, places: bool = True, records: bool = False
) -> StudyReport:
    """Read what there is of a study and write everything about it into a folder.

    Args:
        study: the study.
        size: small or paper.
        root: a folder that holds records at any depth.
        out: the folder, made if it is not there; files of an earlier report are replaced.
        places: whether the files say in which folder a record lies and on which machine it was
            made; without them they can be shown to anybody.
        records: whether the records themselves are put beside it, in one archive.

    Raises:
        UnknownNameError: no such size.
        PipelineError: no trial is on record, or the folder cannot be written.
    """
    found = results(study, size, root)
    if nothing(found):
        raise PipelineError(
            f"no trial of the study {study.name!r}, size {size}, is on record in {root}: carry "
            f"some out with `python -m experiments.sweep {study.name} --size {size}`, or give "
            "--runs the folder that holds them."
        )
    return written(found, out, places, records)


def nothing(found: Results) -> bool:
    """Whether no trial of a study is on record."""
    return set(found.trials["state"]) <= {"absent"}


def written(found: Results, out: Path, places: bool = True, records: bool = False) -> StudyReport:
    """Write everything about what was read; arguments and errors are those of `study_report`."""
    made = tables(found)
    drawn = figures(found, made)
    pngs = [_encoded(one.figure, "png") for one in drawn]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for one, png in zip(drawn, pngs, strict=True):
            replace(out / f"{one.name}.png", png)
            replace(out / f"{one.name}.svg", _encoded(one.figure, "svg"))
        for name, table in _files(found, made).items():
            kept = table if places else table.drop(columns=[*PLACES], errors="ignore")
            replace(out / f"{name}.csv", kept.to_csv(index=False, float_format=_DIGITS).encode())
        replace(out / VERDICTS, _verdicts(found, made, drawn, places).encode())
        if records:
            replace(out / ARCHIVE, archive(found.study, found.size, found.root, places))
        pairs = list(zip(drawn, pngs, strict=True))
        replace(out / PAGE, study_page.page(found, made, pairs).encode())
        replace(out / MARKDOWN, study_markdown.page(found, made, drawn).encode())
    except OSError as error:
        raise PipelineError(
            f"the report cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return StudyReport(
        out=out,
        page=out / PAGE,
        figures=tuple(out / f"{one.name}.png" for one in drawn),
        judgements=made.judgements,
        warnings=tuple(study_page.missing(found)),
    )


def _encoded(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "png":  # a few colours and their blends: a palette shows the same at a third
        figure.savefig(stream, format=kind, dpi=DOTS)
        picture = Image.open(stream).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        small = io.BytesIO()
        picture.save(small, kind, optimize=True)
        return small.getvalue()
    # the same figure is the same file: no date, and no random names inside it
    with matplotlib.rc_context({"svg.hashsalt": "ntk-lookahead"}):
        figure.savefig(stream, format=kind, dpi=DOTS, metadata={"Date": None})
    return stream.getvalue()


def _files(found: Results, made: Tables) -> dict[str, pd.DataFrame]:
    """Tables that are written, without those that have no rows."""
    pairs = [
        ranking.pairs.assign(subjects="; ".join(ranking.subjects)) for ranking in made.rankings
    ]
    files = {
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
    return {name: table for name, table in files.items() if len(table)}


def _verdicts(found: Results, made: Tables, drawn: list[Drawn], places: bool) -> str:
    """The whole report but its numbers by run, for a program."""
    study = found.study
    trials = study.trials(found.size)
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
            {"subjects": ranking.subjects, "arms": ranking.arms, "why": ranking.why}
            | ({} if ranking.found is None else _friedman(ranking.found._asdict()))
            for ranking in made.rankings
        ],
        "trials": {str(state): int(n) for state, n in found.trials["state"].value_counts().items()},
        "missing": study_page.missing(found),
        "seeds": sorted({trial.seed for trial in trials}),
        "settings": {
            subject: common(trial for trial in trials if trial.subject == subject)
            for subject in dict.fromkeys(trial.subject for trial in trials)
        },
        "figures": [{"name": d.name, "seen": d.seen, "caption": d.caption} for d in drawn],
        "environment": {
            name: value
            for name, value in record.environment().items()
            if places or name not in PLACES
        },
    }
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


def _friedman(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"ranks": values["ranks"].to_dict()}


def show(made: StudyReport, console: Console) -> None:
    """Print the verdicts, what is missing, and where the files are."""
    for one in made.judgements:
        console.print(f"[bold]{escape(one.verdict)}[/bold]: {escape(one.claim)}", highlight=False)
        console.print(f"  {escape(one.sentence)}", style="dim", highlight=False)
    for warning in made.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", highlight=False)
    console.print(f"{len(made.figures)} figures (PNG and SVG), CSV, {VERDICTS} and")
    console.print(escape(str(made.page)), style="bold", soft_wrap=True)
