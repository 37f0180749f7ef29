"""Pages of a study's report: verdicts, tables and figures, as HTML and as Markdown.

Both are templates filled with the same values. Accuracies are shown in percent and differences in
points, each with its 95% interval.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.report.figures import Drawn
from experiments.report.measures import measured
from experiments.report.results import Ranking, Results, Statistics, common
from experiments.statistics.claims import NOT_REPRODUCED, REPRODUCED, Judgement, number
from experiments.statistics.curves import having
from pipelines.report.page import Table, duration, render, seed_ranges

_TEMPLATES = Path(__file__).parent / "templates"
_MARKS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗"}
_UNFINISHED = {
    "failed": "failed and stand below with their messages",
    "begun": "are begun and not done; their rounds are in no table or figure",
    "absent": "are not begun",
}

Row = Mapping[str, Any]


def page(
    template: str,
    found: Results,
    made: Statistics,
    figures: Sequence[tuple[Drawn, bytes]],
) -> str:
    """A whole page.

    Args:
        template: study.html, which embeds its figures, or study.md, which refers to them.
        found: the records.
        made: their statistics.
        figures: each with its PNG.
    """
    frames = (made.summary, found.measures)
    tasks = [name for frame in frames if len(frame) for name in frame["task"]]
    tasks += [drawn.task for drawn, _ in figures if drawn.task]
    text = render(
        template,
        _TEMPLATES,
        title=f"{found.study.title}: what the runs say",
        study=found.study,
        size=found.size,
        done=_done(found.trials),
        missing=missing(found),
        verdicts=verdicts(made.judgements),
        sentences=[one.sentence for one in made.judgements],
        figures=figures,
        rankings=[("; ".join(r.tasks), _ranks(r), _pairs(r)) for r in made.rankings],
        tasks=[_task(name, found, made) for name in dict.fromkeys(tasks)],
        differing=_differing(found),
        shared=[
            (task, Table(("setting", "value"), list(common(trials).items())))
            for task, trials in _by_task(found).items()
        ],
        failed=_table(
            having(found.trials, state=["failed"]),
            {name: name for name in ("task", "method", "seed", "message")} | {"record": "path"},
        ),
        trials=_table(
            found.trials,
            {name: name for name in ("task", "method", "seed", "state")}
            | {
                "rounds": lambda row: (
                    "—" if pd.isna(row["of_rounds"]) else f"{row['rounds']} of {row['of_rounds']:g}"
                ),
                "record": lambda row: str(row["path"]) or "—",
            },
        ),
    )
    return text.strip() + "\n"


def summary_page(reports: Sequence[tuple[Any, Sequence[Judgement]]], size: str, absent) -> str:
    """The Markdown page of the verdicts on several studies.

    Args:
        reports: studies and their judgements.
        size: small or paper.
        absent: names of the studies without trials on record.
    """
    rows = []
    for study, judgements in reports:
        named = [f"[{study.name}]({study.name}/report.md)", study.source]
        judged = verdicts(judgements).rows
        rows += [[*(named if not n else ["", ""]), *row] for n, row in enumerate(judged)]
    table = Table(["study", "of", *verdicts(()).header], rows)
    return render(
        "verdicts.md", _TEMPLATES, table=table, studies=len(reports), size=size, absent=absent
    )


def _done(trials: pd.DataFrame) -> str:
    seeds, done = len(set(trials["seed"])), len(having(trials, state=["done"]))
    return f"{done} of {len(trials)} trials done, {seeds} seed{'s' if seeds > 1 else ''} planned"


def missing(found: Results) -> list[str]:
    """Trials that are not done and trainings that were not fitted, in sentences."""
    sentences = []
    for state, words in _UNFINISHED.items():
        rows = having(found.trials, state=[state])
        if len(rows):
            listed = "; ".join(_seeds(rows))
            sentences.append(f"{len(rows)} of {len(found.trials)} trials {words}: {listed}.")
    unfitted = having(found.curves, fitted=[False])
    if len(unfitted):
        methods = ", ".join(
            f"{method} {len(having(unfitted, method=[method]))}"
            for method in dict.fromkeys(unfitted["method"])
        )
        sentences.append(
            f"{len(unfitted)} of {len(found.curves)} trainings did not reach their labels "
            f"({methods}); they are in all tables and figures."
        )
    return sentences


def _seeds(rows: pd.DataFrame) -> Iterator[str]:
    """Task by task, each method with its seeds."""
    for task in dict.fromkeys(rows["task"]):
        own = having(rows, task=[task])
        methods = [
            f"{method} ({seed_ranges(' '.join(map(str, having(own, method=[method])['seed'])))})"
            for method in dict.fromkeys(own["method"])
        ]
        yield f"{task}, seeds of {', '.join(methods)}"


def _by_task(found: Results) -> dict[str, list[Any]]:
    trials: dict[str, list[Any]] = {}
    for trial in found.planned:
        trials.setdefault(trial.task, []).append(trial)
    return trials


def _differing(found: Results) -> Table:
    """Settings of each method that not all trials of its task share."""
    rows = []
    for task, trials in _by_task(found).items():
        shared = common(trials)
        for method in dict.fromkeys(trial.method for trial in trials):
            own = common(trial for trial in trials if trial.method == method)
            words = [f"{key} = {value}" for key, value in own.items() if key not in shared]
            rows.append((task, method, ", ".join(words) or "as the others"))
    return Table(("task", "method", "its own settings"), rows)


# Tables as text


def _table(frame: pd.DataFrame, columns: Mapping[str, str | Callable[[Row], str]]) -> Table:
    """A table from columns of a frame, or functions of its rows, by heading."""
    rows = [
        [str(row[cell]) if isinstance(cell, str) else cell(row) for cell in columns.values()]
        for row in frame.to_dict("records")
    ]
    return Table(list(columns), rows)


def _task(name: str, found: Results, made: Statistics) -> dict[str, Any]:
    """The tables of one task, those without rows included."""
    frames = (made.summary, made.saving, made.costs, made.models, found.measures)
    summary, saving, costs, models, measures = (
        having(frame, task=[name]) if len(frame) else frame for frame in frames
    )
    return {
        "name": name,
        "accuracies": _table(summary, _ACCURACIES),
        "savings": _table(saving, _SAVINGS),
        "costs": _table(costs, _COSTS),
        "models": _table(models, _MODELS),
        "measured": _measured(measures),
    }


def verdicts(judgements: Sequence[Judgement]) -> Table:
    """Claims and their verdicts."""
    header = ["what the paper says", "verdict", "effect, 95% interval", "n", "p", "p (Holm)"]
    rows = [
        [
            one.claim,
            f"{_MARKS.get(one.verdict, '?')} {one.verdict}",
            _effect(one),
            str(one.n),
            p_value(one.p),
            p_value(one.p_holm),
        ]
        for one in judgements
    ]
    return Table(header, rows)


def _effect(one: Judgement) -> str:
    if math.isnan(one.effect):
        return "—"
    mean, low, high = (number(value, one.scale) for value in (one.effect, one.low, one.high))
    ends = "" if math.isnan(one.low) else f" ({low} to {high})"
    return f"{mean}{ends} {one.scale}".strip().replace("-", "−")


def _ranks(ranking: Ranking) -> str:
    """Friedman's test in a sentence, or why there is none."""
    found = ranking.friedman
    if found is None:
        return ranking.why
    ranks = ", ".join(f"{method} {rank:.2f}" for method, rank in found.ranks.items())
    dropped = f", {found.dropped} more left out that lack a method" if found.dropped else ""
    p, f_p = (
        f"p {text}" if text.startswith("<") else f"p = {text}"
        for text in map(p_value, (found.p, found.f_p))
    )
    return (
        f"Friedman's test over {found.blocks} blocks ({found.unit}{dropped}): "
        f"χ²({len(found.ranks) - 1}) = {found.chi2:.2f}, {p}; Iman and Davenport's "
        f"F = {found.f:.2f}, {f_p}. Average ranks: {ranks}; critical difference "
        f"(Nemenyi, α = .05) {found.critical:.2f}."
    )


