"""The look-ahead baselines, each against the slowest obvious form of itself; refusals."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from kernel.covariance import Kernel
from kernel.criteria import mlmoc
from kernel.errors import KernelError
from kernel.infinite import Architecture, infinite_kernel
from kernel.lookahead import mlmoc_augmented
from kernel.posterior import posterior
from pipelines import run
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, baselines, needing
from pipelines.strategies.base import Labelling, QueryContext, Resources, build_context
from pipelines.strategies.baselines import retraining
from pipelines.strategies.infinite import shrink
from pipelines.strategies.options import BaselineConfig, KernelConfig, QueryOptions, StrategyOptions
from tests.kernel_cases import (
    all_forms,
    full_kernel,
    one_hot,
    random_features,
    random_problem,
    scalar_kernel,
)
from trainer.config import TrainConfig
from trainer.fit import fit, mean_loss
from trainer.networks import build
from trainer.pool import Pool
from trainer.predict import logits

LABELLED = np.array([3, 8, 14, 20, 21])
OPTIONS = StrategyOptions(baseline=BaselineConfig(epochs=2, step=0.3))
SHORT = TrainConfig(epochs=3, min_steps=0, extensions=0, learning_rate=0.05)


@pytest.fixture
def images(rng):
    return rng.normal(size=(24, 1, 6, 6)).astype(np.float32)


def context_of(images: np.ndarray, resources=None, train=SHORT, **options) -> QueryContext:
    """A query for a small cnn, which was trained a little."""
    network = build("cnn", images.shape[1:], 3, np.random.default_rng(5))
    labels = np.arange(len(LABELLED)) % 3
    fit(network, images[LABELLED], labels, SHORT, np.random.default_rng(6))
    pool = Pool.of(len(images), LABELLED)
    return build_context(
        network,
        lambda indices: images[indices],
        Labelling(pool.labelled, labels, pool.unlabelled),
        [],
        train=train,
        options=dataclasses.replace(OPTIONS, **options),
        resources=resources or Resources(),
    )


def test_a_copy_with_other_candidates_has_logits_of_its_own(images):
    whole = context_of(images)
    logits_of_all = whole.candidate_logits  # kept for whoever asks next
    few = dataclasses.replace(whole, candidates=whole.candidates[3:7])
    np.testing.assert_allclose(few.candidate_logits, logits_of_all[3:7], rtol=1e-5, atol=1e-6)


# naive


def literal_naive(context: QueryContext, seed: int) -> np.ndarray:
    """Retrain for each candidate, and add up how far the outputs moved."""
    config = retraining(context.train, context.options.baseline)
    points = context.images(context.candidates)
    scores = []
    for place, candidate in enumerate(context.candidates):
        network = copy.deepcopy(context.network)
        everyone = np.append(context.labelled, candidate)
        label = context.candidate_logits[place].argmax()
        labels = np.append(context.labels, label)
        fit(network, context.images(everyone), labels, config, np.random.default_rng(seed))
        change = logits(network, points).astype(np.float64) - context.candidate_logits
        scores.append(sum(float(np.sqrt((row**2).sum())) for row in change))
    return np.array(scores)


def test_naive_is_retraining(images):
    context = context_of(images)
    before = {k: v.clone() for k, v in context.network.state_dict().items()}
    found = STRATEGIES["naive"](context, 2, np.random.default_rng(1))
    seed = int(np.random.default_rng(1).spawn(3)[2].integers(2**63))
    expected = literal_naive(context, seed)
    np.testing.assert_allclose(found.candidate_scores, expected, rtol=1e-6)
    assert found.diagnostics["epochs"] == 2
    assert expected.std() > 0
    after = context.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_naive_of_a_finetuned_head_is_ridge_regression_with_one_label_more(images):
    rows = images.reshape(len(images), -1)
    network, train = nn.Linear(36, 3).eval(), TrainConfig(recipe="finetune")
    pool, labels = Pool.of(len(rows), LABELLED), np.arange(len(LABELLED)) % 3
    fit(network, rows[LABELLED], labels, train, np.random.default_rng(6))
    context = build_context(
        network,
        lambda indices: rows[indices],
        Labelling(pool.labelled, labels, pool.unlabelled),
        [],
        train=train,
        options=OPTIONS,
        resources=Resources(),
    )

    def predicted(labelled: np.ndarray, classes: np.ndarray) -> np.ndarray:
        given, wanted = rows[labelled].astype(np.float64), one_hot(classes, 3)
        ridge = train.penalty * np.square(given - given.mean(0)).sum(1).mean()
        kernel = given @ given.T + 1 + ridge * np.eye(len(given))
        return (rows[context.candidates] @ given.T + 1) @ np.linalg.solve(kernel, wanted)

    before = predicted(LABELLED, labels)
    np.testing.assert_allclose(context.candidate_logits, before, atol=1e-4)
    found = STRATEGIES["naive"](context, 2, np.random.default_rng(1))
    guesses = before.argmax(axis=1)
    after = [
        predicted(np.append(LABELLED, candidate), np.append(labels, guess))
        for candidate, guess in zip(context.candidates, guesses, strict=True)
    ]
    expected = [np.linalg.norm(one - before, axis=1).sum() for one in after]
    np.testing.assert_allclose(found.candidate_scores, expected, rtol=2e-3)
    assert found.diagnostics["epochs"] is None


def test_naive_from_a_copy_without_candidates_has_less_to_move(images):
    kernel = KernelConfig(reference="linearised")
    whole = STRATEGIES["naive"](context_of(images), 1, np.random.default_rng(1))
    own = STRATEGIES["naive"](context_of(images, kernel=kernel), 1, np.random.default_rng(1))
    assert own.candidate_scores.mean() < whole.candidate_scores.mean()


def test_an_interrupted_naive_query_goes_on(images, tmp_path, monkeypatch):
    context = context_of(images)
    whole = STRATEGIES["naive"](context, 3, np.random.default_rng(2))
    kept = dataclasses.replace(context, resources=Resources(folder=tmp_path / "kernel"))
    real, calls = baselines.retrained, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(baselines, "retrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STRATEGIES["naive"](kept, 3, np.random.default_rng(2))
    resumed = STRATEGIES["naive"](kept, 3, np.random.default_rng(2))
    assert len(calls) == len(context.candidates) + 1
    np.testing.assert_array_equal(resumed.candidate_scores, whole.candidate_scores)
    other = STRATEGIES["naive"](kept, 3, np.random.default_rng(3))
    assert len(calls) == 2 * len(context.candidates) + 1  # another seed starts anew
    assert (other.candidate_scores != whole.candidate_scores).any()


# one step


@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
def test_one_step_is_one_step(loss, images):
    context = context_of(images, train=dataclasses.replace(SHORT, loss=loss))
    context.network.zero_grad()
    found = STRATEGIES["one_step"](context, 2, np.random.default_rng(1))
    points = torch.from_numpy(images[context.candidates])
    expected = []
    for place, candidate in enumerate(context.candidates):
        network = copy.deepcopy(context.network)
        optimiser = torch.optim.SGD(network.parameters(), lr=context.options.baseline.step)
        answer = network(torch.from_numpy(images[candidate : candidate + 1]))
        label = torch.tensor([int(context.candidate_logits[place].argmax())])
        mean_loss(answer, label, loss).backward()
        optimiser.step()
        change = network(points) - context.network(points)
        expected.append(float(change.detach().double().norm(dim=1).sum()))
    np.testing.assert_allclose(found.candidate_scores, expected, rtol=1e-4)
    assert all(parameter.grad is None for parameter in context.network.parameters())


@pytest.mark.parametrize("name", ["naive", "one_step"])
def test_samples_and_limits(name, images):
    """A sample of reference points estimates the sum; a limit scores fewer, the same."""
    settings = BaselineConfig(epochs=1, step=0.3, candidates=4)
    few = STRATEGIES[name](context_of(images, baseline=settings), 2, np.random.default_rng(4))
    assert len(few.candidates) == len(few.candidate_scores) == few.diagnostics["scored"] == 4
    assert set(few.indices) <= set(few.candidates)
    all_settings = dataclasses.replace(settings, candidates=None)
    every = STRATEGIES[name](context_of(images, baseline=all_settings), 2, np.random.default_rng(4))
    of = dict(zip(every.candidates.tolist(), every.candidate_scores, strict=True))
    expected = [of[candidate] for candidate in few.candidates.tolist()]
    np.testing.assert_allclose(few.candidate_scores, expected, rtol=1e-6)
    sampled = context_of(images, baseline=all_settings, kernel=KernelConfig(sample=12))
    estimate = STRATEGIES[name](sampled, 2, np.random.default_rng(4)).candidate_scores
    np.testing.assert_allclose(estimate, every.candidate_scores, rtol=0.5)
    assert (estimate != every.candidate_scores).all()


# without blocks


@pytest.mark.parametrize("reference", ["network", "linearised"])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_without_blocks_is_mlmoc(reference, ridge, rng):
    sample = np.array([4, 0, 6])
    given = random_problem(5, 9, 3, rng)
    for kernel, keep in all_forms(random_features(14, 40, rng), 5, sample).values():
        result = posterior(kernel, *given, sample=sample, keep=keep, ridge=ridge)
        whole = mlmoc(result, reference)
        asked = {"sample": sample, "ridge": ridge, "reference": reference}
        both = (given[0], np.concatenate(given[1:]))
        alone = mlmoc_augmented(kernel, *both, **asked)
        np.testing.assert_allclose(alone, whole, rtol=1e-8)
        some = mlmoc_augmented(kernel, *both, **asked, scored=np.array([7, 2]))
        np.testing.assert_allclose(some, whole[[7, 2]], rtol=1e-8)


def test_without_blocks_a_duplicate_is_determined_too(rng):
    features = rng.normal(size=(10, 20))
    features[7] = features[2]
    features[9] = features[8]
    kernel, given = Kernel(features @ features.T, "float64"), random_problem(4, 6, 3, rng)
    alone = mlmoc_augmented(kernel, given[0], np.concatenate(given[1:]))
    assert alone[3] == 0.0
    np.testing.assert_allclose(alone, mlmoc(posterior(kernel, *given)), rtol=1e-8)
    assert np.count_nonzero(alone) == 5


def test_without_blocks_refuses(rng):
    targets, *logits = random_problem(2, 3, 2, rng)
    given = (targets, np.concatenate(logits))
    with pytest.raises(KernelError, match="scalar-valued kernels and this one is full"):
        mlmoc_augmented(full_kernel(5, 2, rng), *given)
    with pytest.raises(KernelError, match="unknown reference 'mean'"):
        mlmoc_augmented(scalar_kernel(5, rng), *given, reference="mean")


def test_the_strategy_without_blocks_is_the_strategy_with(images):
    network = context_of(images).network
    labels = {int(index): int(place % 3) for place, index in enumerate(LABELLED)}
    kernel = KernelConfig(precision="float64")
    scores = [
        query(network, images, labels, 4, name, options=QueryOptions(kernel=kernel))
        for name in ("mlmoc", "ntk_no_blocks")
    ]
    np.testing.assert_allclose(scores[1].candidate_scores, scores[0].candidate_scores, rtol=1e-6)
    assert scores[0].indices.tolist() == scores[1].indices.tolist()


# infinite width


def test_infinite_ntk_is_mlmoc_with_that_kernel(images):
    context = context_of(images)
    found = STRATEGIES["infinite_ntk"](context, 3, np.random.default_rng(0))
    everything = images[np.concatenate([context.labelled, context.candidates])]
    kernel = infinite_kernel(Architecture("cnn"), everything, len(LABELLED))
    result = posterior(
        kernel,
        one_hot(context.labels, 3),
        context.labelled_logits.astype(np.float64),
        context.candidate_logits.astype(np.float64),
    )
    np.testing.assert_allclose(found.candidate_scores, mlmoc(result), rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_gp_really_gets_each_label(ridge, images):
    """Its scores by solving with every candidate added, and its accuracy on test images."""
    tests = (lambda places: images[places], np.arange(len(images)) % 3)
    context = context_of(images, Resources(test_set=tests), kernel=KernelConfig(ridge=ridge))
    found = STRATEGIES["gp"](context, 3, np.random.default_rng(0))
    everything = images[np.concatenate([LABELLED, context.candidates, np.arange(24)])]
    k = np.asarray(infinite_kernel(Architecture("cnn"), everything, len(LABELLED)).values)
    labelled, open_ = len(LABELLED), len(context.candidates)

    def mean(rows: list[int], targets: np.ndarray) -> np.ndarray:
        own = k[np.ix_(rows, rows)] + ridge * np.eye(len(rows))
        return k[:, rows] @ np.linalg.solve(own, targets)

    known, targets = list(range(labelled)), one_hot(context.labels, 3)
    before, expected = mean(known, targets), []
    for place in range(labelled, labelled + open_):
        guess = one_hot(before[place : place + 1].argmax(axis=1), 3)
        change = (mean([*known, place], np.concatenate([targets, guess])) - before)[labelled:]
        expected.append(np.linalg.norm(change[:open_], axis=1).sum())
    np.testing.assert_allclose(found.candidate_scores, expected, rtol=1e-5)
    own = before[labelled + open_ :].argmax(axis=1)
    assert found.diagnostics["test_accuracy"] == pytest.approx(np.mean(own == tests[1]))
    assert found.diagnostics["tested"] == 24


@pytest.mark.parametrize("name", sorted(needing("infinite")))
def test_a_sample_of_all_is_all(name, images):
    every = STRATEGIES[name](context_of(images), 2, np.random.default_rng(0))
    kernel = KernelConfig(sample=len(every.candidates) - 1)
    most = STRATEGIES[name](context_of(images, kernel=kernel), 2, np.random.default_rng(0))
    np.testing.assert_allclose(most.candidate_scores, every.candidate_scores, rtol=0.3)
    assert most.diagnostics["sample"] == len(every.candidates) - 1


def test_smaller_images_are_means(images):
    small = shrink(images, 3)
    np.testing.assert_allclose(small[:, :, 0, 0], images[:, :, :2, :2].mean(axis=(2, 3)), rtol=1e-5)
    assert shrink(images, None) is images
    with pytest.raises(PipelineError, match=r"image_size is 7 and the images have 6×6"):
        shrink(images, 7)


@pytest.mark.parametrize("name", sorted(needing("infinite")))
def test_other_networks_are_refused_before_anything_is_trained(name, tmp_path):
    config = RunConfig(
        dataset="digits", strategy=name, network="tests.own_network:make", run=tmp_path / "run"
    )
    message = "a Sequential, has no counterpart .* cnn, vgg11_bn, resnet18, wide_resnet"
    with pytest.raises(PipelineError, match=message):
        run.run(config)
    assert not (tmp_path / "run").exists()
