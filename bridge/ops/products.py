"""Rows of the operator table that multiply arrays: matrix products, einsum, attention, distances.

From arrays in torch's layouts to arrays in the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.reductions import vector_norm
from bridge.ops.table import Scalar, register


@register("aten.linear.default")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Computes x Wᵀ + b over the last axis."""
    y = jnp.matmul(x, weight.T)
    return y if bias is None else y + bias


@register("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(x: Array, y: Array) -> Array:
    """Matrix product over the last two axes."""
    return jnp.matmul(x, y)


@register("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(bias: Array, x: Array, y: Array, *, beta: Scalar = 1, alpha: Scalar = 1) -> Array:
    """beta·bias + alpha·(x y)."""
    return beta * bias + alpha * jnp.matmul(x, y)


@register("aten.einsum.default")
def einsum(equation: str, operands: Sequence[Array], **_path: Any) -> Array:
    """Sum of products over labelled axes; an axis of size 1 is repeated to its label's size."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    spans = [_labelled_axes(term, x) for term, x in zip(terms, operands, strict=True)]
    sizes: dict[str, int] = {}
    for x, span in zip(operands, spans, strict=True):
        for axis, label in span.items():
            sizes[label] = max(sizes.get(label, 1), x.shape[axis])
    repeated = [
        jnp.broadcast_to(x, [sizes[span[i]] if i in span else n for i, n in enumerate(x.shape)])
        for x, span in zip(operands, spans, strict=True)
    ]
    return jnp.einsum(equation, *repeated)


def _labelled_axes(term: str, x: Array) -> dict[int, str]:
    """The label of each axis, but of those that an ellipsis stands for."""
    head, _, tail = term.partition("...")
    return dict(enumerate(head)) | {x.ndim - len(tail) + i: c for i, c in enumerate(tail)}


@register("aten.bilinear.default")
def bilinear(x: Array, y: Array, weight: Array, bias: Array | None = None) -> Array:
    """Σ x_i W_oij y_j + b_o over the last axes."""
    z = jnp.einsum("...i,oij,...j->...o", x, weight, y)
    return z if bias is None else z + bias


@register("aten.cdist.default")
def cdist(x: Array, y: Array, p: Scalar = 2, compute_mode: int | None = None) -> Array:
    """Distance of each row of x from each row of y, of slope 0 where two rows are the same."""
    del compute_mode  # how torch computes it
    return vector_norm(x[..., :, None, :] - y[..., None, :, :], p, -1)


@register("aten.scaled_dot_product_attention.default")
def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: Scalar = 0.0,
    is_causal: bool = False,
    *,
    scale: Scalar | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(scale·Q Kᵀ + mask) V; a query whose every key is masked gives 0.

    A mask of booleans keeps where it is true. The graph refuses dropout.

    Args:
        query: (…, heads, targets, depth).
        key: (…, heads or a divisor of them, sources, depth).
        value: (…, heads or a divisor of them, sources, width).
        attn_mask: broadcast to (…, targets, sources).
        dropout_p: 0.
        is_causal: each target sees the sources up to its own place.
        scale: 1/√depth unless given.
        enable_gqa: groups of query heads share a key and a value.
    """
    del dropout_p
    if enable_gqa:
        key = jnp.repeat(key, query.shape[-3] // key.shape[-3], -3)
        value = jnp.repeat(value, query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = factor * jnp.matmul(query, jnp.swapaxes(key, -1, -2))
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None and attn_mask.dtype == jnp.bool_:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    seen = jnp.any(scores > -jnp.inf, -1, keepdims=True)
    weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, 0), -1), 0)
    return jnp.matmul(weights, value)
