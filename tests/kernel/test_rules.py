"""One layer by itself: rows, factors and pairs against loops over its definition, in float64."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from bridge.program import Node, Ref, Weight, rule
from kernel.jacobian import KroneckerFactors, contract_factors, contract_own_factors
from kernel.taps import AffineRule, Window

# every geometry is compiled anew: few of them, the same ones every time, and none to shrink
RANDOM = settings(
    max_examples=5, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)


@st.composite
def axes(draw):
    """Kernel, stride, edges, dilation and an image's size on one axis."""
    kernel, stride, dilation = (draw(st.integers(1, top)) for top in (3, 3, 2))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    least = max(1, dilation * (kernel - 1) + 1 - before - after)
    return kernel, stride, (before, after), dilation, least + draw(st.integers(0, 3))


@st.composite
def geometries(draw, groups=(1, 1, 2, 3), ranks=(1, 2, 3)):
    """What `layer_of` makes a convolution of, in plain numbers, and the shape of its input."""
    own = draw(st.sampled_from(groups))
    inputs, outputs = own * draw(st.integers(1, 2)), own * draw(st.integers(1, 3))
    rank = draw(st.sampled_from(ranks))
    kernel, stride, edges, dilation, sizes = zip(*(draw(axes()) for _ in range(rank)), strict=True)
    bias = draw(st.sampled_from([None, "b"]))
    copies = draw(st.integers(1, 2))
    return (bias, inputs, outputs), (kernel, stride, edges, dilation, own), (copies, inputs, *sizes)


def layer_of(case) -> tuple[AffineRule, tuple[int, ...]]:
    """Outside of the strategy, because run-time checks of types draw random numbers."""
    names, window, shape = case
    bias, inputs, outputs = names
    return AffineRule("w", bias, inputs, outputs, Window(*window)), shape


def output_shape(layer: AffineRule, shape: tuple[int, ...]) -> tuple[int, ...]:
    w = layer.window
    assert w is not None
    sizes = (
        (n + sum(e) - d * (k - 1) - 1) // s + 1
        for n, e, d, k, s in zip(shape[2:], w.edges, w.dilation, w.kernel, w.stride, strict=True)
    )
    return (shape[0], layer.outputs, *sizes)


