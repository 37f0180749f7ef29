"""Contract of every strategy in the table.

Each is asked with the same small network, of which everything that any of them needs can be had.
"""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from bridge.trace import mirror
from kernel.errors import KernelError
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, needing
from pipelines.strategies.base import Labelling, Query, Resources, build_context
from pipelines.strategies.options import BaldConfig, BaselineConfig, KernelConfig, StrategyOptions
from trainer.config import TrainConfig
from trainer.errors import NetworkError
from trainer.fit import fit
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.predict import logits

IMAGES, CLASSES, SHAPE = 12, 3, (1, 6, 6)  # so many images in every case: XLA compiles for it once
LABELLED = np.array([10, 3, 7, 0])  # in the order in which they were labelled
TRAIN = TrainConfig(epochs=1, min_steps=2, extensions=0, learning_rate=0.05)
# 24 images or fewer, a pixel or four, one epoch: what each setting is does not matter here
OPTIONS = StrategyOptions(
    baseline=BaselineConfig(epochs=1, image_size=2, test=2), bald=BaldConfig(samples=3)
)

every = pytest.mark.parametrize("name", STRATEGIES)


@functools.cache
def trained():
    """A network with dropout and a counterpart of infinite width, trained a little with a module
    that predicts losses; its mirror; the module.
    """
    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, *SHAPE)).astype(np.float32)
    network = build("cnn", SHAPE, CLASSES, rng, {"dropout": 0.3})
    auxiliary_module = LossPrediction.of(network, images[:2], rng)
    fit(network, images, np.arange(6) % CLASSES, TRAIN, rng, auxiliary_module=auxiliary_module)
    network.zero_grad()
    return network, mirror(network, images[:2]), auxiliary_module


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(IMAGES, *SHAPE)).astype(np.float32)


def ask(
    name: str,
    images: np.ndarray,
    batch_size: int,
    labelled: np.ndarray = LABELLED,
    labels: np.ndarray | None = None,
    *,
    order: np.ndarray | None = None,
    seed: int = 0,
    kernel: KernelConfig | None = None,
) -> Query:
    """A query of a strategy; `order` permutes the candidates."""
    network, twin, module = trained()
    pool = Pool.of(len(images), labelled)
    candidates = pool.unlabelled if order is None else pool.unlabelled[order]
    labels = np.arange(len(labelled)) % CLASSES if labels is None else labels
    context = build_context(
        network,
        lambda indices: images[indices],
        Labelling(pool.labelled, labels, candidates),
        [STRATEGIES[name]],
        train=TRAIN,
        options=dataclasses.replace(OPTIONS, kernel=kernel or KernelConfig()),
        resources=Resources(
            auxiliary_module=module,
            test_set=(lambda positions: images[positions], np.arange(len(images)) % CLASSES),
        ),
        mirror=twin,
    )
    return STRATEGIES[name](context, batch_size, np.random.default_rng(seed))


def check(found: Query, batch_size: int, images: int, labelled: np.ndarray = LABELLED) -> None:
    """Properties of any query."""
    assert found.indices.dtype == found.candidates.dtype == np.int64
    assert found.scores.dtype == found.candidate_scores.dtype == np.float64
    assert len(found.indices) == len(found.scores) == batch_size
    assert len(set(found.indices.tolist())) == batch_size
    assert not set(found.indices.tolist()) & set(labelled.tolist())
    assert set(found.candidates.tolist()) == set(range(images)) - set(labelled.tolist())
    assert np.isfinite(found.candidate_scores).all()
    score = dict(zip(found.candidates.tolist(), found.candidate_scores.tolist(), strict=True))
    assert [score[index] for index in found.indices.tolist()] == found.scores.tolist()
    json.dumps(found.diagnostics, allow_nan=False)


