"""Certificate of a mirror and cost of its kernel, as tables and sentences at a terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from torch import nn

from bridge.mirror import Mirror
from bridge.parity import Certificate, Layer
from bridge.prefix import FrozenPrefix
from kernel.estimate import Cost
from kernel.plan import Plan


def block_table(blocks: Sequence[tuple[str, int, int]]) -> Table:
    """Table of the blocks in order of execution, with the N of `--trainable last:N`.

    Args:
        blocks: names of modules, number of parameters, and of those that are trained.
    """
    title = "Blocks, in order of execution"
    table = Table("last:N", "block", "parameters", "trainable", title=title)
    for count, (names, parameters, trained) in zip(range(len(blocks), 0, -1), blocks, strict=True):
        shown = f"{trained:,}" if trained else "—"
        table.add_row(str(count), Text(names), f"{parameters:,}", shown)
    return table


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
    """Errors of the `shown` worst layers (None: all), in the order in which they run."""
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


def prefix_words(prefix: FrozenPrefix, network: nn.Module) -> str:
    """Sentence on the frozen prefix of a network."""
    own = {name for name, _ in network.named_parameters()}
    frozen = sum(array.numel() for name, array in prefix.arrays.items() if name in own)
    total = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"Frozen prefix: {frozen:,} of {total:,} parameters, computed once an image by torch; a "
        f"row has {prefix.frontier.width:,} numbers, and what follows is certified and costed."
    )


def size_words(mirror: Mirror) -> str:
    """Sentence on parameters and tap sites."""
    trainable = sum(array.size for array in mirror.params.values())
    text = f"{trainable:,} trainable parameters in {len(mirror.params)} arrays"
    frozen = [name for name in mirror.frozen if name not in mirror.constants]
    if frozen:
        text += f", {len(frozen)} buffers and frozen arrays"
    if mirror.program is None:
        return (
            f"{text}; no taps on the route {mirror.route}: kernels go through vmap(grad), without "
            "layer-by-layer contractions."
        )
    kinds = Counter(site.op.removeprefix("aten.") for site in mirror.sites)
    listed = ", ".join(f"{count} × {op}" for op, count in kinds.most_common())
    return f"{text}; {len(mirror.sites)} tap sites ({listed})."


def cost_words(cost: Cost, plan: Plan) -> str:
    """Sentence on the estimated time and memory of a kernel."""
    passes = "one pass" if len(plan.passes) == 1 else f"{len(plan.passes)} passes"
    return (
        f"The kernel `single` between {plan.problem.examples:,} images would take about "
        f"{_duration(cost.seconds)} and {plan.peak_gib:.2g} GiB of the "
        f"{plan.request.memory_gib:g} GiB given on this machine: gradients "
        f"{_duration(cost.gradient_seconds)} in {passes}, "
        f"products {_duration(cost.product_seconds)}, compiling "
        f"{_duration(cost.compile_seconds)}. `trace` takes that once "
        "for each class."
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
