"""Summed gradients, their products and their lengths against jax's own Jacobian, in float64."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kernel import gradients as squares
from kernel.dynamics import folded, folding
from kernel.errors import KernelError
from kernel.gradients import lengths_and_products, squared_length, total
from kernel.model import Model
from kernel.param_groups import ParamGroup, param_groups
from tests.kernel.engine_networks import (
    CLASSES,
    NETWORKS,
    SHAPE,
    flat_jacobian,
    images,
    model,
    plain,
)
from tests.kernel_cases import linear_model, mlp

COUNT = 5
IMAGE = jax.ShapeDtypeStruct(SHAPE, "float64")
KINDS = {"tapped": model, "plain": plain}


def rows(count=COUNT):
    return np.random.default_rng(2).normal(size=(count, CLASSES))


def gradients(name):
    """(images, parameters), by jax alone."""
    return np.einsum("icp,ic->ip", flat_jacobian(name, COUNT), rows())


def lengths_of(*arguments, **options):
    return lengths_and_products(*arguments, **options).lengths


def close(ours, theirs, rtol=1e-11):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())


def shaped(own, vector):
    """A vector as a direction, shaped as the parameters."""
    ends = np.cumsum([own.params[k].size for k in sorted(own.params)])[:-1]
    return {
        k: jnp.asarray(some.reshape(own.params[k].shape))
        for k, some in zip(sorted(own.params), np.split(vector, ends), strict=True)
    }


def close_both(own, expected, chunk):
    """Lengths and products of gradients, against the gradients themselves."""
    cosines = np.cos(np.arange(expected.shape[1]))
    found = lengths_and_products(own, images(COUNT), rows(), shaped(own, cosines), chunk=chunk)
    close(found[0], (expected**2).sum(axis=1))
    close(found[1], expected @ cosines)


# closed form


def test_a_linear_network_by_hand(rng):
    own = linear_model(4, 3, rng)
    x, d = rng.normal(size=(7, 4)), rng.normal(size=(7, 3))
    direction = {"weight": jnp.asarray(rng.normal(size=(3, 4)))}
    close(total(own, x, d)["weight"], d.T @ x)
    close(lengths_of(own, x, d), (x**2).sum(1) * (d**2).sum(1))
    lengths, products, logits = lengths_and_products(own, x, d, direction)
    close(logits, x @ np.asarray(own.params["weight"]).T)
    close(lengths, (x**2).sum(1) * (d**2).sum(1))
    close(products, ((x @ direction["weight"].T) * d).sum(1))
    assert squared_length(direction) == pytest.approx((direction["weight"] ** 2).sum())


# against the Jacobian


CASES = [(name, "tapped") for name in NETWORKS] + [("Convolutions", "plain"), ("Words", "plain")]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_all_are_those_of_the_jacobian(name, how):
    """Stride, padding, dilation, groups, several positions, norms, shared weights, embeddings."""
    own, expected = KINDS[how](name), gradients(name)
    summed = total(own, images(COUNT), rows(), chunk=4)
    flat = np.concatenate([np.asarray(summed[k]).ravel() for k in sorted(summed)])
    close(flat, expected.sum(axis=0))
    close(lengths_of(own, images(COUNT), rows(), chunk=4), (expected**2).sum(axis=1))
    close_both(own, expected, chunk=4)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Convolutions", "factors"),
        ("Volumes", "factors"),
        ("Sequences", "rows"),
        ("Sequences", "factors"),
        ("Words", "rows"),
    ],
)
def test_lengths_are_the_same_in_every_form(name, form, monkeypatch):
    own = ParamGroup.forms.__get__
    monkeypatch.setattr(
        ParamGroup, "forms", property(lambda unit: (form,) if form in own(unit) else ("rows",))
    )
    assert form in {part.form for part in squares.cheapest(param_groups(model(name), IMAGE))}
    close(
        lengths_of(model(name), images(COUNT), rows(), chunk=4), (gradients(name) ** 2).sum(axis=1)
    )
    close_both(model(name), gradients(name), chunk=4)


def test_one_image_at_a_time_is_the_same(monkeypatch):
    """Of layers whose gradients are large: shared, normalised, with parameters of their own."""
    monkeypatch.setattr(squares, "SINGLY", -1)
    # of a shape that nothing was compiled for
    found = lengths_of(model("Sequences"), images(COUNT), rows(), chunk=3)
    close(found, (gradients("Sequences") ** 2).sum(axis=1))
    close_both(model("Sequences"), gradients("Sequences"), chunk=3)


@pytest.mark.parametrize("buckets", [40, 10**6])
def test_folded_gradients(buckets):
    """Unbiased, and whole where there are no more parameters than buckets."""
    expected = gradients("Volumes")
    sums = np.zeros((COUNT, COUNT))
    draws = 40 if buckets == 40 else 1
    for seed in range(draws):
        how = folding(model("Volumes"), IMAGE, buckets, np.random.default_rng(seed))
        values = folded(model("Volumes"), images(COUNT), rows(), how, chunk=2)
        assert values.shape == (COUNT, min(buckets, expected.shape[1]))
        sums += values @ values.T / draws
    lengths = np.sqrt((expected**2).sum(axis=1))
    error = np.abs(sums - expected @ expected.T) / np.outer(lengths, lengths)
    # a standard error of at most √(2 / (buckets · draws)), or rounding
    assert error.max() < (5 * np.sqrt(2 / (40 * draws)) if buckets == 40 else 1e-12)


# the choice of forms


def test_the_cheaper_form_is_chosen_by_counting():
    """A convolution of many positions by its gradient, layers at one position by both sides."""
    found = param_groups(model("Convolutions"), IMAGE)
    parts = {part.group.sites[0]: part for part in squares.cheapest(found)}
    for part in parts.values():
        own = part.group
        work = {form: own.forming(form, 1) + own.contracting(form, 1, False) for form in own.forms}
        assert work[part.form] == min(work.values())
    forms = {name: part.form for name, part in parts.items()}
    assert forms["same"] == "rows"
    assert forms["whole"] == forms["head"] == "factors"


# chunks


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_neither_chunks_nor_order_matter(chunk):
    own, order = model("Words"), np.array([3, 0, 4, 1, 2])
    x, d = images(COUNT), rows()
    whole = lengths_of(own, x, d, chunk=5)
    close(lengths_of(own, x[order], d[order], chunk=chunk), whole[order])
    ours, theirs = total(own, x[order], d[order], chunk=chunk), total(own, x, d, chunk=5)
    for name in theirs:
        close(ours[name], theirs[name])


def test_progress_goes_up_to_all_images():
    told = []
    lengths_of(
        model("Words"), images(COUNT), rows(), chunk=2, progress=lambda *now: told.append(now)
    )
    assert told[-1] == (COUNT, COUNT)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_is_compiled_serves_other_weights_and_sets(rng):
    traced = []

    def function(params, frozen, x):
        traced.append(x.shape)
        return jnp.tanh(x @ params["w"])

    def use(count):
        own = Model(function, {"w": jnp.asarray(rng.normal(size=(4, 3)))}, {})
        x, d = rng.normal(size=(count, 4)), rng.normal(size=(count, 3))
        direction = total(own, x, d, chunk=4)
        lengths_and_products(own, x, d, direction, chunk=4)
        squares.squares(function, *_of(own), own.params, {}, x[:2], d[:2])
        lengths_of(own, x, d, chunk=4)

    def _of(own):
        return squares.cheapest(param_groups(own, jax.ShapeDtypeStruct((4,), "float64"))), False

    use(6)
    first = len(traced)
    use(9)
    use(3)
    assert len(traced) == first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_the_parameters(dtype):
    own = model("Volumes")
    cast = own._replace(
        params=jax.tree.map(lambda leaf: leaf.astype(dtype), own.params),
        frozen={
            k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v
            for k, v in own.frozen.items()
        },
    )
    x = images(COUNT).astype("float32" if dtype == "float64" else "float64")
    summed = total(cast, x, rows())
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(summed)} == {dtype}
    lengths = lengths_of(cast, x, rows())
    assert lengths.dtype == np.float64
    error = np.abs(lengths / (gradients("Volumes") ** 2).sum(axis=1) - 1).max()
    assert error < 1e-5
    assert lengths_and_products(cast, x, rows(), summed).products.dtype == np.float64


# memory


def sizes(jaxpr):
    """Numbers of every array of a program, those of inner ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for value in equation.params.values():
            for held in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(held, "jaxpr", held)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


