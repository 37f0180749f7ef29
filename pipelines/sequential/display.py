"""What a person sees of a sequential run: a line an answer or a training, a table at the end.

From a sequential run to its curve: accuracy after each label, as CSV and as a picture.
"""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bridge.weights import replace
from pipelines.report.drawing import SMALL, canvas, finish
from pipelines.sequential.config import Journal, SequentialConfig
from pipelines.sequential.learner import Standing

CSV, CURVE_IMAGE = "curve.csv", "curve.png"
_LINEARISED, _TRAINED = "#0072b2", "#d55e00"


def table(journal: Journal) -> pd.DataFrame:
    """One row a label, and one a training: accuracies of the linearised and the trained network.

    Columns: round, labelled, image, label, name, score, who, seconds, linearised_accuracy,
    sgd_accuracy (on the same test images), test_accuracy (of SGD on all), drift, foreseen.
    """
    rows = []
    for line in journal.run.rounds:
        rows.append(
            {
                "round": line["round"],
                "labelled": line["labelled"],
                "linearised_accuracy": line["linearised_accuracy"],
                "sgd_accuracy": line["subset_accuracy"],
                "test_accuracy": line["test_accuracy"],
                "drift": 0.0,
            }
        )
        for answer in journal.of_round(line["round"]):
            if answer["label"] is None:
                continue
            own = {key: answer.get(key) for key in ("round", "labelled", "image", "label", "name")}
            own |= {key: answer.get(key) for key in ("score", "who", "seconds", "drift")}
            own["linearised_accuracy"] = answer.get("accuracy")
            own["foreseen"] = answer["predicted"] == answer["label"]
            rows.append(own)
    return pd.DataFrame(rows)


def write_csv(journal: Journal) -> Path:
    """Write the table into the run directory.

    Raises:
        OSError: it cannot be written.
    """
    path = journal.run.path / CSV
    replace(path, table(journal).to_csv(index=False).encode())
    return path


def draw(journal: Journal) -> Path:
    """Draw the curve into the run directory; without test images, the drift alone.

    Raises:
        OSError: it cannot be written.
    """
    rows, config = table(journal), journal.run.config
    tests = journal.run.rounds[0]["tests"]
    caption = (
        f"{config['data']['name']}, {config['network']}, {config['strategy']}, seed "
        f"{config['seed']}. "
    )
    caption += (
        f"Both on the same {tests} test images. The linearised network absorbs each label without "
        "training; n = 1 run."
        if tests
        else "There are no test images. Drift is |Δθ|/|θ| since the last training."
    )
    figure, (axes,) = canvas(caption, 2.9)
    value, scale = ("linearised_accuracy", 100) if tests else ("drift", 1)
    for number, own in rows.groupby("round"):
        label = "linearised network, after each label" if number == 0 else None
        axes.plot(own["labelled"], scale * own[value].astype(float), color=_LINEARISED, label=label)
    if tests:
        points = rows[rows["sgd_accuracy"].notna()]
        y = scale * points["sgd_accuracy"].astype(float)
        axes.plot(
            points["labelled"], y, "o--", color=_TRAINED, linewidth=0.8, label="trained by SGD"
        )
        axes.legend(fontsize=SMALL, frameon=False)
    finish(
        axes,
        "One label at a time",
        "labels",
        "test accuracy, %" if tests else "drift",
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    path = journal.run.path / CURVE_IMAGE
    replace(path, stream.getvalue())
    return path


def print_heading(console: Console, config: SequentialConfig, journal: Journal) -> None:
    """The run in one line, and what was already done."""
    console.print(
        f"[bold]{config.dataset}[/bold] · sequential · {config.strategy} · seed {config.seed} · "
        f"{config.network} {' '.join(config.network_args)}",
        highlight=False,
    )
    if journal.answers:
        console.print(f"{len(journal.answers)} answers are on disk; going on", style="dim")


def heading_of_question(config: SequentialConfig, answered: int, standing: Standing) -> str:
    """What is said above a question."""
    accuracy = percent(standing.accuracy)
    known = "" if standing.accuracy is None else f" · linearised network {accuracy} right"
    return f"question {answered + 1} of {config.budget} · {standing.labelled} labels{known}"


def answered(console: Console, line: dict[str, Any], budget: int, count: int) -> None:
    """One answer and what followed from it."""
    what = escape(line["name"]) if line["name"] is not None else "set aside"
    right = "=" if line["predicted"] == line["label"] else "≠"
    console.print(
        f"{count:>4}/{budget} image {line['image']:<6} {what:<12} {right} "
        f"{line['score']:>9.4g}  test {percent(line['accuracy']):>6}  drift {line['drift']:.3f}",
        highlight=False,
        soft_wrap=True,
    )


def trained(console: Console, line: dict[str, Any]) -> None:
    """One training."""
    console.print(
        f"trained on {line['labelled']} labels ({line['why']}): test "
        f"{percent(line['test_accuracy'])}, train {percent(line['train_accuracy'])}; "
        f"{sum(line['seconds'].values()):.1f} s",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    if not line["fit"]["fitted"]:
        console.print(
            f"the labels were not fitted: {line['fit']['stopped']}", style="yellow", soft_wrap=True
        )
    if line["missing_classes"]:
        named = ", ".join(line["missing_classes"][:10])
        console.print(f"no label yet of: {escape(named)}", style="yellow", highlight=False)


def remark(console: Console, text: str) -> None:
    """A sentence on what was done."""
    console.print(text, style="dim", markup=False, highlight=False)


def ending(console: Console, config: SequentialConfig, journal: Journal, *, finished: bool) -> None:
    """The table, and where record and picture are."""
    if journal.run.rounds:
        console.print(_table(journal))
        remark(
            console,
            f"accuracy on {journal.run.rounds[0]['tests']} test images (SGD, all: on all of them), "
            "of the network as trained, linearised, and then with the answers",
        )
        write_csv(journal)
        console.print(f"picture: {draw(journal)}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"record:  {journal.run.path}", highlight=False, soft_wrap=True, markup=False)
    if not finished:
        left = config.budget - len(journal.given)
        remark(console, f"stopped with {left} questions left; the same command goes on from here")


def percent(accuracy: float | None) -> str:
    """An accuracy as it is shown; a dash where there is none."""
    return "-" if accuracy is None else f"{100 * accuracy:.2f}%"


def _table(journal: Journal) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False, show_edge=False
    )
    for name in ("labels", "SGD, all", "SGD", "linearised", "answers", "then", "foreseen", "drift"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name) + 1)
    for line in journal.run.rounds:
        own = [a for a in journal.of_round(line["round"]) if a["label"] is not None]
        last = own[-1] if own else None
        table.add_row(
            str(line["labelled"]),
            percent(line["test_accuracy"]),
            percent(line["subset_accuracy"]),
            percent(line["linearised_accuracy"]),
            str(len(own)),
            percent(last["accuracy"]) if last else "",
            f"{100 * last['foreseen'] / len(own):.0f}%" if last else "",
            f"{last['drift']:.4f}" if last else "",
        )
    return table
