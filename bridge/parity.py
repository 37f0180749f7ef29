"""Proof that a mirror is the network: PyTorch and JAX compared on a few images, or a refusal.

From a module, its mirror and a probe batch to a certificate of the largest errors: logits in
float32 and float64, the output of every layer, per-example gradients of every parameter, and the
exact independence of each image's logits from the rest of its batch (docs/mathematics.md, 2).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from bridge import evidence, reference
from bridge.certificate import Certificate, Layer
from bridge.errors import BridgeError, ParityError
from bridge.matching import check_weights, pairs, weights_of_site
from bridge.mirror import Mirror
from bridge.nodes import Site, Weight, references
from bridge.tolerances import tolerances

# A layer or a gradient this much smaller than the largest of its kind is judged on that scale:
# where the exact value is 0, what is left is rounding.
_FLOOR = 1e-6


def certify(module: nn.Module, mirror: Mirror, probe: np.ndarray) -> Certificate:
    """Compare a mirror with its network, and refuse one that disagrees.

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
    return compare(module, mirror, probe).check()


def compare(module: nn.Module, mirror: Mirror, probe: np.ndarray) -> Certificate:
    """The certificate of `certify`, with its disagreements listed and not raised.

    Raises:
        ParityError: the arrays of the mirror are not those of the network, or the logits have
            different shapes, so that nothing can be compared.
        BridgeError: as for `certify`.
    """
    _check_probe(module, probe)
    check_weights(module, mirror)
    plain = reference.logits(module, probe, torch.float32)
    if not np.isfinite(plain).all():
        raise ParityError("the network's own logits for the probe are not finite; train it again")
    direction = np.cos(1.0 + np.arange(plain.shape[1]))  # no two logits weighed alike
    program = mirror.program
    one_by_one = program is not None and program.one_by_one
    theirs = reference.evidence(module, probe, direction, evidence.GRADIENTS, one_by_one)
    ours, ours32 = _evidence_of(mirror, probe, direction)
    if ours.logits.shape != theirs.logits.shape:
        raise ParityError(
            f"the mirror's logits have shape {ours.logits.shape}, the network's "
            f"{theirs.logits.shape}; mirror the network again"
        )

    sites = list(program.sites) if program else []
    sites = [site for site in sites if not mirror.constants.issuperset(weights_of_site(site))]
    paired = pairs(sites, theirs.calls)
    allowed = tolerances(program)
    activations = _measure(
        [(site.name, ours.activations[site.name], call.output) for site, call in paired],
        allowed.values,
        lambda name: f"at layer {_describe(sites, name)}",
    )
    logits64 = _measure(
        [("", ours.logits, theirs.logits)], allowed.values, lambda _: "in the logits (float64)"
    )
    batch = _measure(
        [("", ours.alone, ours.logits[: evidence.GRADIENTS])],
        allowed.values,
        lambda _: "between an image alone and the same image in a batch",
    )
    gradients = _measure(
        [(name, ours.gradients[name], theirs.gradients[name]) for name in mirror.params],
        allowed.gradients,
        lambda name: f"in the per-example gradients of {_describe_parameter(sites, name)}",
    )
    logits32 = _measure([("", ours32, plain)], allowed.float32, lambda _: "in the logits (float32)")
    coverage = _uncovered(mirror)
    coupling = _coupled(sites, ours.leaks)
    if not (logits64.faults or gradients.faults or coupling or batch.faults):
        activations = _without_false_pairs(activations, allowed.values)
    return Certificate(
        route=mirror.route,
        examples=len(probe),
        parameters=len(mirror.params),
        sites=len(sites),
        compared=len(activations.errors),
        logits_float32=logits32.worst,
        logits_float64=logits64.worst,
        activations=activations.worst,
        worst_activation=activations.where,
        gradients=gradients.worst,
        worst_gradient=gradients.where,
        batch=batch.worst,
        tolerance_float32=allowed.float32,
        tolerance_float64=allowed.values,
        tolerance_gradients=allowed.gradients,
        exceptions=allowed.reasons,
        layers=tuple(
            Layer(s.name, s.op, s.source, weights_of_site(s), activations.errors.get(s.name))
            for s in sites
        ),
        gradient_errors=gradients.errors,
        disagreements=(
            *activations.faults,
            *coverage,
            *logits64.faults,
            *coupling,
            *batch.faults,
            *gradients.faults,
            *logits32.faults,
        ),
    )


