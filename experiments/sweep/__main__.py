"""The command line of sweeps: python -m experiments.sweep STUDY --size small."""

import sys

import tyro
from rich.console import Console
from rich.table import Table

from experiments.sweep.config import SweepConfig
from experiments.sweep.executors import executor_of
from experiments.sweep.plan import Planned
from experiments.sweep.progress import name_of
from experiments.sweep.remaining import Durations, clock
from experiments.sweep.sweep import Summary, plan, sweep, to_do
from pipelines.cli import plainly

SOME_FAILED = 1


def main() -> None:
    """Carry a study out, or tell what there is to do; status 1 if a trial failed."""
    with plainly():
        config = tyro.cli(SweepConfig, prog="python -m experiments.sweep")
        executor = executor_of(config)
        console = Console()
        if config.dry_run:
            rows = plan(config)
            tell(rows, to_do(config, rows), executor.workers, console)
            return
        summary = sweep(config, executor, console)
        conclude(summary, console)
    if summary.failed:
        sys.exit(SOME_FAILED)


def tell(rows: list[Planned], left: list[Planned], workers: int, console: Console) -> None:
    """What is on record and what there is to do, by subject and arm."""
    table = Table("subject", "arm", "trials", "done", "begun", "failed", "to do", box=None)
    names = dict.fromkeys((row.trial.subject, row.trial.arm) for row in rows)
    for name in names:
        of = [row for row in rows if (row.trial.subject, row.trial.arm) == name]
        counts = [sum(row.state == state for row in of) for state in ("done", "begun", "failed")]
        table.add_row(*name, *map(str, (len(of), *counts, sum(row in of for row in left))))
    console.print(table)
    durations = Durations.on_record(rows)
    seconds = [durations.of(row.trial) for row in left]
    known = [one for one in seconds if one is not None]
    about = ""
    if left and len(known) == len(left):
        about = f", about {clock(max(sum(known) / workers, *known, 0.0))} with {workers} at once"
    console.print(f"{len(left)} of {len(rows)} trials to do{about}.", highlight=False)


def conclude(summary: Summary, console: Console) -> None:
    """The last words."""
    for row in summary.failed:
        console.print(f"failed: {name_of(row.trial)}: see {row.path}", highlight=False)
    counts = f"{len(summary.done)} trials done, {len(summary.failed)} failed"
    console.print(f"{counts}.", highlight=False)


if __name__ == "__main__":
    main()
