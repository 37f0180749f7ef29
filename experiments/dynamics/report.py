"""Report of a dynamics experiment: tables as CSV, pictures, sentences, one page, one record.

Sentences speak of the first query size asked for. Their thresholds are conventions, stated in
docs/dynamics.md; the numbers stand beside them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.drawing import legend_above, series_style, share_y_limits
from experiments.dynamics.config import FIGURES
from experiments.dynamics.figures import DYNAMICAL, G_MSE, RANDOM, Rows
from experiments.dynamics.run import INITIAL, STATES, TRAINED, DynamicsResult
from kernel.files import write_files
from pipelines.config import identity
from pipelines.core.json_io import write_record
from pipelines.report.drawing import INK, QUIET, SMALL, canvas, finish, frame, label_ticks, png
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
SMALL_MMD = 0.1  # of B, up to which an MMD adds little to it
AGREE = 0.5  # where the interval of τ starts above, two measures rank alike
NEAR = 0.1  # of 1, within which R counts as there
_AT = {INITIAL: "at initialisation", TRAINED: "after training"}
_SETS = {"S": "S", RANDOM: "S with a random query", DYNAMICAL: "S with dynamicAL's query"}
# Columns that hold a value for every query or time, which tables leave out.
_MANY = ("measured", "alignment", "each", "times", "error", "lower", "upper")
_HEIGHT, _TOP = 2.3, 0.62  # inches; the legend is above the titles


def write(result: DynamicsResult) -> None:
    """Write tables, pictures, page and record into the directory, replaced together."""
    folder, task = result.config.run_folder, result.task
    said, written = sentences(result), tables(result)
    files = {}
    for name, rows in written.items():
        files[folder / f"{name}.csv"] = pd.DataFrame(rows).to_csv(index=False).encode()
        files[folder / f"{name}.png"] = png(_PICTURES[name](result, rows))
    write_files(files | {folder / PAGE: _page(result, said, written).encode()})
    content: dict[str, Any] = {
        "format": FORMAT,
        "config": identity(result.config),
        "data": None if task is None else describe(task.dataset),
        "sentences": said,
        "training": result.notes,
        "labelled": None if task is None else task.labelled,
        "candidates": None if task is None else task.candidates,
        "figures": result.states | {"ratio": result.epochs},
        "gamma": None if result.gammas is None else result.gammas.averages,
    }
    write_record(folder / RECORD, content, result.seconds)


def show(result: DynamicsResult, console: Console) -> None:
    """Print tables and sentences, and where the files are."""
    said, shown = sentences(result), tables(result)
    for name in ("mmd", "tau", "ratio", "gamma"):
        if name in shown:
            print_table(console, *_cells(name, shown[name]), _TITLES[name])
    for sentence in said.values():
        console.print(sentence, highlight=False)
    files = ", ".join([PAGE, *(f"{name}.png" for name in shown), RECORD])
    console.print(f"record: {result.config.run_folder} ({files})", highlight=False, soft_wrap=True)


def _page(result: DynamicsResult, said: dict[str, str], written: dict[str, Rows]) -> str:
    """Markdown: for each figure its sentence, its picture and its table."""
    config = result.config
    lines = [
        f"# Training dynamics of {config.network} on {config.dataset}",
        "",
        f"Seed {config.seed}, {config.initial} labels, {config.subset} candidates. What the "
        "figures mean and what they do not is in docs/dynamics.md.",
    ]
    for name, sentence in said.items():
        lines += ["", f"## {_TITLES[name]}", "", sentence]
        if name not in written:
            continue
        lines += ["", f"![{_TITLES[name]}]({name}.png)"]
        if name in _SHOWN:
            lines += ["", *markdown_table(*_cells(name, written[name]))]
        lines += ["", f"All numbers: [{name}.csv]({name}.csv)."]
    return "\n".join(lines) + "\n"


def _cells(name: str, rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table, random queries of one size as their mean."""
    columns = _SHOWN[name]
    if name == "mmd":
        rows = _means(rows, columns)
    header = [column.replace("_", " ") for column in columns]
    return header, [[cell(row[column]) for column in columns] for row in rows]