@pytest.mark.parametrize("how", KINDS)
def test_no_gradients_of_a_whole_chunk_are_made(how):
    """Every array of the program is smaller than images times the parameters."""
    own, chunk = KINDS[how]("Convolutions"), 64
    parameters = sum(leaf.size for leaf in jax.tree.leaves(own.params))
    parts = squares.cheapest(param_groups(own, IMAGE))
    program = jax.make_jaxpr(
        lambda x, d: squares.squares(own.function, parts, False, *own[1:], x, d)
    )(images(chunk), rows(chunk))
    largest = max(sizes(program.jaxpr))
    assert largest < chunk * parameters
    assert largest >= np.prod(SHAPE) * (chunk if how == "tapped" else 1)


# what is refused


@pytest.mark.parametrize("how", KINDS)
def test_images_that_are_not_finite_are_named(how):
    own, x = KINDS[how]("Volumes"), images(COUNT)
    x[[1, 4]] = np.nan
    direction = jax.tree.map(jnp.ones_like, own.params)
    for work in (
        lambda: lengths_of(own, x, rows(), chunk=2),
        lambda: lengths_and_products(own, x, rows(), direction, chunk=2),
        lambda: total(own, x, rows(), chunk=2),
    ):
        with pytest.raises(KernelError, match=r"images \[1\].* the first of them holds values"):
            work()
    how_folded = folding(own, IMAGE, 16, np.random.default_rng(0))
    with pytest.raises(KernelError, match=r"images \[1\]"):
        folded(own, x, rows(), how_folded, chunk=2)


