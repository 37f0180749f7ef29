"""The parity certificate: a mirror compared with its PyTorch network on a probe batch.

Compared are logits in float32 and float64, the output of every site, per-example gradients of every
parameter, and the exact independence of each image's logits from the rest of its batch
(docs/mathematics.md, 2). torch's calls are observed on the module as it runs, not on its exported
graph, so that a fault of the export shows. Both sides run in one dtype throughout, whatever forward
casts to. A mirror that disagrees is refused with the first layer or array that does. The mirror of
a tail (`bridge.prefix`) is compared with the whole network, on rows that the prefix makes of the
probe.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bridge.errors import BridgeError, ParityError
from bridge.mirror import Mirror
from bridge.mirror_outputs import GRADIENT_EXAMPLES, JaxOutputs, jax_logits, jax_outputs
from bridge.module import (
    CoarsestDtype,
    copy_module,
    copy_to_cpu,
    logits_in,
    one_dtype,
    to_numpy,
)
from bridge.prefix import FrozenPrefix
from bridge.program import Program, Site, Weight, references
from kernel.files import write_file

FORMAT = "ntk-lookahead certificate"
VERSION = 1
# Fields that the record of a run leaves out.
DETAILS = ("layers", "gradient_errors", "disagreements")


@dataclass(frozen=True)
class Layer:
    """One call in the mirror that consumes a parameter or buffer.

    Attributes:
        name: of the site: the path of its module.
        op: ATen name of the operator.
        source: line of the user's code.
        weights: parameters and buffers that it consumes.
        error: of its output in float64; None where torch showed no counterpart, because one call
            there is several here or the reverse, and it is covered by what follows it.
    """

    name: str
    op: str
    source: str
    weights: tuple[str, ...]
    error: float | None


@dataclass(frozen=True)
class Certificate:
    """Largest errors of a mirror, each relative to the largest value of the quantity compared.

    Attributes:
        route: of the mirror: torch.export, torch2jax or twin.
        examples: images in the probe.
        parameters: trainable arrays, all of whose gradients were compared.
        sites: calls in the mirror that consume a parameter or buffer; 0 on a route without taps.
        compared: sites with a counterpart among torch's calls; the rest are part of one call
            there, or several, and are covered by what follows them.
        logits_float32: of the logits in float32.
        logits_float64: of the logits in float64.
        activations: of the sites' outputs in float64.
        worst_activation: the site with that error.
        gradients: of the per-example gradients of two images in float64, formed as the kernels
            form them: from taps, or by `vmap(grad)` on a route without.
        worst_gradient: the parameter with that error.
        batch: of the logits of one image alone against the same in its batch, float64.
        tolerance_float32: largest error allowed for `logits_float32`.
        tolerance_float64: the same for `logits_float64`, `activations` and `batch`.
        tolerance_gradients: the same for `gradients`.
        exceptions: reasons why a tolerance is wider than the default.
        layers: every site, in the order in which they run.
        gradient_errors: for each trainable parameter.
        disagreements: errors past their tolerance, in the order of the computation; empty for a
            mirror that may be used.
        frontier: numbers in a row of the frozen prefix from which the mirror starts; 0 where it
            starts from images.
    """

    route: str
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
    tolerance_float32: float
    tolerance_float64: float
    tolerance_gradients: float
    exceptions: tuple[str, ...]
    layers: tuple[Layer, ...]
    gradient_errors: dict[str, float]
    disagreements: tuple[str, ...]
    frontier: int = 0

    @property
    def passed(self) -> bool:
        """True if the mirror may be used."""
        return not self.disagreements

    def check(self) -> "Certificate":
        """This certificate, if the mirror may be used.

        Raises:
            ParityError: it may not; the message names the first layer or array that disagrees.
        """
        if self.disagreements:
            raise ParityError(self.disagreements[0])
        return self

    def summary(self) -> dict[str, Any]:
        """The largest errors as plain values, without the lists in DETAILS."""
        return _plain(
            {
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in DETAILS
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {"format": FORMAT, "version": VERSION} | _plain(dataclasses.asdict(self))

    def save(self, path: Path) -> None:
        """Write everything to a JSON file; a number that is not finite becomes null.

        Raises:
            BridgeError: the file cannot be written.
        """
        text = json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"
        try:
            write_file(Path(path), text.encode())
        except OSError as error:
            raise BridgeError(
                f"cannot write the certificate to {path}: {error.strerror}"
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Call(NamedTuple):
    """Output of one torch call, and the names of the parameters and buffers it consumed."""

    weights: tuple[str, ...]
    output: np.ndarray


class TorchOutputs(NamedTuple):
    """The module on n images, in float64, as in `JaxOutputs`; calls in the order of the module."""

    logits: np.ndarray
    calls: tuple[Call, ...]
    gradients: dict[str, np.ndarray]


def torch_logits(module: nn.Module, images: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Logits (n, classes) of a copy of the module in one dtype."""
    network = copy_module(module).to(dtype)  # outside: copying calls torch for every array
    with torch.no_grad(), one_dtype(dtype):
        return to_numpy(_run(network, torch.tensor(images, dtype=dtype)))


