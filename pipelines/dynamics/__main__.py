"""The command line of the measurement: python -m pipelines.dynamics --dataset mnist."""

import tyro
from rich.console import Console

from pipelines.cli import plainly
from pipelines.dynamics.config import TheoryConfig
from pipelines.dynamics.plan import tell
from pipelines.dynamics.report import show, write
from pipelines.dynamics.run import find
from pipelines.dynamics.verdict import sentences


def main() -> None:
    """Measure, show tables and sentences, and write them down."""
    with plainly():
        config = tyro.cli(
            TheoryConfig,
            prog="python -m pipelines.dynamics",
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