def _evidence_of(
    mirror: Mirror, probe: np.ndarray, direction: np.ndarray
) -> tuple[evidence.Evidence, np.ndarray]:
    """The JAX side: everything in float64, and the logits in float32."""
    exact, single = mirror.astype(jnp.float64), mirror.astype(jnp.float32)
    ours = evidence.evidence(
        mirror.function, exact.params, exact.frozen, jnp.asarray(probe, float), direction
    )
    ours32 = evidence.logits(
        mirror.function, single.params, single.frozen, jnp.asarray(probe, "float32")
    )
    return jax.tree.map(np.asarray, ours), np.asarray(ours32)


class _Measured(NamedTuple):
    """Relative errors by name, the largest, and in words those past their tolerance."""

    errors: dict[str, float]
    worst: float
    where: str
    faults: list[str]


def _measure(
    items: Iterable[tuple[str, np.ndarray, np.ndarray]],
    tolerance: float,
    describe: Callable[[str], str],
) -> _Measured:
    items = list(items)
    scales = {name: _scale(theirs) for name, _, theirs in items}
    floor = max(_FLOOR * max(scales.values(), default=0), np.finfo(float).tiny)
    errors, faults = {}, []
    for name, ours, theirs in items:
        same = np.shape(ours) == theirs.shape  # or they would be broadcast
        gap = _gap(np.asarray(ours, float), theirs) if same else np.inf
        difference = float(np.max(gap, initial=0))
        error = difference / max(scales[name], floor)
        errors[name] = error if error == error else np.inf  # a NaN is a disagreement
        if not error <= tolerance:
            faults.append(
                f"the mirror and the network first disagree {describe(name)}: largest error "
                f"{difference:.3g} among values up to {scales[name]:.3g}, relative error "
                f"{error:.3g}, tolerance {tolerance:.0e}; mirror the network again, and report "
                "the layer if that does not help"
            )
    return _measured(errors, faults)


def _gap(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Absolute differences; equal infinities, as of an attention mask, do not differ."""
    with np.errstate(invalid="ignore"):
        return np.where(ours == theirs, 0.0, np.abs(ours - theirs))


def _scale(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0, where=np.isfinite(values)))


def _measured(errors: dict[str, float], faults: list[str]) -> _Measured:
    where = max(errors, key=errors.__getitem__, default="")
    return _Measured(errors, errors.get(where, 0.0), where, faults)


def _without_false_pairs(activations: _Measured, tolerance: float) -> _Measured:
    """Layers whose outputs differ although all that follows from them agrees were never a pair.

    A call of torch's may be several in the mirror, the first of which has its weight.
    """
    kept = {name: e for name, e in activations.errors.items() if e <= tolerance}
    return _measured(kept, [])


def _check_probe(module: nn.Module, probe: np.ndarray) -> None:
    if any(part.training for part in module.modules()):
        raise BridgeError("the network is in train mode; call .eval() before certifying its mirror")
    if probe.ndim < 2 or len(probe) < 2:
        raise BridgeError(f"the probe has shape {probe.shape}; it must be at least two images")


def _uncovered(mirror: Mirror) -> list[str]:
    if mirror.program is None:
        return []
    used = {w.name for node in mirror.program.nodes for w in references(node, Weight)}
    unused = set(mirror.params) - used
    return [f"the mirror never uses {', '.join(sorted(unused))}; mirror it again"] if unused else []


def _coupled(sites: Sequence[Site], leaks: Mapping[str, np.ndarray]) -> list[str]:
    if leaks[""] == 0:
        return []
    first = next((site.name for site in sites if leaks[site.name] != 0), "")
    return [
        "an image's logits depend on the other images of its batch"
        + (f", from layer {_describe(sites, first)} on" if first else "")
        + "; a kernel needs a function of one image: take out what mixes the batch"
    ]


def _describe(sites: Sequence[Site], name: str) -> str:
    (site,) = [site for site in sites if site.name == name]
    return f"{name!r} ({site.op}; {site.source})" if site.source else f"{name!r} ({site.op})"


def _describe_parameter(sites: Sequence[Site], name: str) -> str:
    users = [site.name for site in sites if name in site.parameters]
    return f"{name}, used by {_describe(sites, users[0])}" if users else name