def own_logits(module: nn.Module, images: np.ndarray) -> tuple[np.ndarray, torch.dtype | None]:
    """Logits (n, classes) as forward's own casts round them, and the dtype of lowest precision.

    The dtype is None unless it is coarser than float32 and than the network's arrays.
    """
    network, x = copy_to_cpu(module, images)
    own = x.dtype if torch.finfo(x.dtype).eps > torch.finfo(torch.float32).eps else torch.float32
    with torch.no_grad(), CoarsestDtype(own) as coarsest:
        logits = _run(network, x).double()
    return to_numpy(logits), None if coarsest.dtype is own else coarsest.dtype


def torch_outputs(
    module: nn.Module,
    images: np.ndarray,
    direction: np.ndarray,
    examples: int,
    one_by_one: bool = False,
) -> TorchOutputs:
    """Run a float64 copy of the module and record its calls.

    Args:
        module: in eval mode.
        images: (n, channels, height, width).
        direction: (classes,); per-example gradients are those of `logits @ direction`.
        examples: how many images, m, to form gradients for.
        one_by_one: record the calls on each image by itself, and stack their outputs.

    Raises:
        BridgeError: the module cannot be run in float64.
    """
    network = copy_module(module).double()
    x = torch.tensor(images, dtype=torch.float64)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    names = {id(tensor): name for name, tensor in tensors}
    logits, calls = _recorded(network, x, names)
    if one_by_one:
        alone = [_recorded(network, image[None], names)[1] for image in x]
        calls = [
            Call(together[0].weights, np.stack([call.output for call in together]))
            for together in zip(*alone, strict=True)
        ]
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    project = torch.tensor(direction, dtype=torch.float64)
    count = min(examples, len(x)) if trainable else 0
    rows = {name: np.empty((count, *p.shape)) for name, p in trainable.items()}
    for i in range(count):
        with one_dtype(torch.float64):
            value = _run(network, x[i : i + 1]).reshape(-1) @ project
        try:
            gradients = torch.autograd.grad(value, list(trainable.values()), materialize_grads=True)
        except RuntimeError as error:
            raise BridgeError(f"torch cannot form the network's gradients: {error}") from error
        for name, gradient in zip(trainable, gradients, strict=True):
            rows[name][i] = gradient.numpy()
    return TorchOutputs(to_numpy(logits), tuple(calls), rows)


def _recorded(
    network: nn.Module, x: torch.Tensor, names: Mapping[int, str]
) -> tuple[torch.Tensor, list[Call]]:
    recorder = _CallRecorder(names)
    with one_dtype(x.dtype), recorder, torch.no_grad():
        logits = _run(network, x)
    return logits, recorder.calls


