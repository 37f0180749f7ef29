"""The command line of the study: python -m experiments.approximation --dataset mnist."""

import tyro
from rich.console import Console

from experiments.approximation.config import ApproximationConfig
from experiments.approximation.plan import tell
from experiments.approximation.report import show, write
from experiments.approximation.run import find
from experiments.approximation.verdict import sentences
from pipelines.cli import plainly


def main() -> None:
    """Measure, show a table and sentences, and write them down."""
    with plainly():
        config = tyro.cli(
            ApproximationConfig,
            prog="python -m experiments.approximation",
            description="How well cheap kernels stand for the full one, against width.",
        )
        console = Console()
        if config.dry_run:
            tell(config, console)
            return
        found = find(config, console)
        said = sentences(found)
        write(found, said)
        show(found, said, console)


if __name__ == "__main__":
    main()
