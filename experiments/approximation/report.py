"""What the study leaves: one table, a picture, a page and a record a program can read.

From what was found to files in its directory, and to lines at the terminal.
"""

from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.weights import replace
from experiments.approximation.comparison import ZERO
from experiments.approximation.picture import picture
from experiments.approximation.run import Found
from experiments.approximation.tables import ACCURACY, rows, series_of
from pipelines.json_io import write_record
from pipelines.run import describe

FORMAT = 1
RECORD, TABLE, PICTURE, PAGE = "record.json", "rows.csv", "approximation.png", "report.md"


def write(found: Found, said: dict[str, str]) -> None:
    """Table, picture, page and record into the directory, each whole or not at all."""
    folder = found.config.run_folder
    replace(folder / TABLE, pd.DataFrame(rows(found)).to_csv(index=False).encode())
    replace(folder / PICTURE, picture(found))
    replace(folder / PAGE, _page(found, said).encode())
    first = found.widths[0].subject
    content: dict[str, Any] = {
        "format": FORMAT,
        "config": found.config.record(),
        "data": describe(first.dataset),
        "sentences": said,
        "labelled": first.labelled,
        "tests": first.tests,
        "widths": [
            {
                "width": own.subject.width,
                "parameters": own.parameters,
                "training": own.notes,
                "states": own.states,
            }
            for own in found.widths
        ],
    }
    write_record(folder / RECORD, content, found.seconds)


def show(found: Found, said: dict[str, str], console: Console) -> None:
    """The table and sentences, and where the files are."""
    header, body = _cells(found)
    shown = Table(box=box.SIMPLE_HEAD)
    for name in header:
        shown.add_column(name, justify="right")
    for row in body:
        shown.add_row(*row)
    console.print(shown)
    for sentence in said.values():
        console.print(sentence, highlight=False)
    files = ", ".join((PAGE, TABLE, PICTURE, RECORD))
    console.print(f"record: {found.config.run_folder} ({files})", highlight=False, soft_wrap=True)


def _page(found: Found, said: dict[str, str]) -> str:
    config = found.config
    header, body = _cells(found)
    lines = [
        f"# Kernels that stand for the full one: {config.network} on {config.dataset}",
        "",
        f"Seed {config.seed}, {config.initial} labels, {config.test} test images. What the numbers "
        "mean and what they do not is in docs/approximation.md.",
        "",
        f"![Errors against width]({PICTURE})",
        "",
        *(f"- {sentence}" for sentence in said.values()),
        "",
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in body),
        "",
        f"All numbers: [{TABLE}]({TABLE}).",
    ]
    return "\n".join(lines) + "\n"


def _cells(found: Found) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table that people read, a row a state, width and kernel."""
    ridge = found.config.ridges[0]
    whole = {
        (row["state"], row["width"], row["measure"], row["series"]): row["value"]
        for row in rows(found)
    }
    header = ["state", found.config.width_argument, "kernel", "Frobenius error", "λ_max", "κ"]
    header += [f"regression from 0, λ = {ridge:g}: error", "accuracy", ACCURACY]
    body = []
    for own in found.widths:
        for state, measured in own.states.items():
            for kind in (row["kind"] for row in measured["kernels"]):
                place, series = (state, own.subject.width), series_of(kind, ridge, ZERO)
                numbers = [
                    whole.get((*place, measure, kind))
                    for measure in ("frobenius error", "largest eigenvalue", "condition number")
                ]
                numbers += [
                    whole.get((*place, measure, series))
                    for measure in ("regression error", "regression accuracy")
                ]
                words = [state, str(own.subject.width or "–"), kind]
                body.append([*words, *map(_cell, [*numbers, measured["accuracy"]])])
    return header, body


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
