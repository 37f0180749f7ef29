"""Predicted memory of a posterior against what is allocated."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from kernel import linalg
from kernel.covariance import Cross, Features, Kernel
from kernel.posterior import posterior, posterior_bytes
from tests.kernel_cases import random_problem

CASES = {
    # form, labelled, candidates, sample, dimensions, keep
    "dense in place": ("dense", 300, 1600, None, None, True),
    "dense, few labels": ("dense", 20, 1700, None, None, True),
    "dense sample": ("dense", 200, 2000, 600, None, True),
    "full": ("full", 60, 400, None, None, True),
    "features kept": ("features", 300, 2500, 2500, 700, True),
    "features kept sample": ("features", 300, 9000, 500, 400, True),
    "features streamed": ("features", 300, 9000, 500, 400, False),
    "many labels": ("features", 1500, 2000, 100, 400, False),
    "dense streamed": ("dense", 300, 1600, None, None, False),
    "cross streamed": ("cross", 200, 6000, 400, None, False),
    "cross": ("cross", 200, 6000, 400, None, True),
}


@pytest.mark.parametrize("case", CASES)
def test_an_upper_bound_of_what_numpy_allocates(case, rng):
    form, labelled, candidates, sample, dimensions, keep = CASES[case]
    classes, precision = 3, "float32" if form == "features" else "float64"
    rows = (labelled + candidates) * (classes if form == "full" else 1)
    features = rng.normal(size=(rows, dimensions or 50)).astype(precision)
    if form == "features":
        given = Features(features, precision)
    else:
        values = features @ features.T
        values.flat[:: rows + 1] += 1.0
        if form == "cross":
            anchors = values[: labelled + (sample or 0)]
            given = Cross(anchors, values.diagonal().copy(), precision)
        else:
            shape = (rows // classes, classes) * 2 if form == "full" else values.shape
            given = Kernel(values.reshape(shape), precision)
    problem = random_problem(labelled, candidates, classes, rng)
    predicted = posterior_bytes(
        form,
        labelled,
        candidates,
        classes=classes,
        sample=sample,
        features=dimensions or 0,
        itemsize=given.values.itemsize,
        keep=keep,
    )
    tracemalloc.start()
    try:
        chosen = None if sample is None else np.arange(sample)
        consume = sample is None and keep
        posterior(given, *problem, sample=chosen, keep=keep, consume=consume, ridge=1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    taken = given.values.nbytes + peak
    assert taken <= predicted < 4 * taken  # with tiles of S, which XLA holds


def test_streaming_never_holds_a_square():
    sizes: dict[str, Any] = {"classes": 10, "sample": 2000, "features": 4096, "itemsize": 4}
    kept, streamed = (
        posterior_bytes("features", 1000, 50_000, **sizes, keep=keep) for keep in (True, False)
    )
    assert kept - streamed == 2000 * 50_000 * 4
    assert streamed < 4e9
    assert posterior_bytes("dense", 1000, 50_000, classes=10) > 2e10


def test_a_device_takes_padded_arrays(monkeypatch):
    host = posterior_bytes("dense", 100, 700, classes=10)
    monkeypatch.setattr(linalg, "on_host", lambda: False)
    assert posterior_bytes("dense", 100, 700, classes=10) > host
