"""Verdicts, tables and figures of a study → a Markdown page, for a host that shows repositories.

The page lies beside the figures and CSV files that it names. It has what `report.html` has but for
the settings and the list of trials, which stand in verdicts.json and trials.csv.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from experiments.report import study_words as told
from experiments.report.measure_pictures import measured
from experiments.report.results import Results
from experiments.report.study_figures import Drawn
from experiments.report.study_page import MODELS, NOTE, SAVED, VERDICTS, done, missing
from experiments.report.study_tables import Tables
from experiments.statistics.outcomes import having

_ROWS = 150  # of a table that somebody would read


def page(found: Results, made: Tables, drawn: Sequence[Drawn]) -> str:
    """The whole page.

    Args:
        found: what was read.
        made: its tables.
        drawn: figures, which lie beside the page as PNG.
    """
    study = found.study
    command = f"python -m experiments.sweep {study.name} --size {found.size}"
    parts = [
        f"# {study.title}",
        f"{study.source}, size `{found.size}`: {done(found)}.",
        f"**Question.** {study.question}",
        f"**The paper.** {study.paper}",
        f"    {command}\n    python -m experiments.report {study.name} --size {found.size}",
        "\n".join(f"- {warning}" for warning in missing(found)),
        *_verdicts(made),
        *_figures(drawn, ""),
        *(f"{'; '.join(one.subjects)}. {told.ranks(one)}" for one in made.rankings),
        *_subjects(found, made, drawn),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(made: Tables) -> Iterator[str]:
    if not made.judgements:
        return
    yield "## Verdicts"
    yield table(told.verdicts(made.judgements))
    yield "\n".join(f"{n}. {one.sentence}" for n, one in enumerate(made.judgements, start=1))
    yield VERDICTS


def _subjects(found: Results, made: Tables, drawn: Sequence[Drawn]) -> Iterator[str]:
    names = [*(made.summary["subject"] if len(made.summary) else ()), *found.measures["subject"]]
    noted = False
    for subject in dict.fromkeys([*names, *(one.subject for one in drawn if one.subject)]):
        yield f"## {subject}"
        summary, saving, costs, models = (
            having(frame, subject=[subject]) if len(frame) else frame
            for frame in (made.summary, made.saving, made.costs, made.models)
        )
        if len(summary):
            yield table(told.accuracies(summary))
            yield "" if noted else NOTE  # once is enough
        yield from _figures(drawn, subject)
        if len(saving):
            yield "Labels saved at equal accuracy:"
            yield table(told.savings(saving))
            yield "" if noted else SAVED
        if len(costs):
            yield "What queries cost and gain:"
            yield table(told.spent(costs))
        if len(models):
            yield f"{MODELS}:"
            yield table(told.models(models))
        noted = noted or bool(len(summary))
        yield from _measures(having(found.measures, subject=[subject]))


def _measures(numbers: pd.DataFrame) -> Iterator[str]:
    means = measured(numbers) if len(numbers) else numbers
    if len(means) > _ROWS:
        yield f"The {len(means)} means of what was measured are too many for a page: measures.csv."
    elif len(means):
        yield "<details><summary>All that was measured</summary>"
        yield table(told.measured(means))
        yield "</details>"


def _figures(drawn: Sequence[Drawn], subject: str) -> Iterator[str]:
    for one in drawn:
        if one.subject == subject:
            yield f"![{_plain(one.seen)}]({one.name}.png)"


def table(content: told.Table) -> str:
    """A header and rows in Markdown."""
    header, rows = content
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """In one line, and without what a table would take for the end of a cell."""
    return " ".join(text.split()).replace("|", "\\|")
