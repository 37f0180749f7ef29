"""Figures of a study's report, each with a caption of n, seeds and settings.

Each drawing function takes a table of `experiments.statistics` and a caption, so that a figure can
leave the page it came with; `figures` draws all that the records of a study allow.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.drawing import styles
from experiments.report.measures import dots, families, measured, panels, single
from experiments.report.results import Ranking, Results, Statistics, common
from experiments.statistics.curves import REFERENCE, finished, having
from experiments.statistics.ranks import draw
from experiments.studies.study import Trial
from pipelines.report import curves
from pipelines.report import figures as run_figures
from pipelines.report.drawing import (
    INK,
    NORMAL,
    SMALL,
    WIDTH,
    Style,
    canvas,
    finish,
    frame,
    label_ticks,
    line,
    name_curves,
    name_width,
    short,
)
from pipelines.report.page import duration, seed_ranges

_MEAN = "Mean and 95% confidence (Student t)"
_NO_BAND = ", no interval where n = 1"
_ROW, _NUMBERS = 0.235, 1.85  # inches: height of a row of a forest plot, width of its numbers
# Settings in a caption, if all trials share them.
_COUNTS = {
    "initial": "initial labels",
    "query": "a query",
    "budget": "questions one by one",
    "subset": "candidates",
    "cycles": "queries",
    "candidates": "retrained candidates",
    "repeats": "repeats",
    "draws": "random queries",
    "train.epochs": "epochs",
    "train.min_steps": "steps at least",
}

Styles = Callable[[str], Style]


class Drawn(NamedTuple):
    """A figure of a study.

    Attributes:
        name: of its file, without suffix.
        alt: alternative text.
        caption: text below the figure.
        figure: itself.
        task: whose results it shows; empty for the whole study.
    """

    name: str
    alt: str
    caption: str
    figure: Figure
    task: str = ""


def figures(found: Results, made: Statistics) -> list[Drawn]:
    """All figures that the records allow: of the whole study, then task by task."""
    trials = found.planned
    style = styles([*(trial.method for trial in trials), *made.paired["method"]])
    drawn = [*_whole(made, trials, style)]
    answered = finished(found.answers, found.trials)
    for task in dict.fromkeys(trial.task for trial in trials):
        own = having(made.curves, task=[task])
        if len(own):
            methods = set(own["method"])
            setup = settings([t for t in trials if t.task == task and t.method in methods])
            drawn += _of_runs(task, own, setup, style)
            drawn += _of_answers(task, having(answered, task=[task]), own, setup, style)
    drawn += [*_of_costs(made, trials, style)]
    for task in dict.fromkeys(found.measures["task"]):
        setup = settings([trial for trial in trials if trial.task == task])
        drawn += _of_measures(task, having(found.measures, task=[task]), setup)
    return drawn


# Captions


def settings(trials: Sequence[Trial]) -> str:
    """Tasks and settings shared by all of some trials, as a sentence of a caption."""
    shared, tasks = common(trials), dict.fromkeys(trial.task for trial in trials)
    words = []
    if "network" in shared:
        prefix = "network_args."
        arguments = [f"{k.removeprefix(prefix)} {v}" for k, v in shared.items() if prefix in k]
        listed = shared.get("network_args")
        if isinstance(listed, list | tuple):  # of a measurement
            arguments += [str(text).replace("=", " ") for text in listed]
        words.append(" ".join([str(shared["network"]), *arguments]))
    skip = () if shared.get("train.min_steps") else ("train.min_steps",)
    skip += ("query", "cycles") if "budget" in shared else ()
    skip += ("train.epochs", "train.min_steps") if shared.get("train_steps") else ()
    counts = _COUNTS | ({"subset": "reference points"} if "candidates" in shared else {})
    words += [
        f"{shared[key]} {word}"
        for key, word in counts.items()
        if shared.get(key) is not None and key not in skip
    ]
    if shared.get("train_steps"):  # of an audit, instead of epochs
        words.append(f"{' and '.join(map(str, shared['train_steps']))} training steps")
    return f"{'; '.join(tasks)}{': ' if words else ''}{', '.join(words)}."


def _settings(trials: Sequence[Trial], frame: pd.DataFrame) -> str:
    """Settings of the trials of a table whose tasks may be named as by `results.paired`."""
    names = set(frame["task"])
    exact = [trial for trial in trials if trial.task in names]
    return settings(
        exact or [t for t in trials if any(name.startswith(f"{t.task}, ") for name in names)]
    )


def seeds(frame: pd.DataFrame) -> str:
    """N and seeds of the methods in a table: those of most methods, then the exceptions."""
    by_text: dict[str, list[str]] = {}
    for method in dict.fromkeys(frame["method"]):
        mine = having(frame, method=[method])
        listed = sorted(set(mine["seed"]))
        units = len(set(zip(mine["task"], mine["seed"], strict=True)))
        ranges = seed_ranges(" ".join(map(str, listed)))
        text = f"n = {units} (seed{'s' if len(listed) > 1 else ''} {ranges})"
        by_text.setdefault(text, []).append(str(method))
    usual = max(by_text, key=lambda text: len(by_text[text]), default="n = 0")
    others = [f"{', '.join(methods)}: {text}" for text, methods in by_text.items() if text != usual]
    return f"{usual}{' but ' if others else ''}{'; '.join(others)}."


def _bands(table: pd.DataFrame) -> str:
    return _NO_BAND if 1 in set(table["n"]) else ""


def _stem(words: str) -> str:
    """Part of a file's name, in portable characters."""
    plain = words.replace("×", "x").lower()
    return re.sub(r"[^a-z0-9_.]+", "-", plain).strip("-.") or "study"


