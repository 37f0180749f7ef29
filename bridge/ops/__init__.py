"""Operators of torch in JAX, one function each with the arguments of the ATen schema.

To add one, from a module of your own as well, decorate its function before the network is mirrored:

    >>> import jax.numpy as jnp
    >>> from bridge.ops import register
    >>> @register("aten.special_sinc.default")
    ... def sinc(x):
    ...     return jnp.sinc(x)
"""

# Each of these enters its rows into the table.
from bridge.ops import elementwise, layers, pooling, reductions, shapes  # noqa: F401
from bridge.ops.table import OPERATORS, register

__all__ = ["OPERATORS", "register"]