def _pairs(ranking: Ranking) -> Table:
    columns = {
        "method − other": lambda row: f"{row['method']} − {row['other']}",
        "n": "n",
        "difference, points": lambda row: percent(row, "mean", ("low", "high"), "+"),
        "p": lambda row: p_value(row["p"]),
        "p (Holm)": lambda row: p_value(row["p_holm"]),
        "p (Nemenyi)": lambda row: p_value(row["p_nemenyi"]),
    }
    return _table(ranking.pairs, columns)


def _measured(measures: pd.DataFrame) -> Table:
    table = measured(measures)
    axes = [axis for axis in dict.fromkeys(table["axis"]) if axis]
    columns = {"quantity": "measure", "of": "line"}
    columns |= {"network": "state"} if any(table["state"]) else {}
    columns |= {
        " or ".join(axes) or "x": lambda row: "—" if pd.isna(row["x"]) else f"{row['x']:g}",
        "n": "n",
        "mean": lambda row: f"{row['mean']:.4g}",
        "95% interval": lambda row: (
            "—" if pd.isna(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}"
        ),
    }
    return _table(table, columns)


def percent(row: Row, name: str, ends: tuple[str, str] | None = None, sign: str = "-") -> str:
    """A fraction in percent with its interval; "—" for NaN."""
    low, high = ends or (f"{name}_low", f"{name}_high")
    if pd.isna(row[name]):
        return "—"
    text = f"{100 * row[name]:{sign}.2f}"
    if not pd.isna(row[low]):
        text += f" ({100 * row[low]:{sign}.2f} to {100 * row[high]:{sign}.2f})"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """Two significant digits, at least .0001."""
    return "—" if pd.isna(p) else "< .0001" if p < 1e-4 else f"{p:.2g}".removeprefix("0")