@every
def test_indices_are_those_of_the_data_set_and_scores_are_returned(name):
    network, *_ = trained()
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    found = ask(name, pictures(), 3)
    check(found, 3, IMAGES)
    if name not in needing("draws"):
        assert found.scores.tolist() == sorted(found.candidate_scores.tolist(), reverse=True)[:3]
    assert not any(part.training for part in network.modules())
    assert all(torch.equal(weights[key], tensor) for key, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@every
def test_the_seed_decides_whatever_the_order_of_the_candidates(name):
    """To the last bit, also where a strategy draws at random: a draw is of a data-set index."""
    one = ask(name, pictures(), 4)
    order = np.random.default_rng(5).permutation(IMAGES - len(LABELLED))
    other = ask(name, pictures(), 4, order=order)
    for field in ("indices", "scores", "candidates", "candidate_scores"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert one.diagnostics == other.diagnostics


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - needing("draws")))
def test_scores_are_of_the_images_and_not_of_their_positions(name):
    """The same images elsewhere in the data set; those that draw may draw others then."""
    images, moved = pictures(), np.random.default_rng(6).permutation(IMAGES)
    elsewhere = np.empty_like(images)
    elsewhere[moved] = images
    one, other = ask(name, images, 3), ask(name, elsewhere, 3, moved[LABELLED])
    score = dict(zip(other.candidates.tolist(), other.candidate_scores.tolist(), strict=True))
    scale = np.abs(one.candidate_scores).max()
    np.testing.assert_allclose(
        [score[index] for index in moved[one.candidates].tolist()],
        one.candidate_scores,
        rtol=1e-3,
        atol=1e-4 * scale,
    )
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-4 * scale)


@every
def test_all_of_a_small_pool(name):
    check(ask(name, pictures(), IMAGES - len(LABELLED)), IMAGES - len(LABELLED), IMAGES)


@every
def test_one_candidate(name):
    labelled = np.arange(1, IMAGES)
    found = ask(name, pictures(), 1, labelled)
    check(found, 1, IMAGES, labelled)
    assert found.indices.tolist() == [0]


@every
def test_one_class(name):
    check(ask(name, pictures(), 3, labels=np.full(len(LABELLED), 1)), 3, IMAGES)


@every
def test_identical_images(name):
    """All candidates alike, and then like a labelled image, too: none is taken twice."""
    images = pictures()
    candidates = np.setdiff1d(np.arange(IMAGES), LABELLED)
    images[candidates] = images[candidates[0]]
    check(ask(name, images, 5), 5, IMAGES)
    images[candidates] = images[LABELLED[0]]
    first, other = (ask(name, images, 5, seed=seed) for seed in (0, 1))
    check(first, 5, IMAGES)
    check(other, 5, IMAGES)
    assert first.indices.tolist() != other.indices.tolist()  # the generator breaks ties


@every
@pytest.mark.parametrize("batch_size", [0, IMAGES - len(LABELLED) + 1])
def test_a_query_that_cannot_be_is_refused(name, batch_size):
    with pytest.raises(PipelineError, match=f"query of {batch_size} images was asked for"):
        ask(name, pictures(), batch_size)


@every
def test_what_is_not_a_number_is_refused(name):
    network, *_ = trained()
    images, labels = pictures(), {int(index): 0 for index in LABELLED}
    images[5, 0, 2, 2] = np.nan
    with pytest.raises(PipelineError, match=r"images \[5\] hold NaN"):
        query(network, images, labels, 2, name)
    if name == "random":  # which does not ask the network
        return
    # what the network answers, or the gradients of a pass that answers as well
    said = r"(logits of image 5|gradients of images \[5\]) \(numbered as in the data set\)"
    with pytest.raises((NetworkError, KernelError), match=said):
        ask(name, images, 2)


@pytest.mark.parametrize("index", [int(LABELLED[0]), 8])
def test_a_sketch_names_what_is_not_finite_by_the_data_sets_numbers(index):
    images = pictures()
    images[index, 0, 2, 2] = np.nan
    with pytest.raises(KernelError, match=rf"images \[{index}\] \(numbered as in the data set\)"):
        ask("mlmoc", images, 2, kernel=KernelConfig(sketch=64))


def test_logits_that_are_not_finite_are_refused():
    network, *_ = trained()
    images = pictures()
    pool = Pool.of(IMAGES, LABELLED)
    context = build_context(
        network,
        lambda indices: images[indices],
        Labelling(pool.labelled, np.zeros(len(LABELLED), np.int64), pool.unlabelled),
        [],
        train=TRAIN,
        options=StrategyOptions(),
        resources=Resources(),
    )
    broken = logits(network, images[pool.unlabelled])
    broken[2, 1] = np.inf
    with pytest.raises(PipelineError, match=rf"logits of images \[{pool.unlabelled[2]}\] are not"):
        dataclasses.replace(context, known_logits=(context.labelled_logits, broken))