# Figures of a study


def _whole(made: Statistics, trials: Sequence[Trial], style: Styles) -> Iterator[Drawn]:
    own = made.summary
    own = pd.DataFrame(own[own["pairs"] > 0]) if len(own) else own
    if len(own):
        columns = {"pairs": "n"} | {f"average_gained{end}": name for end, name in _ENDS.items()}
        kept = pd.DataFrame(own, columns=["task", "method", *columns]).rename(columns=columns)
        runs = having(made.paired, task=set(own["task"]))
        caption = (
            f"{_settings(trials, own)} Accuracy averaged over the rounds after the first "
            f"query that both have, minus that of random choice with the same seed: mean and 95% "
            f"confidence (Student t) over n seeds, not corrected for the number of rows; a filled "
            f"marker: the interval leaves out 0; a head at the edge: it goes on. "
            f"Runs: {seeds(runs)}"
        )
        figure = forest(kept, caption, style)
        yield Drawn("differences", "Average accuracy minus random's", caption, figure)
    for number, ranking in enumerate(made.rankings):
        if ranking.friedman is not None:
            yield _of_ranks(
                "ranks" if number == 0 else f"ranks-{number + 1}", ranking, made, trials
            )


def _of_ranks(name: str, ranking: Ranking, made: Statistics, trials: Sequence[Trial]) -> Drawn:
    found = ranking.friedman
    assert found is not None
    own = having(made.curves, task=ranking.tasks, method=ranking.methods)
    kept = [t for t in trials if t.task in ranking.tasks and t.method in ranking.methods]
    caption = (
        f"{settings(kept)} Average ranks, 1 the best, of the accuracy averaged over the rounds "
        f"after the first query that all methods have; {found.unit}, {found.blocks} blocks. "
        f"Friedman p = {found.p:.2g}. Methods that a bar joins are statistically indistinguishable "
        f"(Nemenyi, α = .05, critical difference {found.critical:.2f}). {seeds(own)}"
    )
    margin = 0.75 + name_width([str(name) for name in found.ranks.index])
    height = 0.75 + 0.13 * len(found.ranks)
    figure, (axes,) = canvas(caption, height, left=margin, right=margin, top=0.5)
    draw(axes, found, ranking.pairs)
    inch = 1 / figure.get_size_inches()[1]
    title = {"weight": "bold", "fontsize": NORMAL + 1, "color": INK}
    figure.text(0.02, 1 - 0.26 * inch, "Average ranks", **title)
    return Drawn(name, "Critical-difference diagram of average ranks", caption, figure)


def _of_runs(task: str, own: pd.DataFrame, setup: str, style: Styles) -> Iterator[Drawn]:
    stem, n = _stem(task), seeds(own)
    own = own.rename(columns={"method": "strategy"})
    learning = curves.curve(own)
    over_seeds = f"{_MEAN} over seeds{_bands(learning)}"
    over_seeds = over_seeds if run_figures.banded(learning) else run_figures.UNBANDED
    caption = f"{setup} {over_seeds}; {n}"
    figure = run_figures.accuracy(learning, caption, style)
    alt = "Test accuracy against number of labels"
    yield Drawn(f"{stem}-accuracy", alt, caption, figure, task)
    differences = curves.difference(own)
    if len(differences):
        bands = _bands(differences)
        caption = f"{setup} {_MEAN} of differences of the same seed{bands}; {n}"
        figure = run_figures.difference(differences, caption, style)
        alt = "Accuracy minus random's against number of labels"
        yield Drawn(f"{stem}-difference", alt, caption, figure, task)
    seconds = curves.query_seconds(own)
    if seconds.size and bool((seconds.sum(axis="columns") > 0).any()):
        hosts = sorted(set(own["host"]))
        where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} machines"
        medians = "Medians over seeds and rounds, without training and evaluation"
        caption = f"{setup} {medians}, on {where}; {n}"
        figure = run_figures.query_time(seconds, caption)
        yield Drawn(f"{stem}-time", "Seconds of a query by stage", caption, figure, task)