def _count(value: float) -> str:
    return "—" if pd.isna(value) else f"{value:.0f}".replace("-", "−")


_ACCURACIES: dict[str, str | Callable[[Row], str]] = {
    "method": "method",
    "n": "n",
    "seeds": lambda row: seed_ranges(row["seeds"]),
    "labels": lambda row: f"{row['labels']:g}",
    "final": lambda row: percent(row, "final"),
    "average": lambda row: percent(row, "average"),
    "area under the curve": lambda row: percent(row, "area"),
    "final − random": lambda row: percent(row, "final_gained", sign="+"),
    "average − random": lambda row: percent(row, "average_gained", sign="+"),
    "p": lambda row: p_value(row["average_gained_p"]),
    "p (Holm)": lambda row: p_value(row["average_gained_holm"]),
    "better in": lambda row: f"{row['better']} of {row['pairs']}" if row["pairs"] else "—",
}
_SAVINGS: dict[str, str | Callable[[Row], str]] = {
    "method": "method",
    "n": "n",
    "reached it": lambda row: f"{row['reached']} of {row['n']}",
    "labels saved, median": lambda row: (
        _count(row["median"]) + (f" ({100 * row['share']:.0f}%)" if row["share"] > 0 else "")
    ),
    "95% interval": lambda row: (
        "—" if math.isnan(row["low"]) else f"{_count(row['low'])} to {_count(row['high'])}"
    ),
    "random needs": lambda row: _count(row["reference_labels"]),
}
_COSTS: dict[str, str | Callable[[Row], str]] = {
    "method": "method",
    "queries": "queries",
    "time of one": lambda row: duration(row["seconds"]),
    "95% interval": lambda row: (
        "—"
        if math.isnan(row["seconds_low"])
        else f"{duration(row['seconds_low'])} to {duration(row['seconds_high'])}"
    ),
    "median": lambda row: duration(row["median_seconds"]),
    "average − random": lambda row: percent(row, "gained", sign="+") if row["pairs"] else "—",
}
_MODELS: dict[str, str | Callable[[Row], str]] = {
    "method": "method",
    "labels": lambda row: f"{row['labelled']:g}",
    "n": "n",
    "its own model": lambda row: percent(row, "own"),
    "its network": lambda row: percent(row, "network"),
    "own − network": lambda row: percent(row, "gained", sign="+"),
}
