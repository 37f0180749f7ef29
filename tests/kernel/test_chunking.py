"""The images that are differentiated at a time: chosen by network, number and memory; no result."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridge.trace import mirror
from kernel import contract
from kernel.contract import Spare, passing_chunk, planned, sketch_bytes, sketch_chunk
from kernel.errors import KernelError
from kernel.jacobian import Part, compute, compute_shape
from kernel.model import cores
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import CHUNK, GIB, cast, plan, problem_of
from tests.kernel.engine_networks import CLASSES, SHAPE, images, model
from tests.kernel_cases import mlp

FEATURES = 30
PLENTY = Request(precision="float64")


@cache
def large():
    """A network with more parameters than an image has numbers in it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 40), nn.Tanh(), nn.Linear(40, CLASSES)).eval()
    return mirror(network, np.zeros((2, FEATURES), np.float32)).model()


def problem(examples: int, anchors: int | None = None):
    own = cast(large(), "float64")
    like = jax.ShapeDtypeStruct((FEATURES,), "float64")
    return problem_of(own, like, examples, anchors or examples, PLENTY)


def test_many_images_of_a_large_network_go_in_large_chunks():
    each = cores()
    for examples, expected in ((63, 8), (64, 16), (127, 16), (128, 32), (500, 32)):
        exact = planned(problem(examples * each), PLENTY).chunk
        assert exact == min(expected, 16) * each
        assert sketch_chunk(problem(examples * each), PLENTY, 10) == expected * each


def test_a_small_network_keeps_to_what_a_cache_holds():
    own = problem(5000)
    columns = sum(unit.columns for unit in own.units)
    light = own._replace(activations=own.activations._replace(forth=columns + 1))
    assert planned(light, PLENTY).chunk == CHUNK * cores()
    assert sketch_chunk(light, PLENTY, 10) == CHUNK * cores()


def test_gradients_that_are_let_go_have_a_shape_of_their_own():
    each = cores()
    assert passing_chunk(problem(5000), PLENTY) == 2 * CHUNK * each
    # of few images, which are filled up: what is compiled serves many
    assert passing_chunk(problem(3), PLENTY) == CHUNK * each
    assert passing_chunk(problem(5000), replace(PLENTY, chunk=5)) == 5
    assert passing_chunk(problem(3), replace(PLENTY, chunk=5)) == 5


def test_a_chunk_asked_for_is_kept():
    request = replace(PLENTY, chunk=5)
    assert planned(problem(5000), request).chunk == 5
    assert sketch_chunk(problem(5000), request, 10) == 5
    assert planned(problem(3), PLENTY).chunk == 3


def test_a_device_and_several_have_their_own(monkeypatch):
    monkeypatch.setattr(contract, "mesh_unless_host", lambda _: "a mesh")
    assert planned(problem(5000), PLENTY).chunk == CHUNK * cores()


@pytest.mark.parametrize("share", np.geomspace(1.0, 3.0, 12))
def test_no_chunk_costs_a_pass_or_exceeds_the_memory(share):
    own, smallest = problem(600, anchors=300), CHUNK * cores()
    least = plan(own, 1.0, smallest).peak_bytes
    tight = replace(PLENTY, memory_gib=share * 0.4 * least / GIB)
    try:
        usual = plan(own, tight.memory_gib, smallest)
    except KernelError as refused:
        with pytest.raises(KernelError, match=re.escape(str(refused))):
            planned(own, tight)
        return
    made = planned(own, tight)
    assert len(made.passes) <= len(usual.passes)
    assert made.peak_bytes <= tight.memory_gib * GIB
    assert made.chunk >= usual.chunk


def test_a_sketch_takes_the_largest_chunk_that_fits():
    own, each = problem(5000), cores()
    for size in (32, 16):
        room = sketch_bytes(own, 10, size * each)
        assert sketch_chunk(own, replace(PLENTY, memory_gib=(room + 100) / GIB), 10) == size * each
        beside = replace(PLENTY, memory_gib=(room + 200) / GIB)
        assert sketch_chunk(own, beside, 10, 300) < size * each
    assert sketch_chunk(own, replace(PLENTY, memory_gib=1e-9), 10) == CHUNK * each


def test_kernels_do_not_depend_on_it(rng):
    own = large()
    given = rng.normal(size=(128 * cores() + 3, FEATURES))
    for sketch in (None, 50):
        many, few = (
            empirical_ntk(
                own,
                given,
                precision="float64",
                sketch=sketch,
                rng=np.random.default_rng(1),
                chunk=chunk,
            ).values
            for chunk in (None, CHUNK * cores())
        )
        np.testing.assert_allclose(many, few, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("square", [True, False])
def test_rows_are_written_over_whole(square):
    own = model("Convolutions")
    like = jax.ShapeDtypeStruct(SHAPE, "float64")
    units = problem_of(own, like, 4, 4, PLENTY).units
    parts = tuple(Part(unit, "rows", unit.outputs) for unit in units)
    given, rows = jax.numpy.asarray(images(4)), jax.numpy.eye(CLASSES)
    expected = compute(own, parts, given, rows, square=square, together=False).rows
    spare = Spare(parts, 4, CLASSES, square, np.dtype("float64"))
    stale = jax.numpy.full_like(spare.take(), np.nan)
    assert stale.shape == expected.shape
    spare.give(stale)
    into = spare.take()
    assert into is stale
    found = compute(own, parts, given, rows, square=square, together=False, into=into).rows
    assert into.is_deleted()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("examples", "chunk"), [(3, 4), (40, 5 * cores())])
def test_several_threads_compile_once(examples, chunk, rng):
    own = mlp(7, 6, CLASSES, rng)
    program: Any = compute_shape
    before = program._cache_size()
    empirical_ntk(own, rng.normal(size=(examples, 7)), chunk=chunk)
    empirical_ntk(own, rng.normal(size=(examples, 7)), chunk=chunk)
    assert program._cache_size() == before + 1
