"""Command line of the sequential mode: python -m pipelines.sequential --dataset digits."""

import sys
from collections.abc import Sequence

from rich.console import Console

from pipelines.cli import command, dataset_in
from pipelines.core.terminal import plainly
from pipelines.sequential.config import SequentialConfig, defaults

DESCRIPTION = (
    "Label one image at a time: each answer is absorbed by the linearised network before the next "
    "question, without training. Defaults are those of --dataset."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Query labels one at a time, with the default values of the data set that is named."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with plainly():
        values = defaults(dataset_in(words, SequentialConfig.dataset))
    command(
        SequentialConfig,
        _run,
        "python -m pipelines.sequential",
        DESCRIPTION,
        defaults=values,
        arguments=words,
        interrupted="every answer is on disk, and the same command goes on from there",
    )


def _run(config: SequentialConfig, console: Console) -> None:
    from pipelines.sequential.run import run

    run(config, console)


if __name__ == "__main__":
    main()
