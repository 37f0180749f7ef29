"""Results and tables of a study → its figures, with captions that say n, seeds and settings."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from experiments.report import study_pictures
from experiments.report.measure_dots import dots, single
from experiments.report.measure_pictures import families, measured, panels
from experiments.report.results import Results
from experiments.report.study_pictures import Looked
from experiments.report.study_settings import seeds, words
from experiments.report.study_tables import Ranking, Tables
from experiments.statistics.diagram import draw
from experiments.statistics.outcomes import REFERENCE, finished, having
from experiments.statistics.tables import curve, difference
from experiments.studies.study import Trial
from pipelines.report import curves, pictures
from pipelines.report.drawing import INK, NORMAL, canvas, name_width
from pipelines.report.looks import looks

_MEAN = "Mean and 95% confidence (Student t)"
_NO_BAND = ", no interval where n = 1"


class Drawn(NamedTuple):
    """A figure of a study.

    Attributes:
        name: of its file, without what comes after the dot.
        seen: what is on it, in words.
        caption: what stands below it.
        figure: itself.
        subject: that it is of; empty for the whole study.
    """

    name: str
    seen: str
    caption: str
    figure: Figure
    subject: str = ""


def figures(found: Results, made: Tables) -> list[Drawn]:
    """Every figure that the records allow: of the whole study, then subject by subject."""
    trials = found.study.trials(found.size)
    looked = looks(dict.fromkeys([*(trial.arm for trial in trials), *made.paired["arm"]]))
    drawn = [*_together(made, trials, looked)]
    answered = finished(found.answers, found.trials)
    for subject in dict.fromkeys(trial.subject for trial in trials):
        mine = [trial for trial in trials if trial.subject == subject]
        own = having(made.curves, subject=[subject])
        if len(own):
            told = words([trial for trial in mine if trial.arm in set(own["arm"])])
            drawn += _of_runs(subject, own, told, looked)
            drawn += _of_answers(subject, answered, own, told, looked)
    drawn += [*_costs(made, trials, looked)]
    for subject in dict.fromkeys(found.measures["subject"]):
        own = having(found.measures, subject=[subject])
        told = words([trial for trial in trials if trial.subject == subject])
        drawn += _measured(subject, own, told)
    return drawn


def _together(made: Tables, trials: tuple[Trial, ...], looked: Looked) -> Iterator[Drawn]:
    gains = made.summary
    if len(gains) and bool((gains["pairs"] > 0).any()):
        own = gains[gains["pairs"] > 0].assign(
            n=lambda t: t["pairs"],
            mean=lambda t: t["average_gained"],
            low=lambda t: t["average_gained_low"],
            high=lambda t: t["average_gained_high"],
        )
        caption = (
            f"{_setups(trials, own)} Accuracy averaged over the rounds after the first "
            f"query that both have, minus that of random choice with the same seed: mean and 95% "
            f"confidence (Student t) over n seeds, not corrected for the number of rows; a filled "
            f"marker: the interval leaves out 0; a head at the edge: it goes on. "
            f"Runs: {seeds(_of(made.paired, own))}"
        )
        title = "Difference from random, same seed"
        figure = study_pictures.forest(pd.DataFrame(own), caption, looked, title)
        yield Drawn("differences", "Average accuracy minus random's", caption, figure)
    for number, ranking in enumerate(made.rankings):
        if ranking.found is not None:
            name = "ranks" if number == 0 else f"ranks-{number + 1}"
            yield _ranks(name, ranking, made, trials)


def _ranks(name: str, ranking: Ranking, made: Tables, trials: tuple[Trial, ...]) -> Drawn:
    found = ranking.found
    assert found is not None
    own = having(made.curves, subject=ranking.subjects, arm=ranking.arms)
    kept = [t for t in trials if t.subject in ranking.subjects and t.arm in ranking.arms]
    caption = (
        f"{words(kept)} Average ranks, 1 the best, of the accuracy averaged over the rounds after "
        f"the first query that all arms have; {found.unit}, {found.blocks} blocks. Friedman "
        f"p = {found.p:.2g}. Arms that a bar joins could not be told apart (Nemenyi, α = .05, "
        f"critical difference {found.critical:.2f}). {seeds(own)}"
    )
    margin = 0.75 + name_width([str(name) for name in found.ranks.index])
    height = 0.75 + 0.13 * len(found.ranks)
    figure, (axes,) = canvas(caption, height, left=margin, right=margin, top=0.5)
    draw(axes, found, ranking.pairs)
    inch = 1 / figure.get_size_inches()[1]
    title = {"weight": "bold", "fontsize": NORMAL + 1, "color": INK}
    figure.text(0.02, 1 - 0.26 * inch, "Average ranks", **title)
    return Drawn(name, "Critical-difference diagram of average ranks", caption, figure)


def _setups(trials: tuple[Trial, ...], frame: pd.DataFrame) -> str:
    """Settings of the trials of a table, whose subjects may be called as `paired` calls them."""
    there = set(frame["subject"])
    exact = [trial for trial in trials if trial.subject in there]
    return words(
        exact or [t for t in trials if any(name.startswith(f"{t.subject}, ") for name in there)]
    )


def _of(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the subjects of a table."""
    return having(frame, subject=set(rows["subject"]))


