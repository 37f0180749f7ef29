from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.covariance import Kernel
from kernel.criteria import mlmoc
from kernel.errors import KernelError
from kernel.infinite import nt
from kernel.ntk import empirical_ntk
from kernel.options import REFERENCES, Request
from kernel.posterior import posterior
from tests.kernel_cases import full_kernel, mlp, one_hot, scalar_kernel


def literal_mlmoc(kernel, targets, f_l, f_u, ridge, reference):
    """[L] Eq. 11 and 13 candidate by candidate: solve the augmented system, take norms."""
    labelled, classes = targets.shape
    blocks = kernel.values
    if blocks.ndim == 2:
        blocks = np.einsum("ij,cd->icjd", blocks, np.eye(classes))
    examples = len(blocks)

    def linearised(rows, wanted):
        everything = np.concatenate([targets, wanted])[: len(rows)]
        logits = np.concatenate([f_l, f_u])
        block = blocks[rows][:, :, rows].reshape(len(rows) * classes, -1)
        cross = blocks[labelled:][:, :, rows].reshape(len(f_u) * classes, -1)
        residual = (everything - logits[rows]).reshape(-1)
        solved = np.linalg.solve(block + ridge * np.eye(len(block)), residual)
        return f_u + (cross @ solved).reshape(f_u.shape)

    base = f_u if reference == "network" else linearised(list(range(labelled)), targets[:0])
    scores = []
    for candidate in range(labelled, examples):
        label = one_hot(f_u[candidate - labelled].argmax(keepdims=True), classes)
        after = linearised([*range(labelled), candidate], label)
        scores.append(np.linalg.norm(after - base, axis=1).sum())
    return np.array(scores)


@pytest.mark.parametrize("reference", REFERENCES)
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(2, 4), st.floats(0, 2), st.integers(0, 99))
def test_against_literal_retraining(reference, labelled, candidates, classes, ridge, seed):
    rng = np.random.default_rng(seed)
    targets = one_hot(rng.integers(classes, size=labelled), classes)
    f_l, f_u = rng.normal(size=(labelled, classes)), rng.normal(size=(candidates, classes))
    examples = labelled + candidates
    for kernel in (scalar_kernel(examples, rng), full_kernel(examples, classes, rng)):
        scores = mlmoc(posterior(kernel, targets, f_l, f_u, ridge=ridge), reference)
        expected = literal_mlmoc(kernel, targets, f_l, f_u, ridge, reference)
        np.testing.assert_allclose(scores, expected, rtol=1e-7)


def test_drift_free_score_is_the_closed_form(rng):
    kernel = scalar_kernel(12, rng)
    targets = one_hot(rng.integers(3, size=5), 3)
    result = posterior(kernel, targets, rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), ridge=0.3)
    s = result.covariance.dense()
    r = one_hot(result.logits.argmax(1), 3) - result.predictions
    expected = np.linalg.norm(r, axis=1) * np.abs(s).sum(0) / (np.diagonal(s) + 0.3)
    np.testing.assert_allclose(mlmoc(result, "linearised"), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["single", "full"])
def test_against_neural_tangents_prediction(kind, rng):
    """The change that nt.predict gives for each augmented labelled set, of a real network."""
    labelled, candidates, classes = 5, 6, 3
    model = mlp(4, 16, classes, rng)
    images = rng.normal(size=(labelled + candidates, 4))
    logits = np.asarray(model.function(model.params, model.frozen, jnp.asarray(images)))
    f_l, f_u = logits[:labelled], logits[labelled:]
    targets = one_hot(rng.integers(classes, size=labelled), classes)
    outputs = classes if kind == "full" else 1
    axes = () if kind == "full" else (-1,)

    def apply(params, inputs, **kwargs):
        return model.function(params, model.frozen, inputs)[:, :outputs]

    ntk = nt.empirical_ntk_fn(apply, trace_axes=axes, implementation=1)
    expected = []
    for candidate in range(candidates):
        rows = [*range(labelled), labelled + candidate]
        label = one_hot(f_u[candidate].argmax(keepdims=True), classes)
        y = jnp.asarray(np.concatenate([targets, label]))
        k_dd: Any = ntk(images[rows], None, model.params)
        k_td: Any = ntk(images[labelled:], images[rows], model.params)
        predict = nt.predict.gradient_descent_mse(k_dd, y, trace_axes=axes, diag_reg=0.0)
        _, after = predict(None, jnp.asarray(logits[rows]), jnp.asarray(f_u), k_td)
        expected.append(np.linalg.norm(np.asarray(after) - f_u, axis=1).sum())
    kernel = empirical_ntk(model, images, Request(kind, precision="float64"))
    result = posterior(kernel, targets, f_l, f_u)
    np.testing.assert_allclose(mlmoc(result, "network"), expected, rtol=1e-6)


@pytest.mark.parametrize("reference", REFERENCES)
def test_determined_candidates_score_zero(reference, rng):
    features = rng.normal(size=(7, 12))
    features[4] = features[0]
    values = features @ features.T
    targets = one_hot(rng.integers(2, size=3), 2)
    f_l, f_u = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    kernels = (
        Kernel(values, "float64"),
        Kernel(np.einsum("ij,cd->icjd", values, np.eye(2)), "float64"),
    )
    scalar, full = (mlmoc(posterior(kernel, targets, f_l, f_u), reference) for kernel in kernels)
    assert scalar[1] == 0
    assert (np.delete(scalar, 1) > 0).all()
    np.testing.assert_allclose(full, scalar, rtol=1e-9)


def test_permuting_candidates_permutes_scores(rng):
    kernel = scalar_kernel(10, rng)
    targets = one_hot(rng.integers(3, size=4), 3)
    f_l, f_u = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    order = rng.permutation(6)
    rows = np.concatenate([np.arange(4), 4 + order])
    permuted = Kernel(kernel.values[rows][:, rows], "float64")
    scores = mlmoc(posterior(kernel, targets, f_l, f_u))
    again = mlmoc(posterior(permuted, targets, f_l, f_u[order]))
    np.testing.assert_allclose(again, scores[order], rtol=1e-12)


def test_unknown_reference(rng):
    result = posterior(scalar_kernel(2, rng), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
    with pytest.raises(KernelError, match="unknown reference 'netwrok'"):
        mlmoc(result, "netwrok")
