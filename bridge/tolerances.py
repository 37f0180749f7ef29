"""How far a mirror may be from its network, and why more is allowed to some.

From the operators of a program to the largest errors of a certificate, each relative to the largest
value of what is compared.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bridge.nodes import DType, Node, Ref, references
from bridge.program import Program

FLOAT32 = 1e-4
FLOAT64 = 1e-10
GRADIENTS = 1e-10
# Operators whose derivative torch itself computes in less than float64, and how far off it is.
_COARSE: Mapping[str, float] = {
    "aten.hardsigmoid.default": 1e-7,
    "aten.celu.default": 1e-7,
}
# Of a network that casts to float32 or less by itself, whatever dtype it is run in.
_LOW = ("float32", "float16", "bfloat16")
_CAST = 1e-4


class Tolerances(NamedTuple):
    """The largest relative errors that are let through.

    Attributes:
        float32: of logits in float32.
        values: of logits and of the outputs of layers in float64.
        gradients: of per-example gradients in float64.
        reasons: why one is wider than the usual, in words.
    """

    float32: float
    values: float
    gradients: float
    reasons: tuple[str, ...]


def tolerances(program: Program | None) -> Tolerances:
    """What a mirror may be off by; a mirror that is no program is held to the usual values."""
    values, gradients, reasons = FLOAT64, GRADIENTS, []
    for node in program.nodes if program else ():
        if node.op in _COARSE:
            gradients = max(gradients, _COARSE[node.op])
            reasons.append(
                f"torch computes the derivative of {node.op} in less than float64: gradients are "
                f"compared to {_COARSE[node.op]:.0e}"
            )
        if _casts_down(node):
            values, gradients = max(values, _CAST), max(gradients, 10 * _CAST)
            reasons.append(
                f"forward itself goes to a lower precision at {node.source or node.op}: what is "
                f"compared in float64 is compared to {_CAST:.0e}, gradients to {10 * _CAST:.0e}"
            )
    return Tolerances(FLOAT32, values, gradients, tuple(dict.fromkeys(reasons)))


def _casts_down(node: Node) -> bool:
    """Whether values of the network, not ones that it makes from nothing, lose precision here."""
    makes = "_like" in node.op or ".new_" in node.op
    low = any(dtype.name in _LOW for dtype in references(node, DType))
    return low and not makes and any(True for _ in references(node, Ref))
