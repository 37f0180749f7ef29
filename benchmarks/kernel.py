"""Cost of a kernel, in forward passes of the same network over the same images.

From networks with random weights to ratios: the exact and the sketched kernel of one logit against
a forward pass and against the ways that others would take; seconds and memory against what is
predicted beforehand. Run it as

    python -m benchmarks.kernel [--json FILE] [--networks wide_resnet resnet18 cnn] [--images 512]
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.kernel_memory import case, taken
from benchmarks.kernel_peers import forward, neural_tangents, torch_func, vmap_grad
from benchmarks.kernel_tables import HEAD, MEMORY_HEAD, MemoryRow, Row, at_least, at_most, within
from benchmarks.measuring import Times, load, machine, markdown, read, turns, write
from kernel.estimate import estimate_cost
from kernel.model import Model
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import plan_kernel
from trainer.fit import keep_freed_blocks

AGREEMENT = 1e-4  # of peers with the exact kernel, in float32, of its largest entry


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    networks: tuple[str, ...] = ("wide_resnet", "resnet18", "cnn")
    images: tuple[int, ...] = (512,)
    """N, one for each network or one for all."""
    peer_images: tuple[int, ...] = (128,)
    """N at which neural-tangents is compared, likewise; ours is run at that N too."""
    repeats: int = 5
    """Turns."""
    sketch: int = 16384
    memory_gib: float = 6.0
    budgets: tuple[float, ...] = (1.5, 6.0)
    """GiB given where memory is measured; none to leave it out."""
    side: int | None = None
    """Of the images in pixels; 28 or 32, as the network has it, if None."""
    threads: int = 2
    """Of torch."""
    seed: int = 0
    json: Path | None = None

    def __post_init__(self):
        """One number of images stands for all networks."""
        for name in ("images", "peer_images"):
            if len(getattr(self, name)) not in (1, len(self.networks)):
                raise ValueError(f"{name} must be one number, or one for each of the networks.")


def compare(settings: Settings, name: str, count: int, peer_count: int) -> tuple[list[Row], dict]:
    """All of one network in turns, and what was chosen for it."""
    network, model, images = case(name, count, settings.seed, settings.side)
    works, chosen = _works(settings, network, model, images, peer_count)
    predictions: dict[str, list[float]] = {"exact": [], "sketched": []}
    for kernel, sketch in (("exact", None), ("sketched", settings.sketch)):
        works[f"predict {kernel}"] = _predictor(
            settings, model, images, sketch, predictions[kernel]
        )
    measured = turns(works, settings.repeats)
    rows = _rows(name, count, min(peer_count, count), measured)
    for kernel, predicted in predictions.items():
        foreseen = Times(tuple(predicted[-settings.repeats :]))
        ratio = foreseen.over(measured[kernel])
        target = within(ratio, 0.5)
        rows.append(
            Row(name, f"{kernel}, seconds predicted", kernel, foreseen.median, ratio, None, *target)
        )
    return rows, chosen | {name: times._asdict() for name, times in measured.items()}


def _works(
    settings: Settings, network: nn.Module, model: Model, images: np.ndarray, peer_count: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Works by name; every peer's kernel is compared with ours first."""
    fewer = images[:peer_count]
    budget = settings.memory_gib
    exact = lambda given: empirical_ntk(model, given, Request(memory_gib=budget)).values
    torch_work, torch_chunk = torch_func(network, images)
    tangents_work, way = neural_tangents(model, fewer)
    peers = {"JAX vmap(grad)": vmap_grad(model, images), "torch.func": torch_work}
    own = exact(images)
    for name, values in {name: work() for name, work in peers.items()}.items():
        _agree(name, values, own)
    _agree("neural-tangents", tangents_work(), own[: len(fewer), : len(fewer)])
    works: dict[str, Callable[[], Any]] = {
        "forward": forward(model, images),
        "exact": lambda: exact(images),
        "sketched": lambda: empirical_ntk(
            model,
            images,
            Request(sketch=settings.sketch, memory_gib=budget),
            rng=np.random.default_rng(settings.seed),
        ),
        **peers,
        "exact, fewer": lambda: exact(fewer),
        "neural-tangents": tangents_work,
    }
    return works, {"torch.func chunk": torch_chunk, "neural-tangents way": way}


