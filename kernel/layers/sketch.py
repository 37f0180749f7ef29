"""Gradients in fewer dimensions, whose inner products are right on average.

From rows of the Jacobian to rows of k numbers: every entry takes a fixed random sign and falls into
the bucket of its number modulo k. The inner product of two such rows is unbiased for that of the
rows themselves, with an error of about 1/√k of the product of their lengths, and the kernel made of
them is positive semi-definite (docs/mathematics.md, 2).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from kernel.errors import KernelError


def random_signs(
    columns: int, buckets: int, rng: np.random.Generator
) -> Int8[np.ndarray, " columns"]:
    """A sign for each column, ±1 with equal chances.

    Raises:
        KernelError: a number of buckets with which nothing would be saved, or nothing kept.
    """
    if not 1 <= buckets < columns:
        raise KernelError(
            f"a sketch of {buckets:,} dimensions was asked for and the network has {columns:,} "
            "parameters: give a number from 1 to below that, or none for the exact kernel."
        )
    return rng.choice(np.array([-1, 1], np.int8), size=columns)


@partial(jax.jit, static_argnums=2)
def fold(
    rows: Float[Array, "batch columns"], signs: Int8[Array, " columns"], buckets: int
) -> Float[Array, "batch buckets"]:
    """Rows times their signs, entry i added to bucket i mod k."""
    return fold_into(jnp.zeros((len(rows), buckets), rows.dtype), rows, signs, 0)


def fold_into(
    total: Float[Array, "batch buckets"],
    rows: Float[Array, "batch columns"],
    signs: Int8[Array, " columns"],
    offset: int,
) -> Float[Array, "batch buckets"]:
    """A sketch and what some more columns add to it.

    Args:
        total: the sketch so far.
        rows: the columns.
        signs: theirs.
        offset: the number of the first of them among all columns.
    """
    buckets = total.shape[1]
    turns, rest = divmod(rows.shape[1], buckets)

    def add(turn: Array, sums: Array) -> Array:
        # a loop over slices: XLA's CPU backend is several times slower at the sum of a reshape
        some = jax.lax.dynamic_slice_in_dim(rows, turn * buckets, buckets, 1)
        return sums + some * jax.lax.dynamic_slice_in_dim(signs, turn * buckets, buckets)

    sums = jnp.zeros_like(total)
    if turns:
        sums = jax.lax.fori_loop(0, turns, add, sums)
    tail = rows[:, turns * buckets :] * signs[turns * buckets :]
    sums = sums + jnp.pad(tail, ((0, 0), (0, buckets - rest)))
    return total + jnp.roll(sums, offset % buckets, axis=1)
