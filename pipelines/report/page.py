"""Tables and figures → one self-contained HTML page, for the report.

Images are inside the page and nothing is fetched, so that it can be mailed, printed or read on a
phone. Everything that comes from a record is escaped.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from pipelines.report.curves import STAGE
from pipelines.report.pictures import duration

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5f6368; --line: #d8dadf;
  --paper: #fff; --warn: #fff4d6; --warn-line: #d39b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a5a9b0; --line: #3c4048;
  --paper: #16181c; --warn: #332a10; --warn-line: #d39b00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .2rem 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 46rem; height: auto; background: #fff;
  border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: .6rem 0; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
table.plain td { white-space: normal; overflow-wrap: anywhere; }
table.plain td, table.plain th { text-align: left; vertical-align: top; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-line);
  padding: .5rem 1rem; margin: 1rem 0; }
.warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
p, .note { max-width: 46rem; } .note { color: var(--soft); font-size: .88rem; }
summary { cursor: pointer; font-weight: 600; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr, .warnings { break-inside: avoid; } .wide { overflow: visible; }
  table { font-size: 8pt; } th { white-space: normal; } th, td { padding: .15rem .35rem; }
  img { max-width: 14cm; } }
"""

NOTE = (
    "Test accuracy in percent; ± is half the 95% confidence interval of the mean over seeds "
    "(Student t), left out for a single seed. Final: at the number of labels given. Average: over "
    "the rounds after the first query. − random: the difference from random, paired by seed, in "
    "percentage points. A curve goes as far as all seeds of its strategy have come. Unfitted: "
    "fits that did not reach their labels, of all fits."
)


@dataclass(frozen=True)
class Section:
    """What the page shows of one group of runs.

    Attributes:
        title: what the group is called.
        warnings: plain sentences.
        summary: the table of `curves.summary`.
        pictures: (what is seen, in words; PNG bytes).
        settings: settings the runs have in common.
        runs: one row of words for each run, under `RUN_COLUMNS`.
    """

    title: str
    warnings: tuple[str, ...]
    summary: pd.DataFrame
    pictures: tuple[tuple[str, bytes], ...]
    settings: Mapping[str, Any]
    runs: tuple[tuple[str, ...], ...]


TIMES = "Median time of training, of a query and of its stages; largest memory"
RUN_COLUMNS = ("run", "strategy", "seed", "rounds", "versions", "machine")


def page(sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """The whole page; `warnings` are about all sections."""
    return document(
        "Active learning report", [warned(warnings), *(_section(section) for section in sections)]
    )


def document(title: str, parts: Iterable[str]) -> str:
    """A page that needs no other file."""
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>\n"])


def _section(section: Section) -> str:
    accuracy, seconds = accuracies(section.summary), timings(section.summary)
    figures = "".join(picture(alt, png) for alt, png in section.pictures)
    settings = [(key, str(value)) for key, value in section.settings.items()]
    return "\n".join(
        [
            f"<section><h2>{escape(section.title)}</h2>",
            warned(section.warnings),
            table(*accuracy, "Accuracy"),
            f'<p class="note">{escape(NOTE)}</p>',
            figures,
            table(*seconds, TIMES),
            "<details open><summary>Settings</summary>",
            table(("setting", "value"), settings, "", "plain"),
            "</details><details open><summary>Runs</summary>",
            table(RUN_COLUMNS, section.runs, "", "plain"),
            "</details></section>",
        ]
    )


def picture(alt: str, png: bytes) -> str:
    """A figure inside the page; its caption is part of the picture."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></figure>\n'


def warned(texts: Sequence[str]) -> str:
    """What a reader has to know first, in a box; nothing where there is nothing to say."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="warnings"><ul>{items}</ul></div>' if items else ""


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, style: str = ""
) -> str:
    """A table of words; the style `plain` folds and aligns them to the left."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table class="{style}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def accuracies(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the accuracy table, as they are shown in the page and the terminal."""
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
    return header, rows


def timings(summary: pd.DataFrame, least: float = 0.0) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of times.

    Args:
        summary: of `curves.summary`.
        least: leave out stages shorter than this part of the longest query.
    """
    enough = least * max([*summary[f"{STAGE}query"].dropna(), 0.0])
    stages = [name for name in map(str, summary) if name.startswith(STAGE)]
    stages = [name for name in stages if any(value >= enough for value in summary[name])]
    names = [name.removeprefix(STAGE) for name in stages]
    header = ["strategy", *names, "memory"]
    rows = []
    for row in summary.to_dict("records"):
        memory = float(row["peak_memory_mib"])
        size = "—" if pd.isna(memory) else f"{memory / 1024:.1f} GiB"
        rows.append([row["strategy"], *(duration(float(row[name])) for name in stages), size])
    return header, rows


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
