"""Command line of the sequential mode: python -m pipelines.sequential --dataset digits."""

import sys
from collections.abc import Sequence

from rich.console import Console

from pipelines.cli import command
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
        values = defaults(_dataset(words))
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


def _dataset(words: Sequence[str]) -> str:
    """The data set named among the arguments, whose values are the defaults of the others."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--dataset":
            if equals:
                return value
            return words[position + 1] if position + 1 < len(words) else SequentialConfig.dataset
    return SequentialConfig.dataset


if __name__ == "__main__":
    main()
