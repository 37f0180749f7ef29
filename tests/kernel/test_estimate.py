"""Seconds of a kernel, from its plan and a little work that is timed."""

import jax
import numpy as np
import pytest

from kernel.estimate import estimate_cost
from kernel.ntk import gram
from kernel.options import Request
from kernel.plan import Sizes, plan_kernel, plan_query
from tests.kernel.engine_networks import SHAPE, images, model
from tests.kernel_cases import mlp

FEATURES, CLASSES = 5, 3
MODEL = mlp(FEATURES, 8, CLASSES, np.random.default_rng(0))
IMAGE = jax.ShapeDtypeStruct((FEATURES,), "float64")
SOME = np.random.default_rng(1).normal(size=(2, FEATURES))


@pytest.mark.parametrize(
    ("kind", "sample", "sketch"),
    [("single", None, None), ("single", 5, None), ("rademacher", 5, 10), ("full", None, None)],
)
def test_every_part_of_a_query_takes_time(kind, sample, sketch):
    request = Request(kind, precision="float64", sketch=sketch, chunk=3)
    plan = plan_query(MODEL, IMAGE, Sizes(10, 30, sample), request, np.random.default_rng(0))
    cost = estimate_cost(MODEL, SOME, plan, 10)
    assert cost.compile_seconds >= 0 < cost.gradient_seconds
    assert (cost.product_seconds > 0) == (plan.form != "features")
    assert cost.posterior_seconds > 0
    assert cost.seconds == sum(cost)


def test_twice_the_images_have_four_times_the_products(monkeypatch):
    monkeypatch.setattr("kernel.estimate.timed", lambda work: (work(), (0.5, 0.25))[1])
    costs = [
        estimate_cost(MODEL, SOME, plan_kernel(MODEL, IMAGE, count, Request(chunk=4)))
        for count in (100, 200)
    ]
    for cost, count in zip(costs, (100, 200), strict=True):
        assert cost.compile_seconds == 0.25
        assert cost.gradient_seconds == pytest.approx(0.25 / 4 * count)
        assert cost.posterior_seconds == 0
    assert costs[1].product_seconds == pytest.approx(4 * costs[0].product_seconds)


def test_a_device_is_timed_as_it_computes(monkeypatch, rng):
    """Elsewhere than on a processor, on the processor that is there."""
    rows = rng.normal(size=(7, 30)).astype("float32")
    wanted = gram(rows)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(gram(rows), wanted, rtol=1e-5, atol=1e-5)
    image = jax.ShapeDtypeStruct(SHAPE, "float32")
    for sketch in (None, 32):
        request = Request("single", sketch=sketch, chunk=3)
        plan = plan_kernel(model("Volumes"), image, 50, request)
        assert estimate_cost(model("Volumes"), images(2), plan).gradient_seconds > 0
