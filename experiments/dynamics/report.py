"""What the measurement leaves: tables as CSV, pictures, one page and a record a program can read.

From what was found to files in its directory, and to lines at the terminal.
"""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.weights import replace
from experiments.dynamics.pictures import pictures
from experiments.dynamics.run import Found
from experiments.dynamics.tables import Rows, column, tables, where
from pipelines.json_io import write_record
from pipelines.run import describe

FORMAT = 1
RECORD, PAGE = "dynamics.json", "report.md"
_TITLES = {
    "mmd": "MMD against the bound B ([D] Figure 1)",
    "tau": "Training dynamics against alignment ([D] Figure 2)",
    "envelope": "How fast the error can fall",
    "ratio": "The approximation ratio over training ([D] Figure 4)",
    "gamma": "Accuracy by γ ([D] Figure 5)",
    "training": "Training",
}
# Columns that a person reads first; the CSV files have all.
_SHOWN = {
    "mmd": ("network", "queries", "chosen", "mmd", "bound", "share", "smallest", "jitter"),
    "tau": ("network", "queries", "measure", "draws", "tau", "tau_low", "tau_high"),
    "ratio": ("epoch", "train_accuracy", "queries", "chosen", "median", "ratio_of_means"),
    "gamma": ("gamma", "labelled", "n", "mean", "low", "high"),
}


def write(found: Found, said: dict[str, str]) -> None:
    """Tables, pictures, page and record into the directory, each whole or not at all."""
    folder = found.config.run_folder
    made = tables(found)
    for name, table in made.items():
        replace(folder / f"{name}.csv", pd.DataFrame(table).to_csv(index=False).encode())
    for name, picture in pictures(found).items():
        replace(folder / f"{name}.png", picture)
    replace(folder / PAGE, _page(found, said, made).encode())
    whole = found.subject
    content: dict[str, Any] = {
        "format": FORMAT,
        "config": found.config.record(),
        "data": None if whole is None else describe(whole.dataset),
        "sentences": said,
        "training": found.notes,
        "labelled": None if whole is None else whole.labelled,
        "candidates": None if whole is None else whole.candidates,
        "figures": found.states | {"ratio": found.epochs},
        "gamma": None if found.gammas is None else found.gammas.averages,
    }
    write_record(folder / RECORD, content, found.seconds)


def _page(found: Found, said: dict[str, str], made: dict[str, Rows]) -> str:
    """Markdown: for each figure its sentence, its picture and its table."""
    config = found.config
    lines = [
        f"# Training dynamics of {config.network} on {config.dataset}",
        "",
        f"Seed {config.seed}, {config.initial} labels, {config.subset} candidates. What the "
        "figures mean and what they do not is in docs/dynamics.md.",
    ]
    for name, sentence in said.items():
        lines += ["", f"## {_TITLES[name]}", "", sentence]
        if name not in made:
            continue
        lines += ["", f"![{_TITLES[name]}]({name}.png)"]
        if name in _SHOWN:
            lines += ["", *_markdown(name, made[name])]
        lines += ["", f"All numbers: [{name}.csv]({name}.csv)."]
    return "\n".join(lines) + "\n"


def _markdown(name: str, table: Rows) -> list[str]:
    header, rows = _cells(name, table)
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def show(found: Found, said: dict[str, str], console: Console) -> None:
    """Tables and sentences, and where the files are."""
    made = tables(found)
    for name in ("mmd", "tau", "ratio", "gamma"):
        if name in made:
            header, rows = _cells(name, made[name])
            shown = Table(title=_TITLES[name], box=box.SIMPLE_HEAD, title_justify="left")
            for column in header:
                shown.add_column(column, justify="right")
            for row in rows:
                shown.add_row(*row)
            console.print(shown)
    for sentence in said.values():
        console.print(sentence, highlight=False)
    folder = found.config.run_folder
    files = ", ".join([PAGE, *(f"{name}.png" for name in made), RECORD])
    console.print(f"record: {folder} ({files})", highlight=False, soft_wrap=True)


def _cells(name: str, rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, random queries of one size as their mean."""
    columns = _SHOWN[name]
    if name == "mmd":
        rows = _means(rows, columns)
    header = [column.replace("_", " ") for column in columns]
    return header, [[_cell(row[column]) for column in columns] for row in rows]


def _means(rows: Rows, columns: tuple[str, ...]) -> Rows:
    """One row for each network, size and way of choosing."""
    keys = ("network", "queries", "chosen")
    groups = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    found = []
    for group in groups:
        known = dict(zip(keys, group, strict=True))
        own = where(rows, **known)
        means = {name: float(column(own, name).mean()) for name in columns if name not in keys}
        found.append(known | means)
    return found


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
