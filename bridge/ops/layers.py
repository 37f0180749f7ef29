"""Operator rows: convolution, normalisation, softmax, matrix products, attention, distances.

Layouts are torch's: images NCHW, kernels OIHW.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.pooling import Sizes, Windows, per_axis, visit
from bridge.ops.reductions import vector_norm
from bridge.ops.table import Scalar, enter, register


@register("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
@register("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Cross-correlation."""
    rank = weight.ndim - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    reach = _reach(weight.shape[2:], dilation)
    edges = edges_of(padding, weight.shape[2:], dilation)
    dtype = jnp.result_type(x, weight)
    x, weight = x.astype(dtype), weight.astype(dtype)
    if 1 < groups == x.shape[1] and jax.default_backend() == "cpu":
        y = _depthwise_conv(x, weight, stride, edges, dilation)
    elif groups == 1 and any(n <= r for n, r in zip(x.shape[2:], reach, strict=True)):
        y = _conv_of_small_images(x, weight, stride, edges, dilation)
    else:
        y = jax.lax.conv_general_dilated(
            x, weight, stride, edges, rhs_dilation=dilation, feature_group_count=groups
        )
    return y if bias is None else y + bias.reshape((-1,) + (1,) * rank)


def edges_of(
    padding: Sizes | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Padding before and after each axis; `same` puts an odd pixel at the end."""
    if padding == "same":
        return [(r // 2, r - r // 2) for r in _reach(kernel, dilation)]
    if isinstance(padding, str):
        return [(0, 0)] * len(kernel)
    return [(p, p) for p in per_axis(padding, len(kernel))]


def _reach(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Extent of a dilated kernel minus 1, on each axis."""
    return [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]


def _conv_of_small_images(
    x: Array,
    weight: Array,
    stride: tuple[int, ...],
    edges: list[tuple[int, int]],
    dilation: tuple[int, ...],
) -> Array:
    """The same as one matrix product over windows.

    XLA's CPU backend falls back to scalar loops for a kernel larger than its image, as in
    the last block of a VGG.
    """
    columns = jnp.stack(_windows(x, weight.shape[2:], stride, edges, dilation), axis=2)
    return jnp.einsum("nck...,ock->no...", columns, weight.reshape(*weight.shape[:2], -1))


def _depthwise_conv(
    x: Array,
    weight: Array,
    stride: tuple[int, ...],
    edges: list[tuple[int, int]],
    dilation: tuple[int, ...],
) -> Array:
    """The same for as many groups as channels, as a sum over the positions of the kernel.

    XLA's CPU backend multiplies with a dense kernel that is zero between groups, as many times the
    work as there are channels.
    """
    x = jnp.repeat(x, len(weight) // x.shape[1], axis=1)
    taps = weight.reshape(len(weight), -1, *(1,) * len(stride))
    shifted = _windows(x, weight.shape[2:], stride, edges, dilation)
    return sum((part * taps[:, k] for k, part in enumerate(shifted)), jnp.zeros((), x.dtype))


def _windows(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    edges: list[tuple[int, int]],
    dilation: tuple[int, ...],
) -> list[Array]:
    """The pixels under each position of the kernel, in its order."""
    counts = tuple(
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (low, high) in zip(
            x.shape[2:], kernel, stride, dilation, edges, strict=True
        )
    )
    return list(
        visit(x, Windows(kernel, stride, tuple(low for low, _ in edges), dilation, counts), 0)
    )


@register("aten.conv_transpose1d.default", "aten.conv_transpose2d.input")
@register("aten.conv_transpose3d.input")
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """The transpose of a cross-correlation, whose kernels are (in, out / groups, …)."""
    rank = weight.ndim - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    edges = [
        (d * (k - 1) - p, d * (k - 1) - p + extra)
        for d, k, p, extra in zip(
            dilation,
            weight.shape[2:],
            per_axis(padding, rank),
            per_axis(output_padding, rank),
            strict=True,
        )
    ]
    dtype = jnp.result_type(x, weight)
    inputs, outputs, *kernel = weight.shape
    turned = jnp.flip(weight, range(2, weight.ndim)).astype(dtype)
    turned = turned.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    y = jax.lax.conv_general_dilated(
        x.astype(dtype),
        turned.reshape(groups * outputs, inputs // groups, *kernel),
        (1,) * rank,
        edges,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    return y if bias is None else y + bias.reshape((-1,) + (1,) * rank)


@register("aten.batch_norm.default")
def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: Scalar,
    eps: Scalar,
    _cudnn: bool,
) -> Array:
    """Normalisation by running statistics along axis 1; the graph refuses batch statistics."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    scale = jax.lax.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    y = (x - running_mean.reshape(shape)) * scale.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


@register("aten._native_batch_norm_legit.no_stats")
def batch_norm_of_weights(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    training: bool,
    momentum: Scalar,
    eps: Scalar,
) -> tuple[Array, Array, Array]:
    """Normalisation by statistics of all axes but 1, with both; the graph refuses it of images."""
    axes, shape = (0, *range(2, x.ndim)), (-1,) + (1,) * (x.ndim - 2)
    y = _standardise(x, axes, eps)
    y = y if weight is None else y * weight.reshape(shape)
    y = y if bias is None else y + bias.reshape(shape)
    return y, jnp.mean(x, axes), jax.lax.rsqrt(jnp.var(x, axes) + eps)


def _standardise(x: Array, axes: tuple[int, ...], eps: Scalar) -> Array:
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + eps)


@register("aten.layer_norm.default")
def layer_norm(
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: Scalar = 1e-5,
    _cudnn: bool = True,
) -> Array:
    """Normalisation over the last axes of each example."""
    y = _standardise(x, tuple(range(-len(normalized_shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@register("aten.group_norm.default")
def group_norm(
    x: Array,
    groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: Scalar = 1e-5,
    _cudnn: bool = True,
) -> Array:
    """Normalisation over groups of channels of each example."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    y = _standardise(x.reshape((x.shape[0], groups, -1)), (2,), eps).reshape(x.shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


@register("aten.instance_norm.default")
def instance_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    use_input_stats: bool,
    momentum: Scalar,
    eps: Scalar,
    _cudnn: bool,
) -> Array:
    """Normalisation of each channel of each example, by its own or by running statistics."""
    if not use_input_stats and running_mean is not None and running_var is not None:
        return batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, _cudnn)
    return group_norm(x, x.shape[1], weight, bias, eps)


@register("aten.rms_norm.default")
def rms_norm(
    x: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    eps: Scalar | None = None,
) -> Array:
    """Division by the root mean square over the last axes of each example."""
    axes = tuple(range(-len(normalized_shape), 0))
    floor = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    y = x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + floor)
    return y if weight is None else y * weight


def _of_dtype(function: Callable[[Array, int], Array]) -> Callable[..., Array]:
    return lambda x, dim, dtype=None: function(x if dtype is None else x.astype(dtype), dim)


enter(
    {
        "aten.softmax.int": _of_dtype(jax.nn.softmax),
        "aten.log_softmax.int": _of_dtype(jax.nn.log_softmax),
        "aten.matmul.default aten.mm.default aten.bmm.default": jnp.matmul,
    }
)


@register("aten.linear.default")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Computes x Wᵀ + b over the last axis."""
    y = jnp.matmul(x, weight.T)
    return y if bias is None else y + bias


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
        is_causal: each target attends to the sources up to its own position.
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
