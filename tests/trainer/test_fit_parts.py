"""What training is made of: the stopping rule, precision, BatchNorm, augmentation, kept memory."""

import dataclasses
import platform

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.fit_cases import generator, network_of, some_digits
from trainer import batchnorm
from trainer import fit as fit_module
from trainer.config import TrainConfig
from trainer.fit import fit, keep_freed_blocks
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import logits


@pytest.fixture(scope="module")
def digits():
    return some_digits()


# When labels are fitted


class Answers(nn.Module):
    """Answers what it is told, image by image, and counts how many it was asked for."""

    def __init__(self, told):
        super().__init__()
        self.told, self.asked = torch.tensor(told), 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.asked += len(images)
        return nn.functional.one_hot(self.told[images[:, 0, 0, 0].long()], 10).float()


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("wrong", [0, 1, 4, 5, 40, 250, 499])
def test_whether_labels_are_fitted_is_what_the_accuracy_says(wrong, target):
    labels = generator(1).integers(10, size=500)
    told = labels.copy()
    told[generator(2).permutation(500)[:wrong]] += 1
    images = np.arange(500, dtype=np.float32).reshape(500, 1, 1, 1)
    network = Answers(told % 10).eval()
    expected = np.mean(told % 10 == labels) >= target
    config = TrainConfig(target_accuracy=target)
    assert fit_module._fits(network, images, labels, config) == expected
    if expected:
        assert network.asked == 500


def test_labels_far_from_fitted_are_not_all_asked_for():
    labels = np.zeros(500, np.int64)
    network = Answers(np.ones(500, np.int64)).eval()
    images = np.arange(500, dtype=np.float32).reshape(500, 1, 1, 1)
    assert not fit_module._fits(network, images, labels, TrainConfig())
    assert network.asked == 128


# Precision

BRIEF = TrainConfig(epochs=4, min_steps=0, extensions=0, batch_size=10)


def test_a_step_in_bfloat16_is_one_in_float32_but_for_its_rounding(digits):
    images, labels = digits
    config = TrainConfig(epochs=1, min_steps=0, extensions=0, restarts=0, batch_size=40)
    moved = []
    for precision in ("float32", "bfloat16"):
        network = network_of("cnn")
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        fit(network, images, labels, dataclasses.replace(config, precision=precision), generator())
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert logits(network, images).dtype == np.float32
        moved.append(torch.cat([p.detach().flatten() for p in network.parameters()]) - before)
    exact, rounded = moved
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()  # bfloat16 has 8 bits


def test_bfloat16_fits_and_repeats_bit_for_bit(digits):
    ends = []
    for _ in range(2):
        network = network_of()
        config = TrainConfig(precision="bfloat16", min_steps=300)
        result = fit(network, digits[0], digits[1], config, generator())
        assert result.fitted
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*ends)


def test_what_is_trained_along_is_told_float32_in_bfloat16_too(digits):
    images, labels = digits
    network = network_of()
    along = LossPrediction.of(network, images, generator())
    before = [p.detach().clone() for p in along.parameters()]
    config = dataclasses.replace(BRIEF, precision="bfloat16")
    fit(network, images, labels, config, generator(), auxiliary_module=along)
    assert {p.dtype for p in along.parameters()} == {torch.float32}
    assert any(not torch.equal(*pair) for pair in zip(before, along.parameters(), strict=True))


# BatchNorm


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_reestimated_statistics_are_those_of_the_whole_set(digits, batch_size):
    images, _ = digits
    network = network_of(stages=2)
    network.train()
    with torch.no_grad():
        expected = network(torch.tensor(images)).numpy()  # each layer on the batch's statistics
    batchnorm.reestimate(network, images, batch_size)
    assert not network.training
    np.testing.assert_allclose(logits(network, images), expected, rtol=1e-3, atol=1e-5)


def test_reestimated_moments_of_a_first_layer_are_numpy_s(digits):
    images, _ = digits
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    batchnorm.reestimate(network, images, 7)
    moments = network.state_dict()
    np.testing.assert_allclose(moments["0.running_mean"], images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(moments["0.running_var"], images.var((0, 2, 3)), rtol=1e-5)


def test_frozen_is_a_function_of_one_image(digits):
    images, _ = digits
    network = network_of().train()
    network.eval()
    np.testing.assert_allclose(logits(network, images)[:1], logits(network, images[:1]), rtol=1e-4)


# Augmentation and memory


def test_crops_are_shifts_that_repeat_the_edge():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    batch = fit_module.crop(image.repeat(50, 1, 1, 1), generator())
    padded = np.pad(image[0, 0].numpy(), 1, mode="edge")
    possible = {padded[i : i + 8, j : j + 8].tobytes() for i in range(3) for j in range(3)}
    seen = {one[0].contiguous().numpy().tobytes() for one in batch}
    assert seen == possible


def test_crops_of_the_papers_sizes_shift_by_four_pixels():
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 16] = 1
    batch = fit_module.crop(image.repeat(500, 1, 1, 1), generator())
    rows = batch.sum(dim=(1, 3)).argmax(dim=1)
    assert (rows.min(), rows.max()) == (12, 20)


def test_flips_mirror_about_half():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    batch = fit_module.flip(image.repeat(200, 1, 1, 1), generator())
    mirrored = (batch == image.flip(-1)).all(dim=(1, 2, 3))
    assert ((batch == image).all(dim=(1, 2, 3)) | mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_keeping_freed_blocks_says_whether_it_did():
    assert keep_freed_blocks() == (platform.libc_ver()[0] == "glibc")