def _of_answers(
    task: str, answered: pd.DataFrame, own: pd.DataFrame, setup: str, style: Styles
) -> Iterator[Drawn]:
    if answered.empty:
        return
    caption = (
        f"{setup} Lines and bands: the linearised network after each answer, absorbed without "
        f"training; markers: networks trained by SGD; lines between markers: methods that ask in "
        f"batches. {_MEAN} over seeds; {seeds(own)}"
    )
    linearised, trained = (
        curves.curve(table.rename(columns={"method": "strategy"})) for table in (answered, own)
    )
    figure = answers(linearised, trained, caption, style)
    alt = "Accuracy after each answer"
    yield Drawn(f"{_stem(task)}-answers", alt, caption, figure, task)


def _of_costs(made: Statistics, trials: Sequence[Trial], style: Styles) -> Iterator[Drawn]:
    for task in dict.fromkeys(made.costs["task"]):
        table = having(made.costs, task=[task])
        table = pd.DataFrame(table[table["gained"].notna()])
        if len(table) < 2:
            continue
        own = having(made.paired, task=[task], method=table["method"])
        caption = (
            f"{_settings(trials, own)} Time: geometric mean over queries and runs, without "
            f"training. Accuracy averaged over the rounds after the first query that both have, "
            f"minus that of {REFERENCE} with the same seed: mean and 95% confidence (Student t), "
            f"which goes on beyond a head at the edge"
            f"{_NO_BAND if 1 in set(table['pairs']) else ''}; {seeds(own)}"
        )
        figure = gain(table, caption, style)
        alt = "Query time against accuracy gained"
        yield Drawn(f"{_stem(task)}-cost", alt, caption, figure, task)


def _of_measures(task: str, own: pd.DataFrame, setup: str) -> Iterator[Drawn]:
    table = measured(own)
    if single(table):
        listed = ", ".join(dict.fromkeys(map(str, table["measure"])))
        caption = f"{setup} {_MEAN} over seeds{_bands(table)}; {seeds(own)}"
        yield Drawn(f"{_stem(task)}-measures", listed, caption, dots(table, caption), task)
        return
    for family in families(table):
        part = family.table
        of = f"{family.of}. " if family.of else ""
        caption = f"{setup} {of}{_MEAN} over seeds{_bands(part)}; {seeds(own)}"
        names = list(dict.fromkeys(map(str, part["measure"])))
        axis = str(part["axis"].iloc[0])
        alt = f"{', '.join(names)}{f' against {axis}' if axis else ''}"
        name = _stem(" ".join([task, names[0], family.of]))
        yield Drawn(name, alt, caption, panels(family, caption), task)


# Drawing

_ENDS = {"": "mean", "_low": "low", "_high": "high"}


