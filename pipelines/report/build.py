"""The report on runs: learning curves, difference from random, times, a table; PNG, CSV, one page.

Runs are averaged over seeds only where everything else is equal; every interval is a 95% Student t
interval over seeds. Nothing is left out silently: `caveats` names what is missing, unequal or
untrained.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernel.files import write_files
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.record import Run
from pipelines.report import curves, page
from pipelines.report.curves import (
    REFERENCE,
    Group,
    data_and_network,
    groups,
    minus_random,
    strategies,
)
from pipelines.report.figures import figures

# The terminal's table leaves out stages below the first of these fractions of the longest query
# for which it fits.
_LEAST = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_LISTED = 6  # items of a caveat that are named; the others are counted
_TIMES = "Median time of training, of a query and of its stages; largest memory"
_NOTE = (
    "Test accuracy in percent; ± is half the 95% confidence interval of the mean over seeds "
    "(Student t), left out for a single seed. Final: at the number of labels given. Average: over "
    "the rounds after the first query. − random: the difference from random, paired by seed, in "
    "percentage points. A curve goes as far as all seeds of its strategy have come. Unfitted: "
    "fits that did not reach their labels, of all fits."
)


class Section(NamedTuple):
    """One group of runs in the report.

    Attributes:
        title: of the group.
        warnings: of `caveats`.
        summary: of `curves.summary`.
        pictures: (alternative text, PNG).
        settings: that the runs have in common.
        runs: record, strategy, seed, rounds, versions and machine of each.
    """

    title: str
    warnings: tuple[str, ...]
    summary: pd.DataFrame
    pictures: tuple[tuple[str, bytes], ...]
    settings: page.Table
    runs: page.Table


class Report(NamedTuple):
    """Files and contents of a report.

    Attributes:
        out: the folder.
        page: the HTML page, which needs no other file.
        figures: PNG files.
        rounds: CSV, one line for each round of each run.
        table: CSV of the tables, one line for each strategy of each group.
        sections: one for each group of comparable runs.
        warnings: those that concern no single section.
    """

    out: Path
    page: Path
    figures: tuple[Path, ...]
    rounds: Path
    table: Path
    sections: tuple[Section, ...]
    warnings: tuple[str, ...]


def report(runs: Sequence[Path], out: Path) -> Report:
    """Read run directories and write their report into a folder.

    Args:
        runs: run directories, or folders that hold some at any depth.
        out: the folder, made if missing; files of an earlier report are replaced.

    Raises:
        PipelineError: no run, a broken one, none with a completed round, or a folder that cannot
            be written.
    """
    found = [record.read(path) for path in record.find_runs(runs)]
    empty = [str(run.path) for run in found if not run.rounds]
    if len(empty) == len(found):
        raise PipelineError(
            f"no completed round yet in {', '.join(empty)}; a report can be made as soon as one "
            "run has evaluated its first network."
        )
    warnings = (f"No completed round yet, left out: {', '.join(empty)}.",) if empty else ()
    rounds, tables, sections, pngs = [], [], [], {}
    for group in groups([run for run in found if run.rounds]):
        rounds.append(curves.tidy(group))
        summary, drawn = curves.summary(rounds[-1]), figures(group, rounds[-1])
        tables.append(summary.assign(group=group.title))
        stem = _stem(group, {name.rpartition("-")[0] for name in pngs})
        pngs |= {f"{stem}-{name}.png": png for name, _, png in drawn}
        sections.append(
            Section(
                title=group.title,
                warnings=caveats(group, rounds[-1]),
                summary=summary,
                pictures=tuple((alt, png) for _, alt, png in drawn),
                settings=page.Table(("setting", "value"), tuple(group.settings.items())),
                runs=page.Table(_RUN_COLUMNS, tuple(map(_row, group.runs))),
            )
        )
    made = Report(
        out=out,
        page=out / record.REPORT,
        figures=tuple(out / name for name in pngs),
        rounds=out / "rounds.csv",
        table=out / "table.csv",
        sections=tuple(sections),
        warnings=warnings,
    )
    html = page.render(
        "runs.html",
        title="Active learning report",
        warnings=warnings,
        note=_NOTE,
        times=_TIMES,
        sections=sections,
        accuracies=page.accuracies,
        timings=page.timings,
    )
    files = dict(zip(made.figures, pngs.values(), strict=True)) | {
        made.rounds: pd.concat(rounds, ignore_index=True).to_csv(index=False).encode(),
        made.table: pd.concat(tables, ignore_index=True).to_csv(index=False).encode(),
        made.page: html.encode(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_files(files)
    except OSError as error:
        raise PipelineError(
            f"the report cannot be written into {out} ({error}); give --out a folder that can be "
            "written, on a disk with some space."
        ) from error
    return made


def _stem(group: Group, taken: set[str]) -> str:
    """Prefix of the group's file names: data set and network, in portable characters."""
    words = "-".join(data_and_network(group.settings))
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.") or "runs"
    names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


_RUN_COLUMNS = ("run", "strategy", "seed", "rounds", "versions", "machine")


