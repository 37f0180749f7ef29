"""S in every form and on both routes against the dense formula, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel import covariance, linalg
from kernel.covariance import Covariance, Cross, Features, KernelBlocks
from kernel.criteria import mlmoc
from kernel.errors import KernelError
from kernel.linalg import add_gram, padded, subtract_outer, tile_rows
from kernel.lookahead import acquisition_state
from kernel.options import REFERENCES, Options
from kernel.posterior import absorb, posterior, prior
from tests.kernel_cases import (
    all_forms,
    full_kernel,
    random_features,
    random_problem,
    scalar_kernel,
)

FORMS = (
    "dense",
    "features kept",
    "features streamed",
    "cross",
    "dense streamed",
    "cross streamed",
)


@pytest.fixture(params=["host", "device"])
def route(request, monkeypatch):
    """NumPy, as on a CPU; and what other devices run, on a CPU too."""
    monkeypatch.setattr(linalg, "on_host", lambda: request.param == "host")
    return request.param


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [True, False])
def test_every_form_is_the_dense_formula(form, whole, route, rng):
    labelled, candidates, classes, ridge = 5, 23, 3, 0.2
    problem = random_problem(labelled, candidates, classes, rng)
    features = random_features(labelled + candidates, 40, rng)
    sample = np.arange(candidates) if whole else rng.permutation(candidates)[:9]
    k = np.asarray(features.values @ features.values.T)
    inverse = np.linalg.inv(k[:labelled, :labelled] + ridge * np.eye(labelled))
    s = k[labelled:, labelled:] - k[labelled:, :labelled] @ inverse @ k[:labelled, labelled:]
    d = k[labelled:, :labelled] @ inverse @ (problem[0] - problem[1])
    given, keep = all_forms(features, labelled, sample)[form]
    result = posterior(given, *problem, sample=sample, keep=keep, ridge=ridge)
    np.testing.assert_allclose(result.covariance.dense(), s[sample], atol=1e-11 * k.max())
    np.testing.assert_allclose(result.variance, s.diagonal(), atol=1e-11 * k.max())
    np.testing.assert_allclose(result.drift, d, atol=1e-12 * k.max())
    column = result.covariance.column(int(sample[2]))
    np.testing.assert_allclose(column, s[:, sample[2]], atol=1e-11 * k.max())
    assert (result.covariance.kept is None) == form.endswith("streamed")


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("form", FORMS)
def test_mlmoc_of_a_sample(form, reference, route, rng):
    """U/M times the sum over the sample; the sum over all where it is all."""
    labelled, candidates = 4, 17
    problem = random_problem(labelled, candidates, 3, rng)
    features = random_features(labelled + candidates, 30, rng)
    features.values[labelled + 3] = features.values[1]  # determined
    result = posterior(all_forms(features, labelled, np.arange(1))["dense"][0], *problem, ridge=0.0)
    s, r = result.covariance.dense(), np.eye(3)[problem[2].argmax(1)] - result.predictions
    drift = result.drift if reference == "network" else 0 * result.drift
    moves = s[:, :, None] * (r / result.variance[:, None])[None]
    changes = np.linalg.norm(drift[:, None] + moves, axis=2)
    for sample in (np.arange(candidates), rng.permutation(candidates)[:6]):
        given, keep = all_forms(features, labelled, sample)[form]
        scores = mlmoc(posterior(given, *problem, sample=sample, keep=keep), reference)
        expected = changes[sample].sum(0) * candidates / len(sample)
        expected[3] = 0.0
        np.testing.assert_allclose(scores, expected, rtol=1e-8)
        assert scores[3] == 0


@pytest.mark.parametrize("reference", REFERENCES)
def test_mlmoc_of_a_sample_of_the_full_kernel(reference, rng):
    problem = random_problem(3, 6, 2, rng)
    kernel = full_kernel(9, 2, rng)
    parts = [
        mlmoc(posterior(kernel, *problem, sample=np.array(part)), reference) * len(part) / 6
        for part in ([0, 4], [5, 1, 2, 3])
    ]
    np.testing.assert_allclose(sum(parts), mlmoc(posterior(kernel, *problem), reference), rtol=1e-9)


def test_sample_estimates_the_whole(rng):
    """Averaged over samples that cover the candidates once, the estimate is exact."""
    problem = random_problem(4, 20, 3, rng)
    features = random_features(24, 30, rng)
    parts = rng.permutation(20).reshape(4, 5)
    scores = [mlmoc(posterior(features, *problem, sample=part)) for part in parts]
    whole = mlmoc(posterior(features, *problem))
    np.testing.assert_allclose(np.mean(scores, axis=0), whole, rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [64, 200, None])
def test_blocks_cover_the_sample_in_one_shape(form, rows, route, rng):
    labelled, candidates = 3, 150
    sample = rng.permutation(candidates)[:130]
    features = random_features(labelled + candidates, 20, rng)
    given, keep = all_forms(features, labelled, sample)[form]
    covariance = posterior(
        given, *random_problem(labelled, candidates, 2, rng), sample=sample, keep=keep
    ).covariance
    dense = covariance.dense()
    found = []
    for tile in covariance.tiles(rows):
        assert tile.values.shape == (rows or tile_rows(512), 512)
        assert (np.asarray(tile.values)[tile.mask > 0, candidates:] == 0).all()
        found.append((tile.idx[tile.mask > 0], np.array(tile.values)[tile.mask > 0]))
    np.testing.assert_array_equal(np.concatenate([places for places, _ in found]), sample)
    values = np.concatenate([values for _, values in found])[:, :candidates]
    np.testing.assert_allclose(values, dense, atol=1e-12)


@pytest.mark.parametrize("form", ["features kept", "features streamed"])
def test_float32_features_agree_with_float64(form, route, rng):
    labelled, candidates = 6, 40
    problem = random_problem(labelled, candidates, 3, rng)
    exact = random_features(labelled + candidates, 100, rng)
    single = Features(exact.values.astype(np.float32), "float32")
    expected = posterior(exact, *problem)
    result = posterior(single, *problem, keep=form == "features kept")
    scale = float(np.square(exact.values).sum(1).max())
    np.testing.assert_allclose(
        result.covariance.dense(), expected.covariance.dense(), atol=3e-6 * scale
    )
    np.testing.assert_allclose(mlmoc(result), mlmoc(expected), rtol=1e-4)
    assert {a.dtype for a in (result.variance, result.drift, result.logits)} == {np.dtype("f8")}


def test_consumed_kernel_holds_s(rng):
    problem = random_problem(4, 9, 2, rng)
    kernel = scalar_kernel(13, rng)
    expected = posterior(kernel, *problem)
    untouched = kernel.values.copy()
    result = posterior(kernel, *problem, consume=True)
    assert np.shares_memory(result.covariance.kept, kernel.values)
    np.testing.assert_allclose(result.covariance.dense(), expected.covariance.dense(), atol=1e-12)
    np.testing.assert_allclose(mlmoc(result), mlmoc(expected), rtol=1e-12)
    np.testing.assert_array_equal(kernel.values[:4], untouched[:4])


def test_nothing_is_overwritten_unless_given_away(route, rng):
    problem = random_problem(4, 9, 2, rng)
    for given, keep in all_forms(random_features(13, 20, rng), 4, np.arange(9)).values():
        before = np.array(given.values)
        result = posterior(given, *problem, keep=keep)
        mlmoc(absorb(result, 2, np.array([1.0, 0.0])))
        np.testing.assert_array_equal(given.values, before)


def test_compiles_once_over_cycles(route, rng):
    """A pool that shrinks while the labelled set grows meets compiled programs only."""
    compiled = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    def cycle(labelled, candidates):
        for form in ("dense", "features streamed", "dense streamed"):
            features = random_features(labelled + candidates, 40, rng)
            given, keep = all_forms(features, labelled, np.arange(1))[form]
            problem = random_problem(labelled, candidates, 3, rng)
            result = posterior(given, *problem, keep=keep)
            result = absorb(result, 1, np.eye(3)[0])
            for reference in REFERENCES:
                mlmoc(result, reference)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    cycle(10, 700)
    assert compiled
    compiled.clear()
    for grown in range(1, 5):
        cycle(10 + 7 * grown, 700 - 7 * grown)
    assert not compiled


@pytest.mark.parametrize(("rows", "rank"), [(40, 1), (700, 1), (700, 3), (3, 5)])
def test_subtract_outer_in_place(rows, rank, rng):
    whole = rng.normal(size=(rows, 50))
    left, right = rng.normal(size=(rows, rank)), rng.normal(size=(45, rank))
    part = whole[:, 2:47]  # a view with gaps between its rows
    expected = part - left @ right.T
    edges = whole[:, :2].copy()
    assert subtract_outer(part, left, right) is part
    np.testing.assert_allclose(part, expected, atol=1e-13)
    np.testing.assert_array_equal(whole[:, :2], edges)
    device = subtract_outer(jnp.asarray(expected + left @ right.T), left, right)
    np.testing.assert_allclose(device, expected, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 511, 512, 1100])
def test_a_gram_is_subtracted_by_blocks(rows, rng):
    a = rng.normal(size=(7, rows))
    whole = rng.normal(size=(rows + 2, rows + 2))
    whole += whole.T
    expected = whole[2:, 2:] - a.T @ a
    add_gram(whole[2:, 2:], a.T, subtract=True)
    np.testing.assert_allclose(whole[2:, 2:], expected, atol=1e-12)


def test_sizes():
    assert [padded(n, 512) for n in (1, 512, 513)] == [512, 512, 1024]
    assert tile_rows(6144) == 512
    assert tile_rows(50176) == 256
    assert tile_rows(10**7) == 64


def test_bad_requests(rng):
    problem = random_problem(3, 4, 2, rng)
    features = random_features(7, 9, rng)
    forms = all_forms(features, 3, np.array([2, 0]))
    with pytest.raises(KernelError, match="full kernel cannot be streamed"):
        posterior(full_kernel(7, 2, rng), *problem, keep=False)
    with pytest.raises(KernelError, match=r"shape \(5, 7\).*sample of 4 need \(7, 7\)"):
        posterior(forms["cross"][0], *problem)
    with pytest.raises(KernelError, match=r"shape \(7, 9\).*need \(8, 9\)"):
        posterior(features, *random_problem(3, 5, 2, rng))
    for sample in ([], [0, 4], [-1], [1, 1]):
        with pytest.raises(KernelError, match="must name different candidates"):
            posterior(features, *problem, sample=np.array(sample, int))
    cross = forms["cross"][0]
    assert isinstance(cross, Cross)
    short = cross._replace(diagonal=cross.diagonal[:6])
    with pytest.raises(KernelError, match=r"diagonal has shape \(6,\); 7 examples"):
        posterior(short, *problem, sample=np.array([2, 0]))
    cross.diagonal[3] = np.nan
    with pytest.raises(KernelError, match="diagonal hold entries that are not finite"):
        posterior(cross, *problem, sample=np.array([2, 0]))
    features.values[6, 8] = np.inf
    with pytest.raises(KernelError, match="kernel hold entries that are not finite"):
        posterior(features, *problem)


@pytest.mark.parametrize("form", FORMS)
def test_the_prior_is_the_kernel(form, route, rng):
    """What there was before labels, and columns between the sample and any candidate."""
    labelled, candidates = 4, 19
    sample = rng.permutation(candidates)[:7]
    features = random_features(labelled + candidates, 30, rng)
    k = np.asarray(features.values @ features.values.T)
    given, keep = all_forms(features, labelled, sample)[form]
    problem = random_problem(labelled, candidates, 2, rng)
    result = posterior(given, *problem, sample=sample, keep=keep)
    before = prior(KernelBlocks(given, labelled, 1), result.covariance)
    own = k[labelled:, labelled:]
    np.testing.assert_allclose(before.dense(), own[sample], rtol=1e-10, atol=1e-12)
    places = np.array([3, 0, 12])
    np.testing.assert_allclose(before.among(places), own[sample][:, places], atol=1e-12)
    expected = result.covariance.dense()[:, places]
    np.testing.assert_allclose(result.covariance.among(places), expected, atol=1e-12)
    if form == "dense":
        consumed = posterior(given, *problem, consume=True)
        if isinstance(consumed.covariance.kept, np.ndarray):
            with pytest.raises(KernelError, match="S has taken the memory of the kernel"):
                prior(KernelBlocks(given, labelled, 1), consumed.covariance)


@pytest.mark.parametrize("criterion", ["mlmoc", "linearised", "emoc", "ev_gp", "uherding"])
@pytest.mark.parametrize("whole", [True, False])
def test_blocks_of_s_give_what_its_rows_give(criterion, whole, monkeypatch, rng):
    """Blocks that end with the candidates and ones that do not, each for both of its orders."""
    monkeypatch.setattr(covariance, "EDGE", 6)
    labelled, candidates = 4, 17
    problem = random_problem(labelled, candidates, 3, rng)
    features = random_features(labelled + candidates, 30, rng)
    sample = np.arange(candidates) if whole else rng.permutation(candidates)[:9]
    options = Options(reference="linearised" if criterion in ("linearised", "emoc") else "network")
    made = []

    def scores(kernel: Features) -> np.ndarray:
        seen = posterior(kernel, *problem, sample=sample, keep=False, ridge=0.1)
        name = "mlmoc" if criterion == "linearised" else criterion
        state = acquisition_state(name, kernel, seen, options, targets=problem[0])
        return state.assume(np.array([sample[1]])).scores()

    monkeypatch.setattr(Covariance, "block", _counted(Covariance.block, made))
    blocks = scores(features)
    single = scores(Features(np.asarray(features.values, "float32"), "float32"))
    assert made
    monkeypatch.setattr(Covariance, "by_blocks", False)
    np.testing.assert_allclose(blocks, scores(features), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(single, blocks, rtol=1e-3, atol=1e-5 * np.abs(blocks).max())


@pytest.mark.parametrize("criterion", ["mlmoc", "ev_gp"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_sums_over_a_kept_s_follow_labels(criterion, precision, rng):
    """One label in the sample, one beside it, and two at once; S in the dtype of its features."""
    labelled, candidates, classes = 4, 37, 3
    given = random_features(labelled + candidates, 60, rng)
    given = Features(np.asarray(given.values, precision), precision)
    problem = random_problem(labelled, candidates, classes, rng)
    sample = rng.permutation(candidates)[:33]
    outside = int(np.setdiff1d(np.arange(candidates), sample)[0])
    seen = posterior(given, *problem, sample=sample, ridge=0.1)
    state = acquisition_state(criterion, given, seen, targets=problem[0])
    state.scores()  # what is summed once is summed as labels are absorbed
    for chosen in ([int(sample[5])], [outside], sample[:2].tolist()):
        state = state.absorb(np.array(chosen), np.eye(classes)[: len(chosen)])
        own = state.posterior.covariance
        assert own.kept is not None
        assert own.kept.dtype == precision
        anew = dataclasses.replace(own, _sums={})
        scores = state.scores()
        other = dataclasses.replace(state, posterior=state.posterior._replace(covariance=anew))
        np.testing.assert_allclose(scores, other.scores(), rtol=1e-6)
        dense = np.abs(own.dense()).astype("float64") if criterion == "mlmoc" else own.dense() ** 2
        inverse = 1 / (state.posterior.variance + 0.1)
        size = np.linalg.norm(
            np.eye(classes)[state.posterior.logits.argmax(axis=1)] - state.posterior.logits, axis=1
        )
        expected = dense.sum(axis=0) * inverse * (size if criterion == "mlmoc" else 1)
        np.testing.assert_allclose(scores, expected * candidates / 33, rtol=1e-5)


def _counted(block, made):
    def counting(self, *given):
        made.append(given)
        return block(self, *given)

    return counting
