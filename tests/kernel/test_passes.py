"""Rows, pieces, factors and whole kernels of tiny networks against jax's own Jacobian."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jaxtyping import Array

from kernel.contract import AnchorRows
from kernel.infinite import nt
from kernel.jacobian import KroneckerFactors, contract_factors, contract_own_factors, differentiate
from kernel.ntk import empirical_ntk
from kernel.options import PROBES, Request
from kernel.param_groups import Block, ParamGroup, param_groups
from kernel.plan import plan_kernel, problem_of
from tests.kernel.engine_networks import (
    CLASSES,
    NETWORKS,
    SHAPE,
    flat_jacobian,
    images,
    jacobian,
    model,
    plain,
)
from tests.kernel_cases import per_example_gradients

COUNT = 4
IMAGE = jax.ShapeDtypeStruct(SHAPE, "float64")


def chunk_of(name, parts, *, square=True, together=False, without=False, projections=None):
    own = plain(name) if without else model(name)
    given = np.eye(CLASSES) if projections is None else projections
    return differentiate(
        own,
        tuple(parts),
        jnp.asarray(images(COUNT)),
        jnp.asarray(given),
        square=square,
        together=together,
    )


def layout(name: str, unit: ParamGroup, rows: np.ndarray) -> dict[str, Array]:
    """The parameters' gradients, in their own shapes, from (images, classes, columns)."""
    if unit.rule is not None:
        rule = unit.rule
        return jax.vmap(jax.vmap(rule.shaped))(jnp.asarray(rows))
    params = model(name).params
    names = [sorted(params)[place] for place in unit.leaf_idx]
    ends = np.cumsum([params[n].size for n in names])
    pieces = np.split(rows, ends[:-1], axis=2)
    shapes = [(*rows.shape[:2], *params[n].shape) for n in names]
    shaped = (jnp.reshape(*own) for own in zip(pieces, shapes, strict=True))
    return dict(zip(names, shaped, strict=True))


def close(ours, theirs) -> None:
    scale = np.abs(theirs).max()
    assert scale > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_the_jacobian(name):
    expected = jacobian(name, COUNT)
    parts = [Block(unit, "rows", unit.outputs) for unit in param_groups(model(name), IMAGE)]
    chunk = chunk_of(name, parts)
    assert np.asarray(chunk.finite).all()
    assert chunk.factors == ()
    seen = {}
    start = 0
    for part in parts:
        rows = np.asarray(chunk.rows)[:, :, start : start + part.columns]
        assert rows.shape[2] == part.group.columns
        own = layout(name, part.group, rows)
        assert not set(own) & set(seen)  # each parameter belongs to one unit
        seen |= own
        start += part.columns
    assert start == chunk.rows.shape[2]
    assert set(seen) == set(expected)
    for key, gradient in expected.items():
        assert seen[key].shape == gradient.shape, key
        # of an embedding, rows that were never looked up are zero on both sides
        close(seen[key], gradient)
    close(chunk_of(name, parts, together=True).rows, chunk.rows)


def test_gradients_of_one_projection_are_those_of_per_example_gradients():
    own, direction = model("Sequences"), jnp.arange(1.0, CLASSES + 1)
    reference = per_example_gradients(own, jnp.asarray(images(COUNT)), direction)
    expected = np.einsum("icp,c->ip", flat_jacobian("Sequences", COUNT), direction)
    close(reference, expected)


def test_without_taps_rows_are_the_leaves_in_order():
    own = plain("Volumes")
    parts = [Block(unit, "rows", unit.outputs) for unit in param_groups(own, IMAGE)]
    assert [part.group.leaf_idx for part in parts] == [(i,) for i in range(len(parts))]
    rows = chunk_of("Volumes", parts, without=True).rows
    close(rows, flat_jacobian("Volumes", COUNT))


