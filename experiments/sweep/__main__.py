"""The command line of sweeps: python -m experiments.sweep STUDY --size small."""

import sys

import tyro
from rich.console import Console
from rich.table import Table

from experiments.sweep.plan import Planned, SweepConfig, plan, to_do
from experiments.sweep.run import executor_of, sweep
from pipelines.core.terminal import plainly

SOME_FAILED = 1


def main() -> None:
    """Carry a study out, or print what there is to do; status 1 if a trial failed."""
    with plainly():
        config = tyro.cli(SweepConfig, prog="python -m experiments.sweep")
        executor, console = executor_of(config), Console()
        if config.dry_run:
            rows = plan(config)
            _print_plan(rows, to_do(config, rows), console)
            return
        rows = sweep(config, executor, console)
    failed = [row for row in rows if row.state == "failed"]
    for row in failed:
        console.print(f"failed: {row.name}: see {row.path}", highlight=False)
    done = sum(row.state == "done" for row in rows)
    console.print(f"{done} trials done, {len(failed)} failed.", highlight=False)
    if failed:
        sys.exit(SOME_FAILED)


def _print_plan(rows: list[Planned], left: list[Planned], console: Console) -> None:
    """Counts of trials by task and method."""
    table = Table("task", "method", "trials", "done", "begun", "failed", "to do", box=None)
    for name in dict.fromkeys((row.trial.task, row.trial.method) for row in rows):
        own = [row for row in rows if (row.trial.task, row.trial.method) == name]
        counts = [sum(row.state == state for row in own) for state in ("done", "begun", "failed")]
        table.add_row(*name, *map(str, (len(own), *counts, sum(row in own for row in left))))
    console.print(table)
    console.print(f"{len(left)} of {len(rows)} trials to do.", highlight=False)


if __name__ == "__main__":
    main()
