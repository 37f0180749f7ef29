"""What is foretold of a network's arrays, against counting by hand and against XLA's own word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernel.jacobian import Part, compute_shape
from kernel.model import Model
from kernel.options import Request
from kernel.plan import Activations, activations, cast, problem_of
from tests.kernel.engine_networks import SHAPE, model

CHUNK = 8


def test_a_chain_by_hand():
    """3 → 50 → 2: forth 50 and 2; back, a projection each, 2 and 50; what is fused is not there."""

    def chain(params, frozen, images):
        hidden = jax.nn.relu(images @ params["one"])
        return jnp.tanh(hidden + 1.0) @ params["two"]

    params = {"one": jnp.ones((3, 50)), "two": jnp.ones((50, 2))}
    image = jax.ShapeDtypeStruct((3,), "float64")
    own = Model(chain, params, {})
    found = activations(own, problem_of(own, image, 4, 4, Request()).units, image)
    assert isinstance(found, Activations)
    # gradients of the two arrays themselves are 150 and 100, for there are no taps
    assert 2 * (50 + 150) <= found.back <= 2 * (50 + 150 + 100 + 2)
    assert 3 + 2 * 50 <= found.forth <= 3 + 2 * (50 + 2 + 100)
    assert found.of(3) == found.forth + 3 * found.back


@pytest.mark.parametrize("name", ["Convolutions", "Volumes", "Sequences", "Words"])
@pytest.mark.parametrize("projections", [1, 3])
def test_near_what_xla_says(name, projections):
    own = cast(model(name), "float32")
    image = jax.ShapeDtypeStruct(SHAPE, "float32")
    problem = problem_of(own, image, 4, 4, Request())
    parts = tuple(Part(unit, "rows", unit.outputs) for unit in problem.units)
    compiled = compute_shape.lower(
        own.function,
        parts,
        False,
        False,
        *own[1:],
        jax.ShapeDtypeStruct((CHUNK, *SHAPE), "float32"),
        jax.ShapeDtypeStruct((projections, len(problem.directions.projections[0])), "float32"),
        np.zeros(len(parts), int),
    ).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    taken = analysis.temp_size_in_bytes
    rows = sum(unit.columns for unit in problem.units)
    foretold = 4 * (CHUNK * problem.activations.of(projections) + 2 * rows)
    assert 0.7 * taken < foretold < 2.5 * taken
