"""How many images should a core differentiate at a time?

From networks with random weights to the time of an exact and of a sketched kernel with chunks of
several sizes, against the smallest. What is found is what `kernel.plan` chooses
by. Run it as

    python -m benchmarks.chunks [--json FILE] [--networks resnet18 vgg11_bn] [--sizes 8 16 32]
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.kernel_memory import case
from benchmarks.measuring import load, machine, markdown, read, turns, write
from kernel.linalg import cores
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import problem_of
from trainer.fit import keep_freed_blocks

HEAD = ("kernel", "parameters over an image's activations", "images on a core", "seconds", "clock")
HEAD = (*HEAD, "processor time")


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    networks: tuple[str, ...] = ("wide_resnet", "cnn", "resnet18", "vgg11_bn")
    sizes: tuple[int, ...] = (8, 16, 32)
    """Images on each core; the first is what the others are compared with."""
    images: int = 128
    """N; a multiple of every size times the cores leaves no chunk to be filled up."""
    repeats: int = 5
    """Turns."""
    sketch: int = 16384
    side: int | None = None
    """Of the images in pixels; 28 or 32, as the network has it, if None."""
    memory_gib: float = 6.0
    seed: int = 0
    json: Path | None = None


def measured(settings: Settings, name: str) -> tuple[list[list[object]], dict[str, Any]]:
    """Rows of a table, and the figures."""
    _, model, images = case(name, settings.images, settings.seed, settings.side)
    like = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    problem = problem_of(model, like, len(images), len(images), Request())
    weight = problem.columns / sum(problem.activations)

    def work(size: int, sketch: int | None) -> Callable[[], object]:
        request = Request(sketch=sketch, chunk=size * cores(), memory_gib=settings.memory_gib)
        rng = np.random.default_rng(settings.seed)
        return lambda: empirical_ntk(model, images, request, rng=rng).values

    kernels = {"exact": None, "sketched": settings.sketch}
    works = {
        (kernel, size): work(size, sketch)
        for kernel, sketch in kernels.items()
        for size in settings.sizes
    }
    times = turns(
        {f"{kernel} {size}": own for (kernel, size), own in works.items()}, settings.repeats
    )
    rows: list[list[object]] = []
    for kernel, size in works:
        own, base = times[f"{kernel} {size}"], times[f"{kernel} {settings.sizes[0]}"]
        ratios = (own.over(base), own.processor_over(base))
        rows.append([f"{kernel}, {name}", f"{weight:.2f}", size, f"{own.median:.2f}", *ratios])
    figures = {what: own._asdict() for what, own in times.items()}
    return rows, {"parameters_over_numbers": weight} | figures


def main(settings: Settings) -> None:
    """Print a table for each network, and add its figures to those in the file."""
    keep_freed_blocks()
    figures = read(settings.json)
    for name in settings.networks:
        rows, figures[name] = measured(settings, name)
        print(markdown(HEAD, rows), flush=True)
        write(settings.json, asdict(settings), figures)
    print(
        f"N = {settings.images}, n = {settings.repeats} turns, seed {settings.seed}; ratios to "
        f"{settings.sizes[0]} images on a core. {machine()}; {load()}."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
