"""Look-ahead strategies end to end on a small network, with every setting of theirs."""

import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridge.trace import mirror
from kernel.covariance import Features, Kernel
from kernel.lookahead import acquisition_state
from kernel.options import CRITERIA, STREAMED, Request
from kernel.plan import Sizes, plan_query
from kernel.posterior import posterior, posterior_bytes
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, lookahead, needing
from pipelines.strategies.options import KernelConfig, LookAheadConfig, QueryOptions
from tests.kernel_cases import mlp, random_problem

LABELLED = {4: 0, 17: 1, 2: 2, 21: 1}
EXACT = KernelConfig(precision="float64")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.flatten(1))))


@pytest.fixture(scope="module")
def subject():
    """A network, images and its mirror."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small().eval()
    images = np.random.default_rng(0).normal(size=(30, 1, 4, 4)).astype(np.float32)
    return model, images, mirror(model, images[:4])


def ask(subject, strategy, kernel=EXACT, batch_size=4, **options):
    model, images, own = subject
    oracle = options.pop("oracle", None)
    return query(
        model,
        images,
        LABELLED,
        batch_size,
        strategy,
        options=QueryOptions(kernel=kernel, lookahead=LookAheadConfig(**options)),
        oracle=oracle,
        mirror=own,
    )


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_in_every_mode(criterion, subject):
    truth = np.random.default_rng(3).integers(3, size=30)
    batches = {}
    for batch in ("top", "conditioned", "hybrid"):
        found = ask(subject, criterion, batch=batch, oracle=lambda indices: truth[indices])
        assert found.diagnostics["batch"] == batch
        assert len(set(found.indices.tolist())) == 4
        by_index = dict(zip(found.candidates.tolist(), found.candidate_scores, strict=True))
        assert [by_index[i] for i in found.indices.tolist()] == found.scores.tolist()
        streamed = found.diagnostics["held"] == "dense, streamed"
        assert streamed == (criterion in STREAMED)
        batches[batch] = found
    assert batches["hybrid"].diagnostics["answers"] == truth[batches["hybrid"].indices[:3]].tolist()
    first = {found.indices[0] for found in batches.values()}
    assert len(first) == 1
    assert criterion in STRATEGIES
    assert criterion in needing("kernel")


@pytest.mark.parametrize(
    ("strategy", "one", "other"),
    [
        ("emoc", {"labels": "simplex"}, {"labels": "one_hot"}),
        ("emoc", {"labels": "softmax", "beta": 1.0}, {"labels": "softmax", "beta": 30.0}),
        ("eer", {"beta": 2.0}, {"beta": 20.0}),
        ("uherding", {"uncertainty": "margin"}, {"uncertainty": "entropy"}),
        ("uherding", {"temperature": "calibrated"}, {"temperature": 0.3}),
        ("uherding", {"temperature": 0.3}, {"temperature": None}),
        ("uherding", {"radius": "adaptive"}, {"radius": None}),
        ("max_herding", {"radius": 0.2}, {"radius": 2.0}),
        ("ntkcpl", {"clusters": 2}, {"clusters": 9}),
    ],
)
def test_every_setting_does_something(strategy, one, other, subject):
    first, second = (ask(subject, strategy, **options) for options in (one, other))
    assert not np.allclose(first.candidate_scores, second.candidate_scores)


@pytest.mark.parametrize("criterion", ["uherding", "max_herding", "ntkcpl", "eer"])
def test_a_sample_and_a_sketch(criterion, subject):
    """Between anchors and all, and as features."""
    for kernel, held in (
        (KernelConfig(sample=9, precision="float64"), "cross"),
        (KernelConfig(sample=9, sketch=40, precision="float64"), "features"),
    ):
        found = ask(subject, criterion, kernel)
        assert found.diagnostics["held"].startswith(held)
        assert np.isfinite(found.candidate_scores).all()


def passes(model):
    """How many images go through the network at a time, and what ends the counting."""
    seen = []
    return seen, model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))


def test_a_sketch_leaves_logits_and_the_network_is_not_asked_again(subject, monkeypatch):
    kernel = KernelConfig(sketch=40, precision="float64", chunk=7)
    seen, hook = passes(subject[0])
    try:
        found = ask(subject, "emoc", kernel)
        assert max(seen) <= 4  # of the certificate
        monkeypatch.setattr(lookahead, "_leaves_logits", lambda _: False)
        seen.clear()
        expected = ask(subject, "emoc", kernel)
        assert max(seen) == len(subject[1]) - len(LABELLED)
    finally:
        hook.remove()
    np.testing.assert_allclose(found.candidate_scores, expected.candidate_scores, rtol=1e-4)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("kernel", [EXACT, KernelConfig(kind="full", sketch=40)])
def test_other_kernels_leave_no_logits(kernel, subject):
    seen, hook = passes(subject[0])
    ask(subject, "mlmoc", kernel)
    hook.remove()
    assert max(seen) == len(subject[1]) - len(LABELLED)


def test_nobody_answers(subject):
    with pytest.raises(PipelineError, match="hybrid, which asks for true .* there is no oracle"):
        ask(subject, "mlmoc", batch="hybrid")


def test_a_run_is_refused_before_it_begins():
    with pytest.raises(PipelineError, match="eer is computed on a scalar-valued kernel"):
        RunConfig("digits", strategy="eer", kernel=KernelConfig(kind="full"))
    conditioned = LookAheadConfig(batch="conditioned")
    with pytest.raises(PipelineError, match="for the sample only: set kernel.sketch too"):
        RunConfig("digits", kernel=KernelConfig(sample=50), lookahead=conditioned)
    RunConfig("digits", strategy="margin", kernel=KernelConfig(sample=50), lookahead=conditioned)


@pytest.mark.parametrize("sketch", [None, 20])
def test_s_is_not_held_for_a_criterion_that_reads_the_kernel(sketch):
    model = mlp(5, 8, 3, np.random.default_rng(0))
    image = jax.ShapeDtypeStruct((5,), "float64")
    request = Request("trace", precision="float64", sketch=sketch, chunk=4)
    held, streamed = (
        plan_query(model, image, Sizes(10, 2000, None, s), request) for s in (False, True)
    )
    assert held.keep
    assert not streamed.keep
    assert held.form == streamed.form


@pytest.mark.parametrize("criterion", sorted(STREAMED))
@pytest.mark.parametrize("form", ["dense", "features"])
def test_memory_is_within_what_is_predicted(criterion, form, rng):
    labelled, candidates, classes, dimensions = 150, 2500, 4, 60
    values = rng.normal(size=(labelled + candidates, dimensions))
    given: Any = Features(values, "float64")
    if form == "dense":
        given = Kernel(values @ values.T, "float64")
    problem = random_problem(labelled, candidates, classes, rng)
    predicted = posterior_bytes(
        form,
        labelled,
        candidates,
        classes=classes,
        features=dimensions,
        keep=False,
        streamed=True,
    )
    tracemalloc.start()
    try:
        result = posterior(given, *problem, keep=False, ridge=1.0)
        seen = acquisition_state(criterion, given, result, targets=problem[0])
        seen = seen.assume(np.array([int(seen.scores().argmax())]))
        seen.scores()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert given.values.nbytes + peak <= predicted
    assert predicted < given.values.nbytes + 2 * candidates**2 * 8