def _run(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        return logits_in(network(x))
    except Exception as error:
        raise BridgeError(
            f"the network cannot be run on images of shape {tuple(x.shape)} in {x.dtype}, which "
            f"its certificate needs: {type(error).__name__}: {error}; let the dtypes in forward "
            "follow the images"
        ) from error


class _CallRecorder(TorchFunctionMode):
    """Records every torch call that takes a named tensor and returns a new one."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        used = tuple(self.names[id(leaf)] for leaf in leaves if id(leaf) in self.names)
        if used and isinstance(output, torch.Tensor) and id(output) not in self.names:
            # A copy: a later call may write into the output in place.
            self.calls.append(Call(used, to_numpy(output)))
        return output


def weights_of_site(site: Site) -> tuple[str, ...]:
    """Every array of the network that a site consumes, by name."""
    return site.parameters + site.buffers


def pair_sites(sites: list[Site], calls: Sequence[Call]) -> list[tuple[Site, Call]]:
    """Pair the k-th site that consumes a weight with the k-th torch call that does."""
    matched: dict[int, int] = {}
    for weight in {name for call in calls for name in call.weights}:
        ours = [i for i, site in enumerate(sites) if weight in weights_of_site(site)]
        theirs = [j for j, call in enumerate(calls) if weight in call.weights]
        if len(ours) == len(theirs):
            matched |= dict(zip(ours, theirs, strict=True))
    return [(sites[i], calls[j]) for i, j in sorted(matched.items())]


def check_weights(module: nn.Module, mirror: Mirror, prefix: FrozenPrefix | None = None) -> None:
    """Refuse a mirror whose arrays are not those of its network, bit for bit.

    Buffers that no site consumes, such as counters of calls, may differ. The mirror of a tail has
    none of the arrays that the prefix alone reads.
    """
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    if trainable != set(mirror.params):
        odd = ", ".join(sorted(trainable ^ set(mirror.params)))
        raise ParityError(
            f"the network and the mirror differ in their trainable parameters: {odd}; mirror the "
            "network again after it was changed"
        )
    arrays = {**mirror.params, **mirror.frozen}
    unread = set(mirror.frozen) - _consumed(mirror)
    if prefix is not None:
        if not prefix.is_of(module):
            raise ParityError(
                "the network's arrays are others than those of its frozen prefix; split it again"
            )
        unread |= {name for name, _ in _named(module)} - _consumed(mirror)
    for name, tensor in _named(module):
        if name in unread:
            continue
        theirs = to_numpy(tensor)
        ours = np.asarray(arrays[name]) if name in arrays else None
        if ours is None or ours.shape != theirs.shape:
            raise ParityError(
                f"{name} is not in the mirror in the network's shape; mirror it again"
            )
        if not np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=True):
            raise ParityError(
                f"the mirror's {name} is not the network's: it was trained or loaded since, or two "
                "arrays were swapped; give the mirror its weights again with with_weights"
            )


FLOAT32 = 1e-4
FLOAT64 = 1e-10
GRADIENTS = 1e-10
# Operators whose derivative torch computes in less than float64, and its relative error.
_COARSE: Mapping[str, float] = {
    "aten.hardsigmoid.default": 1e-7,
    "aten.celu.default": 1e-7,
}
# Largest relative change of the logits by forward's own casts, in units of the dtype's rounding.
_ROUNDINGS = 16
# Errors are relative to at least this share of the largest quantity of the kind. A sum of n terms
# is rounded by about √n · 10⁻¹⁶ of their size, 10⁻¹³ for a million: 10⁻¹⁰ of 10⁻³.
_FLOOR = 1e-3


def gradient_tolerance(program: Program | None) -> tuple[float, tuple[str, ...]]:
    """The largest relative error of gradients, and why it is wider than the default."""
    coarse = {node.op for node in program.nodes if node.op in _COARSE} if program else set()
    reasons = (
        f"torch computes the derivative of {op} in less than float64: gradients are compared to "
        f"{_COARSE[op]:.0e}"
        for op in sorted(coarse)
    )
    return max([GRADIENTS, *(_COARSE[op] for op in coarse)]), tuple(reasons)


def _named(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def certify(
    module: nn.Module, mirror: Mirror, probe: np.ndarray, prefix: FrozenPrefix | None = None
) -> Certificate:
    """Compare a mirror with its network, and refuse one that disagrees.

    The first call for a mirror compiles two functions; later ones, with other weights, cost a few
    passes over the probe in float64. Four images are enough.

    Args:
        module: the network, in eval mode.
        mirror: its mirror, with the same weights.
        probe: at least two images, normalised as for training.
        prefix: of the network, where the mirror is of its tail.

    Raises:
        ParityError: they disagree; the message names the first layer or array that does.
        BridgeError: the module is in train mode, cannot be run in float64, or the probe is not a
            batch of at least two images.
    """
    return compare(module, mirror, probe, prefix).check()


def compare(
    module: nn.Module, mirror: Mirror, probe: np.ndarray, prefix: FrozenPrefix | None = None
) -> Certificate:
    """The certificate of `certify`, with its disagreements listed and not raised.

    Raises:
        ParityError: the arrays of the mirror are not those of the network, or the logits have
            different shapes, so that nothing can be compared.
        BridgeError: as for `certify`.
    """
    _check_probe(module, probe)
    check_weights(module, mirror, prefix)
    own, coarsest = own_logits(module, probe)
    if not np.isfinite(own).all():
        raise ParityError("the network's own logits for the probe are not finite; train it again")
    plain = torch_logits(module, probe, torch.float32)
    direction = np.cos(1.0 + np.arange(plain.shape[1]))  # no two logits have the same weight
    program = mirror.program
    one_by_one = program is not None and program.one_by_one
    theirs = torch_outputs(module, probe, direction, GRADIENT_EXAMPLES, one_by_one)
    exact, single = _inputs(probe, prefix)
    ours, ours32 = _mirror_outputs(mirror, exact, single, direction)
    if ours.logits.shape != theirs.logits.shape:
        raise ParityError(
            f"the mirror's logits have shape {ours.logits.shape}, the network's "
            f"{theirs.logits.shape}; mirror the network again"
        )

    sites = list(program.sites) if program else []
    sites = [site for site in sites if not mirror.constants.issuperset(weights_of_site(site))]
    paired = pair_sites(sites, theirs.calls)
    tolerance, reasons = gradient_tolerance(program)
    activations = _measure(
        [(s.name, jax.tree.leaves(ours.activations[s.name])[0], call.output) for s, call in paired],
        FLOAT64,
        lambda name: f"at layer {_describe(sites, name)}",
    )
    logits64 = _measure(
        [("", ours.logits, theirs.logits)], FLOAT64, lambda _: "in the logits (float64)"
    )
    batch = _measure(
        [("", ours.alone, ours.logits[:GRADIENT_EXAMPLES])],
        FLOAT64,
        lambda _: "between an image alone and the same image in a batch",
    )
    gradients = _measure(
        [(name, ours.gradients[name], theirs.gradients[name]) for name in mirror.params],
        tolerance,
        lambda name: f"in the per-example gradients of {_describe_parameter(sites, name)}",
        {name: float(size) for name, size in ours.summed.items()},
    )
    logits32 = _measure([("", ours32, plain)], FLOAT32, lambda _: "in the logits (float32)")
    notes, unstable = _casts(own, theirs.logits, coarsest)
    coverage = _uncovered(mirror)
    coupling = _coupled(sites, ours.leaks) or _coupled_prefix(probe, exact, prefix)
    if not (logits64.faults or gradients.faults or coupling or batch.faults):
        activations = _without_false_pairs(activations, FLOAT64)
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
        tolerance_float32=FLOAT32,
        tolerance_float64=FLOAT64,
        tolerance_gradients=tolerance,
        exceptions=(*reasons, *notes),
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
            *unstable,
        ),
        frontier=0 if prefix is None else prefix.frontier.width,
    )


def _inputs(probe: np.ndarray, prefix: FrozenPrefix | None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the mirror for the probe, in float64 and in float32."""
    exact, single = np.asarray(probe, np.float64), np.asarray(probe, np.float32)
    if prefix is None:
        return exact, single
    return tuple(prefix.rows(torch.tensor(x)).numpy() for x in (exact, single))  # pyright: ignore[reportReturnType]


def _coupled_prefix(probe: np.ndarray, rows: np.ndarray, prefix: FrozenPrefix | None) -> list[str]:
    """A fault if the first image's row is another one among other images."""
    if prefix is None:
        return []
    others = np.concatenate([probe[:1], -probe[1:]]).astype(np.float64)
    among = prefix.rows(torch.tensor(others)).numpy()[0]
    if float(np.max(_gap(among, rows[0]), initial=0)) <= FLOAT64 * _scale(rows):
        return []
    return [
        "an image's row of the frozen prefix depends on the other images of its batch; a kernel "
        "needs a function of one image: take out what mixes the batch"
    ]


def _casts(
    own: np.ndarray, exact: np.ndarray, coarsest: torch.dtype | None
) -> tuple[list[str], list[str]]:
    """Effect of forward's own casts on its logits: a note if it is rounding, else a fault."""
    if coarsest is None:
        return [], []
    error = float(np.max(_gap(own, exact))) / max(_scale(exact), np.finfo(float).tiny)
    allowed = _ROUNDINGS * torch.finfo(coarsest).eps
    effect = f"forward casts to {str(coarsest).removeprefix('torch.')}, which changes its logits by"
    if error <= allowed:
        note = f"{effect} {error:.1e} of the largest; the mirror and its kernels do not cast"
        return [note], []
    fault = (
        f"{effect} {error:.1e} of the largest where its rounding explains {allowed:.1e}, so that "
        "the mirror, which does not cast, is of another function; take the casts out of forward"
    )
    return [], [fault]


def _mirror_outputs(
    mirror: Mirror, inputs: np.ndarray, inputs32: np.ndarray, direction: np.ndarray
) -> tuple[JaxOutputs, np.ndarray]:
    """The mirror's outputs in float64, and its logits in float32."""
    exact, single = mirror.astype(jnp.float64), mirror.astype(jnp.float32)
    ours = jax_outputs(
        mirror.function, exact.params, exact.frozen, jnp.asarray(inputs), jnp.asarray(direction)
    )
    ours32 = jax_logits(mirror.function, single.params, single.frozen, jnp.asarray(inputs32))
    return jax.tree.map(np.asarray, ours), np.asarray(ours32)


class _Measured(NamedTuple):
    """Relative errors by name, the largest of them, and a message for each beyond the tolerance."""

    errors: dict[str, float]
    worst: float
    where: str
    faults: list[str]


def _measure(
    items: Iterable[tuple[str, np.ndarray, np.ndarray]],
    tolerance: float,
    describe: Callable[[str], str],
    summed: Mapping[str, float] = MappingProxyType({}),
) -> _Measured:
    items = list(items)
    scales = {name: max(_scale(theirs), summed.get(name, 0.0)) for name, _, theirs in items}
    floor = max(_FLOOR * max(scales.values(), default=0), np.finfo(float).tiny)
    errors, faults = {}, []
    for name, ours, theirs in items:
        same = np.shape(ours) == theirs.shape  # not merely broadcastable
        gap = _gap(np.asarray(ours, float), theirs) if same else np.inf
        difference = float(np.max(gap, initial=0))
        # (15) max|a − b| / max(s, 10⁻³ · the largest s of its kind)
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
    """Absolute differences; 0 between equal infinities, as of an attention mask."""
    with np.errstate(invalid="ignore"):
        return np.where(ours == theirs, 0.0, np.abs(ours - theirs))


def _scale(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0, where=np.isfinite(values)))


