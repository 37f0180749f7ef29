"""Several strategies on one context: what each needs is computed once."""

import numpy as np
import pytest
import torch
from torch import nn

from kernel.options import CRITERIA
from pipelines.core.errors import PipelineError
from pipelines.query import compare, query
from pipelines.strategies import NEEDS, STRATEGIES, Method, help_text, lookahead, needing
from pipelines.strategies.options import KernelConfig, QueryOptions
from trainer.networks import build

LABELLED = {3: 0, 8: 1, 15: 2, 20: 1}


@pytest.fixture
def images(rng):
    return rng.normal(size=(24, 1, 6, 6)).astype(np.float32)


@pytest.fixture
def network():
    return build("cnn", (1, 6, 6), 3, np.random.default_rng(0))


def counted(network, record):
    """Note how many images go through the network at a time."""
    return network.register_forward_hook(lambda _, given, __: record.append(len(given[0])))


def test_a_need_is_computed_once(network, images, monkeypatch):
    passes, kernels = [], []
    counted(network, passes)
    real = lookahead.query_kernel
    monkeypatch.setattr(
        lookahead, "query_kernel", lambda *a, **k: kernels.append(1) or real(*a, **k)
    )
    names = ["random", "entropy", "mlmoc", "emoc", "ntk_no_blocks"]
    both = compare(network, images, LABELLED, 4, names)
    # the certificate of the one mirror has passes of its own, of 4 images and fewer
    assert [count for count in passes if count > 4] == [20]
    assert passes[0] == 4  # to know the classes
    assert len(LABELLED) in passes
    assert len(kernels) == 1
    assert list(both) == names


def test_features_come_with_the_logits_and_once(network, images):
    passes = []
    counted(network, passes)
    both = compare(network, images, LABELLED, 4, ["badge", "coreset", "albl", "margin"])
    # a few images to count the classes, twice to find the layer of the logits; then all of them
    assert passes == [4, 4, 4, len(LABELLED), 20]
    for name, found in both.items():
        alone = query(network, images, LABELLED, 4, name)
        np.testing.assert_array_equal(found.indices, alone.indices)


def test_every_strategy_says_what_it_says_alone(network, images):
    names = ["random", "mlmoc", "uherding"]
    together = compare(network, images, LABELLED, 5, names, seed=3)
    for name in names:
        alone = query(network, images, LABELLED, 5, name, seed=3)
        np.testing.assert_array_equal(together[name].indices, alone.indices)
        np.testing.assert_allclose(
            together[name].candidate_scores, alone.candidate_scores, rtol=1e-9, atol=1e-12
        )


def test_what_is_random_in_a_kernel_is_shared_and_follows_from_the_seed(network, images):
    settings = KernelConfig(kind="rademacher", probes=2, sketch=16, sample=9)

    def asked(names, seed=0):
        return compare(
            network, images, LABELLED, 3, names, options=QueryOptions(kernel=settings), seed=seed
        )

    one, other = asked(["mlmoc", "emoc"]), asked(["emoc", "flip", "mlmoc"])
    for name in one:
        np.testing.assert_array_equal(one[name].candidate_scores, other[name].candidate_scores)
    assert not np.array_equal(
        one["mlmoc"].candidate_scores, asked(["mlmoc"], 1)["mlmoc"].candidate_scores
    )


@pytest.mark.parametrize("names", [[], ["entropy", "entropy"]])
def test_no_strategy_and_one_twice_are_refused(names, network, images):
    with pytest.raises(PipelineError, match="name at least one, and each of them once"):
        compare(network, images, LABELLED, 2, names)


# the table


def test_needs_are_known_and_used():
    for name, row in STRATEGIES.items():
        assert isinstance(row, Method), name
    assert {name for name, row in STRATEGIES.items() if row.module == "lookahead"} == {*CRITERIA}
    assert all(f"{name}: {row.summary}" in help_text() for name, row in STRATEGIES.items())
    assert needing("kernel", "infinite") == needing("kernel") | needing("infinite")
    with pytest.raises(ValueError, match=r"\['oracle'\] are not among classes, logits, features"):
        Method("random", "uncertainty", frozenset({"oracle"}), "")


def test_a_network_without_what_is_needed_is_refused_before_anything_is_computed(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    passes = []
    counted(network, passes)
    with pytest.raises(PipelineError, match="no counterpart of infinite width"):
        query(network, images, LABELLED, 2, "gp")
    assert not passes
    assert torch.is_tensor(network[1].weight)
    assert NEEDS
