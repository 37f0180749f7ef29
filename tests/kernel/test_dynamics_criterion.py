"""dynamicAL: Δ against the training dynamics of augmented sets, and the dissimilar batch."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kernel.dynamics import Measured, cotangents, dissimilar, joined, measure
from kernel.errors import KernelError
from kernel.gradients import squared_length, total
from tests.dynamics_cases import by_hand
from tests.kernel.engine_networks import images, model, plain
from tests.kernel_cases import mlp

L, U, C, FEATURES = 6, 9, 3, 5
COUNT = 5


@pytest.fixture
def problem(rng):
    """A network, labelled images and labels, candidates."""
    own = mlp(FEATURES, 7, C, rng)
    x = rng.normal(size=(L + U, FEATURES))
    return own, x[:L], rng.integers(C, size=L), x[L:]


def logits(model, x):
    return np.asarray(model.function(model.params, model.frozen, jnp.asarray(x)))


def summed_loss(params, model, x, labels, loss):
    f = model.function(params, model.frozen, x)
    y = np.eye(C)[labels]
    if loss == "cross_entropy":
        return -(y * jax.nn.log_softmax(f)).sum()
    return ((f - y) ** 2).sum() / 2


def literal(model, x, labels, loss):
    """G(S) of [D], Eq. 8: the squared gradient of the summed loss, by jax alone."""
    gradient = jax.grad(summed_loss)(model.params, model, x, labels, loss)
    return sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient))


def measured(problem, loss):
    model, x, labels, candidates = problem
    direction = total(model, x, cotangents(logits(model, x), labels, loss))
    return measure(model, candidates, logits(model, candidates), direction, loss), direction


# the criterion


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_the_dynamics_are_the_rate_at_which_the_loss_falls(problem, loss):
    """Along the gradient flow dθ/dt = −∇ℓ, by a finite difference."""
    model, x, labels, _ = problem
    direction = total(model, x, cotangents(logits(model, x), labels, loss))
    dynamics, step = squared_length(direction), 1e-5

    def after(time):
        moved = jax.tree.map(lambda p, g: p - time * g, model.params, direction)
        return float(summed_loss(moved, model, x, labels, loss))

    rate = (after(-step) - after(step)) / (2 * step)
    assert rate == pytest.approx(dynamics, rel=1e-7)
    assert dynamics == pytest.approx(literal(model, x, labels, loss), rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_delta_is_what_a_candidate_adds_to_the_dynamics(problem, loss):
    model, x, labels, candidates = problem
    found, _ = measured(problem, loss)
    pseudo = logits(model, candidates).argmax(axis=1)
    before = literal(model, x, labels, loss)
    expected = [
        literal(model, np.vstack([x, u[None]]), np.append(labels, y), loss) - before
        for u, y in zip(candidates, pseudo, strict=True)
    ]
    np.testing.assert_allclose(found.delta(), expected, rtol=1e-10, atol=1e-10 * before)
    np.testing.assert_array_equal(found.pseudo, pseudo)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_every_gamma(problem, loss):
    model, x, labels, candidates = problem
    found, _ = measured(problem, loss)

    def gradient(x, labels):
        tree = jax.grad(summed_loss)(model.params, model, x, labels, loss)
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])

    own = gradient(x, labels)
    each = [gradient(u[None], y[None]) for u, y in zip(candidates, found.pseudo, strict=True)]
    norms = np.array([g @ g for g in each])
    inner = np.array([g @ own for g in each])
    for gamma in (0, 1, 2, 0.3):
        np.testing.assert_allclose(found.delta(gamma), norms + gamma * inner, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.delta(math.inf), inner, rtol=1e-9, atol=1e-9)


def test_blocks_are_joined(problem):
    model, _, _, candidates = problem
    whole, direction = measured(problem, "l2")
    f = logits(model, candidates)
    told = []
    pieces = [
        measure(
            model,
            candidates[part],
            f[part],
            direction,
            "l2",
            chunk=2,
            progress=lambda *now: told.append(now),
        )
        for part in (slice(0, 4), slice(4, None))
    ]
    assert (4, 4) in told
    assert told[-1] == (5, 5)
    for one, other in zip(joined(pieces), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
@pytest.mark.parametrize("name", ["Volumes", "Words", "Convolutions"])
@pytest.mark.parametrize("how", [model, plain])
def test_logits_of_the_pass_itself(name, loss, how):
    """As with logits that were computed before, whatever the chunk."""
    own, x = how(name), images(COUNT)
    f = logits(own, x)
    direction = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)), own.params
    )
    direction = jax.tree.map(lambda v, leaf: v.reshape(leaf.shape), direction, own.params)
    given = measure(own, x, f, direction, loss)
    for chunk in (2, None):
        found = measure(own, x, None, direction, loss, chunk=chunk)
        np.testing.assert_array_equal(found.pseudo, given.pseudo)
        for ours, theirs in zip(found, given, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


def test_a_network_that_is_sure_has_small_gradients_and_no_zeros(rng):
    """1 − p of a float32 network is not what float32 has left of it."""
    own = mlp(FEATURES, 7, C, rng)
    sure = jax.tree.map(lambda leaf: jnp.asarray(30 * leaf, jnp.float32), own.params)
    own = own._replace(
        params=sure, frozen=jax.tree.map(lambda leaf: leaf.astype("float32"), own.frozen)
    )
    x = rng.normal(size=(U, FEATURES)).astype(np.float32)
    f = np.asarray(own.function(own.params, own.frozen, x))
    found = measure(own, x, None, own.params, "cross_entropy")
    given = measure(own, x, f, own.params, "cross_entropy")
    np.testing.assert_allclose(found.norms, given.norms, rtol=1e-3)
    assert found.norms.min() < 1e-6 * found.norms.max()


def test_logits_of_the_pass_that_are_not_finite(rng):
    own, x = model("Volumes"), images(COUNT)
    direction = jax.tree.map(jnp.ones_like, own.params)
    x[[1, 4]] = np.nan
    with pytest.raises(KernelError, match=r"images \[1\].* the first of them holds values"):
        measure(own, x, None, direction, "l2", chunk=2)
    head = jnp.full_like(own.params["head.weight"], 1.7e308)
    huge = own._replace(params={**own.params, "head.weight": head})
    with pytest.raises(KernelError, match="logits are not finite"):
        measure(huge, images(COUNT), None, direction, "l2", chunk=2)
    with pytest.raises(KernelError, match="unknown loss 'hinge'"):
        measure(own, images(COUNT), None, direction, "hinge")


def test_cotangents_by_hand():
    f, labels = np.array([[0.0, np.log(3.0)]]), np.array([1])
    np.testing.assert_allclose(cotangents(f, labels, "cross_entropy"), [[0.25, -0.25]])
    np.testing.assert_allclose(cotangents(f, labels, "l2"), [[0.0, np.log(3.0) - 1]])


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        ([0, 1], "hinge", "unknown loss 'hinge'"),
        ([0], "l2", r"2 rows of logits and labels of \(1,\)"),
        ([0, 3], "l2", "label 3 of image 1 .* is not a class: the network has 3"),
    ],
)
def test_cotangents_that_cannot_be(labels, loss, message):
    with pytest.raises(KernelError, match=message):
        cotangents(np.zeros((2, 3)), np.array(labels), loss)


@pytest.mark.parametrize("gamma", [-1.0, math.nan])
def test_a_gamma_that_is_none(gamma):
    with pytest.raises(KernelError, match="gamma must be 0 or more"):
        Measured(np.ones(1), np.ones(1), np.zeros(1, np.int64), np.ones((1, 2))).delta(gamma)


# the dissimilar batch


def test_dissimilar_picks_by_hand(rng):
    scores, rows, order = rng.normal(size=12), rng.normal(size=(12, 3)), rng.permutation(12)
    chosen = dissimilar(scores, rows, 12, order)
    picks, values = by_hand(scores, rows, 12, order)
    assert chosen.positions.tolist() == picks
    np.testing.assert_allclose(chosen.scores[chosen.positions], values, rtol=1e-12)


def test_a_duplicate_has_nothing_left_and_is_not_picked():
    rows = np.array([[1.0, 0], [2.0, 0], [-1.0, 0], [0, 1.0], [0, 0]])
    scores = np.array([3.0, 4.0, 3.5, 1.0, 0.0])
    chosen = dissimilar(scores, rows, 2, np.arange(5))
    assert chosen.positions.tolist() == [1, 3]
    np.testing.assert_allclose(chosen.scores, [0, 4, 0, 1, 0], atol=1e-15)