@pytest.mark.parametrize("name", ["Convolutions", "Volumes"])
def test_pieces_of_every_unit_are_its_columns_each_once(name):
    """Products of gradients do not depend on the order of columns: they must add up."""
    found = param_groups(model(name), IMAGE)
    parts, whole = [], []
    for unit in found:
        own = max(1, unit.outputs // 3)  # one that divides them or not
        pieces = -(-unit.outputs // own)
        assert pieces > 1
        parts += [Block(unit, "rows", own, piece) for piece in range(pieces)]
        whole.append(Block(unit, "rows", unit.outputs))
    rows = np.asarray(chunk_of(name, parts).rows)
    full = np.asarray(chunk_of(name, whole).rows)
    start = first = 0
    for unit in found:
        width = sum(part.columns for part in parts if part.group == unit)
        cut = rows[:, :, start : start + width].reshape(-1, width)
        own = full[:, :, first : first + unit.columns].reshape(-1, unit.columns)
        # as multisets of columns, padding apart
        cut = cut[:, np.abs(cut).max(axis=0) > 0]
        own = own[:, np.abs(own).max(axis=0) > 0]
        assert cut.shape == own.shape, unit
        direction = np.linspace(1, 2, len(cut))
        close(cut[:, np.argsort(direction @ cut)], own[:, np.argsort(direction @ own)])
        start, first = start + width, first + unit.columns
    assert (start, first) == (rows.shape[2], full.shape[2])


def factorable(name: str) -> list[ParamGroup]:
    return [group for group in param_groups(model(name), IMAGE) if "factors" in group.forms]


@pytest.mark.parametrize(
    ("name", "square"),
    [("Convolutions", True), ("Sequences", True), ("Volumes", True), ("Volumes", False)],
)
def test_factors_are_the_products_of_rows(name, square):
    """Also of the sizes that a group says it keeps, and between different images."""
    projections = np.random.default_rng(0).normal(size=(2, CLASSES))
    groups = factorable(name)
    assert groups
    factored, rowed = (
        chunk_of(
            name,
            [Block.whole(group, form) for group in groups],
            square=square,
            projections=projections,
        )
        for form in ("factors", "rows")
    )
    assert factored.rows.shape == (COUNT, 2 if square else 1, 0)
    start = 0
    rows = np.asarray(rowed.rows)
    split = rows if square else rows.reshape(COUNT, 2, -1)
    for group, factors in zip(groups, factored.factors, strict=True):
        assert group.rule is not None
        bias = group.rule.bias is not None
        own = split[:, :, start : start + group.columns]
        own = own if square else own.reshape(COUNT, 1, -1)
        start += group.columns
        expected = np.einsum("irp,jsp->irjs", own, own)
        assert factors.inputs.size + factors.cotangents.size == COUNT * group.kept("factors", 2)
        close(contract_factors(bias, factors, factors), expected)
        close(contract_own_factors(bias, factors), np.einsum("irp,isp->irs", own, own))
        some, rest = (
            KroneckerFactors(factors.inputs[:, cut], factors.cotangents[:, cut])
            for cut in (slice(1), slice(1, 4))
        )
        close(contract_factors(bias, some, rest), expected[:1, :, 1:])


def forced(monkeypatch, form: str) -> None:
    """Every unit that can be had in this form is, at any price."""
    own = ParamGroup.forms.__get__

    def forms(unit):
        return (form,) if form in own(unit) else ("rows",)

    monkeypatch.setattr(ParamGroup, "forms", property(forms))


def expected_kernel(name: str, count: int, kind: str) -> np.ndarray:
    rows = flat_jacobian(name, count)
    theta = np.einsum("icp,jdp->ijcd", rows, rows)
    signs = np.random.default_rng(7).choice((-1.0, 1.0), size=(PROBES, CLASSES))
    return {
        "single": theta[..., 0, 0],
        "sum": theta.sum((2, 3)) / CLASSES,
        "trace": np.trace(theta, axis1=2, axis2=3) / CLASSES,
        "rademacher": np.einsum("pc,ijcd,pd->ij", signs, theta, signs) / (PROBES * CLASSES),
        "full": theta.transpose(0, 2, 1, 3),
    }[kind]


@pytest.mark.parametrize(
    ("name", "form", "kind", "chunk", "share"),
    [
        ("Convolutions", "rows", "trace", 7, 0.1),
        ("Convolutions", "factors", "full", 7, 2.0),
        ("Volumes", "rows", "full", 3, 0.3),
        ("Volumes", "factors", "rademacher", 2, 4.0),
        ("Sequences", "factors", "sum", 4, 0.9),
        ("Sequences", "rows", "single", 1, 0.3),
        ("Words", "rows", "rademacher", 7, 0.5),
    ],
)
def test_kernels_in_every_form_and_little_memory(name, form, kind, chunk, share, monkeypatch):
    """`share` of the rows' memory is given: with less than 1 there are several passes."""
    forced(monkeypatch, form)
    count = 7
    request = Request(kind, precision="float64", chunk=chunk)
    problem = problem_of(model(name), IMAGE, count, count, request, np.random.default_rng(7))
    width = len(problem.directions.projections)
    columns = sum(unit.columns for unit in problem.groups)
    own = min(chunk, count)
    held = count + 2 * own  # of those in chunks too
    kept = int(share * columns * (width if kind == "full" else 1)) * held * 8
    memory = (problem.result_bytes + problem.chunk_bytes(own, width) + kept) / 2**30
    request = replace(request, memory_gib=memory)
    made = plan_kernel(model(name), IMAGE, count, request, np.random.default_rng(7))
    forms = {part.form for one in made.passes for part in one.blocks}
    assert form in forms
    assert len(made.passes) > 1 or share > 0.8
    kernel = empirical_ntk(
        model(name),
        images(count),
        request,
        rng=np.random.default_rng(7),
    )
    close(kernel.values, expected_kernel(name, count, kind))


def test_tiles_smaller_than_the_set_add_up(monkeypatch):
    """The last tile is padded, on the diagonal and off it."""
    monkeypatch.setattr("kernel.contract.tile_images", lambda factors, images, limit: 3)
    forced(monkeypatch, "factors")
    request = Request("full", precision="float64", chunk=7)
    kernel = empirical_ntk(model("Volumes"), images(7), request)
    close(kernel.values, expected_kernel("Volumes", 7, "full"))


def test_the_whole_agrees_with_neural_tangents():
    own = plain("Volumes")
    theta = nt.empirical_ntk_fn(
        lambda params, x: own.function(params, own.frozen, x), trace_axes=(), implementation=1
    )(jnp.asarray(images(3)), None, own.params)
    kernel = empirical_ntk(model("Volumes"), images(3), Request("full", precision="float64"))
    close(kernel.values, np.asarray(theta).transpose(0, 2, 1, 3))


FORMS = ("rows", "factors", "factors")


def test_a_store_of_anchors_meets_others_and_knows_their_diagonal():
    parts = tuple(
        Block(unit, form, unit.outputs)
        for unit, form in zip(param_groups(model("Volumes"), IMAGE), FORMS, strict=True)
    )
    chunk = chunk_of("Volumes", parts)
    store = AnchorRows(3, parts)
    store.put(0, chunk)  # what lies past the third is left
    theta = expected_kernel("Volumes", COUNT, "full").reshape(COUNT * CLASSES, -1)
    gram = np.zeros((9, 9))
    store.add_gram(gram)
    close(gram, theta[:9, :9])
    close(store.cross(chunk, 2), theta[:9, : 2 * CLASSES])
    blocks = theta.reshape(COUNT, CLASSES, COUNT, CLASSES)
    close(store.diagonal(chunk), np.einsum("icid->icd", blocks))
