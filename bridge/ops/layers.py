"""Rows of the operator table for layers: convolution, normalisation, softmax.

From arrays in torch's layouts (images NCHW, kernels OIHW) to arrays in the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bridge.ops.pooling import Sizes, Windows, per_axis, visit
from bridge.ops.table import Scalar, register


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
    """Cross-correlation; `same` pads the odd pixel at the end of an axis."""
    rank = weight.ndim - 2
    stride, dilation = per_axis(stride, rank), per_axis(dilation, rank)
    reach = _reach(weight.shape[2:], dilation)
    edges = edges_of(padding, weight.shape[2:], dilation)
    dtype = jnp.result_type(x, weight)
    x, weight = x.astype(dtype), weight.astype(dtype)
    if groups == 1 and any(n <= r for n, r in zip(x.shape[2:], reach, strict=True)):
        y = _conv_of_small_images(x, weight, stride, edges, dilation)
    else:
        y = jax.lax.conv_general_dilated(
            x, weight, stride, edges, rhs_dilation=dilation, feature_group_count=groups
        )
    return y if bias is None else y + bias.reshape((-1,) + (1,) * rank)


def edges_of(
    padding: Sizes | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Pixels before and after each axis; `same` has the odd one at the end."""
    if padding == "same":
        return [(r // 2, r - r // 2) for r in _reach(kernel, dilation)]
    if isinstance(padding, str):
        return [(0, 0)] * len(kernel)
    return [(p, p) for p in per_axis(padding, len(kernel))]


def _reach(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """How far the last entry of a kernel is from its first, on each axis."""
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
    kernel = weight.shape[2:]
    counts = tuple(
        (n + low + high - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (low, high) in zip(
            x.shape[2:], kernel, stride, dilation, edges, strict=True
        )
    )
    windows = Windows(kernel, stride, tuple(low for low, _ in edges), dilation, counts)
    columns = jnp.stack(list(visit(x, windows, 0)), axis=2)
    return jnp.einsum("nck...,ock->no...", columns, weight.reshape(*weight.shape[:2], -1))


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


@register("aten.softmax.int")
def softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """exp(x) over its sum along an axis."""
    return jax.nn.softmax(x if dtype is None else x.astype(dtype), dim)


@register("aten.log_softmax.int")
def log_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Logarithm of the softmax."""
    return jax.nn.log_softmax(x if dtype is None else x.astype(dtype), dim)