def _agree(name: str, values: np.ndarray, own: np.ndarray) -> None:
    worst = np.abs(values - own).max() / np.abs(own).max()
    if not worst <= AGREEMENT:
        raise ValueError(f"{name} disagrees with our kernel by {worst:.3g} of its largest entry.")


def _predictor(
    settings: Settings, model: Model, images: np.ndarray, sketch: int | None, into: list[float]
) -> Callable[[], None]:
    """Notes the seconds that are predicted, compiling left out."""
    request = Request(sketch=sketch, memory_gib=settings.memory_gib)
    image = jax.ShapeDtypeStruct(images.shape[1:], "float32")

    def work() -> None:
        cost = estimate_cost(model, images[:2], plan_kernel(model, image, len(images), request))
        into.append(cost.gradient_seconds + cost.product_seconds)

    return work


def _rows(name: str, count: int, fewer: int, measured: dict[str, Times]) -> list[Row]:
    rows, forward_pass = [], measured["forward"]
    for kernel, limit in (("exact", 4.5), ("sketched", 4.0)):
        ratio = measured[kernel].over(forward_pass)
        target = at_most(ratio, limit)
        seconds, processor = measured[kernel].median, measured[kernel].processor_over(forward_pass)
        what = f"{kernel}, N = {count}"
        rows.append(Row(name, what, "forward pass", seconds, ratio, processor, *target))
    for peer, ours, limit in (
        ("JAX vmap(grad)", "exact", None),
        ("torch.func", "exact", 1.0),
        ("neural-tangents", "exact, fewer", 8.0),
    ):
        number = count if ours == "exact" else fewer
        ratio = measured[peer].over(measured[ours])
        target = ("", None) if limit is None else at_least(ratio, limit)
        seconds = measured[peer].median
        processor = measured[peer].processor_over(measured[ours])
        what = f"{peer}, N = {number}"
        rows.append(Row(name, what, "exact", seconds, ratio, processor, *target))
    return rows


def memories(settings: Settings, name: str, count: int) -> list[MemoryRow]:
    """Peak memory of the exact kernel with every budget, and of the sketched with the largest."""
    kernels: list[tuple[str, int | None, float]]
    kernels = [("exact", None, budget) for budget in settings.budgets]
    if settings.budgets:
        kernels.append((f"sketched {settings.sketch}", settings.sketch, max(settings.budgets)))
    return [
        MemoryRow(
            name,
            f"{kernel}, N = {count}",
            taken(name, count, settings.seed, settings.side, budget, sketch),
        )
        for kernel, sketch, budget in kernels
    ]


def main(settings: Settings) -> None:
    """Print a table for each network, and add its figures to those in the file."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    figures = read(settings.json)
    each = len(settings.networks)
    counts = settings.images * (each // len(settings.images))
    peers = settings.peer_images * (each // len(settings.peer_images))
    shown = asdict(replace(settings, images=counts, peer_images=peers))
    for name, count, fewer in zip(settings.networks, counts, peers, strict=True):
        print(f"\n### {name}\n\n{load()}")
        memory = memories(settings, name, count)
        cells = [row.cells() for row in memory]
        print(markdown(MEMORY_HEAD, cells) if memory else "", flush=True)
        rows, about = compare(settings, name, count, min(fewer, count))
        print(markdown(HEAD, [row.cells() for row in rows]), flush=True)
        figures[name] = {
            "rows": [asdict(row) for row in rows],
            "memory": [
                row.taken._asdict() | {"kernel": row.kernel, "foreseen": row.foreseen}
                for row in memory
            ],
            "about": about,
            "images": (count, fewer),
            "repeats": settings.repeats,
            "load": load(),
        }
        write(settings.json, shown, figures)
    print(f"n = {settings.repeats} turns, seed {settings.seed}. {machine()}; {load()}.")


if __name__ == "__main__":
    main(tyro.cli(Settings))
