"""Training: it fits or says that it did not, repeats bit for bit, and refuses what cannot be."""

import dataclasses

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tests.trainer.fit_cases import generator, network_of, some_digits
from trainer.errors import DataError, FitError, NetworkError, TrainerError
from trainer.fit import TrainConfig, fit
from trainer.predict import logits

QUICK = TrainConfig(epochs=4, min_steps=0, extensions=0)


@pytest.fixture(scope="module")
def digits():
    return some_digits()


@pytest.fixture
def without_type_checks(monkeypatch):
    """Users run without jaxtyping's checks, which would refuse some values first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# Fitting


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(epochs=50, min_steps=100),
        TrainConfig(epochs=50, min_steps=150, augmentation="crop", extensions=3),
        TrainConfig(loss="cross_entropy", optimiser="adam", learning_rate=3e-3),
    ],
    ids=["l2", "l2 with crops", "cross-entropy"],
)
def test_labels_are_fitted_and_the_result_says_so(digits, config):
    images, labels = digits
    network = network_of()
    result = fit(network, images, labels, config, generator())
    answers = logits(network, images)
    assert result.fitted
    assert result.stopped.startswith(f"fitted: train accuracy {result.train_accuracy:.3f}")
    assert result.train_accuracy == np.mean(answers.argmax(1) == labels) >= 0.99
    if config.loss == "l2":
        residual = np.sqrt(np.mean((np.eye(10)[labels] - answers) ** 2))
        np.testing.assert_allclose(result.residual_rms, residual, rtol=1e-6)
    assert len(result.loss_history) == result.epochs
    assert result.loss_history[-1] < result.loss_history[0]
    assert not network.training


def test_first_step_is_the_gradient_of_the_mean_over_batch_and_classes(digits):
    images, labels = digits
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    weight = next(network.parameters())
    before = weight.detach().double().numpy().copy()
    config = TrainConfig(
        epochs=1, min_steps=0, extensions=0, weight_decay=0.0, momentum=0.0, nesterov=False
    )
    result = fit(network, images, labels, config, generator())
    features = images.reshape(40, 64).astype(float)
    misses = features @ before.T - np.eye(10)[labels]
    np.testing.assert_allclose(result.loss_history, [np.mean(misses**2)], rtol=1e-5)
    gradient = 2 * misses.T @ features / misses.size
    rate = (before - weight.detach().numpy()) / gradient
    np.testing.assert_allclose(rate, np.median(rate), rtol=1e-2)  # float32 differences
    assert 0 < np.median(rate) <= 1.25


def test_cross_entropy_and_its_residual_are_the_textbook_s(digits):
    images, labels = digits
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    answers = logits(network, images).astype(float)
    softmax = np.exp(answers) / np.exp(answers).sum(axis=1, keepdims=True)
    config = TrainConfig(
        loss="cross_entropy", learning_rate=1e-9, epochs=1, min_steps=0, extensions=0
    )
    result = fit(network, images, labels, config, generator())
    expected = -np.mean(np.log(softmax[np.arange(40), labels]))
    np.testing.assert_allclose(result.loss_history, [expected], rtol=1e-5)
    residual = np.sqrt(np.mean((np.eye(10)[labels] - softmax) ** 2))
    np.testing.assert_allclose(result.residual_rms, residual, rtol=1e-5)


def test_warm_start_stays_fitted(digits):
    images, labels = digits
    network = network_of()
    config = TrainConfig(epochs=50, min_steps=100)
    fit(network, images[:30], labels[:30], config, generator())
    assert fit(network, images, labels, config, generator(1)).fitted


def test_not_fitted_is_said_with_how_far_it_got(digits):
    images, _ = digits
    labels = generator(5).integers(0, 10, 40)
    config = dataclasses.replace(QUICK, learning_rate=0.1)
    result = fit(network_of(), images, labels, config, generator())
    assert not result.fitted
    assert result.stopped.startswith(f"NOT fitted: train accuracy {result.train_accuracy:.3f}")
    assert "after 4 steps in 1 schedule(s)" in result.stopped


def test_not_fitted_is_extended_at_half_the_rate(digits):
    images, labels = digits
    config = dataclasses.replace(QUICK, extensions=2, learning_rate=0.01)
    result = fit(network_of(), images, labels, config, generator())
    assert result.epochs == 12
    assert result.learning_rate == 0.0025
    assert "3 schedule(s)" in result.stopped


def test_divergence_restarts_at_half_the_rate_until_it_trains(digits):
    images, labels = digits
    config = TrainConfig(epochs=50, min_steps=0, learning_rate=100.0, restarts=20, extensions=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    result = fit(network, images, labels, config, generator())
    halvings = np.log2(100.0 / result.learning_rate)
    assert halvings >= 3
    assert f"in 1 schedule(s) and {halvings:.0f} restart(s)" in result.stopped
    assert result.loss_history[-1] < 0.1  # what answering zeros would cost


def test_hopeless_divergence_is_an_error_and_the_weights_are_those_of_the_start(digits):
    images, labels = digits
    network = network_of()
    before = state(network)
    config = TrainConfig(optimiser="adam", learning_rate=1e30, restarts=1)
    with pytest.raises(FitError, match=r"diverged 2 times, last with learning rate 5e\+29.*lower"):
        fit(network, images, labels, config, generator())
    assert same(before, state(network))
    assert not network.training


def test_divergence_in_the_last_step_is_divergence_too(digits):
    images, labels = digits
    config = TrainConfig(
        optimiser="adam", learning_rate=1e30, epochs=1, min_steps=0, restarts=0, extensions=0
    )
    with pytest.raises(FitError, match="diverged 1 times"):
        fit(network_of(), images, labels, config, generator())


@pytest.mark.parametrize("seed", range(3))
def test_with_two_classes_a_network_that_died_starts_again(seed):
    """The squared error of two classes has five times the gradient of that of ten."""
    pixels, targets = map(np.asarray, load_digits(return_X_y=True))
    two = np.flatnonzero((targets == 3) | (targets == 8))
    chosen = generator(seed).permutation(two)[:14]
    images = ((pixels[chosen] - 4.9) / 6.0).astype(np.float32).reshape(14, 1, 8, 8)
    labels = (targets[chosen] == 8).astype(np.int64)

    def trained(config):
        torch.manual_seed(seed)
        layers = nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        network = nn.Sequential(*layers)
        return fit(network, images, labels, config, generator(seed))

    died = trained(TrainConfig(extensions=0))
    assert died.train_accuracy < 0.8
    result = trained(TrainConfig(restarts=0))
    assert result.fitted
    assert result.learning_rate < 1.25


def test_the_fitted_rule_stops_early(digits):
    images, labels = digits
    config = TrainConfig(stop="fitted", target_accuracy=0.3, epochs=50, min_steps=100)
    result = fit(network_of(), images, labels, config, generator())
    assert 0.3 <= result.train_accuracy
    assert result.steps < 100


# Determinism


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5))
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.body(images))


@pytest.mark.parametrize("make", [network_of, WithDropout])
def test_the_same_generator_gives_the_same_weights_bit_for_bit(digits, make):
    images, labels = digits
    config = dataclasses.replace(QUICK, augmentation="flip_crop")
    network = make()
    start = state(network)
    ends, results = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(len(ends))
        before = torch.random.get_rng_state()
        network.load_state_dict(start)
        results.append(fit(network, images, labels, config, generator(seed)))
        ends.append(state(network))
        assert torch.equal(before, torch.random.get_rng_state())
    assert same(ends[0], ends[1])
    assert results[0] == results[1]
    assert not same(ends[0], ends[2])


def test_weights_come_back_contiguous(digits):
    network = network_of()
    fit(network, digits[0], digits[1], QUICK, generator())
    assert all(p.is_contiguous() for p in network.parameters())


def test_frozen_parameters_stay(digits):
    network = network_of()
    first, second = list(network.parameters())[:2]
    first.requires_grad_(False)
    before = first.clone(), second.clone()
    fit(network, digits[0], digits[1], QUICK, generator())
    assert torch.equal(before[0], first)
    assert not torch.equal(before[1], second)


def test_progress_reaches_the_end_in_order(digits):
    told = []
    result = fit(
        network_of(), digits[0], digits[1], QUICK, generator(), lambda *call: told.append(call)
    )
    done = [call[0] for call in told]
    assert done == sorted(done)
    assert told[-1] == (result.steps, result.steps, result.stopped)


# Settings


@pytest.mark.parametrize(
    ("config", "labelled", "plan"),
    [
        (TrainConfig(), 100, (5, 200)),  # 5 batches of 20: 1000 steps in 200 epochs
        (TrainConfig(), 1000, (8, 200)),  # the papers' batches of 128 do already
        (TrainConfig(), 20, (1, 1000)),  # too few to cut: more epochs
        (TrainConfig(smallest_batch=128), 100, (1, 1000)),
        (TrainConfig(min_steps=0), 100, (1, 200)),
        (TrainConfig(batch_size=10, epochs=1, min_steps=0), 101, (11, 1)),
        (TrainConfig(), 1, (1, 1000)),
    ],
)
def test_plan_keeps_the_floor_on_steps(config, labelled, plan):
    assert config.plan(labelled) == plan
    assert plan[0] * plan[1] >= config.min_steps


BAD_SETTINGS = [
    ("loss", "l1", "loss is 'l1'; it must be one of l2, cross_entropy"),
    ("optimiser", "lion", "one of sgd, adam"),
    ("stop", "never", "one of None, schedule, fitted"),
    ("augmentation", "mixup", "one of auto, none, crop, flip_crop"),
    ("statistics", "batch", "one of running, labelled"),
    ("precision", "float16", "one of float32, bfloat16"),
    ("recipe", "thaw", "one of None, scratch, finetune"),
    ("init", "zeros", "one of None, previous, initial, pretrained"),
    ("head_penalty", -1.0, "head_penalty is -1.0; it must be 0 or positive"),
    ("learning_rate", 0.0, "learning_rate is 0.0; it must be positive and finite"),
    ("learning_rate", float("nan"), "learning_rate is nan"),
    ("momentum", 1.0, r"momentum is 1.0; it must be in \[0, 1\)"),
    ("weight_decay", -1.0, "weight_decay is -1.0"),
    ("batch_size", 0, "batch_size is 0; it must be a whole number from 1"),
    ("smallest_batch", 0, "smallest_batch is 0"),
    ("epochs", 0, "epochs is 0; it must be a whole number from 1"),
    ("min_steps", -1, "min_steps is -1; it must be a whole number from 0"),
    ("extensions", -1, "extensions is -1"),
    ("restarts", -1, "restarts is -1"),
    ("target_accuracy", 1.5, r"target_accuracy is 1.5; it must be in \(0, 1\]"),
    ("momentum", 0.0, "nesterov is true with momentum 0"),
]


@pytest.mark.parametrize("shape", [(40, 64), (40, 8, 8)])
def test_examples_of_any_shape_are_fitted_and_not_augmented(digits, shape):
    images, labels = digits
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    rate = TrainConfig(learning_rate=0.1, epochs=100, min_steps=100)
    assert fit(network, images.reshape(shape), labels, rate, generator()).fitted
    for recipe in ("scratch", "finetune"):
        crops = dataclasses.replace(rate, recipe=recipe, augmentation="crop")
        with pytest.raises(FitError, match="augmentation is crop and the images have shape"):
            fit(network, images.reshape(shape), labels, crops, generator())


@pytest.mark.parametrize(("field", "value", "message"), BAD_SETTINGS)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_are_checked(field, value, message):
    with pytest.raises(TrainerError, match=message):
        dataclasses.replace(TrainConfig(), **{field: value})


def test_every_setting_has_a_test_of_its_check():
    checked = {row[0] for row in BAD_SETTINGS} | {"nesterov"}
    assert checked == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("loss", "cross_entropy"),
        ("optimiser", "adam"),
        ("learning_rate", 0.1),
        ("momentum", 0.5),
        ("nesterov", False),
        ("weight_decay", 0.1),
        ("batch_size", 10),
        ("epochs", 5),
        ("augmentation", "crop"),
        ("statistics", "labelled"),
        ("precision", "bfloat16"),
    ],
)
def test_every_setting_of_training_changes_the_weights(digits, changed, value):
    ends = []
    for config in (QUICK, dataclasses.replace(QUICK, **{changed: value})):
        network = network_of()
        fit(network, digits[0], digits[1], config, generator())
        ends.append(state(network))
    assert not same(*ends)


def test_defaults_follow_the_loss_and_the_optimiser():
    paper = TrainConfig(loss="cross_entropy", optimiser="adam")
    assert (paper.peak_learning_rate, paper.stopping_rule) == (1e-3, "fitted")
    assert (TrainConfig().peak_learning_rate, TrainConfig().stopping_rule) == (1.25, "schedule")


# What is refused


def with_nan(images, labels):
    broken = images.copy()
    broken[4, 0, 1, 1] = np.nan
    return broken, labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "40 images and 39 labels"),
        (lambda x, y: (x[:0], y[:0]), "the labelled set is empty"),
        (with_nan, r"image 4 of the labelled set \(counted from 0\) has pixels"),
        (
            lambda x, y: (x, y + 10),
            "label 1[0-9] of image .* out of range: the network has 10 classes",
        ),
        (lambda x, y: (x, y - 10), "label -[0-9]+ of image .* 0 to 9"),
        (lambda x, y: (x, y[:, None]), r"labels have shape \(40, 1\)"),
        (lambda x, y: (x[:1], y[:1]), "a batch of 1 image cannot train BatchNorm"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_data_that_cannot_be_trained_on_is_refused(digits, change, message):
    images, labels = change(*digits)
    with pytest.raises(FitError, match=message):
        fit(network_of(), images, labels, QUICK, generator())


def test_one_image_trains_a_network_without_batchnorm(digits):
    images, labels = digits
    config = dataclasses.replace(QUICK, learning_rate=0.1)
    result = fit(network_of(name="cnn"), images[:1], labels[:1], config, generator())
    assert np.isfinite(result.residual_rms)


def test_pixels_that_are_not_normalised_are_refused(digits):
    images, labels = digits
    with pytest.raises(DataError, match="dtype uint8"):
        fit(network_of(), images.astype(np.uint8), labels, QUICK, generator())


def test_a_network_without_trainable_parameters_is_refused(digits):
    network = network_of().requires_grad_(False)
    with pytest.raises(FitError, match="no trainable parameters; set requires_grad"):
        fit(network, digits[0], digits[1], QUICK, generator())


def test_a_network_that_fails_in_train_mode_is_left_in_eval_mode(digits):
    class TupleInTraining(WithDropout):
        def forward(self, images):
            return (super().forward(images),) if self.training else super().forward(images)

    network = TupleInTraining()
    with pytest.raises(NetworkError, match="returned a tuple"):
        fit(network, digits[0], digits[1], QUICK, generator())
    assert not network.training
