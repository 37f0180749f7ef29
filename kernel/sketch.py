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
    signed = rows * signs.astype(rows.dtype)
    padded = jnp.pad(signed, ((0, 0), (0, -rows.shape[1] % buckets)))
    return padded.reshape(len(rows), -1, buckets).sum(axis=1)
