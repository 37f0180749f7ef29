"""Run directories → learning curves, difference from random, times, a table: PNG, CSV, one page.

Runs are averaged over seeds only where everything else is equal; every interval is a 95% Student t
interval over seeds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import record
from pipelines.errors import PipelineError
from pipelines.report import curves
from pipelines.report import page as html
from pipelines.report.caveats import caveats
from pipelines.report.figures import figures
from pipelines.report.groups import Group, groups, subject

PAGE = "report.html"
# Stages below such a part of the longest query are in the page only: the first that fits is taken.
_SHOWN = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Report:
    """What a report wrote.

    Attributes:
        out: the folder.
        page: the HTML page, which needs no other file.
        figures: PNG files.
        rounds: CSV, one line for each round of each run.
        table: CSV of the tables, one line for each strategy of each group.
        sections: what the page shows, a section for each group of comparable runs.
        warnings: what concerns no single section.
    """

    out: Path
    page: Path
    figures: tuple[Path, ...]
    rounds: Path
    table: Path
    sections: tuple[html.Section, ...]
    warnings: tuple[str, ...]


def report(runs: Sequence[Path], out: Path) -> Report:
    """Read run directories and write everything about them into a folder.

    Args:
        runs: run directories, or folders that hold some at any depth.
        out: the folder, made if it is not there; files of an earlier report are replaced.

    Raises:
        PipelineError: no run, a broken one, none with a completed round, or a folder that cannot
            be written.
    """
    found = [record.read(path) for path in find(runs)]
    empty = [str(run.path) for run in found if not run.rounds]
    if len(empty) == len(found):
        raise PipelineError(
            f"no completed round yet in {', '.join(empty)}; a report can be made as soon as one "
            "run has evaluated its first network."
        )
    warnings = [f"No completed round yet, left out: {', '.join(empty)}."] if empty else []
    tables, sections, pngs = [], [], {}
    for group in groups([run for run in found if run.rounds]):
        rounds = curves.tidy(group)
        drawn = figures(group, rounds)
        stem = _stem(group, {name.rpartition("-")[0] for name in pngs})
        pngs |= {f"{stem}-{name}.png": png for name, _, png in drawn}
        tables.append(rounds)
        sections.append(
            html.Section(
                title=group.title,
                warnings=caveats(group, rounds),
                summary=curves.summary(rounds),
                pictures=tuple((alt, png) for _, alt, png in drawn),
                settings=group.settings,
                runs=tuple(_row(run) for run in group.runs),
            )
        )
    made = Report(
        out=out,
        page=out / PAGE,
        figures=tuple(out / name for name in pngs),
        rounds=out / "rounds.csv",
        table=out / "table.csv",
        sections=tuple(sections),
        warnings=tuple(warnings),
    )
    table = pd.concat(
        [section.summary.assign(group=section.title) for section in sections], ignore_index=True
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, png in zip(made.figures, pngs.values(), strict=True):
            path.write_bytes(png)
        made.rounds.write_text(pd.concat(tables, ignore_index=True).to_csv(index=False), "utf-8")
        made.table.write_text(table.to_csv(index=False), "utf-8")
        made.page.write_text(html.page(sections, warnings), "utf-8")
    except OSError as error:
        raise PipelineError(
            f"the report cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return made


def find(paths: Sequence[Path]) -> list[Path]:
    """The run directories that are given, or that lie at any depth in the folders given.

    Raises:
        PipelineError: there are none, or one of the paths does not exist or is a file.
    """
    found: dict[Path, Path] = {}  # by what it resolves to: the same run twice is one run
    for path in paths:
        if not path.is_dir():
            what = "is a file, not a run directory" if path.exists() else "does not exist"
            raise PipelineError(f"{path} {what}; give run directories, or a folder that has some.")
        inside = sorted(path.rglob(record.CONFIG))
        here = [path] if (path / record.CONFIG).is_file() else [file.parent for file in inside]
        if not here and not (path / PAGE).is_file():  # an earlier report among the runs is passed
            raise PipelineError(
                f"no run found in {path}: neither it nor a folder below it has a {record.CONFIG}. "
                "Give run directories, or a folder that has some."
            )
        for run in here:
            found.setdefault(run.resolve(), run)
    if not found:
        raise PipelineError("no run given; give run directories, or a folder that has some.")
    return list(found.values())


def _stem(group: Group, taken: set[str]) -> str:
    """Start of the group's file names: data set and network, in letters that any disk takes."""
    words = "-".join(subject(group.settings))
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.") or "runs"
    names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _row(run: record.Run) -> tuple[str, ...]:
    """What the page says of a run, under `html.RUN_COLUMNS`."""
    last = run.environment[-1] if run.environment else {}
    versions = {"python": last.get("python"), **last.get("versions", {})}
    listed = [f"{name} {version}" for name, version in versions.items() if version]
    if last.get("commit"):
        listed.append(f"commit {last['commit']}")
    machine = [str(last[key]) for key in ("platform", "device") if last.get(key)]
    if last.get("cpus"):
        machine.append(f"{last['cpus']} CPUs")
    return (
        str(run.path),
        str(run.config["strategy"]),
        str(run.config["seed"]),
        f"{len(run.rounds)} of {run.config['cycles'] + 1}",
        ", ".join(listed),
        ", ".join(machine),
    )


def show(made: Report, console: Console) -> None:
    """Print the tables, the warnings and where the files are."""
    for section in made.sections:
        header, rows = html.accuracies(section.summary)
        wanted = [i for i, name in enumerate(header) if name not in ("seeds", "pairs")]
        kept = [[row[i] for i in wanted] for row in (header, *rows)]
        _print(console, section.title, kept)
        tables = [html.timings(section.summary, least) for least in _SHOWN]
        fitting = [[header, *rows] for header, rows in tables]
        fitting = [table for table in fitting if _width(table) <= console.width] or fitting[-1:]
        _print(console, html.TIMES, fitting[0])
        for warning in section.warnings:
            console.print(f"[yellow]![/yellow] {escape(warning)}")
    for warning in made.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}")
    console.print(escape(html.NOTE), style="dim")
    console.print(f"{len(made.figures)} figures, {made.rounds.name}, {made.table.name} and")
    console.print(escape(str(made.page)), style="bold", soft_wrap=True)


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that a table takes."""
    return sum(1 + max(map(len, column)) for column in zip(*rows, strict=True))


def _print(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False, show_edge=False
    )
    for number, name in enumerate(rows[0]):
        table.add_column(
            escape(name),
            justify="right" if number else "left",
            no_wrap=number > 0,
            overflow="fold",
        )
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    console.print(f"\n[bold]{escape(title)}[/bold]")
    console.print(table)
