"""What a person sees while a run goes on: a heading, a row a round, and where the record is."""

from typing import Any

from rich.console import Console

from pipelines.config import RunConfig
from pipelines.record import Run

_COLUMNS = (("round", 5), ("labels", 7), ("test acc", 9), ("train acc", 10), ("residual", 9))
_TIMES = (("fit s", 7), ("query s", 8))
_FIT = ("fit", "evaluate")
_NAMED = 10  # classes without a label; the record has them all


def heading(console: Console, config: RunConfig, run: Run) -> None:
    """The run in one line, what was already done, and the names of the columns."""
    console.print(
        f"[bold]{config.dataset}[/bold] · {config.strategy} · seed {config.seed} · "
        f"{config.network} {' '.join(config.network_args)}",
        highlight=False,
    )
    console.print("".join(f"{name:>{width}}" for name, width in (*_COLUMNS, *_TIMES)), style="dim")
    for line in run.rounds:
        row(console, line)
    if run.rounds and not run.complete:
        console.print(f"resumed after round {len(run.rounds) - 1}", style="dim")


def row(console: Console, line: dict[str, Any]) -> None:
    """One round; what a person should know of it follows in plain words."""
    seconds = line["seconds"]
    fit = sum(seconds.get(stage, 0.0) for stage in _FIT)
    query = sum(seconds.values()) - fit
    console.print(
        f"{line['round']:>5}{line['labelled']:>7}{line['test_accuracy']:>9.4f}"
        f"{line['train_accuracy']:>10.4f}{line['fit']['residual_rms']:>9.4f}"
        f"{fit:>7.1f}{query:>8.1f}",
        highlight=False,
    )
    if not line["fit"]["fitted"]:
        console.print(f"      the labels were not fitted: {line['fit']['stopped']}", style="yellow")
    missing = line["missing_classes"]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        named = ", ".join(missing[:_NAMED])
        console.print(f"      no label yet of: {named}{more}", style="yellow", highlight=False)


def ending(console: Console, run: Run) -> None:
    """Where the record is and what to do with it."""
    console.print(f"record: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"next:   python -m pipelines.report {run.path}", highlight=False, soft_wrap=True)