def _means(rows: Rows, columns: tuple[str, ...]) -> Rows:
    """One row for each network, size and way of choosing."""
    keys = ("network", "queries", "chosen")
    means = []
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        known = dict(zip(keys, group, strict=True))
        own = where(rows, **known)
        values = {name: float(column(own, name).mean()) for name in columns if name not in keys}
        means.append(known | values)
    return means


def cell(value: Any) -> str:
    """A value in a table: three digits of a number, a dash for none."""
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in body]


def print_table(
    console: Console, header: Sequence[str], body: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """A table at the terminal, its columns aligned right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in header:
        table.add_column(name, justify="right")
    for row in body:
        table.add_row(*row)
    console.print(table)


# --- tables


def tables(result: DynamicsResult) -> dict[str, Rows]:
    """The tables of all figures that were measured, by figure; None where there is no number."""
    made = {
        "mmd": [row | {"share": _share(row)} for row in _of_states(result, "mmd")],
        "tau": _of_states(result, "tau"),
        "envelope": _envelope_table(result),
        "ratio": _ratio_table(result),
        "gamma": [] if result.gammas is None else result.gammas.curves,
    }
    return {name: rows for name, rows in made.items() if rows}


def where(rows: Sequence[dict[str, Any]], **wanted: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One column as float64, NaN where there is no number."""
    return np.array([row[name] for row in rows], np.float64)


def distinct(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """The values of a column, each once, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows))


def _share(row: dict[str, Any]) -> float | None:
    return None if row["bound"] is None else row["mmd"] / row["bound"]


def _of_states(result: DynamicsResult, figure: str) -> Rows:
    return [
        {"network": state} | _short(row)
        for state, own in result.states.get(figure, {}).items()
        for row in own
    ]


def _envelope_table(result: DynamicsResult) -> Rows:
    return [
        {"network": state, **_short(row), "time": t, "error": e, "lower": low, "upper": high}
        for state, own in result.states.get("envelope", {}).items()
        for row in own
        for t, e, low, high in zip(
            row["times"], row["error"], row["lower"], row["upper"], strict=True
        )
    ]


def _ratio_table(result: DynamicsResult) -> Rows:
    rows = []
    for epoch, own in result.epochs.items():
        known = {name: own[name] for name in ("train_accuracy", "dynamics", "mean_norm")}
        known |= {"steps": own["training"]["steps"]}
        rows += [{"epoch": epoch, **known, **_short(row)} for row in own["rows"]]
    return rows


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _MANY}


# --- sentences


def sentences(result: DynamicsResult) -> dict[str, str]:
    """One sentence for each figure asked for; a plain one for a figure that was left out."""
    known, said = tables(result), {}
    for figure in FIGURES:
        if figure == "gamma" and figure in result.config.figures:
            said[figure] = _gamma_sentence(result)
        elif figure in result.config.figures:
            said[figure] = _SENTENCES[figure](known[figure])
    if result.task is not None and result.task.dataset.notes:
        said["data"] = " ".join(result.task.dataset.notes)
    if result.notes is not None and not result.notes["fitted"]:
        said["training"] = (
            f"The network has NOT fitted its labels (train accuracy "
            f"{result.notes['train_accuracy']:.2f}): what is said of it after training is of a "
            "network still on its way."
        )
    return said


def _mmd_sentence(rows: Rows) -> str:
    size = rows[0]["queries"]
    own = where(rows, queries=size)
    missing = sum(row["bound"] is None for row in own)
    if missing:
        return (
            f"MMD against B: B does not exist for {missing} of {len(own)} queries of {size}, whose "
            "kernels are singular; another kind of kernel, or float64, may have one."
        )
    told = ", ".join(
        f"{_mean(own, network=state, chosen=DYNAMICAL):.2g} {_AT[state]} (random queries: "
        f"{_mean(own, network=state, chosen=RANDOM):.2g})"
        for state in STATES
    )
    worst = float(column(own, "share").max())
    judged = (
        "small beside B in every case"
        if worst <= SMALL_MMD
        else f"not small beside B everywhere, up to {worst:.2g} of it"
    )
    jittered = sum(row["jitter"] > 0 for row in own)
    caveat = f"; {jittered} of {len(own)} kernels needed jitter, which makes B too small"
    return (
        f"MMD against B: for dynamicAL's query of {size}, MMD as a share of B is {told}: {judged}"
        f"{caveat if jittered else ''}."
    )


def _mean(rows: Rows, **wanted: Any) -> float:
    return float(column(where(rows, **wanted), "share").mean())


def _tau_sentence(rows: Rows) -> str:
    size = rows[0]["queries"]
    parts = []
    for state in STATES:
        (row,) = where(rows, network=state, queries=size, measure=G_MSE)
        if row["tau"] is None:
            parts.append(f"{_AT[state]} one of them is constant")
            continue
        low, high = row["tau_low"], row["tau_high"]
        parts.append(
            f"{_AT[state]} τ = {row['tau']:.2f} (95% interval {low:.2f} to {high:.2f}: "
            f"{_agreement(low, high)})"
        )
    return (
        f"Whether G_MSE and alignment rank {rows[0]['draws']} random queries of {size} alike: "
        f"{', '.join(parts)}."
    )


def _agreement(low: float, high: float) -> str:
    if low > AGREE:
        return "they agree"
    if low > 0:
        return "they agree weakly"
    return "they disagree" if high < 0 else "not shown"


def _envelope_sentence(rows: Rows) -> str:
    parts = []
    for name, words in _SETS.items():
        own = where(rows, network=INITIAL, set=name)
        below = [row["time"] for row in own if row["error"] <= 0.5]
        when = f"{below[0]:.3g}" if below else f"more than {own[-1]['time']:.3g}"
        parts.append(f"{when} for {words}")
    return (
        "Envelope: at initialisation, gradient flow on the kernel would halve the squared error by "
        f"the time {', '.join(parts)} (in units of 1/λ_max of S)."
    )


def _ratio_sentence(rows: Rows) -> str:
    size = rows[0]["queries"]
    epochs = distinct(rows, "epoch")
    parts, near = [], []
    for name, words in ((RANDOM, "the median over random queries"), (DYNAMICAL, "dynamicAL's")):
        medians = [
            float(column(where(rows, queries=size, chosen=name, epoch=epoch), "median")[0])
            for epoch in (min(epochs), max(epochs))
        ]
        parts.append(f"{words} {medians[0]:.2f} and {medians[1]:.2f}")
        near.append(abs(medians[1] - 1) <= NEAR)
    judged = {
        (True, True): "both end near 1",
        (True, False): "only random queries end near 1",
        (False, True): "only dynamicAL's ends near 1",
        (False, False): "neither ends near 1",
    }[near[0], near[1]]
    return (
        f"Approximation ratio R of queries of {size} after {min(epochs)} and {max(epochs)} epochs: "
        f"{', '.join(parts)}: {judged}."
    )


def _gamma_sentence(result: DynamicsResult) -> str:
    if result.gammas is None:
        return (
            "Accuracy by γ is left out: it is read from recorded runs of the strategy dynamical, "
            "and none were given with --runs."
        )
    parts = []
    for row in result.gammas.averages:
        name = RANDOM if row["gamma"] == RANDOM else f"γ = {row['gamma']}"
        ends = "" if row["n"] < 2 else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        parts.append(f"{name} {100 * row['mean']:.1f}%{ends}, n = {row['n']}")
    if not parts:
        return "Accuracy by γ: the runs have no round after their first query yet."
    return (
        "Accuracy by γ, averaged over the rounds after the first query (95% interval over seeds): "
        f"{'; '.join(parts)}."
    )


_SENTENCES: dict[str, Callable[[Rows], str]] = {
    "mmd": _mmd_sentence,
    "tau": _tau_sentence,
    "envelope": _envelope_sentence,
    "ratio": _ratio_sentence,
}


# --- pictures


def _mmd_picture(result: DynamicsResult, rows: Rows) -> Figure:
    """B and MMD by size of query, random queries hollow and dynamicAL's filled."""
    sizes = sorted(distinct(rows, "queries"))
    figure, both = _panels(
        f"MMD(S, S ∪ Q) and B(S ∪ Q), {_about(result)}; kernel {result.config.kind} with a mean "
        f"diagonal of 1. Bars: from the least to the largest of {result.config.repeats} random "
        "queries."
    )
    kinds = [(i, name) for i in (0, 1) for name in (RANDOM, DYNAMICAL)]
    for axes, state in zip(both, STATES, strict=True):
        for what, name in kinds:
            measured = ("bound", "mmd")[what]
            own = [
                column(where(rows, network=state, chosen=name, queries=size), measured)
                for size in sizes
            ]
            x = np.arange(len(sizes)) + (0.12 if name == DYNAMICAL else -0.12)
            low, high = ([end(values) for values in own] for end in (np.min, np.max))
            axes.vlines(x, low, high, color=series_style(what)["color"], linewidth=1.2, zorder=2)
            look = series_style(what, lines=False, hollow=name == RANDOM)
            axes.plot(x, [values.mean() for values in own], zorder=3, **look)
        axes.set_yscale("log")
        _by_size(axes, sizes)
        finish(axes, _AT[state], "size of the query, b", "" if axes is both[1] else "value")
    share_y_limits(both)
    handles = [
        Line2D(
            [],
            [],
            label=f"{('B', 'MMD')[what]}, {'random' if name == RANDOM else 'dynamicAL’s'} query",
            **series_style(what, lines=False, hollow=name == RANDOM),
        )
        for what, name in kinds
    ]
    return legend_above(figure, handles)


def _tau_picture(result: DynamicsResult, rows: Rows) -> Figure:
    """G_MSE against alignment above, Kendall's τ by size of query below."""
    sizes, measures = sorted(distinct(rows, "queries")), distinct(rows, "measure")
    first = result.config.queries[0]
    caption = (
        f"Alignment and G_MSE of S ∪ Q for {result.config.draws} random queries, {_about(result)}; "
        f"kernel {result.config.kind}, true labels. τ-b with 95% bootstrap intervals."
    )
    if len(measures) > 1:
        caption += " G is of the gradients of the loss that the network is trained with."
    figure, axes = canvas(caption, 1.9, shape=(2, 2), gaps=(0.8, 0.75), right=0.15)
    for place, state in enumerate(STATES):
        above, below = axes[place], axes[2 + place]
        (row,) = where(result.states["tau"][state], queries=first, measure=G_MSE)
        above.plot(
            row["alignment"], row["measured"], "o", color=series_style(0)["color"], markersize=2.8
        )
        title = f"{_AT[state]}, b = {first}"
        finish(above, title, "alignment A", "" if place else "G_MSE")
        above.locator_params(nbins=5)
        for axis in (above.xaxis, above.yaxis):
            axis.set_major_formatter(EngFormatter(sep=""))
        for number, measure in enumerate(measures):
            own = [
                row
                for size in sizes
                for row in where(rows, network=state, queries=size)
                if row["measure"] == measure
            ]
            x = np.arange(len(sizes)) + 0.2 * (number - (len(measures) - 1) / 2)
            low, high = column(own, "tau_low"), column(own, "tau_high")
            below.vlines(x, low, high, color=series_style(number)["color"], linewidth=1.4)
            below.plot(x, column(own, "tau"), label=measure, **series_style(number, lines=False))
        below.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        _by_size(below, sizes)
        below.set_ylim(-1.05, 1.05)
        finish(below, "", "size of the query, b", "" if place else "τ with alignment")
    axes[2].legend(loc="lower left", fontsize=SMALL, frameon=False, ncols=2)
    return figure


def _envelope_picture(result: DynamicsResult, rows: Rows) -> Figure:
    """The squared error under gradient flow, and its limits for S alone."""
    figure, both = _panels(
        "Squared error left of labels that gradient flow on the kernel "
        f"({result.config.kind}) fits from zero, as a share of that at the start; "
        f"{_about(result)}, queries of {result.config.queries[0]}. Shaded: the limits for S alone, "
        "from the alignment below and exp(−2λ_min t) above."
    )
    for axes, state in zip(both, STATES, strict=True):
        for number, name in enumerate(("S", RANDOM, DYNAMICAL)):
            own = [row for row in where(rows, network=state, set=name) if row["time"] > 0]
            time = column(own, "time")
            if name == "S":
                ends = column(own, "lower"), column(own, "upper")
                axes.fill_between(time, *ends, color=QUIET, alpha=0.5, linewidth=0)
            axes.plot(time, column(own, "error"), **series_style(number, marked=False))
        axes.set_xscale("log")
        axes.set_ylim(-0.03, 1.03)
        finish(axes, _AT[state], "time × λ_max of S", "" if axes is both[1] else "error left")
    words = ("S alone", "S and a random query", "S and dynamicAL’s query")
    handles = [
        Line2D([], [], label=word, **series_style(i, marked=False)) for i, word in enumerate(words)
    ]
    return legend_above(figure, handles)


def _ratio_picture(result: DynamicsResult, rows: Rows) -> Figure:
    """R by epoch: medians and quartiles of random queries, and dynamicAL's query."""
    figure, both = _panels(
        f"R(Q|S) = summed gains of the images of Q / gain of Q, {_about(result)}, pseudo-labels. "
        f"Left: median and quartiles of {result.config.repeats} random queries. Right: the query "
        "of the b largest gains."
    )
    sizes, epochs = sorted(distinct(rows, "queries")), sorted(distinct(rows, "epoch"))
    for axes, name in zip(both, (RANDOM, DYNAMICAL), strict=True):
        for number, size in enumerate(sizes):
            own = where(rows, chosen=name, queries=size)
            x = column(own, "epoch")
            if name == RANDOM:
                ends = column(own, "lower_quartile"), column(own, "upper_quartile")
                colour = series_style(number)["color"]
                axes.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, column(own, "median"), **series_style(number))
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
        axes.minorticks_off()
        axes.set_xlim(min(epochs) - 0.1, max(epochs) * 1.15 + 0.1)
        title = "random queries" if name == RANDOM else "dynamicAL’s query"
        finish(axes, title, "epochs of training", "" if name == DYNAMICAL else "R")
    # single ratios may be far out: the axis is that of the medians, as far as it goes
    shown = np.clip(np.append(column(rows, "median"), [0.0, 1.2]), -2, 4)
    for axes in both:
        axes.set_ylim(np.nanmin(shown) - 0.1, np.nanmax(shown) + 0.1)
    handles = [
        Line2D([], [], label=f"b = {size}", **series_style(i)) for i, size in enumerate(sizes)
    ]
    return legend_above(figure, handles)


def _gamma_picture(result: DynamicsResult, rows: Rows) -> Figure:
    """Test accuracy by number of labels, a curve for each γ."""
    assert result.gammas is not None
    counts = [row["n"] for row in rows]
    caption = f"{result.gammas.about}. Mean over seeds, n = {min(counts)}"
    caption += f" to {max(counts)}" if max(counts) > min(counts) else ""
    caption += "; shaded: 95% interval." if max(counts) > 1 else "."
    figure, (axes,) = canvas(caption, 2.6, right=0.15, top=_TOP)
    handles = []
    for number, name in enumerate(distinct(rows, "gamma")):
        own = where(rows, gamma=name)
        x = column(own, "labelled")
        mean, low, high = (100 * column(own, end) for end in ("mean", "low", "high"))
        colour = series_style(number)["color"]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        handles += axes.plot(x, mean, **series_style(number))
        handles[-1].set_label(RANDOM if name == RANDOM else f"γ = {name}")
    whole = pd.DataFrame(rows)
    axes.set_ylim(*frame(whole, 100))  # an interval of two seeds may be wider than the figure
    label_ticks(axes, whole, 8)
    finish(axes, "accuracy by γ", "labelled images", "test accuracy, %")
    return legend_above(figure, handles)


def _panels(caption: str) -> tuple[Figure, list[Axes]]:
    """Two axes side by side, with room for a legend above."""
    return canvas(caption, _HEIGHT, shape=(1, 2), right=0.15, top=_TOP)


def _about(result: DynamicsResult) -> str:
    assert result.task is not None
    config = result.config
    name = result.task.dataset.name
    return f"{name}, {config.network}, {config.initial} labels, seed {config.seed}"


def _by_size(axes: Axes, sizes: Sequence[int]) -> None:
    """Sizes of queries side by side."""
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)


_PICTURES: dict[str, Callable[[DynamicsResult, Rows], Figure]] = {
    "mmd": _mmd_picture,
    "tau": _tau_picture,
    "envelope": _envelope_picture,
    "ratio": _ratio_picture,
    "gamma": _gamma_picture,
}
