"""Eval-mode logits: the same for any batch size, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from trainer.errors import DataError, NetworkError
from trainer.networks import build
from trainer.predict import logits


@pytest.fixture
def network():
    return build("wide_resnet", (1, 8, 8), 3, np.random.default_rng(0), {"widen": 1})


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(11, 1, 8, 8)).astype(np.float32)


class Answers(nn.Module):
    """Answers with what a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_logits_of_a_linear_network_are_a_matrix_product(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    weight, bias = (p.detach().numpy() for p in network.parameters())
    expected = images.reshape(11, 64) @ weight.T + bias
    np.testing.assert_allclose(logits(network, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_batch_size_changes_nothing(network, images, batch_size):
    whole = logits(network, images)
    assert whole.dtype == np.float32
    # float32 sums in another order.
    np.testing.assert_allclose(logits(network, images, batch_size), whole, rtol=1e-4, atol=1e-5)


def test_no_images_give_no_rows(network, images):
    assert logits(network, images[:0]).shape == (0, 3)


def test_strided_and_read_only_images_are_taken(network, images):
    images.flags.writeable = False
    backwards = logits(network, images[::-1])
    np.testing.assert_allclose(backwards[::-1], logits(network, images), rtol=1e-4, atol=1e-5)


def test_float64_networks_keep_their_dtype(network, images):
    network.double()
    assert logits(network, images).dtype == np.float32
    assert next(network.parameters()).dtype == torch.float64


def test_train_mode_is_refused_by_name(network, images):
    network.blocks[0].norm1.train()
    with pytest.raises(NetworkError, match=r"1 modules are in train mode.*blocks\.0\.norm1.*eval"):
        logits(network, images)
    network.train()
    with pytest.raises(NetworkError, match="the first of them the network itself"):
        logits(network, images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.flatten(1), x), "returned a tuple; it must return one tensor"),
        (lambda x: {"answers": x.flatten(1)}, "returned a dict"),
        (lambda x: x.flatten(1)[:, 0], r"shape \(11,\) for 11 images.*\(11, classes\)"),
        (lambda x: x, r"shape \(11, 1, 8, 8\) for 11 images"),
        (lambda x: x.flatten(1)[:4], r"shape \(4, 64\) for 11 images"),
    ],
)
def test_answers_of_another_form_are_refused(images, function, message):
    with pytest.raises(NetworkError, match=message):
        logits(Answers(function).eval(), images)


def test_images_of_the_wrong_size_are_refused(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(49, 5)).eval()
    with pytest.raises(NetworkError, match=r"failed on images of shape \(11, 1, 8, 8\).*64"):
        logits(network, images)


def test_nan_names_the_image_and_the_cause(network, images):
    images[7, 0, 3, 3] = np.nan
    with pytest.raises(NetworkError, match="logits of image 7 .*the image itself has non-finite"):
        logits(network, images, batch_size=4)
    with torch.no_grad():
        network.head.bias[1] = torch.inf
    with pytest.raises(NetworkError, match="logits of image 0 .*weights or running statistics"):
        logits(network, images, batch_size=4)


def test_pixels_that_are_not_normalised_are_refused(network):
    with pytest.raises(DataError, match="dtype uint8.*Dataset.normalise"):
        logits(network, np.zeros((2, 1, 8, 8), np.uint8))


def test_batch_size_is_checked(network, images):
    with pytest.raises(NetworkError, match="batch_size is 0"):
        logits(network, images, batch_size=0)