def forest(table: pd.DataFrame, caption: str, style: Styles) -> Figure:
    """Forest plot of differences from random, with their intervals and numbers.

    Args:
        table: task, method, n, mean, low, high (fractions). A marker is filled where the interval
            excludes 0; an arrowhead at the edge of the figure marks an interval that is cut there.
        caption: text below the figure.
        style: of each method.
    """
    tasks = list(dict.fromkeys(table["task"]))
    rows = len(table) + len(tasks)
    names = [str(name) for name in table["method"]]
    left = 0.35 + max(name_width(names), 0.6)
    figure, (axes,) = canvas(caption, _ROW * rows + 0.1, left=left, right=_NUMBERS, top=0.46)
    axes.axvline(0, color=style("random").colour, linewidth=1.2, zorder=1)
    axes.set_xlim(*frame(table, 100.0, include=[0.0]))
    across = axes.get_yaxis_transform()
    heading: dict[str, Any] = {"fontsize": SMALL + 0.5, "weight": "bold", "va": "center"}
    heading |= {"color": INK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
    start = (0.13 - left) / (WIDTH - left - _NUMBERS)  # the edge of the figure
    y, ticks = 0, []
    for task in tasks:
        axes.text(start, y, task, transform=across, parse_math=False, **heading)
        for row in having(table, task=[task]).to_dict("records"):
            y += 1
            mean, low, high = (100 * row[name] for name in _ENDS.values())
            colour, marker, _ = style(row["method"])
            known = np.isfinite(low)
            if known:
                axes.plot([low, high], [y, y], color=colour, linewidth=1.8, zorder=2)
                for end, head in _cut(low, high, axes.get_xlim(), "<>"):
                    axes.plot(end, y, head, color=colour, markersize=5, clip_on=False, zorder=2)
            face = colour if known and (low > 0 or high < 0) else "white"
            axes.plot(mean, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
            interval = f" ({low:+.1f} to {high:+.1f})" if known else ""
            numbers = f"{mean:+.1f}{interval}, n = {row['n']}".replace("-", "−")
            font = {"va": "center", "fontsize": SMALL, "color": INK}
            axes.text(1.025, y, numbers, transform=across, **font)
            ticks.append(y)
        y += 1
    axes.set_ylim(y - 0.4, -0.6)
    title = "Difference from random, same seed"
    finish(axes, title, "Test accuracy minus random's (points)", "")
    axes.set_yticks(ticks, [short(name) for name in names], parse_math=False)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


def _cut(low: float, high: float, limits: tuple[float, float], heads: str) -> list:
    """The limits that an interval crosses, each with its arrowhead."""
    ends = zip(limits, heads, (low < limits[0], high > limits[1]), strict=True)
    return [(edge, head) for edge, head, beyond in ends if beyond]


def gain(table: pd.DataFrame, caption: str, style: Styles) -> Figure:
    """Seconds of a query against the accuracy that it gains.

    Args:
        table: method, seconds (of a query), gained, gained_low, gained_high (fractions); the
            reference gains 0. An arrowhead marks an interval that is cut at the edge.
        caption: text below the figure.
        style: of each method.
    """
    names = [str(name) for name in table["method"]]
    figure, (axes,) = canvas(caption, 3.5, right=0.5 + name_width(names))
    shown = table.rename(columns={f"gained{end}": name for end, name in _ENDS.items()})
    axes.set_xscale("log")
    axes.set_ylim(*frame(shown, 100.0, include=[0.0]))
    axes.axhline(0, color=style("random").colour, linewidth=1.2, zorder=1)
    handles = []
    for row in shown.sort_values("mean", ascending=False, kind="stable").to_dict("records"):
        x, (mean, low, high) = row["seconds"], (100 * row[name] for name in _ENDS.values())
        colour, marker, _ = style(row["method"])
        axes.plot(x, mean, marker, color=colour, markersize=7, zorder=3)
        if np.isfinite(low):
            axes.plot([x, x], [low, high], color=colour, linewidth=1.3, zorder=2)
            for end, head in _cut(low, high, axes.get_ylim(), "v^"):
                axes.plot(x, end, head, color=colour, markersize=5, clip_on=False, zorder=2)
        label = short(str(row["method"]))
        handles.append(Line2D([], [], label=label, marker=marker, color=colour, linestyle=""))
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=SMALL,
        handletextpad=0.2,
    )
    seconds = table["seconds"].to_numpy(dtype=float)
    axes.set_xlim(seconds.min() / 1.7, seconds.max() * 1.7)
    title = "What a query costs, and what it gains"
    finish(axes, title, "Time of one query", "Accuracy minus random's (points)")
    ratio = seconds.max() / seconds.min()
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 3.0) if ratio < 1e3 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def answers(linearised: pd.DataFrame, trained: pd.DataFrame, caption: str, style: Styles) -> Figure:
    """Accuracy of the linearised network after each answer, and of the trained ones.

    Args:
        linearised: strategy (the method), labelled, mean, low, high, after each answer.
        trained: the same after each training, also of methods that query batches.
        caption: text below the figure.
        style: of each method.
    """
    names = [str(name) for name in dict.fromkeys(trained["strategy"])]
    figure, (axes,) = canvas(caption, 3.6, right=0.62 + name_width(names))
    sequential = set(linearised["strategy"])
    for name in dict.fromkeys(linearised["strategy"]):
        own = having(linearised, strategy=[name])
        columns = ("labelled", *_ENDS.values())
        x, mean, low, high = (own[column].to_numpy(dtype=float) for column in columns)
        colour = style(str(name)).colour
        axes.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.07, linewidth=0)
        axes.plot(x, 100 * mean, color=colour, linewidth=1.3, zorder=3)
    for name in names:  # between the trainings of a sequential method runs the curve of its answers
        own = style(name)._replace(dash="") if name in sequential else style(name)
        line(axes, trained, name, 100.0, 0.0, 5.5, lambda _, own=own: own)
    axes.set_ylim(*frame(pd.concat([linearised, trained]), 100.0))
    label_ticks(axes, trained, 8)
    finish(axes, "One label at a time", "Number of labels", "Test accuracy (%)")
    name_curves(axes, trained, 100.0, 3.6, style)
    return figure
