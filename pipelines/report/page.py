"""HTML pages of reports, from Jinja templates; numbers of their tables as text.

A page embeds its pictures and fetches nothing, so that it can be mailed, printed or read on a
phone. Autoescape is on: everything that comes from a record is escaped.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipelines.report.curves import STAGE

_TEMPLATES = Path(__file__).parent / "templates"


class Table(NamedTuple):
    """A table as text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(template: str, folder: Path = _TEMPLATES, **values: Any) -> str:
    """Fill a template.

    Args:
        template: file name; `.html` is autoescaped. It may extend `page.html` of this package,
            whose macros `table`, `warnings` and `figure` are in `parts.html`.
        folder: of the template; those of this package are found besides.
        **values: variables of the template; one that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "base64": lambda content: base64.b64encode(content).decode(),
        "line": lambda text: " ".join(text.split()).replace("|", "\\|"),  # a cell in Markdown
    }
    return environment.get_template(template).render(values)


def accuracies(summary: pd.DataFrame) -> Table:
    """The accuracy table of `curves.summary`, for page and terminal."""
    header = ["strategy", "n", "seeds", "labels", "final", "average"]
    header += ["final\n− random", "average\n− random", "pairs", "unfitted"]
    rows = [
        [
            row["strategy"],
            str(row["n"]),
            seed_ranges(row["seeds"]),
            str(row["labels"]),
            _percent(row, "final"),
            _percent(row, "average"),
            _percent(row, "final_minus_random", "+"),
            _percent(row, "average_minus_random", "+"),
            str(row["pairs"] or "—"),
            f"{row['unfitted']} of {row['fits']}",
        ]
        for row in summary.to_dict("records")
    ]
    return Table(header, rows)


def timings(summary: pd.DataFrame, least: float = 0.0) -> Table:
    """The table of times and memory of `curves.summary`.

    Args:
        summary: of `curves.summary`.
        least: leave out stages shorter than this fraction of the longest query.
    """
    enough = least * max([*summary[f"{STAGE}query"].dropna(), 0.0])
    stages = [name for name in map(str, summary) if name.startswith(STAGE)]
    stages = [name for name in stages if any(value >= enough for value in summary[name])]
    header = ["strategy", *(name.removeprefix(STAGE) for name in stages), "memory"]
    rows = []
    for row in summary.to_dict("records"):
        memory = float(row["peak_memory_mib"])
        size = "—" if pd.isna(memory) else f"{memory / 1024:.1f} GiB"
        rows.append([row["strategy"], *(duration(float(row[name])) for name in stages), size])
    return Table(header, rows)


def seed_ranges(listed: str) -> str:
    """Seeds as ranges: "0 1 2 5" → "0–2, 5"."""
    numbers = sorted(map(int, listed.split()))
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(
        f"{start}" if start == end else f"{start}–{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def _percent(row: Mapping[str, Any], name: str, sign: str = "-") -> str:
    mean, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(mean):
        return "—"
    return f"{mean:{sign}.1f}".replace("-", "−") + (
        "" if pd.isna(low) else f" ± {(high - low) / 2:.1f}"
    )


def duration(seconds: float) -> str:
    """Seconds to two or three significant digits, as ms, s, min or h."""
    if not math.isfinite(seconds):
        return "—"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.2g} ms"
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
