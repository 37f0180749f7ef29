"""The certificate of a network's mirror and the cost of its kernel, as tables at a terminal."""

import json
from collections import Counter
from typing import TYPE_CHECKING

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from bridge import portable
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.module import restore
from bridge.parity import Certificate, Layer, compare
from bridge.trace import mirror
from bridge.twin import build_twin
from bridge.weights import read
from kernel.estimate import Cost, estimate_cost
from kernel.model import dtype_of
from kernel.options import Request
from kernel.plan import Plan, plan_kernel
from trainer import networks
from trainer.config import parse_arguments
from trainer.networks import load

if TYPE_CHECKING:
    from bridge.check import Check

DISAGREES = 1
_WORST = 12


def verdict_table(certificate: Certificate) -> Table:
    """Table of each quantity compared: largest error, where it occurred, tolerance."""
    table = Table("compared", "largest relative error", "allowed", "where", title="Certificate")
    rows = [
        ("logits, float32", certificate.logits_float32, certificate.tolerance_float32, ""),
        ("logits, float64", certificate.logits_float64, certificate.tolerance_float64, ""),
        ("one image against its batch", certificate.batch, certificate.tolerance_float64, ""),
    ]
    if certificate.compared:
        rows.append(
            (
                f"outputs of {certificate.compared} of {certificate.sites} layers",
                certificate.activations,
                certificate.tolerance_float64,
                certificate.worst_activation,
            )
        )
    rows.append(
        (
            f"per-example gradients of {certificate.parameters} arrays",
            certificate.gradients,
            certificate.tolerance_gradients,
            certificate.worst_gradient,
        )
    )
    for name, error, allowed, where in rows:
        style = "" if error <= allowed else "bold red"
        table.add_row(name, f"{error:.1e}", f"{allowed:.0e}", Text(where), style=style)
    return table


def layer_table(certificate: Certificate, shown: int | None) -> Table:
    """Layers with the errors of their outputs and gradients, in the order in which they run.

    Args:
        certificate: of the mirror.
        shown: how many, the worst ones; all if None.
    """
    worst = sorted(certificate.layers, key=lambda layer: _badness(certificate, layer), reverse=True)
    kept = set(worst[:shown])
    title = "Tap sites" if shown is None or shown >= len(worst) else f"The {shown} worst tap sites"
    table = Table("layer", "operator", "weights", "output", "gradients", "line", title=title)
    for layer in certificate.layers:
        if layer not in kept:
            continue
        gradient = _gradient(certificate, layer)
        wrong = (layer.error or 0) > certificate.tolerance_float64 or (
            gradient is not None and gradient > certificate.tolerance_gradients
        )
        table.add_row(
            Text(layer.name),
            layer.op.removeprefix("aten."),
            Text(", ".join(name.rpartition(".")[2] for name in layer.weights)),
            "—" if layer.error is None else f"{layer.error:.0e}",
            "—" if gradient is None else f"{gradient:.0e}",
            Text(layer.source.partition(": ")[0]),
            style="bold red" if wrong else "",
        )
    return table


def size_words(mirror: Mirror) -> str:
    """Parameters and taps, in a sentence."""
    trainable = sum(array.size for array in mirror.params.values())
    text = f"{trainable:,} trainable parameters in {len(mirror.params)} arrays"
    frozen = [name for name in mirror.frozen if name not in mirror.constants]
    if frozen:
        text += f", {len(frozen)} buffers and frozen arrays"
    if mirror.program is None:
        return (
            f"{text}; no taps on the route {mirror.route}: kernels go through vmap(grad), and "
            "layer-by-layer contractions are not to be had."
        )
    kinds = Counter(site.op.removeprefix("aten.") for site in mirror.sites)
    listed = ", ".join(f"{count} × {op}" for op, count in kinds.most_common())
    return f"{text}; {len(mirror.sites)} tap sites ({listed})."


def cost_words(cost: Cost, plan: Plan) -> str:
    """Estimated time and memory of the kernel of many images, in a sentence."""
    passes = "one pass" if len(plan.passes) == 1 else f"{len(plan.passes)} passes"
    return (
        f"The kernel `single` between {plan.problem.examples:,} images would take about "
        f"{_duration(cost.seconds)} and {plan.peak_gib:.2g} GiB of the "
        f"{plan.request.memory_gib:g} GiB given on this machine: gradients "
        f"{_duration(cost.gradient_seconds)} in {passes}, "
        f"products {_duration(cost.product_seconds)}, compiling "
        f"{_duration(cost.compile_seconds)}. `trace` takes as many times that as there are "
        "classes."
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gradient(certificate: Certificate, layer: Layer) -> float | None:
    errors = [
        certificate.gradient_errors[n] for n in layer.weights if n in certificate.gradient_errors
    ]
    return max(errors, default=None)


def _badness(certificate: Certificate, layer: Layer) -> float:
    return max(layer.error or 0.0, _gradient(certificate, layer) or 0.0)


def check(settings: "Check", console: Console) -> int:
    """Mirror, compare, print; 0 if the mirror may be used, 1 if it disagrees with the network.

    Raises:
        TrainerError: the network cannot be built.
        BridgeError: it cannot be mirrored, or a file cannot be read or written.
        KernelError: no kernel of it fits in the memory.
    """
    shape = _shape(settings.shape)
    for name, least in (("examples", 2), ("images", 1)):
        if getattr(settings, name) < least:
            raise BridgeError(f"{name} is {getattr(settings, name)}; it must be {least} or more")
    rng = np.random.default_rng(settings.seed)
    arguments = parse_arguments(settings.network_args)
    network = networks.build(settings.network, shape, settings.classes, rng, arguments)
    if settings.weights is not None:
        restore(network, read(settings.weights))
    probe = rng.normal(size=(settings.examples, *shape)).astype(np.float32)
    with console.status("mirroring"):
        twin = _mirrored(settings, network, probe)
    with console.status("comparing with torch (compiles first)"):
        certificate = compare(network, twin, probe)
    console.print(verdict_table(certificate))
    if certificate.layers:
        console.print(layer_table(certificate, None if settings.layers else _WORST))
    console.print(size_words(twin), highlight=False)
    for exception in certificate.exceptions:
        console.print(f"Note: {exception}.", highlight=False)
    if settings.certificate is not None:
        certificate.save(settings.certificate)
        console.print(f"Certificate written to {settings.certificate}.", highlight=False)
    if not certificate.passed:
        console.print(f"Not certified: {certificate.disagreements[0]}.", style="bold red")
        return DISAGREES
    if settings.save is not None:
        portable.save(twin, settings.save, {"certificate": json.dumps(certificate.summary())})
        console.print(f"Graph and weights written to {settings.save}.", highlight=False)
    with console.status("measuring gradients"):
        request = Request(memory_gib=settings.memory_gib)
        image = jax.ShapeDtypeStruct(shape, dtype_of(request.precision))
        plan = plan_kernel(twin.model(), image, settings.images, request)
        cost = estimate_cost(twin.model(), probe, plan)
    console.print(cost_words(cost, plan), highlight=False)
    console.print("Certified: this network can be used in every pipeline.", style="bold green")
    return 0


def _mirrored(settings: "Check", network: nn.Module, probe: np.ndarray) -> Mirror:
    if settings.twin is None:
        return mirror(network, probe, route=settings.route)
    return build_twin(load(settings.twin, "twin"), network, probe)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise BridgeError(
            f"shape is {text!r}; it must be channels,height,width, such as 3,32,32"
        ) from error
    return channels, height, width
