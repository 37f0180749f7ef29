"""The one place that makes neural-tangents importable.

Its last release (0.6.5, 2023) imports names that have since moved or gone from JAX, and imports
TensorFlow for a sub-package that nothing here uses. The names are put back and the sub-package is
replaced by an empty module before the import. With that, stax kernels, `nt.predict`, `nt.batch`,
Jacobian contraction (implementation 1) and NTK-vector products (2) work. Structured derivatives
(3, and 0, which may choose them) do not: name an implementation when you ask for a kernel.
"""

import sys
from types import ModuleType
from typing import Any

import jax.core
import jax.extend.core
from jax.interpreters import ad

from kernel import x64  # noqa: F401

_MOVED_TO_EXTEND = ("ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")


def _safe_map(function, *sequences):
    sequences = [list(sequence) for sequence in sequences]
    if len({len(sequence) for sequence in sequences}) > 1:
        raise ValueError(f"sequences of unequal length: {[len(s) for s in sequences]}")
    return list(map(function, *sequences))


def _safe_zip(*sequences):
    return _safe_map(lambda *entries: entries, *sequences)


def _put_names_back() -> None:
    for name in _MOVED_TO_EXTEND:
        if not hasattr(jax.core, name):
            setattr(jax.core, name, getattr(jax.extend.core, name))
    if not hasattr(ad, "zeros_like_p"):
        # only a key in a table of rules: no program of today's JAX contains this primitive
        ad.zeros_like_p = jax.extend.core.Primitive("zeros_like")  # pyright: ignore[reportAttributeAccessIssue]
    if "jax.util" not in sys.modules:
        utilities = ModuleType("jax.util", "names that neural-tangents imports from here")
        utilities.safe_map = _safe_map  # pyright: ignore[reportAttributeAccessIssue]
        utilities.safe_zip = _safe_zip  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["jax.util"] = utilities
    sys.modules.setdefault(
        "neural_tangents.experimental", ModuleType("neural_tangents.experimental", "left out")
    )


_put_names_back()

import neural_tangents  # noqa: E402

nt: Any = neural_tangents  # its own annotations do not fit the JAX of today

__all__ = ["nt"]