def gradients(layer: AffineRule, x: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """∂⟨δ, conv(x)⟩/∂w and ∂/∂b by a loop over every product in the definition of convolution."""
    w = layer.window
    assert w is not None
    padded = np.pad(x, [(0, 0), (0, 0), *w.edges])
    ours, theirs = layer.inputs // w.groups, layer.outputs // w.groups
    weight = np.zeros((layer.outputs, ours, *w.kernel))
    for o, i in itertools.product(range(layer.outputs), range(ours)):
        for place in np.ndindex(*cotangent.shape[2:]):
            for offset in np.ndindex(*w.kernel):
                at = zip(place, w.stride, offset, w.dilation, strict=True)
                pixel = tuple(p * s + k * d for p, s, k, d in at)
                seen = padded[(slice(None), o // theirs * ours + i, *pixel)]
                weight[(o, i, *offset)] += seen @ cotangent[(slice(None), o, *place)]
    bias = cotangent.sum(axis=(0, *range(2, cotangent.ndim)))
    return {"w": weight} if layer.bias is None else {"w": weight, "b": bias}


def close(ours, theirs) -> None:
    scale = max(np.abs(theirs).max(initial=0), 1.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * scale)


@RANDOM
@given(geometries(), st.integers(0, 99))
def test_rows_of_a_convolution_are_those_of_its_definition(case, seed):
    layer, shape = layer_of(case)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    deltas = rng.normal(size=(2, *output_shape(layer, shape)))
    rows = layer.rows(jnp.asarray(x), jnp.asarray(deltas), jnp.asarray(0), layer.outputs)
    assert rows.shape == (2, layer.outputs * layer.width)
    for row, delta in zip(rows, deltas, strict=True):
        expected = gradients(layer, x, delta)
        shaped = layer.shaped(row)
        assert set(shaped) == set(expected)
        for name, gradient in expected.items():
            assert shaped[name].shape == gradient.shape
            close(shaped[name], gradient)


@RANDOM
@given(geometries(groups=(1,), ranks=(2,)), st.integers(1, 3), st.integers(0, 99))
def test_pieces_put_together_are_the_whole(case, size, seed):
    layer, shape = layer_of(case)
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=shape))
    deltas = jnp.asarray(rng.normal(size=(2, *output_shape(layer, shape))))
    size = min(size, layer.outputs)
    starts = range(0, layer.outputs, size)
    pieces = [layer.rows(x, deltas, jnp.asarray(start), size) for start in starts]
    # of each piece kernels come first, then biases; what lies past the last channel is zero
    kernels = jnp.concatenate([p[:, : size * layer.features] for p in pieces], axis=1)
    biases = jnp.concatenate([p[:, size * layer.features :] for p in pieces], axis=1)
    whole = layer.rows(x, deltas, jnp.asarray(0), layer.outputs)
    split = layer.outputs * layer.features
    close(kernels[:, :split], whole[:, :split])
    assert not kernels[:, split:].any()
    assert biases.shape[1] == (size * len(starts) if layer.bias else 0)
    close(biases[:, : layer.outputs if layer.bias else 0], whole[:, split:])
    assert not biases[:, layer.outputs :].any()


def factors(layer: AffineRule, images, deltas, square: bool) -> KroneckerFactors:
    """As `kernel.jacobian` lays them out, from single images."""
    left = np.stack([np.asarray(layer.patches(jnp.asarray(x))[0].T) for x in images], axis=-2)
    right = np.stack([np.asarray(layer.cotangents(jnp.asarray(d))) for d in deltas])
    right = right.transpose(3, 0, 1, 2)  # (positions, images, projections, outputs)
    if not square:
        right = right.reshape(*right.shape[:2], 1, -1)
    return KroneckerFactors(left, right)


@pytest.mark.parametrize("square", [False, True])
@RANDOM
@given(geometries(groups=(1,)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.data())
def test_factors_give_the_products_of_rows(square, case, ours, others, projections, data):
    layer, shape = layer_of(case)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sets = []
    for count in (ours, others):
        images = rng.normal(size=(count, *shape))
        deltas = rng.normal(size=(count, projections, *output_shape(layer, shape)))
        rows = [
            layer.rows(jnp.asarray(x), jnp.asarray(d), jnp.asarray(0), layer.outputs)
            for x, d in zip(images, deltas, strict=True)
        ]
        flat = np.stack([np.asarray(own) if square else np.reshape(own, (1, -1)) for own in rows])
        sets.append((images, deltas, flat))
    (a, da, rows), (b, db, more) = sets
    expected = np.einsum("irp,jsp->irjs", rows, more)
    one, other = (factors(layer, *own, square) for own in ((a, da), (b, db)))
    bias = layer.bias is not None
    close(contract_factors(bias, one, other), expected)
    close(contract_own_factors(bias, one), np.einsum("irp,isp->irs", rows, rows))


SHAPES = {"w": (4, 3, 2, 2), "b": (4,), "m": (4, 6), "t": (7, 5)}


def node(op: str, *args, **kwargs) -> Node:
    return Node("node", op, args, kwargs, "module", "line 1")


X, W, B, M = Ref("x"), Weight("w"), Weight("b"), Weight("m")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (node("aten.linear.default", X, M), AffineRule("m", None, 6, 4)),
        (node("aten.linear.default", X, M, B), AffineRule("m", "b", 6, 4)),
        (node("aten.linear.default", X, M, Weight("frozen")), AffineRule("m", None, 6, 4)),
        (
            node("aten.conv2d.default", X, W, B, (2, 1), (1, 0), (1, 3), 2),
            AffineRule("w", "b", 6, 4, Window((2, 2), (2, 1), ((1, 1), (0, 0)), (1, 3), 2)),
        ),
        (
            node("aten.conv2d.padding", X, W, None, (1, 1), "same", groups=1),
            AffineRule("w", None, 3, 4, Window((2, 2), (1, 1), ((0, 1), (0, 1)), (1, 1))),
        ),
        (node("aten.linear.default", X, Weight("frozen"), B), None),
        (node("aten.linear.default", X, Ref("made"), B), None),
        (node("aten.linear.default", M, M), None),
        (node("aten.linear.default", X, M, Ref("made")), None),
        (node("aten.linear.default", X, B, B), None),
        (node("aten.mul.Tensor", X, M), None),
        (node("aten.embedding.default", Weight("t"), X), None),
    ],
)
def test_which_nodes_are_products(given, expected):
    assert rule(given, SHAPES) == expected


def test_a_window_as_large_as_its_image_has_one_place():
    window = Window((2, 3), (1, 1), ((0, 0), (1, 0)), (1, 1))
    layer = AffineRule("w", None, 2, 5, window)
    x = jnp.arange(2.0 * 2 * 2).reshape(1, 2, 2, 2)
    patches = layer.patches(x)
    assert patches.shape == (1, layer.features, 1)
    assert layer.width == layer.features == math.prod((2, 2, 3))
    # each channel's pixels in order, the padding first in each line
    lines = [[[0, 0, 1], [0, 2, 3]], [[0, 4, 5], [0, 6, 7]]]
    assert patches.reshape(2, 2, 3).tolist() == lines
