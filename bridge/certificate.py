"""The outcome of comparing a mirror with its network: the largest errors, layer by layer.

From measured errors to plain values for a record, a JSON file, and a verdict.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.atomic import replace
from bridge.errors import BridgeError, ParityError

FORMAT = "ntk-lookahead certificate"
VERSION = 1
# What the record of a run leaves out.
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
    """Largest errors of a mirror, each relative to the largest value of what was compared.

    Attributes:
        route: how the mirror came about: torch.export, torch2jax or twin.
        examples: images in the probe.
        parameters: trainable arrays, all of whose gradients were compared.
        sites: calls in the mirror that consume a parameter or buffer; 0 on a route without taps.
        compared: how many of them have a counterpart that torch showed; the rest are parts of one
            call there, or several, and are covered by what follows them.
        logits_float32: of the logits in float32.
        logits_float64: of the logits in float64.
        activations: of the sites' outputs in float64.
        worst_activation: the site where it was seen.
        gradients: of the per-example gradients of two images in float64, formed as the kernels
            form them: from taps, or by `vmap(grad)` on a route without.
        worst_gradient: the parameter where it was seen.
        batch: of the logits of one image alone against the same in its batch, float64.
        tolerance_float32: largest error allowed for `logits_float32`.
        tolerance_float64: the same for `logits_float64`, `activations` and `batch`.
        tolerance_gradients: the same for `gradients`.
        exceptions: why a tolerance is wider than the usual one, in words.
        layers: every site, in the order in which they run.
        gradient_errors: for each trainable parameter.
        disagreements: what is past its tolerance, in the order in which it arises; empty for a
            mirror that may be used.
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

    @property
    def passed(self) -> bool:
        """Whether the mirror may be used."""
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
        """The largest errors, without the list of layers: plain values for the record of a run."""
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
            replace(Path(path), text.encode())
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