def _row(run: Run) -> tuple[str, ...]:
    """A run, by `_RUN_COLUMNS`."""
    last = run.environment[-1] if run.environment else {}
    versions = {"python": last.get("python"), **last.get("versions", {})}
    versions["commit"] = last.get("commit")
    machine = [str(last[key]) for key in ("platform", "device") if last.get(key)]
    return (
        str(run.path),
        str(run.config["strategy"]),
        str(run.config["seed"]),
        f"{len(run.rounds)} of {run.config['cycles'] + 1}",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        ", ".join([*machine, *([f"{last['cpus']} CPUs"] if last.get("cpus") else [])]),
    )


def caveats(group: Group, rounds: pd.DataFrame) -> tuple[str, ...]:
    """Sentences on missing, unequal or untrained runs of a group.

    Args:
        group: the runs.
        rounds: their tidy table.
    """
    found = [
        _sentence(
            "The same strategy and seed twice, the shorter run left out",
            (f"{_name(run)} in {run.path}" for run in group.dropped),
        ),
        _sentence(
            "Incomplete runs, which end their strategy's curve",
            (
                f"{_name(run)} has {len(run.rounds)} of {run.config['cycles'] + 1} rounds"
                for run in group.runs
                if not run.complete
            ),
        ),
        *_seeds(rounds),
        _sentence("Fits that did not reach their labels", _unfitted(group)),
        _sentence("Classes without a label", _missing(group)),
        *dict.fromkeys(
            f"Of the data: {note}"
            for run in group.runs
            for note in run.config.get(record.MACHINE, {}).get(record.NOTES, ())
        ),
        *_versions(group),
    ]
    return tuple(text for text in found if text)


def _seeds(rounds: pd.DataFrame) -> list[str]:
    names = strategies(rounds)
    seeds = {name: set(rounds.loc[rounds["strategy"] == name, "seed"]) for name in names}
    found = []
    if len({frozenset(own) for own in seeds.values()}) > 1:
        listed = (f"{name} has {_numbers(own)}" for name, own in seeds.items())
        found.append(_sentence("Means are over different seeds", listed, listed=len(names)))
    single = [name for name in names if len(seeds[name]) == 1]
    if single:
        found.append(_sentence("One seed, so no interval can be given", single, listed=len(names)))
    others = [name for name in names if name != REFERENCE]
    if REFERENCE not in seeds:
        found.append(f"No run with the strategy {REFERENCE!r}: no difference from it is shown.")
        return found
    unpaired = [name for name in others if minus_random(rounds, name).empty]
    found.append(_sentence(f"No seed in common with {REFERENCE}, so no difference", unpaired))
    return found


def _numbers(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


def _unfitted(group: Group) -> Iterator[str]:
    for run in group.runs:
        failed = [line for line in run.rounds if not line["fit"]["fitted"]]
        if failed:
            worst = 100 * min(line["train_accuracy"] for line in failed)
            listed = ", ".join(str(line["round"]) for line in failed)
            yield f"{_name(run)} in round {listed} (training accuracy down to {worst:.0f}%)"


def _missing(group: Group) -> Iterator[str]:
    alike: defaultdict[str, list[str]] = defaultdict(list)  # seeds start alike in all strategies
    for run in group.runs:
        lacking = [line for line in run.rounds if line.get("missing_classes")]
        if lacking:
            first, last = lacking[0], lacking[-1]
            until = f" to {last['round']}" if last is not first else ""
            classes = ", ".join(map(str, first["missing_classes"]))
            alike[f"seed {run.config['seed']} in round {first['round']}{until} ({classes})"].append(
                run.config["strategy"]
            )
    for text, names in alike.items():
        yield f"{text} with {', '.join(names)}"


def _versions(group: Group) -> list[str]:
    used: dict[str, dict[str, None]] = {}
    for run in group.runs:
        for start in run.environment:
            versions = start.get("versions", {}) | {"the commit": start.get("commit")}
            for package, version in versions.items():
                used.setdefault(package, {})[str(version)] = None
    mixed = [f"{name} {', '.join(found)}" for name, found in used.items() if len(found) > 1]
    return [_sentence("Made with more than one version", mixed, listed=len(mixed))]


def _name(run: Run) -> str:
    return f"{run.config['strategy']} seed {run.config['seed']}"


def _sentence(what: str, items: Iterable[str], listed: int = _LISTED) -> str:
    items = list(items)
    more = f"; and {len(items) - listed} more" if len(items) > listed else ""
    return f"{what}: {'; '.join(items[:listed])}{more}." if items else ""


def print_report(made: Report, console: Console) -> None:
    """Print the tables, the warnings and the paths of the files."""
    for section in made.sections:
        header, rows = page.accuracies(section.summary)
        wanted = [i for i, name in enumerate(header) if name not in ("seeds", "pairs")]
        kept = [[row[i] for i in wanted] for row in (header, *rows)]
        _print(console, section.title, kept)
        tables = [page.timings(section.summary, least) for least in _LEAST]
        fitting = [[header, *rows] for header, rows in tables]
        fitting = [table for table in fitting if _width(table) <= console.width] or fitting[-1:]
        _print(console, _TIMES, fitting[0])
        for warning in section.warnings:
            console.print(f"[yellow]![/yellow] {escape(warning)}")
    for warning in made.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}")
    console.print(escape(_NOTE), style="dim")
    console.print(f"{len(made.figures)} figures, {made.rounds.name}, {made.table.name} and")
    console.print(escape(str(made.page)), style="bold", soft_wrap=True)


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Width of a table in a terminal."""
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
