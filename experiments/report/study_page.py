"""Verdicts, tables and figures of a study → one self-contained HTML page."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

import pandas as pd

from experiments.report import study_words as told
from experiments.report.measure_pictures import measured
from experiments.report.results import Results
from experiments.report.study_figures import Drawn
from experiments.report.study_settings import common, own
from experiments.report.study_tables import Tables
from experiments.statistics.outcomes import having
from pipelines.report.page import document, picture, seed_ranges, table, warned

NOTE = (
    "Accuracies in percent with 95% intervals of the mean over seeds (Student t), none for a "
    "single seed. Final: at the last number of labels. Average: over the rounds after the first "
    "query. Area: under the curve over the range of labels, divided by that range. − random: of "
    "the same seed, which begins with the same labels and network; p of a paired t-test of the "
    "average, and corrected by Holm for the arms of the table."
)
VERDICTS = (
    "A claim is reproduced where the whole 95% interval lies in what is claimed, not reproduced "
    "where all of it lies outside, and otherwise not decided by this size; so it is where trials "
    "are missing. Holm's correction is over the claims of this page."
)
MODELS = "Accuracy of the models that strategies look ahead with, when they do"
SAVED = (
    "Labels that random needs for the accuracy its run of the same seed ends with, less those that "
    "the arm needs for it; curves are read between rounds by straight lines. A run that never "
    "reaches it counts as the least of all. In brackets: part of what random needs."
)


def page(found: Results, made: Tables, drawn: list[tuple[Drawn, bytes]]) -> str:
    """The whole page.

    Args:
        found: what was read.
        made: its tables.
        drawn: figures, each with its PNG.
    """
    study = found.study
    parts = [
        f'<p class="note">{escape(study.source)} · size: {escape(found.size)} · {done(found)}</p>',
        f"<p><b>Question.</b> {escape(study.question)}</p>",
        f"<p><b>The paper.</b> {escape(study.paper)}</p>",
        warned(missing(found)),
        *_verdicts(made),
        *_figures(drawn, ""),
        *_rankings(made),
        *_subjects(found, made, drawn),
        *_settings(found),
        *_trials(found.trials),
    ]
    return document(f"{study.title}: what the runs say", parts)


def done(found: Results) -> str:
    """How many trials are done, and seeds planned."""
    trials = found.trials
    seeds, finished = len(set(trials["seed"])), len(having(trials, state=["done"]))
    return (
        f"{finished} of {len(trials)} trials done, {seeds} seed{'s' if seeds > 1 else ''} planned"
    )


def missing(found: Results) -> list[str]:
    """What is not there, in sentences; nothing where the study is complete."""
    said = []
    words = {
        "failed": "failed and stand below with their messages",
        "begun": "are begun and not done; their rounds are in no table or figure",
        "absent": "are not begun",
    }
    for state, what in words.items():
        rows = having(found.trials, state=[state])
        if len(rows):
            who = "; ".join(_who(rows))
            said.append(f"{len(rows)} of {len(found.trials)} trials {what}: {who}.")
    unfitted = having(found.curves, fitted=[False])
    if len(unfitted):
        arms = ", ".join(
            f"{arm} {len(having(unfitted, arm=[arm]))}" for arm in dict.fromkeys(unfitted["arm"])
        )
        said.append(
            f"{len(unfitted)} of {len(found.curves)} trainings did not reach their labels "
            f"({arms}); they are in all tables and figures."
        )
    return said


def _who(rows: pd.DataFrame) -> Iterator[str]:
    """Subject by subject, each arm with its seeds."""
    for subject in dict.fromkeys(rows["subject"]):
        own = having(rows, subject=[subject])
        arms = [
            f"{arm} ({seed_ranges(' '.join(map(str, having(own, arm=[arm])['seed'])))})"
            for arm in dict.fromkeys(own["arm"])
        ]
        yield f"{subject}, seeds of {', '.join(arms)}"


def _verdicts(made: Tables) -> Iterator[str]:
    if made.judgements:
        yield table(*told.verdicts(made.judgements), "Verdicts", "plain")
        sentences = "".join(f"<li>{escape(one.sentence)}</li>" for one in made.judgements)
        yield f"<ol>{sentences}</ol>"
        yield _note(VERDICTS)


def _rankings(made: Tables) -> Iterator[str]:
    for ranking in made.rankings:
        yield f"<p>{escape('; '.join(ranking.subjects))}. {escape(told.ranks(ranking))}</p>"
        yield "<details><summary>Every pair of arms (paired t-tests)</summary>"
        yield table(*told.pairs(ranking), "")
        yield "</details>"


def _subjects(found: Results, made: Tables, drawn: list[tuple[Drawn, bytes]]) -> Iterator[str]:
    names = [*(made.summary["subject"] if len(made.summary) else ()), *found.measures["subject"]]
    names += [one.subject for one, _ in drawn if one.subject]
    for subject in dict.fromkeys(names):
        yield f"<section><h2>{escape(subject)}</h2>"
        own = _own(made.summary, subject)
        if len(own):
            yield table(*told.accuracies(own), "Accuracy")
            yield _note(NOTE)
        yield from _figures(drawn, subject)
        saving, costs, models = (
            _own(frame, subject) for frame in (made.saving, made.costs, made.models)
        )
        if len(saving):
            yield table(*told.savings(saving), "Labels saved at equal accuracy")
            yield _note(SAVED)
        if len(costs):
            yield table(*told.spent(costs), "What queries cost and gain")
        if len(models):
            yield table(*told.models(models), MODELS)
        numbers = _own(found.measures, subject)
        if len(numbers):
            yield "<details open><summary>All that was measured</summary>"
            yield table(*told.measured(measured(numbers)), "")
            yield "</details>"
        yield "</section>"


def _own(frame: pd.DataFrame, subject: str) -> pd.DataFrame:
    return having(frame, subject=[subject]) if len(frame) else frame


def _figures(drawn: list[tuple[Drawn, bytes]], subject: str) -> Iterable[str]:
    return (picture(one.seen, png) for one, png in drawn if one.subject == subject)


def _settings(found: Results) -> Iterator[str]:
    trials = found.study.trials(found.size)
    yield "<section><h2>Settings</h2>"
    yield table(("subject", "arm", "its own settings"), own(trials), "What arms differ in", "plain")
    for subject in dict.fromkeys(trial.subject for trial in trials):
        shared = common(trial for trial in trials if trial.subject == subject)
        rows = [(key, str(value)) for key, value in shared.items()]
        yield f"<details><summary>{escape(subject)}: what all arms share</summary>"
        yield table(("setting", "value"), rows, "", "plain")
        yield "</details>"
    yield "</section>"


def _trials(trials: pd.DataFrame) -> Iterator[str]:
    yield "<section><h2>Trials</h2>"
    failed = having(trials, state=["failed"])
    if len(failed):
        header = ("subject", "arm", "seed", "message", "record")
        names = ("subject", "arm", "seed", "message", "path")
        rows = [tuple(str(row[name]) for name in names) for row in _dicts(failed)]
        yield table(header, rows, "Failed; the traceback is in trial.json of the record", "plain")
    header = ("subject", "arm", "seed", "state", "rounds", "record")
    rows = [
        (
            str(row["subject"]),
            str(row["arm"]),
            str(row["seed"]),
            str(row["state"]),
            _rounds(row),
            str(row["path"]) or "—",
        )
        for row in _dicts(trials)
    ]
    yield "<details><summary>All trials</summary>"
    yield table(header, rows, "", "plain")
    yield "</details></section>"


def _rounds(row: Mapping[str, Any]) -> str:
    return "—" if pd.isna(row["of_rounds"]) else f"{row['rounds']} of {row['of_rounds']:g}"


def _dicts(frame: pd.DataFrame) -> list[Mapping[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
