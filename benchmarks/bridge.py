"""How true is a mirror, and how fast? Every classifier of torchvision's families, beside torch.

    python -m benchmarks.bridge --json bridge.json --markdown bridge.md

Each network has random weights and random BatchNorm statistics. Errors are those of its
certificate: the largest, relative to the largest value compared. `taps` is the largest difference
between per-example gradients from taps and by `vmap(grad)`, float64. Times are medians in one
process; `run` is the mirror's forward pass (float32, under `jit`) over torch's eager one on the
same images, taken in turns.
"""

import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from torch import nn

from benchmarks.measuring import machine, seconds
from benchmarks.networks import NETWORKS, network
from bridge.mirror import Mirror
from bridge.parity import compare
from bridge.trace import mirror
from kernel.taps import image_gradients
from trainer.networks import parameter_count


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which, by name."""
    batch: int = 8
    """Images in a forward pass that is timed."""
    repeats: int = 5
    """Forward passes timed, of each of the two."""
    threads: int = 2
    """Of torch. JAX takes what it finds."""
    json: Path | None = None
    """Where the figures go."""
    markdown: Path | None = None
    """Where the table goes."""


class Row(NamedTuple):
    """One network."""

    network: str
    side: int
    parameters: int
    operators: int
    nodes: int
    sites: int
    logits_float32: float
    logits_float64: float
    activations: float
    gradients: float
    taps: float
    passed: bool
    note: str
    export_seconds: float
    compile_seconds: float
    torch_seconds: float
    run_ratio: float
    run_ratio_spread: float


def measure(name: str, settings: Settings) -> Row:
    """Mirror, certify and time one network."""
    side = NETWORKS[name].side
    module = network(name, seed=0)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(settings.batch, 3, side, side)).astype(np.float32)
    began = time.perf_counter()
    twin = mirror(module, images[:2])
    exported = time.perf_counter() - began
    certificate = compare(module, twin, images[:3])
    compiled, torch_seconds, ratios = _times(module, twin, images, settings.repeats)
    program = twin.program
    assert program is not None, "every network here goes by torch.export"
    return Row(
        network=name,
        side=side,
        parameters=parameter_count(module),
        operators=len({node.op for node in program.nodes}),
        nodes=len(program.nodes),
        sites=len(twin.sites),
        logits_float32=certificate.logits_float32,
        logits_float64=certificate.logits_float64,
        activations=certificate.activations,
        gradients=certificate.gradients,
        taps=_taps_against_grad(twin, images[0]),
        passed=certificate.passed,
        note="; ".join(certificate.exceptions or certificate.disagreements[:1]),
        export_seconds=exported,
        compile_seconds=compiled,
        torch_seconds=torch_seconds,
        run_ratio=float(np.median(ratios)),
        run_ratio_spread=float(np.max(ratios) - np.min(ratios)),
    )


def _times(
    module: nn.Module, twin: Mirror, images: np.ndarray, repeats: int
) -> tuple[float, float, list[float]]:
    single = twin.astype(jnp.float32)
    x, tensor = jnp.asarray(images), torch.tensor(images)
    forward = jax.jit(single.function)
    ours = lambda: jax.block_until_ready(forward(single.params, single.frozen, x))

    def theirs() -> None:
        with torch.no_grad():
            module(tensor)

    compiled = seconds(ours)
    seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    torch_seconds = float(np.median([b for _, b in pairs]))
    return compiled, torch_seconds, [a / b for a, b in pairs]


def _taps_against_grad(twin: Mirror, image: np.ndarray) -> float:
    exact = twin.astype(jnp.float64)
    function, params, frozen = exact.function, exact.params, exact.frozen

    def plain(p, f, x):
        return function(p, f, x)

    x = jnp.asarray(image, float)
    classes = jax.eval_shape(function, params, frozen, x[None]).shape[1]
    direction = jnp.cos(1.0 + jnp.arange(classes))
    ours, theirs = (  # apart, or the compiler would make one of the two
        jax.jit(lambda p, f, x, g=g: image_gradients(g, p, f, x, direction))(params, frozen, x)
        for g in (function, plain)
    )
    scale = max(float(jnp.abs(leaf).max()) for leaf in theirs)
    return max(float(jnp.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) / scale


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    head = (
        "network | input | parameters | operators | tap sites | logits f32 | logits f64 | "
        "layers f64 | gradients f64 | taps against grad | export s | compile s | run, JAX / torch"
    )
    lines = [f"| {head} |", "| --- " * (head.count("|") + 1) + "|"]
    for r in rows:
        lines.append(
            f"| {r.network} | {r.side} px | {r.parameters:,} | {r.operators} ({r.nodes} calls) | "
            f"{r.sites} | {r.logits_float32:.0e} | {r.logits_float64:.0e} | {r.activations:.0e} | "
            f"{r.gradients:.0e}{'' if r.passed else ' **refused**'}{' ¹' if r.note else ''} | "
            f"{r.taps:.0e} | {r.export_seconds:.1f} | {r.compile_seconds:.1f} | "
            f"{r.run_ratio:.2f} (±{r.run_ratio_spread / 2:.2f}) |"
        )
    notes = sorted({r.note for r in rows if r.note})
    return "\n".join(lines) + "".join(f"\n\n¹ {note}." for note in notes) + "\n"


def main(settings: Settings) -> None:
    """Print a row as each network is done, then the table."""
    torch.set_num_threads(settings.threads)
    rows = []
    for name in settings.networks:
        rows.append(measure(name, settings))
        print(rows[-1], flush=True)
        _write(rows, settings)
        jax.clear_caches()
        gc.collect()
    print(_text(rows, settings))


def _write(rows: list[Row], settings: Settings) -> None:
    """Both files so far; each network takes minutes."""
    if settings.markdown is not None:
        settings.markdown.write_text(_text(rows, settings), "utf-8")
    if settings.json is not None:
        record = {"machine": machine(), "batch": settings.batch, "repeats": settings.repeats}
        rows_json = [row._asdict() for row in rows]
        settings.json.write_text(json.dumps(record | {"rows": rows_json}, indent=1) + "\n", "utf-8")


def _text(rows: list[Row], settings: Settings) -> str:
    return f"{table(rows)}\nMachine: {machine()}; batch {settings.batch}, n = {settings.repeats}.\n"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
