"""What training is made of: statistics of BatchNorm, augmentation, memory that is kept."""

import platform

import numpy as np
import pytest
import torch
from torch import nn

from tests.fit_cases import generator, network_of, some_digits
from trainer import augmentation, batchnorm
from trainer.memory import keep_freed_blocks
from trainer.predict import logits


@pytest.fixture(scope="module")
def digits():
    return some_digits()


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
    batchnorm.freeze(network)
    np.testing.assert_allclose(logits(network, images)[:1], logits(network, images[:1]), rtol=1e-4)


# Augmentation and memory


def test_crops_are_shifts_that_repeat_the_edge():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    batch = augmentation.crop(image.repeat(50, 1, 1, 1), generator())
    padded = np.pad(image[0, 0].numpy(), 1, mode="edge")
    possible = {padded[i : i + 8, j : j + 8].tobytes() for i in range(3) for j in range(3)}
    seen = {one[0].contiguous().numpy().tobytes() for one in batch}
    assert seen == possible


def test_crops_of_the_papers_sizes_shift_by_four_pixels():
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 16, 16] = 1
    batch = augmentation.crop(image.repeat(500, 1, 1, 1), generator())
    rows = batch.sum(dim=(1, 3)).argmax(dim=1)
    assert (rows.min(), rows.max()) == (12, 20)


def test_flips_mirror_about_half():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    batch = augmentation.flip(image.repeat(200, 1, 1, 1), generator())
    mirrored = (batch == image.flip(-1)).all(dim=(1, 2, 3))
    assert ((batch == image).all(dim=(1, 2, 3)) | mirrored).all()
    assert 60 < mirrored.sum() < 140


def test_keeping_freed_blocks_says_whether_it_did():
    assert keep_freed_blocks() == (platform.libc_ver()[0] == "glibc")
