"""Diagnostics of training dynamics against brute force, in float64, from a literal Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.dynamics import diagnostics
from experiments.dynamics.diagnostics import between_images, bound, kendall, mmd, normalised
from kernel.covariance import Kernel
from kernel.dynamics import cotangents, measure
from kernel.errors import KernelError, SingularKernelError
from kernel.gradients import total
from kernel.ntk import empirical_ntk
from kernel.options import Request
from tests.kernel_cases import full_kernel, linear_model, mlp, one_hot, scalar_kernel

IMAGES, FEATURES, CLASSES, LABELLED = 9, 4, 3, 3


class Case:
    """A tiny network, its literal Jacobian and its full kernel."""

    def __init__(self, rng):
        self.model = mlp(FEATURES, 5, CLASSES, rng)
        self.images = rng.normal(size=(IMAGES, FEATURES))
        self.labels = rng.integers(CLASSES, size=IMAGES)
        self.targets = one_hot(self.labels, CLASSES)
        apply = self.model.function
        self.logits = np.asarray(apply(self.model.params, self.model.frozen, self.images))
        jacobian = jax.jacobian(lambda params: apply(params, self.model.frozen, self.images))
        leaves = jax.tree.leaves(jacobian(self.model.params))
        rows = [np.asarray(leaf).reshape(IMAGES, CLASSES, -1) for leaf in leaves]
        self.jacobian = np.concatenate(rows, axis=2)
        self.full = empirical_ntk(self.model, self.images, Request("full", precision="float64"))

    def gradient(self, vectors, places):
        """Σ_i J_iᵀ v_i, literally."""
        return sum(self.jacobian[i].T @ vectors[i] for i in places)


@pytest.fixture
def case(rng):
    return Case(rng)


def random_sets(rng, count, images=IMAGES, size=4):
    sets = np.zeros((count, images), bool)
    for row in sets:
        row[rng.choice(images, size, replace=False)] = True
    return sets


# --- training dynamics and alignment


@pytest.mark.parametrize("which", ["dynamics", "mse", "alignment"])
def test_energies_of_the_full_kernel_are_squared_gradients(case, rng, which):
    vectors = {
        "dynamics": cotangents(case.logits, case.labels, "cross_entropy"),
        "mse": case.logits - case.targets,
        "alignment": case.targets,
    }[which]
    sets = random_sets(rng, 6)
    found = diagnostics.energies(diagnostics.interactions(case.full, vectors), sets)
    for members, energy in zip(sets, found, strict=True):
        places = np.flatnonzero(members)
        literal = np.sum(case.gradient(vectors, places) ** 2)
        np.testing.assert_allclose(energy, literal, rtol=1e-10)
        own = diagnostics.energy_of(case.model, case.images[places], vectors[places])
        np.testing.assert_allclose(own, literal, rtol=1e-10)


def test_energies_of_a_scalar_kernel_are_traces(rng):
    kernel, vectors = scalar_kernel(IMAGES, rng), rng.normal(size=(IMAGES, CLASSES))
    sets = random_sets(rng, 5)
    found = diagnostics.energies(diagnostics.interactions(kernel, vectors), sets)
    for members, energy in zip(sets, found, strict=True):
        own = vectors[members]
        literal = np.trace(own.T @ kernel.values[np.ix_(members, members)] @ own)
        np.testing.assert_allclose(energy, literal, rtol=1e-12)


def test_a_scalar_kernel_and_the_full_one_that_it_stands_for_agree(rng):
    kernel, vectors = scalar_kernel(5, rng), rng.normal(size=(5, CLASSES))
    whole = np.einsum("ij,cd->icjd", kernel.values, np.eye(CLASSES))
    whole = Kernel(np.ascontiguousarray(whole), "float64")
    np.testing.assert_allclose(
        diagnostics.interactions(kernel, vectors),
        diagnostics.interactions(whole, vectors),
        atol=1e-12,
    )


def test_training_dynamics_are_how_fast_the_loss_falls(case):
    """−dℓ/dt under gradient flow, by central differences of the loss itself."""
    own = cotangents(case.logits, case.labels, "cross_entropy")
    direction = total(case.model, case.images, own)

    def loss(step):
        params = jax.tree.map(lambda p, g: p - step * g, case.model.params, direction)
        logits = case.model.function(params, case.model.frozen, case.images)
        return -jnp.sum(jax.nn.log_softmax(logits)[np.arange(IMAGES), case.labels])

    step = 1e-5
    rate = (loss(-step) - loss(step)) / (2 * step)
    np.testing.assert_allclose(diagnostics.energy_of(case.model, case.images, own), rate, rtol=1e-6)


def test_vectors_of_another_kernel_are_refused(rng):
    with pytest.raises(KernelError, match=r"shape \(4, 3\) for a kernel of 5 "):
        diagnostics.interactions(scalar_kernel(5, rng), np.zeros((4, 3)))
    with pytest.raises(KernelError, match=r"shape \(5, 2\) for a kernel of 5 × 3"):
        diagnostics.interactions(full_kernel(5, 3, rng), np.zeros((5, 2)))


# --- MMD


def literal_mmd(values, one, other):
    def mean(a, b):
        return sum(values[i, j] for i in a for j in b) / (len(a) * len(b))

    return np.sqrt(mean(one, one) - 2 * mean(one, other) + mean(other, other))


def test_mmd_against_double_sums_overlap_included(rng):
    values = scalar_kernel(IMAGES, rng).values
    one, other = random_sets(rng, 6), random_sets(rng, 6, size=5)
    assert (one & other).any(axis=1).sum() > 3
    expected = [
        literal_mmd(values, np.flatnonzero(a), np.flatnonzero(b))
        for a, b in zip(one, other, strict=True)
    ]
    np.testing.assert_allclose(mmd(values, one, other), expected, rtol=1e-10)


def test_mmd_is_a_distance_of_mean_features(case):
    one, other = np.zeros((2, 1, IMAGES), bool)
    one[0, :3], other[0, 2:] = True, True
    features = case.jacobian / np.sqrt(CLASSES)
    apart = features[:3].mean(axis=0) - features[2:].mean(axis=0)
    found = mmd(between_images(case.full), one, other)
    np.testing.assert_allclose(found, [np.linalg.norm(apart)], rtol=1e-10)
    trace = empirical_ntk(case.model, case.images, Request("trace", precision="float64"))
    np.testing.assert_allclose(mmd(trace.values, one, other), found, rtol=1e-10)


@pytest.mark.parametrize("size", [1, 4])
def test_mmd_with_a_union_is_a_share_of_the_mmd(rng, size):
    values = scalar_kernel(IMAGES, rng).values
    s, q = np.zeros((2, 1, IMAGES), bool)
    s[0, :LABELLED], q[0, LABELLED : LABELLED + size] = True, True
    expected = size / (LABELLED + size) * mmd(values, s, q)
    np.testing.assert_allclose(mmd(values, s, s | q), expected, rtol=1e-9)
    assert mmd(values, s, s) == 0


def test_normalised_has_a_mean_diagonal_of_one_and_takes_the_scale_away(rng):
    for kernel in (scalar_kernel(5, rng), full_kernel(5, 3, rng)):
        once = normalised(kernel)
        rows = once.values.reshape(int(np.sqrt(once.values.size)), -1)
        assert np.mean(rows.diagonal()) == pytest.approx(1)
        again = normalised(Kernel(7 * kernel.values, "float64"))
        np.testing.assert_allclose(again.values, once.values)
    with pytest.raises(KernelError, match="the kernel is zero"):
        normalised(Kernel(np.zeros((3, 3)), "float64"))


def test_an_empty_sample_is_refused(rng):
    sets = np.zeros((2, 5), bool)
    sets[0, 1] = True
    with pytest.raises(KernelError, match="a sample is empty"):
        mmd(scalar_kernel(5, rng).values, sets, np.ones((2, 5), bool))


# --- the bound


def test_bound_against_the_inverse(rng):
    kernel, targets = scalar_kernel(IMAGES, rng), one_hot(rng.integers(3, size=IMAGES), 3)
    found = bound(kernel, targets)
    expected = np.trace(targets.T @ np.linalg.inv(kernel.values) @ targets)
    assert found.value == pytest.approx(np.sqrt(2 * expected / IMAGES), rel=1e-8)
    ends = np.linalg.eigvalsh(kernel.values)[[0, -1]]
    np.testing.assert_allclose([found.smallest, found.largest], ends, rtol=1e-8)
    assert found.jitter == 0
    larger = bound(Kernel(4 * kernel.values, "float64"), targets)
    assert larger.value == pytest.approx(found.value / 2)


def test_bound_of_a_full_kernel_against_the_inverse(rng):
    kernel, targets = full_kernel(4, 3, rng), one_hot(rng.integers(3, size=4), 3)
    flat, matrix = targets.ravel(), kernel.values.reshape(12, 12)
    expected = flat @ np.linalg.inv(matrix) @ flat
    assert bound(kernel, targets).value == pytest.approx(np.sqrt(2 * expected / 4), rel=1e-8)


def test_alignment_and_bound_are_tied_by_kantorovich(rng):
    """(Tr YᵀY)² ≤ A · nB²/2 ≤ (λ_max+λ_min)²/(4 λ_max λ_min) (Tr YᵀY)²."""
    for _ in range(20):
        kernel, targets = scalar_kernel(7, rng), one_hot(rng.integers(3, size=7), 3)
        found = bound(kernel, targets)
        energy = diagnostics.interactions(kernel, targets).sum() * 7 * found.value**2 / 2
        low, high = found.smallest, found.largest
        factor = (high + low) ** 2 / (4 * high * low)
        assert 7**2 * (1 - 1e-9) <= energy <= factor * 7**2 * (1 + 1e-9)


def test_a_singular_kernel_takes_jitter_or_is_refused_by_name(rng):
    values = scalar_kernel(6, rng, rank=5).values
    targets = one_hot(rng.integers(3, size=6), 3)
    found = bound(Kernel(values, "float32"), targets)
    assert found.jitter > 0
    assert abs(found.smallest) < 1e-10 * found.largest
    with pytest.raises(KernelError, match="5 rows of targets for a kernel of 6 images"):
        bound(Kernel(values, "float64"), targets[:5])
    # images 40 and 41 alike, and an eigenvalue below 0 that no jitter lifts
    bad = np.eye(6)
    bad[0, 1] = bad[1, 0] = 1.0
    bad[2, 3] = bad[3, 2] = 1.1
    with pytest.raises(SingularKernelError, match="40 and 41"):
        bound(Kernel(bad, "float64"), targets, range(40, 46))


# --- the envelope


def test_flow_is_the_training_of_a_linear_model(rng):
    """f = Wx trained by tiny steps on ½‖f − Y‖² leaves what the eigenvalues say."""
    model = linear_model(FEATURES, CLASSES, rng)
    images = rng.normal(size=(3, FEATURES))
    targets = one_hot(np.arange(3), CLASSES)
    weights = np.asarray(model.params["weight"])
    residual = images @ weights.T - targets
    kernel = empirical_ntk(model, images, Request("full", precision="float64"))
    seen = diagnostics.residual_spectrum(kernel, residual)
    steps, time = 20_000, 0.4
    for _ in range(steps):
        weights = weights - time / steps * (images @ weights.T - targets).T @ images
    left = np.sum((images @ weights.T - targets) ** 2)
    found = diagnostics.flow(seen, np.array([0.0, time]))
    np.testing.assert_allclose(found.error, [np.sum(residual**2), left], rtol=1e-3)
    scalar = empirical_ntk(model, images, Request("trace", precision="float64"))
    again = diagnostics.flow(diagnostics.residual_spectrum(scalar, residual), np.array([0.0, time]))
    np.testing.assert_allclose(again.error, found.error, rtol=1e-8)


def test_flow_against_the_matrix_exponential_and_within_its_limits(rng):
    from scipy.linalg import expm

    kernel, residual = scalar_kernel(6, rng), rng.normal(size=(6, 3))
    seen = diagnostics.residual_spectrum(kernel, residual)
    times = np.array([0.0, 0.01, 0.05, 0.3])
    found = diagnostics.flow(seen, times)
    for number, t in enumerate(times):
        expected = np.trace(residual.T @ expm(-2 * t * kernel.values) @ residual)
        assert found.error[number] == pytest.approx(expected, rel=1e-8)
        ends = np.exp(-2 * t * np.linalg.eigvalsh(kernel.values)[[0, -1]]) * np.sum(residual**2)
        assert found.upper[number] == pytest.approx(ends[0])
        assert ends[1] <= found.lower[number] * (1 + 1e-12)
    assert (found.lower <= found.error * (1 + 1e-12)).all()
    assert (found.error <= found.upper * (1 + 1e-12)).all()
    energy = diagnostics.interactions(kernel, residual).sum()
    assert seen.alignment == pytest.approx(energy)
    fall = (found.error[0] - diagnostics.flow(seen, np.array([1e-9])).error[0]) / 1e-9
    assert fall == pytest.approx(2 * energy, rel=1e-4)


def test_envelopes_refuse_what_cannot_be(rng):
    seen = diagnostics.residual_spectrum(scalar_kernel(4, rng), rng.normal(size=(4, 2)))
    with pytest.raises(KernelError, match="a time of -1"):
        diagnostics.flow(seen, np.array([0.0, -1.0]))
    with pytest.raises(KernelError, match="3 rows of residuals for a kernel of 4"):
        diagnostics.residual_spectrum(scalar_kernel(4, rng), np.zeros((3, 2)))


# --- the approximation ratio


def test_ratios_against_the_literal_definition(case, rng):
    labelled, candidates = np.arange(LABELLED), np.arange(LABELLED, IMAGES)
    own = cotangents(case.logits, case.labels, "cross_entropy")
    pseudo = cotangents(case.logits, case.logits.argmax(axis=1), "cross_entropy")
    at_s = case.gradient(own, labelled)
    sets = random_sets(rng, 5, len(candidates), 3)

    def gain(places):
        return np.sum((at_s + case.gradient(pseudo, places)) ** 2) - np.sum(at_s**2)

    expected = [
        sum(gain([u]) for u in candidates[members]) / gain(candidates[members]) for members in sets
    ]
    direction = total(case.model, case.images[labelled], own[labelled])
    seen = measure(
        case.model, case.images[candidates], case.logits[candidates], direction, "cross_entropy"
    )
    squares = [
        diagnostics.energy_of(case.model, case.images[candidates[m]], pseudo[candidates[m]])
        for m in sets
    ]
    found = diagnostics.ratios(seen.delta(), seen.inner, np.array(squares), sets)
    np.testing.assert_allclose(found.each, expected, rtol=1e-9)
    assert found.median == pytest.approx(np.median(expected))
    alone = [sum(gain([u]) for u in candidates[members]) for members in sets]
    together = [gain(candidates[members]) for members in sets]
    assert found.of_means == pytest.approx(sum(alone) / sum(together))


def test_the_ratio_of_one_image_is_one(case):
    candidates = np.arange(LABELLED, IMAGES)
    pseudo = cotangents(case.logits, case.logits.argmax(axis=1), "cross_entropy")
    direction = total(case.model, case.images[:LABELLED], pseudo[:LABELLED])
    seen = measure(
        case.model, case.images[candidates], case.logits[candidates], direction, "cross_entropy"
    )
    squares = [diagnostics.energy_of(case.model, case.images[[u]], pseudo[[u]]) for u in candidates]
    found = diagnostics.ratios(
        seen.delta(), seen.inner, np.array(squares), np.eye(len(candidates)) > 0
    )
    np.testing.assert_allclose(found.each, 1, rtol=1e-12)
    assert found.of_means == pytest.approx(1)


def test_orthogonal_gradients_without_a_labelled_one_add_up(rng):
    norms = rng.uniform(1, 2, size=6)
    sets = random_sets(rng, 4, 6, 3)
    found = diagnostics.ratios(norms, np.zeros(6), sets @ norms, sets)
    np.testing.assert_allclose(found.each, 1)


def test_alike_gradients_add_up_to_less_than_together():
    """b copies of one gradient: Σ Δ = b‖g‖² and Δ = b²‖g‖², hence R = 1/b."""
    found = diagnostics.ratios(np.ones(4), np.zeros(4), np.array([16.0]), np.ones((1, 4), bool))
    assert found.each == pytest.approx(0.25)


def test_a_ratio_of_nothing_is_no_number():
    sets = np.eye(2) > 0
    found = diagnostics.ratios(np.array([0.0, 3.0]), np.zeros(2), np.array([0.0, 3.0]), sets)
    np.testing.assert_array_equal(np.isnan(found.each), [True, False])
    assert found.median == found.of_means == 1
    nothing = diagnostics.ratios(np.zeros(2), np.zeros(2), np.zeros(2), sets)
    assert np.isnan([nothing.median, nothing.of_means]).all()


# --- Kendall's τ


def test_tau_of_dynamics_and_alignment_against_scipy_on_literal_ones(case, rng):
    sets = random_sets(rng, 30)
    residual = case.logits - case.targets
    literal = [
        [np.sum(case.gradient(vectors, np.flatnonzero(s)) ** 2) for s in sets]
        for vectors in (residual, case.targets)
    ]
    one, other = [
        diagnostics.energies(diagnostics.interactions(case.full, vectors), sets)
        for vectors in (residual, case.targets)
    ]
    found = kendall(one, other, np.random.default_rng(1), resamples=300)
    assert found.value == pytest.approx(stats.kendalltau(*literal)[0])
    draws = np.random.default_rng(1).integers(30, size=(300, 30))
    own = np.array(literal)
    taus = [stats.kendalltau(own[0][some], own[1][some])[0] for some in draws]
    np.testing.assert_allclose(found[1:], np.quantile(taus, [0.025, 0.975]))


def test_tau_at_its_ends_and_where_it_is_none(rng):
    values = rng.normal(size=12)
    assert kendall(values, np.exp(values), rng) == pytest.approx((1, 1, 1))
    assert kendall(values, -values, rng).value == pytest.approx(-1)
    assert np.isnan(kendall(values, np.ones(12), rng)).all()
    with pytest.raises(KernelError, match="1 values of one measure and 1 of the other"):
        kendall(values[:1], values[:1], rng)
