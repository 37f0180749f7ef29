"""What is foretold of a kernel: its plan as it is, and some seconds."""

import jax
import numpy as np
import pytest

from kernel.errors import KernelError
from kernel.estimate import Estimate, estimate, posterior_seconds
from kernel.ntk import Sizes, decide, gram
from kernel.options import Request
from kernel.plan import GIB, cast, chunk_bytes, plan, problem_of, shared
from tests.kernel.engine_networks import SHAPE, images, model
from tests.kernel_cases import mlp

FEATURES, CLASSES = 5, 3
MODEL = cast(mlp(FEATURES, 8, CLASSES, np.random.default_rng(0)), "float64")
IMAGE = jax.ShapeDtypeStruct((FEATURES,), "float64")
SOME = np.random.default_rng(1).normal(size=(2, FEATURES))
PARAMETERS = (FEATURES + 1) * 8 + 9 * CLASSES


def request(kind: str, memory: float = 4.0) -> Request:
    return Request(kind, precision="float64", chunk=3, memory_gib=memory)


def positive(cost: Estimate) -> None:
    assert cost.gradient_seconds > 0
    assert cost.product_seconds > 0
    assert cost.compile_seconds >= 0
    parts = (cost.compile_seconds, cost.gradient_seconds, cost.product_seconds)
    assert cost.seconds == sum(parts)


@pytest.mark.parametrize(("kind", "projections"), [("single", 1), ("rademacher", 4), ("full", 3)])
def test_the_plan_of_a_whole_kernel(kind, projections):
    cost = estimate(MODEL, SOME, 40, request(kind))
    assert (cost.examples, cost.anchors, cost.chunk) == (40, 40, 3)
    assert (cost.parameters, cost.projections, cost.passes) == (PARAMETERS, projections, 1)
    problem = problem_of(MODEL, IMAGE, 40, 40, request(kind), np.random.default_rng(0))
    assert cost.peak_gib == plan(problem, 4.0, 3).peak_bytes / GIB
    positive(cost)


def test_little_memory_means_several_passes():
    problem = problem_of(MODEL, IMAGE, 40, 40, request("trace"))
    room = problem.result_bytes + chunk_bytes(problem, 3, 3) + 40 * 8 * PARAMETERS // 2
    cost = estimate(MODEL, SOME, 40, request("trace", room / GIB))
    assert cost.passes == len(plan(problem, room / GIB, 3).passes) > 1
    assert cost.peak_gib <= room / GIB
    positive(cost)


def test_anchors_and_layers_that_are_factored():
    own = model("Volumes")
    cost = estimate(own, images(2), 50, request("single"), anchors=20)
    assert (cost.examples, cost.anchors) == (50, 20)
    shape = jax.ShapeDtypeStruct(SHAPE, "float64")
    problem = problem_of(own, shape, 50, 20, request("single"))
    made = plan(problem, 4.0, 3)
    assert {part.form for one in made.passes for part in one.parts} & {"patches", "pixels"}
    assert cost.peak_gib == made.peak_bytes / GIB
    positive(cost)


def test_a_sketch():
    cost = estimate(MODEL, SOME, 40, request("rademacher"), sketch=10)
    assert (cost.parameters, cost.projections, cost.passes) == (PARAMETERS, 4, 1)
    positive(cost)


def test_fewer_images_than_a_chunk():
    assert estimate(MODEL, SOME, 2, request("single")).chunk == 2


def test_what_does_not_fit_is_refused():
    with pytest.raises(KernelError, match=r"100,000 images needs at least .* 4 GiB are given"):
        estimate(MODEL, SOME, 100_000, request("single"))


@pytest.mark.parametrize(
    ("kind", "sample", "sketch"),
    [("single", None, None), ("single", 5, None), ("rademacher", 5, 10), ("full", None, None)],
)
def test_seconds_of_a_posterior(kind, sample, sketch):
    sizes = Sizes(10, 30, sample, sketch)
    decision = decide(MODEL, IMAGE, sizes, request(kind))
    cost = estimate(MODEL, SOME, 40, request(kind), sketch=sketch)
    assert posterior_seconds(sizes, CLASSES, decision, cost) > 0


def test_a_device_is_timed_as_it_computes(monkeypatch, rng):
    """What the engine does elsewhere than on a processor, on the processor that is there."""
    rows = rng.normal(size=(7, 30)).astype("float32")
    wanted = gram(rows)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert shared(24) == (1, 24)
    np.testing.assert_allclose(gram(rows), wanted, rtol=1e-5, atol=1e-5)
    cost = estimate(model("Volumes"), images(2), 50, request("single"), anchors=20)
    assert (cost.examples, cost.anchors) == (50, 20)
    positive(cost)
    positive(estimate(model("Volumes"), images(2), 50, request("single"), sketch=32))
