"""Predicted memory against what is allocated."""

import tracemalloc

import numpy as np
import pytest

from kernel.covariance import Cross, Features, Kernel
from kernel.errors import KernelError
from kernel.footprint import posterior_bytes
from kernel.posterior import posterior
from tests.kernel_cases import random_problem

CASES = {
    # form, labelled, candidates, sample, dimensions, keep, consume
    "dense": ("dense", 300, 1600, None, None, True, False),
    "dense in place": ("dense", 300, 1600, None, None, True, True),
    "dense, few labels": ("dense", 20, 1700, None, None, True, False),
    "dense sample": ("dense", 200, 2000, 600, None, True, False),
    "full": ("full", 60, 400, None, None, True, False),
    "features kept": ("features", 300, 2500, None, 700, True, False),
    "features kept sample": ("features", 300, 9000, 500, 400, True, False),
    "features streamed": ("features", 300, 9000, 500, 400, False, False),
    "many labels": ("features", 1500, 2000, 100, 400, False, False),
    "dense streamed": ("dense", 300, 1600, None, None, False, False),
    "cross streamed": ("cross", 200, 6000, 400, None, False, False),
    "cross": ("cross", 200, 6000, 400, None, True, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_within_a_quarter_of_what_numpy_allocates(case, precision, rng):
    form, labelled, candidates, sample, dimensions, keep, consume = CASES[case]
    classes = 3
    rows = (labelled + candidates) * (classes if form == "full" else 1)
    features = rng.normal(size=(rows, dimensions or 50)).astype(precision)
    places = None if sample is None else np.arange(sample)
    if form == "features":
        given = Features(features, precision)
    else:
        values = features.astype("f8") @ features.T.astype("f8")
        values.flat[:: rows + 1] += 1.0
        if form == "cross":
            anchors = values[: labelled + (sample or 0)].astype(precision)
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
        dimensions=dimensions,
        precision=precision,
        keep=keep,
        consume=consume,
    )
    tracemalloc.start()
    try:
        result = posterior(given, *problem, sample=places, keep=keep, consume=consume, ridge=1.0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.jitter == 0
    assert predicted.given == pytest.approx(given.values.nbytes, rel=0.02)
    small = 2**20  # what Python itself allocates
    assert predicted.held == pytest.approx(held, rel=0.25, abs=small)
    whole = predicted.given + predicted.conditioning
    assert whole == pytest.approx(predicted.given + peak, rel=0.25)
    assert predicted.conditioning == pytest.approx(peak, rel=0.35, abs=2 * small)
    assert predicted.peak >= whole


def test_streaming_never_holds_a_square():
    streamed = posterior_bytes(
        "features", 1000, 50_000, classes=10, sample=2000, dimensions=4096, keep=False
    )
    kept = posterior_bytes(
        "features", 1000, 50_000, classes=10, sample=2000, dimensions=4096, keep=True
    )
    assert kept.held - streamed.held == 2000 * 50_000 * 8
    assert streamed.peak < 3e9
    assert posterior_bytes("dense", 1000, 50_000, classes=10).peak > 4e10


def test_a_device_takes_padded_arrays():
    host, device = (
        posterior_bytes("dense", 100, 700, classes=10, host=host) for host in (True, False)
    )
    assert device.held > host.held
    assert device.given == host.given


def test_bad_requests():
    with pytest.raises(KernelError, match="unknown form 'sparse'"):
        posterior_bytes("sparse", 1, 2, classes=3)
    with pytest.raises(KernelError, match="depends on their dimensions"):
        posterior_bytes("features", 1, 2, classes=3)
