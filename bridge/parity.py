"""Proof that a mirror is the network: PyTorch and JAX compared on a few images, or a refusal.

From a module, its mirror and a probe batch to a certificate of the largest errors: logits in
float32 and float64, the output of every layer, per-example gradients of every parameter, and the
exact independence of each image's logits from the rest of its batch (docs/mathematics.md, 2).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from bridge import evidence, reference
from bridge.errors import BridgeError, ParityError
from bridge.export import to_numpy
from bridge.mirror import Mirror
from bridge.program import Site, Weight, references

# Largest error that is let through, relative to the largest value of what is compared.
TOLERANCE_FLOAT32 = 1e-4
TOLERANCE_FLOAT64 = 1e-10
TOLERANCE_GRADIENTS = 1e-9
# A layer or a gradient this much smaller than the largest of its kind is judged on that scale:
# where the exact value is 0, what is left is rounding.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Certificate:
    """Largest errors of a mirror, each relative to the largest value of what was compared.

    Attributes:
        examples: images in the probe.
        parameters: trainable arrays, all of whose gradients were compared.
        sites: calls in the mirror that consume a parameter or buffer.
        compared: how many of them have a counterpart that torch showed; the rest lie inside a
            fused call and are covered by what follows them.
        logits_float32: of the logits in float32.
        logits_float64: of the logits in float64.
        activations: of the sites' outputs in float64.
        worst_activation: the site where it was seen.
        gradients: of the per-example gradients of two images in float64.
        worst_gradient: the parameter where it was seen.
        batch: of the logits of one image alone against the same in its batch, float64.
        tolerance_float32: largest error allowed for `logits_float32`.
        tolerance_float64: the same for `logits_float64`, `activations` and `batch`.
        tolerance_gradients: the same for `gradients`.
    """

    examples: int
    parameters: int
    sites: int
    compared: int
    logits_float32: float
    logits_float64: float
    activations: float
    worst_activation: str
    gradients: float
    worst_gradient: str
    batch: float
    tolerance_float32: float = TOLERANCE_FLOAT32
    tolerance_float64: float = TOLERANCE_FLOAT64
    tolerance_gradients: float = TOLERANCE_GRADIENTS

    def as_dict(self) -> dict[str, int | float | str]:
        """Plain values for a record in JSON."""
        return dataclasses.asdict(self)


def certify(module: nn.Module, mirror: Mirror, probe: np.ndarray) -> Certificate:
    """Compare a mirror with its network.

    The first call for a mirror compiles two functions; later ones, with other weights, cost a few
    passes over the probe in float64. Four images are enough.

    Args:
        module: the network, in eval mode.
        mirror: its mirror, with the same weights.
        probe: at least two images, normalised as for training.

    Raises:
        ParityError: they disagree; the message names the first layer or array that does.
        BridgeError: the module is in train mode, cannot be run in float64, or the probe is not a
            batch of at least two images.
    """
    if any(part.training for part in module.modules()):
        raise BridgeError("the network is in train mode; call .eval() before certifying its mirror")
    if probe.ndim < 2 or len(probe) < 2:
        raise BridgeError(f"the probe has shape {probe.shape}; it must be at least two images")
    _check_weights(module, mirror)
    plain = reference.logits(module, probe, torch.float32)
    if not np.isfinite(plain).all():
        raise ParityError("the network's own logits for the probe are not finite; train it again")
    direction = np.cos(1.0 + np.arange(plain.shape[1]))  # no two logits weighed alike
    theirs = reference.evidence(module, probe, direction, evidence.GRADIENTS)
    exact = mirror.astype(jnp.float64)
    ours = jax.tree.map(
        np.asarray,
        evidence.evidence(
            mirror.function, exact.params, exact.frozen, jnp.asarray(probe, float), direction
        ),
    )
    if ours.logits.shape != theirs.logits.shape:
        raise ParityError(
            f"the mirror's logits have shape {ours.logits.shape}, the network's "
            f"{theirs.logits.shape}; mirror the network again"
        )

    sites = [s for s in mirror.function.sites if not mirror.constants.issuperset(_weights(s))]
    pairs = _pairs(sites, theirs.calls)
    activations = _worst(
        [(site.name, ours.activations[site.name], call.output) for site, call in pairs],
        TOLERANCE_FLOAT64,
        lambda name: f"at layer {_describe(mirror, name)}",
    )
    _check_coverage(mirror)
    logits64 = _worst(
        [("", ours.logits, theirs.logits)], TOLERANCE_FLOAT64, lambda _: "in the logits (float64)"
    )
    _check_coupling(mirror, ours.leaks)
    batch = _worst(
        [("", ours.alone, ours.logits[: evidence.GRADIENTS])],
        TOLERANCE_FLOAT64,
        lambda _: "between an image alone and the same image in a batch",
    )
    gradients = _worst(
        [(name, ours.gradients[name], theirs.gradients[name]) for name in mirror.params],
        TOLERANCE_GRADIENTS,
        lambda name: f"in the per-example gradients of {_describe_parameter(mirror, name)}",
    )
    single = mirror.astype(jnp.float32)
    ours32 = evidence.logits(
        mirror.function, single.params, single.frozen, jnp.asarray(probe, "float32")
    )
    logits32 = _worst(
        [("", np.asarray(ours32), plain)], TOLERANCE_FLOAT32, lambda _: "in the logits (float32)"
    )
    return Certificate(
        examples=len(probe),
        parameters=len(mirror.params),
        sites=len(sites),
        compared=len(pairs),
        logits_float32=logits32.error,
        logits_float64=logits64.error,
        activations=activations.error,
        worst_activation=activations.name,
        gradients=gradients.error,
        worst_gradient=gradients.name,
        batch=batch.error,
    )


class _Worst(NamedTuple):
    error: float
    name: str


def _worst(
    items: Iterable[tuple[str, np.ndarray, np.ndarray]],
    tolerance: float,
    describe: Callable[[str], str],
) -> _Worst:
    """The largest relative error; the first that is past the tolerance raises."""
    items = list(items)
    scales = {name: float(np.max(np.abs(theirs), initial=0)) for name, _, theirs in items}
    floor = max(_FLOOR * max(scales.values(), default=0), np.finfo(float).tiny)
    worst = _Worst(0.0, "")
    for name, ours, theirs in items:
        difference = float(np.max(np.abs(np.asarray(ours, float) - theirs), initial=0))
        error = difference / max(scales[name], floor)
        if not error <= tolerance:  # a NaN is a disagreement
            raise ParityError(
                f"the mirror and the network first disagree {describe(name)}: largest error "
                f"{difference:.3g} among values up to {scales[name]:.3g}, relative error "
                f"{error:.3g}, tolerance {tolerance:.0e}; mirror the network again, and report "
                "the layer if that does not help"
            )
        if error > worst.error or not worst.name:
            worst = _Worst(error, name)
    return worst


def _weights(site: Site) -> tuple[str, ...]:
    return site.parameters + site.buffers


def _pairs(sites: list[Site], calls: Sequence[reference.Call]) -> list[tuple[Site, Any]]:
    """Sites with the torch calls they stand for: the k-th to consume the same weight."""
    partners: dict[int, int] = {}
    for weight in {name for call in calls for name in call.weights}:
        ours = [i for i, site in enumerate(sites) if weight in _weights(site)]
        theirs = [j for j, call in enumerate(calls) if weight in call.weights]
        if len(ours) == len(theirs):
            partners |= dict(zip(ours, theirs, strict=True))
    return [(sites[i], calls[j]) for i, j in sorted(partners.items())]


def _check_weights(module: nn.Module, mirror: Mirror) -> None:
    """The arrays of a mirror must be those of its network, bit for bit."""
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    if trainable != set(mirror.params):
        odd = ", ".join(sorted(trainable ^ set(mirror.params)))
        raise ParityError(
            f"the network and the mirror differ in their trainable parameters: {odd}; mirror the "
            "network again after it was changed"
        )
    held = {**mirror.params, **mirror.frozen}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        theirs = to_numpy(tensor)
        ours = np.asarray(held[name]) if name in held else None
        if ours is None or ours.shape != theirs.shape:
            raise ParityError(
                f"{name} is not in the mirror in the network's shape; mirror it again"
            )
        if not np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=True):
            raise ParityError(
                f"the mirror's {name} is not the network's: it was trained or loaded since, or two "
                "arrays were swapped; give the mirror its weights again with with_weights"
            )


def _check_coverage(mirror: Mirror) -> None:
    used = {w.name for node in mirror.function.nodes for w in references(node, Weight)}
    unused = set(mirror.params) - used
    if unused:
        raise ParityError(f"the mirror never uses {', '.join(sorted(unused))}; mirror it again")


def _check_coupling(mirror: Mirror, leaks: Mapping[str, np.ndarray]) -> None:
    order = [site.name for site in mirror.function.sites]
    if leaks[""] != 0:
        first = next((name for name in order if leaks[name] != 0), "")
        raise ParityError(
            "an image's logits depend on the other images of its batch"
            + (f", from layer {_describe(mirror, first)} on" if first else "")
            + "; a kernel needs a function of one image: take out what mixes the batch"
        )


def _describe(mirror: Mirror, name: str) -> str:
    (site,) = [site for site in mirror.function.sites if site.name == name]
    return f"{name!r} ({site.op}; {site.source})" if site.source else f"{name!r} ({site.op})"


def _describe_parameter(mirror: Mirror, name: str) -> str:
    site = next(site for site in mirror.sites if name in site.parameters)
    return f"{name}, used by {_describe(mirror, site.name)}"
