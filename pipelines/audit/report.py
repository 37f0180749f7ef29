"""Report of an audit: a table at the terminal and as CSV, a picture, a sentence, a record."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from kernel.files import write_files
from pipelines.audit import comparison
from pipelines.audit.comparison import (
    FOLLOW,
    NO,
    NO_KERNEL,
    PARTLY,
    REFERENCES,
    UNDECIDED,
    UNKNOWABLE,
    WEAK,
    Interval,
    Row,
)
from pipelines.audit.run import Audit, AuditedNetwork
from pipelines.config import identity
from pipelines.core.json_io import write_record
from pipelines.report.drawing import INK, QUIET, SMALL, WIDTH, finish, png
from pipelines.run import describe

FORMAT = 1
RECORD, TABLE, PICTURE = "audit.json", "table.csv", "audit.png"
_COLUMNS = ("Spearman", "ceiling", "error", "cosine", "size", "by point")
_WIDEST = 160  # characters; a table takes what it needs
_BY_CANDIDATE = ("scores", "errors", "cosines", "point_errors")
_ADVICE = {
    FOLLOW: "Follow the look-ahead's ranking here",
    PARTLY: "Follow the look-ahead's ranking here in part",
    WEAK: "Expect little of the look-ahead's ranking here",
    NO: "Do not follow the look-ahead's ranking here",
    UNDECIDED: "Whether to follow the look-ahead's ranking here is undecided",
    UNKNOWABLE: "Rely on no look-ahead here, for retraining is not shown to repeat itself",
}
_COLOURS = {"network": "#0072b2", "linearised": "#d55e00"}
_MARKERS = {"network": "o", "linearised": "s"}
_LINE, _SCATTER, _TOP, _BOTTOM, _LEFT = 0.34, 2.7, 0.4, 0.62, 1.75  # inches
_LEGEND = 0.3  # inches
_APART = 0.17  # of a line, between the two references
_CORRELATION = "Spearman with real MLMOC"


def conclusion(audit: Audit) -> str:
    """How far to trust the look-ahead here, in one sentence."""
    row, config = audit.headline, audit.config
    words = [row.kind, *([] if row.sketch is None else [f"sketch {row.sketch}"])]
    words.append(f"reference {row.reference}")
    name = audit.networks[0].task.describe(config.width_argument)
    if name:
        words.append(name)
    caveats = list(_caveats(audit))
    return sentence(
        row.trust,
        ", ".join(words),
        row.spearman,
        len(row.scores),
        row.agreeing,
        row.ceiling,
        caveats,
    )


def _caveats(audit: Audit) -> Iterator[str]:
    """Clauses that a user should not miss."""
    row, train = audit.headline, audit.networks[0].task.run.train
    yield from (note.rstrip(".") for note in audit.networks[0].task.dataset.notes)
    if not row.fitted:
        accuracy = audit.networks[0].notes["train_accuracy"]
        yield (
            f"the network has NOT fitted its labels (train accuracy {accuracy:.2f}, residual "
            f"{row.residual:.2f}), so that scores are those of the drift: train longer first"
        )
    if train.loss != "l2":
        yield f"look-ahead is for the loss l2 and this network is trained with {train.loss}"
    if row.gain is None or not math.isfinite(row.gain.value):
        return
    baseline = row.spearman.value - row.gain.value
    if not row.gain.low > 0:
        how = "does better" if row.gain.high < 0 else "is not shown to be worse"
        yield (
            f"a score without any kernel, ‖onehot(ŷ) − f‖, {how} (Spearman {baseline:.2f}; "
            f"difference {row.gain.value:+.2f}, 95% interval {row.gain.low:+.2f} to "
            f"{row.gain.high:+.2f})"
        )


def sentence(
    level: str,
    what: str,
    correlation: Interval,
    candidates: int,
    agreeing: Interval | None,
    ceiling: Interval | None,
    caveats: Sequence[str] = (),
) -> str:
    """How far to trust the look-ahead, in one sentence ending with the caveats.

    `what` names the prediction; the numbers are those of `comparison.trust`.
    """
    if correlation.value != correlation.value:
        measured = (
            f"MLMOC ({what}) and real retraining cannot be ranked against each other, for one of "
            f"them is the same for all {candidates} candidates"
        )
    else:
        measured = (
            f"MLMOC ({what}) and real retraining rank {candidates} candidates with a Spearman of "
            f"{_shown(correlation)}"
        )
    if agreeing is None or ceiling is None:
        limit = "and without repeats the most that is possible is not known"
    elif agreeing.value != agreeing.value:
        limit = (
            "and whether two retrainings agree is undetermined, for the change of one of them is "
            "the same for all"
        )
    elif not agreeing.low > 0:
        limit = f"and two retrainings with the same candidates agree with {_shown(agreeing)}"
    else:
        limit = (
            f"where no predictor can be expected above {_shown(ceiling)}, for two retrainings "
            f"with the same candidates agree with {agreeing.value:.2f}"
        )
    more = "" if level not in (UNDECIDED, UNKNOWABLE) else "; more --candidates narrow the interval"
    return f"{_ADVICE[level]}: {measured}, {limit}{more}{''.join(f'; {c}' for c in caveats)}."


def _shown(interval: Interval) -> str:
    return f"{interval.value:.2f} (95% interval {interval.low:.2f} to {interval.high:.2f})"


def frame(audit: Audit) -> pd.DataFrame:
    """The table with all its columns; NaN where a number does not exist."""
    lines = []
    for row in audit.rows:
        values = {k: v for k, v in row._asdict().items() if k not in _BY_CANDIDATE}
        for name in ("spearman", "agreeing", "ceiling", "gain"):
            interval = values.pop(name) or Interval(math.nan, math.nan, math.nan)
            values |= {name: interval.value, f"{name}_low": interval.low}
            values[f"{name}_high"] = interval.high
        lines.append(values)
    return pd.DataFrame(lines)


def write(audit: Audit) -> None:
    """Table, picture and record into the directory of the audit, each whole or not at all."""
    folder = audit.config.run_folder
    table = frame(audit).to_csv(index=False).encode()
    write_files({folder / TABLE: table, folder / PICTURE: picture(audit)})
    content = {
        "format": FORMAT,
        "config": identity(audit.config),
        "data": describe(audit.networks[0].task.dataset),
        "data_notes": audit.networks[0].task.dataset.notes,
        "sentence": conclusion(audit),
        "networks": [_network(network) for network in audit.networks],
    }
    write_record(folder / RECORD, content, audit.seconds)


def _network(network: AuditedNetwork) -> dict[str, Any]:
    task, real = network.task, network.real
    controls, before = real.controls, network.before
    return {
        "network": task.run.network,
        "network_args": task.run.network_arguments,
        "width": task.width,
        "steps": task.steps,
        "trainings": task.folder.name,
        "training": network.notes,
        "retrainings_fitted": real.fitted,
        "certificate": network.certificate,
        "left_out": network.left_out,
        "points": task.points,
        "candidates": task.candidates,
        "pseudo_labels": before[task.positions].argmax(axis=1),
        "true_labels": task.dataset.train_labels[task.candidates],
        "control_change": comparison.change(controls - before),
        "control_floor": comparison.floor(controls),
        "real": {
            reference: {
                "mlmoc": change.scores,
                "mlmoc_by_repeat": change.by_repeat,
                "agreeing": change.agreeing,
                "ceiling": change.ceiling,
                "cosine_between_repeats": change.likeness,
                "cosine_ceiling": change.field_ceiling,
            }
            for reference, change in network.changes.items()
        },
        "rows": [row._asdict() for row in network.rows],
    }


def show(audit: Audit, console: Console) -> None:
    """Table and sentence, and where the files are."""
    if not console.quiet:  # a console of its own, for a table is not cut to the window
        Console(file=console.file, width=max(console.width, _WIDEST)).print(_table(audit))
    for line in (*_changes(audit), conclusion(audit)):
        console.print(line, highlight=False)
    folder = audit.config.run_folder
    console.print(
        f"record: {folder} ({TABLE}, {PICTURE}, {RECORD})", highlight=False, soft_wrap=True
    )


def _table(audit: Audit) -> Table:
    """The columns that a person reads first; a section for each network and reference."""
    config = audit.config
    axes = [config.width_argument] * bool(config.widths) + ["steps"] * bool(config.train_steps)
    sketched = config.sketches != (None,)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in axes:
        table.add_column(name, justify="right")
    table.add_column("kernel")
    for name in ["sketch"] * sketched + list(_COLUMNS):
        table.add_column(name, justify="right")
    table.add_column("trust")
    last = None
    for row in audit.rows:
        group = (row.width, row.steps, row.reference)
        own = [str(row.width)] * bool(config.widths) + [str(row.steps)] * bool(config.train_steps)
        if last != group:
            table.add_section()
            table.add_row(*[""] * len(axes), f"[bold]{row.reference}[/bold]")
        last = group
        sketch = ["whole" if row.sketch is None else str(row.sketch)] * sketched
        table.add_row(*own, row.kind, *sketch, *_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    return [
        _interval(row.spearman),
        _interval(row.ceiling),
        _number(row.error),
        _number(row.cosine),
        _number(row.size),
        _number(row.point_error),
        row.trust if row.kind != NO_KERNEL else "–",
    ]


def _interval(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.value):
        return "–"
    return f"{interval.value:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _changes(audit: Audit) -> Iterator[str]:
    """The effect of training alone on each network, and the kernels left out."""
    for network in audit.networks:
        more = comparison.change(network.real.controls - network.before).mean()
        name = network.task.describe(audit.config.width_argument)
        added = comparison.median(network.changes["linearised"].by_repeat)
        fitted = "fitted" if network.notes["fitted"] else "NOT fitted"
        yield (
            f"{f'{name}: ' if name else ''}labels {fitted}, residual "
            f"{network.notes['residual_rms']:.3f}. Change summed over "
            f"{len(network.task.points)} points: {more:.1f} by training on without a new label, "
            f"{comparison.floor(network.real.controls):.1f} between two such trainings, "
            f"{added:.1f} between training on with a candidate and without."
        )
        for reason in network.left_out:
            yield f"left out: {reason}"


def picture(audit: Audit) -> bytes:
    """PNG: predicted against real MLMOC of the first network, and correlations of every row."""
    lines = [
        (network, row)
        for network in audit.networks
        for row in network.rows
        if row.reference == REFERENCES[0]
    ]
    height = max(_LINE * len(lines), 1.0)
    total = _SCATTER + height + 2 * (_TOP + _BOTTOM) + _LEGEND
    figure = Figure(figsize=(WIDTH, total), facecolor="white")
    top = total - _TOP - _SCATTER
    width = (WIDTH - 0.72 - 0.9 - 0.25) / 2
    for number, reference in enumerate(REFERENCES):
        x = 0.72 + number * (width + 0.9)
        _scatter(_axes(figure, x, top, width, _SCATTER), audit, reference)
    top -= _BOTTOM + _TOP + height
    axes = _axes(figure, _LEFT, top, WIDTH - _LEFT - 0.25, height)
    _intervals(axes, audit, lines)
    finish(axes, "by kernel" + " and network" * (len(audit.networks) > 1), _CORRELATION, "")
    below = (0, -_BOTTOM / height)
    axes.legend(loc="upper left", bbox_to_anchor=below, ncols=3, fontsize=SMALL, frameon=False)
    return png(figure)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes by inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def _scatter(axes: Axes, audit: Audit, reference: str) -> None:
    """Predicted against real MLMOC of the conclusion's kernel, and the diagonal."""
    network = audit.networks[0]
    row = _under(reference, audit.headline, network.rows)
    change = network.changes[reference]
    ends = np.concatenate([change.by_repeat, change.scores[None]])
    axes.vlines(row.scores, ends.min(axis=0), ends.max(axis=0), color=QUIET, linewidth=1, zorder=1)
    colour, marker = _COLOURS[reference], _MARKERS[reference]
    axes.plot(row.scores, change.scores, marker, color=colour, markersize=4, zorder=3)
    axes.set_xlim(*_limits(row.scores))
    axes.set_ylim(*_limits(ends))
    axes.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=":", zorder=2)
    shown = "–" if not math.isfinite(row.spearman.value) else f"{row.spearman.value:.2f}"
    finish(
        axes,
        f"{reference}: Spearman {shown}",
        f"predicted MLMOC ({_name(row)})",
        "real (bars: repeats)" if change.agreeing else "real",
    )


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Ends of an axis that shows the values; the diagonal is drawn where it passes."""
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _intervals(axes: Axes, audit: Audit, lines: Sequence[tuple[AuditedNetwork, Row]]) -> None:
    """The intervals of both references of each row, and ticks at their ceilings."""
    names = []
    for line, (network, row) in enumerate(lines):
        of = network.task.describe(audit.config.width_argument)
        names.append(", ".join([*([of] if of else []), _name(row)]))
        for number, reference in enumerate(REFERENCES):
            y = line + (2 * number - 1) * _APART
            colour, marker = _COLOURS[reference], _MARKERS[reference]
            label = f"reference {reference}" if line == 0 else None
            interval = _under(reference, row, network.rows).spearman
            axes.hlines(y, interval.low, interval.high, color=colour, linewidth=1.4, zorder=2)
            axes.plot(interval.value, y, marker, color=colour, markersize=5, zorder=3, label=label)
            change = network.changes[reference]
            if change.ceiling is None or change.agreeing is None or not change.agreeing.low > 0:
                continue  # not known, or not known to be above 0
            axes.plot(change.ceiling.value, y, "|", color=INK, markersize=8, zorder=4)
    axes.plot([], [], "|", color=INK, markersize=8, label="ceiling")
    axes.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1.05, 1.05)


def _under(reference: str, like: Row, rows: Sequence[Row]) -> Row:
    """The row of the same kernel under a reference."""
    wanted = (reference, like.kind, like.sketch)
    return next(row for row in rows if (row.reference, row.kind, row.sketch) == wanted)


def _name(row: Row) -> str:
    if row.kind == NO_KERNEL or row.sketch is None:
        return row.kind
    return f"{row.kind}, k = {row.sketch}"
