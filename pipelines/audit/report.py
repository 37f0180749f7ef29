"""What an audit leaves: a table at the terminal and as CSV, a picture, a sentence, a record.

From what an audit found to files in its directory.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.weights import replace
from pipelines.audit import comparison
from pipelines.audit.comparison import Interval
from pipelines.audit.picture import picture
from pipelines.audit.rows import NO_KERNEL, Row
from pipelines.audit.run import Audit, Network
from pipelines.audit.verdict import sentence
from pipelines.json_io import write_record
from pipelines.run import describe

FORMAT = 1
RECORD, TABLE, PICTURE = "audit.json", "table.csv", "audit.png"
_COLUMNS = ("Spearman", "ceiling", "error", "cosine", "size", "by point")
_WIDEST = 160  # characters; a table takes what it needs
_BY_CANDIDATE = ("scores", "errors", "cosines", "point_errors")


def conclusion(found: Audit) -> str:
    """How far to trust the look-ahead here, in one sentence."""
    row, config = found.headline, found.config
    words = [row.kind, *([] if row.sketch is None else [f"sketch {row.sketch}"])]
    words.append(f"reference {row.reference}")
    named = found.networks[0].subject.describe(config.width_argument)
    if named:
        words.append(named)
    caveats = list(_caveats(found))
    return sentence(
        row.trust,
        ", ".join(words),
        row.spearman,
        len(row.scores),
        row.agreeing,
        row.ceiling,
        caveats,
    )


def _caveats(found: Audit) -> Iterator[str]:
    """Clauses that a user should not miss."""
    row, train = found.headline, found.networks[0].subject.config.train
    if not row.fitted:
        accuracy = found.networks[0].notes["train_accuracy"]
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


def frame(found: Audit) -> pd.DataFrame:
    """The table with all its columns; NaN where a number does not exist."""
    lines = []
    for row in found.rows:
        values = {k: v for k, v in row._asdict().items() if k not in _BY_CANDIDATE}
        for name in ("spearman", "agreeing", "ceiling", "gain"):
            interval = values.pop(name) or Interval(math.nan, math.nan, math.nan)
            values |= {name: interval.value, f"{name}_low": interval.low}
            values[f"{name}_high"] = interval.high
        lines.append(values)
    return pd.DataFrame(lines)


def write(found: Audit, said: str) -> None:
    """Table, picture and record into the directory of the audit, each whole or not at all."""
    folder = found.config.run_folder
    replace(folder / TABLE, frame(found).to_csv(index=False).encode())
    replace(folder / PICTURE, picture(found))
    content = {
        "format": FORMAT,
        "config": found.config.record(),
        "data": describe(found.networks[0].subject.dataset),
        "sentence": said,
        "networks": [_network(network) for network in found.networks],
    }
    write_record(folder / RECORD, content, found.seconds)


def _network(network: Network) -> dict[str, Any]:
    subject, real = network.subject, network.real
    controls, before = real.controls, network.before
    return {
        "network": subject.config.network,
        "network_args": subject.config.network_arguments,
        "width": subject.width,
        "steps": subject.steps,
        "trainings": subject.folder,
        "training": network.notes,
        "retrainings_fitted": real.fitted,
        "certificate": network.certificate,
        "left_out": network.left_out,
        "points": subject.points,
        "candidates": subject.candidates,
        "pseudo_labels": before[subject.places].argmax(axis=1),
        "true_labels": subject.dataset.train_labels[subject.candidates],
        "control_change": comparison.change(controls - before),
        "control_floor": comparison.floor(controls),
        "real": {
            reference: {
                "mlmoc": target.scores,
                "mlmoc_by_repeat": target.by_repeat,
                "agreeing": target.agreeing,
                "ceiling": target.ceiling,
                "cosine_between_repeats": target.likeness,
                "cosine_ceiling": target.field_ceiling,
            }
            for reference, target in network.targets.items()
        },
        "rows": [row._asdict() for row in network.rows],
    }


def show(found: Audit, said: str, console: Console) -> None:
    """Table and sentence, and where the files are."""
    if not console.quiet:  # a console of its own, for a table is not cut to the window
        Console(file=console.file, width=max(console.width, _WIDEST)).print(_table(found))
    for line in (*_changes(found), said):
        console.print(line, highlight=False)
    folder = found.config.run_folder
    console.print(
        f"record: {folder} ({TABLE}, {PICTURE}, {RECORD})", highlight=False, soft_wrap=True
    )


def _table(found: Audit) -> Table:
    """The columns that a person reads first; a section for each network and reference."""
    config = found.config
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
    for row in found.rows:
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


def _changes(found: Audit) -> Iterator[str]:
    """What training alone does to each network, and what was left out."""
    for network in found.networks:
        more = comparison.change(network.real.controls - network.before).mean()
        named = network.subject.describe(found.config.width_argument)
        added = comparison.median(network.targets["linearised"].by_repeat)
        fitted = "fitted" if network.notes["fitted"] else "NOT fitted"
        yield (
            f"{f'{named}: ' if named else ''}labels {fitted}, residual "
            f"{network.notes['residual_rms']:.3f}. Change summed over "
            f"{len(network.subject.points)} points: {more:.1f} by training on with nothing new, "
            f"{comparison.floor(network.real.controls):.1f} between two such trainings, "
            f"{added:.1f} between training on with a candidate and without."
        )
        for reason in network.left_out:
            yield f"left out: {reason}"
