"""The command line of the measurement: python -m experiments.dynamics --dataset mnist."""

import tyro
from rich.console import Console

from experiments.dynamics.config import TheoryConfig
from experiments.dynamics.plan import tell
from experiments.dynamics.report import show, write
from experiments.dynamics.run import find
from experiments.dynamics.verdict import sentences
from pipelines.cli import plainly


def main() -> None:
    """Measure, show tables and sentences, and write them down."""
    with plainly():
        config = tyro.cli(
            TheoryConfig,
            prog="python -m experiments.dynamics",
            description="The theory of training dynamics, measured on your own network.",
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