def _of_runs(subject: str, own: pd.DataFrame, told: str, looked: Looked) -> Iterator[Drawn]:
    stem = _stem(subject)
    learning = _named(curve(own))
    mean = f"{_MEAN} over seeds{_bands(learning)}"
    caption = f"{told} {mean if pictures.banded(learning) else pictures.UNBANDED}; {seeds(own)}"
    figure = pictures.accuracy(learning, caption, looked)
    yield Drawn(
        f"{stem}-accuracy", "Test accuracy against number of labels", caption, figure, subject
    )
    differences = _named(difference(own))
    if len(differences):
        caption = f"{told} {_MEAN} of differences of the same seed{_bands(differences)}; "
        caption += seeds(own)
        figure = pictures.difference(differences, caption, looked)
        seen = "Accuracy minus random's against number of labels"
        yield Drawn(f"{stem}-difference", seen, caption, figure, subject)
    seconds = curves.query_seconds(own.rename(columns={"arm": "strategy"}))
    if seconds.size and bool((seconds.sum(axis="columns") > 0).any()):
        hosts = sorted(set(own["host"]))
        where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} machines"
        caption = (
            f"{told} Medians over seeds and rounds, without training and evaluation, on {where}; "
            f"{seeds(own)}"
        )
        figure = pictures.query_time(seconds, caption)
        yield Drawn(f"{stem}-time", "Seconds of a query by stage", caption, figure, subject)


def _of_answers(
    subject: str, answered: pd.DataFrame, own: pd.DataFrame, told: str, looked: Looked
) -> Iterator[Drawn]:
    mine = having(answered, subject=[subject])
    if mine.empty:
        return
    caption = (
        f"{told} Lines and bands: the linearised network after each answer, absorbed without "
        f"training; markers: networks trained by SGD; lines between markers: arms that ask in "
        f"batches. {_MEAN} over seeds; {seeds(own)}"
    )
    figure = study_pictures.answers(_named(curve(mine)), _named(curve(own)), caption, looked)
    name, seen = f"{_stem(subject)}-answers", "Accuracy after each answer"
    yield Drawn(name, seen, caption, figure, subject)


def _costs(made: Tables, trials: tuple[Trial, ...], looked: Looked) -> Iterator[Drawn]:
    for subject in dict.fromkeys(made.costs["subject"]):
        table = having(made.costs, subject=[subject])
        table = pd.DataFrame(table[table["gained"].notna()])
        if len(table) < 2:
            continue
        own = having(made.paired, subject=[subject], arm=table["arm"])
        caption = (
            f"{_setups(trials, own)} Time: geometric mean over queries and runs, without "
            f"training. Accuracy averaged over the rounds after the first query that both have, "
            f"minus that of {REFERENCE} with the same seed: mean and 95% confidence (Student t), "
            f"which goes on beyond a head at the edge"
            f"{_NO_BAND if 1 in set(table['pairs']) else ''}; {seeds(own)}"
        )
        figure = study_pictures.gain(table, caption, looked)
        name, seen = f"{_stem(subject)}-cost", "Query time against accuracy gained"
        yield Drawn(name, seen, caption, figure, subject)


def _measured(subject: str, own: pd.DataFrame, told: str) -> Iterator[Drawn]:
    table = measured(own)
    if single(table):
        listed = ", ".join(dict.fromkeys(map(str, table["measure"])))
        caption = f"{told} {_MEAN} over seeds{_bands(table)}; {seeds(own)}"
        yield Drawn(f"{_stem(subject)}-measures", listed, caption, dots(table, caption), subject)
        return
    for family in families(table):
        part = family.table
        of = f"{family.of}. " if family.of else ""
        caption = f"{told} {of}{_MEAN} over seeds{_bands(part)}; {seeds(own)}"
        listed = list(dict.fromkeys(map(str, part["measure"])))
        axis = str(part["axis"].iloc[0])
        seen = f"{', '.join(listed)}{f' against {axis}' if axis else ''}"
        name = _stem(" ".join([subject, listed[0], family.of]))
        yield Drawn(name, seen, caption, panels(family, caption), subject)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With the column that pictures of strategies read."""
    return table.rename(columns={"arm": "strategy"})


def _bands(table: pd.DataFrame) -> str:
    return _NO_BAND if 1 in set(table["n"]) else ""


def _stem(words: str) -> str:
    """Part of a file's name, in letters that any disk takes."""
    plain = words.replace("×", "x").lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-.") or "study"
