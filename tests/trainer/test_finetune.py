"""The recipe finetune: the head to convergence, then what else is trained at a small rate."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from trainer.config import TrainConfig
from trainer.errors import FitError
from trainer.finetune import zero_head
from trainer.fit import AuxiliaryModule, fit, residual_rms
from trainer.predict import logits

FINETUNE = TrainConfig(recipe="finetune")
CROSS = dataclasses.replace(FINETUNE, loss="cross_entropy")


def data(count=24, width=40, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    rows = rng.normal(size=(count, width)) + 0.8 * np.eye(width)[labels]
    return (5 * rows).astype(np.float32), labels


def head(width=40, classes=3, *, bias=True):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(width, classes, bias)).eval()


def weights_of(network):
    return network[-1].weight.detach().numpy(), network[-1].bias.detach().numpy()


def with_ones(rows):
    return np.append(rows.astype(np.float64), np.ones((len(rows), 1)), axis=1)


def spread(rows):
    return float(((rows - rows.mean(0)) ** 2).sum(1).mean())


def fitted(network, images, labels, config, seed=0):
    return fit(network, images, labels, config, np.random.default_rng(seed))


def test_cross_entropy_is_logistic_regression():
    rows, labels = data()
    config = dataclasses.replace(CROSS, head_penalty=0.02)
    network = head()
    fitted(network, rows, labels, config)
    theirs = LogisticRegression(
        C=1 / (0.02 * spread(rows)), fit_intercept=False, max_iter=10_000, tol=1e-10
    )
    theirs.fit(with_ones(rows), labels)
    weight, bias = weights_of(network)
    np.testing.assert_allclose(weight, theirs.coef_[:, :-1], atol=2e-4)
    np.testing.assert_allclose(bias, theirs.coef_[:, -1], atol=2e-4)


def test_l2_is_kernel_regression_with_the_ntk_of_the_head():
    rows, labels = data()
    network = head()
    result = fitted(network, rows, labels, dataclasses.replace(FINETUNE, head_penalty=0.5))
    kernel, ridge = with_ones(rows) @ with_ones(rows).T, 0.5 * spread(rows)
    expected = kernel @ np.linalg.solve(kernel + ridge * np.eye(len(rows)), np.eye(3)[labels])
    np.testing.assert_allclose(logits(network, rows), expected, atol=1e-5)
    weight, bias = weights_of(network)
    dual = with_ones(rows).T @ np.linalg.solve(
        kernel + ridge * np.eye(len(rows)), np.eye(3)[labels]
    )
    np.testing.assert_allclose(weight, dual[:-1].T, atol=1e-5)
    np.testing.assert_allclose(bias, dual[-1], atol=1e-5)
    answers = logits(network, rows)
    assert result.residual_rms == pytest.approx(residual_rms(answers, labels, "l2"))
    assert result.fitted
    assert "L-BFGS on the head" in result.stopped
    assert result.loss_history[-1] < result.loss_history[0]


@pytest.mark.parametrize("config", [FINETUNE, CROSS], ids=["l2", "cross_entropy"])
def test_neither_start_nor_generator_nor_unit_matters(config):
    rows, labels = data()
    one, other = head(), head()
    with torch.no_grad():
        other.get_parameter("0.weight").normal_(std=10)
    fitted(one, rows, labels, config)
    fitted(other, rows, labels, config, seed=7)
    assert torch.equal(one.get_parameter("0.weight"), other.get_parameter("0.weight"))
    # a bias has a unit of its own
    plain, scaled = head(bias=False), head(bias=False)
    fitted(plain, rows, labels, config)
    fitted(scaled, 1000 * rows, labels, config)
    np.testing.assert_allclose(logits(scaled, 1000 * rows), logits(plain, rows), atol=0.02)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def pictures(count=30):
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 3
    images = rng.normal(size=(count, 1, 8, 8)) * (1 + labels)[:, None, None, None]
    return images.astype(np.float32), labels


def test_the_rest_is_trained_at_a_small_rate_in_eval_mode():
    images, labels = pictures()
    network = convolutional()
    network[1].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = fitted(network, images, labels, CROSS)
    after = network.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("1."))
    assert 0 < float((before["0.weight"] - after["0.weight"]).abs().max()) < 0.05
    assert network[1].weight.grad is None
    assert "of Adam on all that is trained" in result.stopped
    assert result.learning_rate > 0
    # without dropout in it, the last loss that was seen is near that of the trained network
    alone = convolutional()
    alone.requires_grad_(False)
    alone[-1].requires_grad_(True)
    first = fitted(alone, images, labels, CROSS)
    assert result.loss_history[-1] < first.loss_history[-1]


def test_the_same_generator_gives_the_same_bits():
    images, labels = pictures()
    one, other = convolutional(), convolutional()
    config = dataclasses.replace(FINETUNE, augmentation="crop")
    fitted(one, images, labels, config)
    fitted(other, images, labels, config)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_what_precedes_the_head_runs_once():
    images, labels = pictures()
    network = convolutional().requires_grad_(False)
    network[-1].requires_grad_(True)
    seen = []
    network[0].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    result = fitted(network, images, labels, CROSS)
    assert result.steps > 5
    # its inputs, logits before and after, and two images that the work is counted by
    assert sum(seen) < 3.5 * len(images)


class PooledConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.classifier(x).relu().mean((2, 3))


def test_a_pooled_convolution_is_a_head():
    images, labels = pictures()
    network = PooledConvolution().eval()
    with torch.no_grad():
        network.get_parameter("classifier.bias").fill_(1)
    result = fitted(network, np.abs(images), labels, CROSS)
    assert result.loss_history[-1] <= np.log(3) + 1e-6


class NoHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 3))

    def forward(self, x):
        return x.flatten(1) @ self.weight


class Named(nn.Sequential):
    feature_layer = "0"


def test_a_network_without_a_head_is_refused():
    images, labels = pictures()
    with pytest.raises(FitError, match=r"fits the head first: .*--train.recipe scratch"):
        fitted(NoHead(), images, labels, FINETUNE)
    named = Named(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(FitError, match="names '0' as its features"):
        fitted(named, images, labels, FINETUNE)


def test_labels_out_of_range_are_refused():
    rows, labels = data()
    with pytest.raises(FitError, match="label 3 of image"):
        fitted(head(), rows, labels + 1, FINETUNE)


def test_a_module_trained_along_is_refused():
    rows, labels = data()
    with pytest.raises(FitError, match="no module along with the network"):
        fit(head(), rows, labels, FINETUNE, np.random.default_rng(0), None, AuxiliaryModule())


def test_one_image_a_class_with_frozen_batch_norm():
    images, labels = pictures(3)
    assert fitted(convolutional(), images[:1], labels[:1], CROSS).fitted


def test_a_zeroed_head_answers_zero():
    images, _ = pictures()
    network = convolutional().eval()
    assert logits(network, images).any()
    zero_head(network, images[:2])
    assert not logits(network, images).any()
