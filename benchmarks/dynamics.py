"""Cost of dynamicAL's candidates, and of the ways to compute them.

‖g_u‖² and g_u·g_S of all images, for networks with random weights: with the logits of the pass
itself, with logits predicted beforehand, and with every gradient formed. Run it as

    python -m benchmarks.dynamics [--json FILE] [--networks cnn resnet18 vgg11_bn] [--images 128]
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.kernel_memory import case
from benchmarks.measuring import load, machine, markdown, read, turns, write
from kernel.dynamics import Measured, cotangents, measure
from kernel.gradients import total
from kernel.param_groups import ParamGroup
from trainer.fit import keep_freed_blocks
from trainer.predict import logits

HEAD = ("candidates", "seconds", "clock", "processor time")
LOSS = "cross_entropy"
OWN = "logits of the pass"


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    networks: tuple[str, ...] = ("cnn", "resnet18", "vgg11_bn")
    images: int = 128
    repeats: int = 5
    """Turns."""
    side: int | None = None
    """Of the images in pixels; 28 or 32, as the network has it, if None."""
    seed: int = 0
    json: Path | None = None


def works(settings: Settings, name: str) -> dict[str, Callable[[], Measured]]:
    """Works by name, to be timed."""
    network, model, images = case(name, settings.images, settings.seed, settings.side)
    f = logits(network, images)
    direction = total(model, images, cotangents(f, f.argmax(axis=1), LOSS))

    def work(answers: np.ndarray | None = None) -> Measured:
        return measure(model, images, answers, direction, LOSS)

    def formed() -> Measured:
        forms = ParamGroup.forms
        ParamGroup.forms = property(lambda _: ("rows",))  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return work()
        finally:
            ParamGroup.forms = forms  # pyright: ignore[reportAttributeAccessIssue]

    return {
        OWN: work,
        "predicted beforehand": lambda: work(logits(network, images)),
        "every gradient formed": formed,
    }


def main(settings: Settings) -> None:
    """Print a table for each network, and add its figures to those in the file."""
    keep_freed_blocks()
    figures: dict[str, Any] = read(settings.json)
    for name in settings.networks:
        times = turns(works(settings, name), settings.repeats)
        rows = [
            [f"{name}, {what}", f"{own.median:.2f}", own.over(times[OWN])]
            + [own.processor_over(times[OWN])]
            for what, own in times.items()
        ]
        print(markdown(HEAD, rows), flush=True)
        figures[name] = {what: own._asdict() for what, own in times.items()}
        write(settings.json, asdict(settings), figures)
    print(
        f"{settings.images} candidates, n = {settings.repeats} turns, seed {settings.seed}; ratios "
        f"to {OWN!r}. {machine()}; {load()}."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
