"""Which form a query's kernel has, and that every form is the same kernel."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.covariance import Cross, Features, Kernel
from kernel.criteria import mlmoc
from kernel.errors import KernelError
from kernel.ntk import empirical_ntk, query_kernel
from kernel.options import Request
from kernel.plan import GIB, Plan, Sizes, plan_query
from kernel.posterior import posterior
from tests.kernel.engine_networks import images as image_set
from tests.kernel.engine_networks import model as tapped
from tests.kernel_cases import linear_model, mlp, random_problem

FEATURES, CLASSES = 5, 3
IMAGE = jax.ShapeDtypeStruct((FEATURES,), "float64")
MODEL = mlp(FEATURES, 8, CLASSES, np.random.default_rng(0))
LABELLED, CANDIDATES = 4, 9


def vectors(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(LABELLED + CANDIDATES, FEATURES))


def request(kind: Any = "trace", **changes: Any) -> Request:
    settings: dict[str, Any] = {"precision": "float64", "chunk": 4} | changes
    return Request(kind, **settings)


def plan(sizes: Sizes, own: Request) -> Plan:
    return plan_query(MODEL, IMAGE, sizes, own, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["single", "rademacher", "full"])
@pytest.mark.parametrize("sample", [None, 3])
@pytest.mark.parametrize("sketch", [None, 20])
def test_the_form_follows_from_what_is_asked(kind, sample, sketch):
    decision = plan(Sizes(10, 50, sample), request(kind, sketch=sketch))
    expected = "dense" if sample is None else "cross"
    expected = expected if sketch is None else "features"
    assert decision.form == ("full" if kind == "full" else expected)
    assert decision.keep
    assert decision.peak_gib * GIB == max(decision.kernel_bytes, decision.posterior_bytes)
    assert 0 < decision.peak_gib <= 4
    assert decision.work > 0


def test_s_is_streamed_where_it_does_not_fit():
    sizes = Sizes(10, 20_000, 2_000)
    kept = plan(sizes, request("single", sketch=20))
    assert kept.keep
    assert kept.peak_gib > 2_000 * 20_000 * 8 / GIB  # S alone
    tight = plan(sizes, request("single", sketch=20, memory_gib=0.8 * kept.peak_gib))
    assert not tight.keep
    assert tight.form == "features"
    assert tight.peak_gib < 0.8 * kept.peak_gib


def test_a_sample_takes_less_than_the_whole_kernel():
    whole = plan(Sizes(50, 3_000), request())
    some = plan(Sizes(50, 3_000, 200), request())
    assert some.kernel_bytes < whole.kernel_bytes / 5
    assert some.peak_gib < whole.peak_gib / 2
    assert some.work < whole.work / 5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(["single", "full"]),
    st.sampled_from([None, 30]),
    st.sampled_from([None, 12]),
    st.floats(0.01, 1.2),
)
def test_what_is_decided_fits_and_what_is_refused_says_what_would(kind, sample, sketch, share):
    sizes, own = Sizes(20, 300, sample), {"kind": kind, "sketch": sketch}
    memory = share * plan(sizes, request(**own)).peak_gib
    for _ in range(3):  # a kernel that fits then has a posterior that must
        try:
            decision = plan(sizes, request(**own, memory_gib=memory))
        except KernelError as error:
            found = re.search(r"give ([\d.e+-]+) GiB", str(error))
            assert found
            assert float(found[1]) > memory
            memory = float(found[1])
        else:
            assert decision.peak_gib <= memory
            return
    raise AssertionError(f"{memory} GiB are refused although they were asked for")


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (Sizes(0, 5), {}, "the labelled set is empty"),
        (Sizes(5, 0), {}, "there are no candidates"),
        (Sizes(5, 5, 6), {}, "a reference sample of 6 candidates .* there are 5"),
        (Sizes(5, 5, 0), {}, "a reference sample of 0 candidates"),
        (Sizes(5, 5), {"chunk": 0}, "chunk must be at least 1"),
        (Sizes(5, 5), {"kind": "tracy"}, "unknown kernel kind 'tracy'"),
        (
            Sizes(10, 900),
            {"sketch": 20, "memory_gib": 0.001},
            "or lower the sketch, or score fewer",
        ),
        (Sizes(10, 900), {"memory_gib": 0.001}, "use a sketch"),
    ],
)
def test_what_cannot_be_decided(sizes, changes, message, unchecked_types):
    with pytest.raises(KernelError, match=message):
        plan(sizes, request(**changes))


def ask(own=MODEL, given=None, sketch=None, **options):
    given = vectors() if given is None else given
    asked = request("rademacher", sketch=sketch)
    return query_kernel(own, given, LABELLED, asked, rng=np.random.default_rng(3), **options)


@pytest.mark.parametrize("kind", ["trace", "full"])
def test_without_a_sample_it_is_the_kernel(kind):
    found, decision = query_kernel(MODEL, vectors(), LABELLED, request(kind))
    assert isinstance(found, Kernel)
    assert decision.form == ("full" if kind == "full" else "dense")
    expected = empirical_ntk(MODEL, vectors(), Request(kind, precision="float64")).values
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


@pytest.mark.parametrize("network", ["mlp", "Words"])
@pytest.mark.parametrize("sample", [[6, 0, 3], [8], list(range(CANDIDATES))])
def test_a_cross_kernel_is_rows_of_the_dense_one(network, sample):
    own = MODEL if network == "mlp" else tapped("Words")
    given = vectors() if network == "mlp" else image_set(LABELLED + CANDIDATES)
    dense, _ = ask(own, given)
    cross, decision = ask(own, given, sample=np.array(sample))
    assert isinstance(cross, Cross)
    assert decision.form == "cross"
    anchors = [*range(LABELLED), *(LABELLED + np.array(sample))]
    scale = np.abs(dense.values).max()
    np.testing.assert_allclose(cross.values, dense.values[anchors], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(cross.diagonal, dense.values.diagonal(), rtol=1e-11)


def test_products_of_features_are_the_sketched_kernel():
    features, decision = ask(sketch=20)
    assert isinstance(features, Features)
    assert decision.form == "features"
    assert features.values.shape == (LABELLED + CANDIDATES, 4 * 20)
    dense = empirical_ntk(
        MODEL,
        vectors(),
        Request("rademacher", sketch=20, precision="float64"),
        rng=np.random.default_rng(3),
    ).values
    np.testing.assert_allclose(features.values @ features.values.T, dense, rtol=1e-10)


def test_a_sketch_of_the_full_kernel_is_whole():
    asked = request("full", sketch=30)
    found, decision = query_kernel(MODEL, vectors(), LABELLED, asked, rng=np.random.default_rng(3))
    assert decision.form == "full"
    assert found.values.shape == (LABELLED + CANDIDATES, CLASSES) * 2
    rows = found.values.reshape((LABELLED + CANDIDATES) * CLASSES, -1)
    assert np.linalg.matrix_rank(rows) <= 30


@pytest.mark.parametrize("reference", ["network", "linearised"])
def test_scores_do_not_depend_on_the_form(reference, rng):
    problem = random_problem(LABELLED, CANDIDATES, CLASSES, rng)
    every = rng.permutation(CANDIDATES)
    dense, _ = ask()
    expected = mlmoc(posterior(dense, *problem, ridge=0.1), reference)
    assert expected.min() > 0
    cross, _ = ask(sample=every)
    found = mlmoc(posterior(cross, *problem, sample=every, ridge=0.1), reference)
    np.testing.assert_allclose(found, expected, rtol=1e-9)

    some = np.array([7, 2, 5])
    cross, _ = ask(sample=some)
    ours = posterior(cross, *problem, sample=some, ridge=0.1)
    theirs = posterior(dense, *problem, sample=some, ridge=0.1)
    np.testing.assert_allclose(ours.covariance.dense(), theirs.covariance.dense(), atol=1e-10)
    np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-9)
    np.testing.assert_allclose(ours.drift, theirs.drift, rtol=1e-9)
    np.testing.assert_allclose(mlmoc(ours, reference), mlmoc(theirs, reference), rtol=1e-9)


def test_float32_is_the_precision_of_the_result(rng):
    own = linear_model(FEATURES, CLASSES, rng)
    cross, _ = query_kernel(own, vectors(), LABELLED, Request("single"), sample=np.array([0, 1]))
    assert isinstance(cross, Cross)
    assert cross.precision == "float32"
    assert cross.values.dtype == np.float32
    gram = vectors() @ vectors().T
    np.testing.assert_allclose(cross.values, gram[: LABELLED + 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cross.diagonal, gram.diagonal(), rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"sample": np.array([2, 5])}, {"sketch": 20}])
def test_progress_ends_at_its_total(options):
    told = []
    ask(progress=lambda done, total: told.append((done, total)), **options)
    done, totals = np.array(told).T
    assert len(set(totals)) == 1
    assert (np.diff(done) > 0).all()
    assert done[-1] == pytest.approx(totals[-1])