def _measured(errors: dict[str, float], faults: list[str]) -> _Measured:
    where = max(errors, key=errors.__getitem__, default="")
    return _Measured(errors, errors.get(where, 0.0), where, faults)


def _without_false_pairs(activations: _Measured, tolerance: float) -> _Measured:
    """The errors of the layers that agree, where everything after them agrees.

    The others are no pairs: one call of torch may be several in the mirror, the first of which
    consumes its weight.
    """
    kept = {name: e for name, e in activations.errors.items() if e <= tolerance}
    return _measured(kept, [])


def _check_probe(module: nn.Module, probe: np.ndarray) -> None:
    if any(part.training for part in module.modules()):
        raise BridgeError("the network is in train mode; call .eval() before certifying its mirror")
    if probe.ndim < 2 or len(probe) < 2:
        raise BridgeError(f"the probe has shape {probe.shape}; it must be at least two images")


def _consumed(mirror: Mirror) -> set[str]:
    """Names of the arrays that the mirror's function reads; all of them without a program."""
    if mirror.program is None:
        return {*mirror.params, *mirror.frozen}
    return {w.name for node in mirror.program.nodes for w in references(node, Weight)}


def _uncovered(mirror: Mirror) -> list[str]:
    unused = set(mirror.params) - _consumed(mirror)
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