def test_weights_that_are_not_finite_are_named():
    own = model("Volumes")
    broken = own._replace(params={**own.params, "head.weight": own.params["head.weight"] * np.inf})
    with pytest.raises(KernelError, match=r"weights head.weight are not finite"):
        total(broken, images(COUNT), rows())


def test_a_sum_that_is_not_finite_though_its_parts_are(rng, monkeypatch):
    own = linear_model(2, 2, rng)
    monkeypatch.setattr("kernel.gradients.lengths_and_products", lambda *_, **__: np.ones(2))
    with pytest.raises(KernelError, match="2 images are finite and their sum is not"):
        total(own, np.full((2, 2), 1e200), np.full((2, 2), 1e200), chunk=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((0, *SHAPE))}, "at least one image, and there are none"),
        ({"cotangents": rows(4)}, "5 images and 4 rows of cotangents"),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"cotangents": rows() * np.array([[1], [np.nan], [1], [1], [1]])}, r"images \[1\] "),
        ({"model": Model(plain("Words").function, {}, {})}, "no trainable parameter"),
    ],
)
@pytest.mark.parametrize("of", [lengths_of, total])
def test_what_has_no_gradient(of, change, message):
    given = {"model": model("Words"), "images": images(COUNT), "cotangents": rows()} | change
    with pytest.raises(KernelError, match=message):
        of(given.pop("model"), given.pop("images"), given.pop("cotangents"), **given)


def test_a_direction_that_is_not_one(rng):
    own = mlp(4, 3, 2, rng)
    x, good = rng.normal(size=(2, 4)), dict(own.params)
    wrong = (
        ({"first.weight": good["first.weight"]}, "the direction is PyTreeDef"),
        (good | {"second.bias": good["first.bias"]}, r"shape \(3,\) and its parameter \(2,\)"),
        (good | {"second.bias": good["second.bias"] * np.nan}, "direction holds NaN"),
    )
    for direction, message in wrong:
        with pytest.raises(KernelError, match=message):
            lengths_and_products(own, x, np.ones((2, 2)), direction)
