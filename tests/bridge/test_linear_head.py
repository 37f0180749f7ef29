"""The kernel of a network that is one linear layer: a product of features, whatever is trained."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridge.mirror import Mirror
from bridge.trace import mirror
from kernel.covariance import Features, Kernel
from kernel.errors import KernelError, NotFiniteError
from kernel.model import Model
from kernel.ntk import empirical_ntk, query_kernel
from kernel.options import Kind, Request
from kernel.plan import GIB, Sizes, linear_head, plan_kernel, plan_query
from kernel.taps import LinearHead
from pipelines.query import query
from pipelines.strategies.options import KernelConfig, QueryOptions

WIDTH, CLASSES, LABELLED = 6, 4, 3
KINDS: tuple[Kind, ...] = ("single", "sum", "trace", "rademacher")


def rows(count: int = 11, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, WIDTH)).astype(dtype)


def layer(weight: bool = True, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(WIDTH, CLASSES).eval()
    made.weight.requires_grad_(weight)
    made.bias.requires_grad_(bias)
    return made


def traced(network: nn.Module) -> Mirror:
    return mirror(network, rows(2, "float32"))


def without_structure(model: Model) -> Model:
    """The same function, of which a kernel knows nothing."""
    return model._replace(function=partial(model.function))


def seeded() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("trained", "head"),
    [
        ((True, True), LinearHead(WIDTH, True)),
        ((True, False), LinearHead(WIDTH, False)),
        ((False, True), LinearHead(0, True)),
    ],
)
def test_features_give_the_kernel_of_whole_gradients(kind, trained, head):
    model, request = traced(layer(*trained)).model(), Request(kind, precision="float64")
    assert linear_head(model, request) == head
    ordinary = empirical_ntk(without_structure(model), rows(), request, rng=seeded()).values
    own = empirical_ntk(model, rows(), request, rng=seeded())
    np.testing.assert_allclose(own.values, ordinary, rtol=1e-12, atol=1e-12)
    features, plan = query_kernel(model, rows(), LABELLED, request, rng=seeded())
    assert isinstance(features, Features)
    assert (plan.form, plan.head, plan.passes) == ("features", head, ())
    found = np.asarray(features.values)
    np.testing.assert_allclose(found @ found.T, ordinary, rtol=1e-12, atol=1e-12)


def test_no_gradient_is_formed(monkeypatch):
    model = traced(layer()).model()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("differentiated")

    monkeypatch.setattr("kernel.contract.differentiate", refuse)
    monkeypatch.setattr("kernel.contract.sketch_gradients", refuse)
    sketched, plan = query_kernel(model, rows(), LABELLED, Request(sketch=4), rng=seeded())
    assert plan.request.sketch is None
    assert plan.work == 0
    assert sketched.values.dtype == np.float32
    np.testing.assert_allclose(sketched.values, np.c_[rows(), np.ones(11)], rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="features on a GPU")
def test_features_lie_on_the_gpu():
    found, _ = query_kernel(traced(layer()).model(), rows(), LABELLED, Request())
    assert isinstance(found.values, jax.Array)
    np.testing.assert_allclose(found.values, np.c_[rows(), np.ones(11)], rtol=1e-6)


def test_whole_kernels_and_other_networks_go_the_ordinary_way():
    model = traced(layer()).model()
    assert linear_head(model, Request(precision="tf32")) is None
    full, plan = query_kernel(model, rows(), LABELLED, Request("full", precision="float64"))
    assert plan.head is None
    assert isinstance(full, Kernel)
    for network in (
        nn.Sequential(layer(), nn.Tanh()),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), layer()),
        nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, WIDTH)), layer()),
    ):
        assert linear_head(traced(network.eval()).model(), Request()) is None
    nested = nn.Sequential(nn.Sequential(layer())).eval()
    assert linear_head(traced(nested).model(), Request()) == LinearHead(WIDTH, True)


def test_the_plan_knows_its_memory():
    model, one = traced(layer()).model(), jax.ShapeDtypeStruct((WIDTH,), "float32")
    few, many = Sizes(10, 100), Sizes(10, 40_000)
    kept, streamed = (plan_query(model, one, sizes, Request(), seeded()) for sizes in (few, many))
    assert kept.keep
    assert not streamed.keep
    assert streamed.peak_gib < 4 < 40_000**2 * 8 / GIB
    assert streamed.kernel_bytes >= 40_010 * (WIDTH + 1) * 4
    sampled = plan_query(model, one, many._replace(sample=100), Request(), seeded())
    assert (sampled.form, sampled.keep) == ("features", True)
    with pytest.raises(KernelError, match="looking ahead from 40,000 candidates"):
        plan_query(model, one, many, Request(memory_gib=0.001), seeded())
    with pytest.raises(KernelError, match=r"needs .* GiB .*or lower the number of images\."):
        plan_kernel(model, one, 40_000, Request(memory_gib=0.001), seeded())


def test_rows_that_are_not_finite_are_named():
    broken = rows()
    broken[4, 1] = np.nan
    with pytest.raises(NotFiniteError, match="the first of them holds values that are not finite"):
        query_kernel(traced(layer()).model(), broken, LABELLED, Request())


def test_a_query_says_how_its_kernel_is_held():
    options = QueryOptions(kernel=KernelConfig(precision="float64"))
    sketched = replace(options, kernel=replace(options.kernel, sketch=8))
    images, labelled = rows(20, "float32"), {0: 0, 1: 1, 2: 2}
    plain = query(layer(), images, labelled, 3, "mlmoc", options)
    assert plain.diagnostics["held"] == "features"
    same = query(layer(), images, labelled, 3, "mlmoc", sketched)
    assert same.diagnostics["sketch"] is None
    np.testing.assert_array_equal(same.candidate_scores, plain.candidate_scores)
    dense = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, WIDTH)), layer()).eval()
    ordinary = query(dense, images, labelled, 3, "mlmoc", options)
    assert ordinary.diagnostics["held"] == "dense"
    np.testing.assert_allclose(ordinary.candidate_scores, plain.candidate_scores, rtol=1e-9)
