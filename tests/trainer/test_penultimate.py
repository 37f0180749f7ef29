"""Which layer makes the logits, told by values; logits and features of one forward pass."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests import small_networks
from trainer.errors import NetworkError
from trainer.networks import NETWORKS, build
from trainer.predict import NAMED, Head, NotFiniteError, find_head, logits, predictions
from trainer.torchvision_compat import torchvision


@pytest.fixture
def images(rng):
    return rng.normal(size=(7, 3, 16, 16)).astype(np.float32)


def last(head, features: np.ndarray) -> np.ndarray:
    """What a last layer makes of features."""
    weight, bias = head.weight.detach().double().flatten(1), head.bias  # a 1×1 convolution, too
    found = features.astype(np.float64) @ weight.numpy().T
    return found if bias is None else found + bias.detach().double().numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_last_layer_of_the_products_networks_is_given(name, images):
    network = build(name, (3, 16, 16), 5, np.random.default_rng(0))
    head = find_head(network, images[:4])
    assert not head.output
    found = predictions(network, images, head, batch_size=3)
    np.testing.assert_allclose(
        last(network.get_submodule(head.name), found.features), found.logits, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(found.logits, logits(network, images, 3), rtol=1e-6)
    assert found.features.dtype == np.float32


def test_the_head_is_told_by_values_and_not_by_place(images):
    class Twisted(nn.Module):
        """The layer of the logits is defined first, and another linear one is called last."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Linear(6, 4)
            self.body = nn.Conv2d(3, 6, 3)
            self.unused = nn.Linear(6, 4)

        def forward(self, x):
            hidden = self.body(x).mean((2, 3))
            answer = self.logits(hidden)
            self.unused(hidden)
            return answer

    network = Twisted().eval()
    head = find_head(network, images)
    assert head == Head("logits", output=False)
    np.testing.assert_allclose(
        last(network.logits, predictions(network, images, head).features),
        logits(network, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_usual_endings(images):
    width = 3 * 16 * 16
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for end in ([], [nn.LogSoftmax(dim=1)], [nn.Identity(), nn.Dropout(0.5)]):
        network = nn.Sequential(nn.Flatten(), nn.Linear(width, 4), *end).eval()
        head = find_head(network, images)
        assert head.name == "1"
        np.testing.assert_array_equal(
            predictions(network, images, head).features, images.reshape(7, -1)
        )
    for end in ([], [nn.ReLU()]):  # the second as SqueezeNet has it
        network = nn.Sequential(pooled, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        head = find_head(network, images)
        assert head.name == "0.2"
        hidden = pooled[:2](torch.from_numpy(images)).detach().mean((2, 3)).numpy()
        np.testing.assert_allclose(
            predictions(network, images, head).features, hidden, rtol=1e-5, atol=1e-6
        )


def test_tokens_are_averaged(images):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(input=self.embed(x).flatten(2).transpose(1, 2)).mean(1)

    network = Tokens().eval()
    found = predictions(network, images, find_head(network, images))
    expected = network.embed(torch.from_numpy(images)).detach().mean((2, 3)).numpy()
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("squeezenet1_1", "classifier.1"),
        ("mobilenet_v2", "classifier.1"),
        ("shufflenet_v2_x0_5", "fc"),
    ],
)
def test_torchvisions(name, head, rng):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(weights=None, num_classes=6).eval()
    few = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert find_head(network, few) == Head(head, output=False)


@pytest.mark.parametrize("name", sorted(small_networks.NETWORKS))
def test_every_construct_has_a_head_or_is_refused(name, rng):
    network = small_networks.build(name)
    images = rng.normal(size=(4, *small_networks.SHAPE)).astype(np.float32)
    if name == "handwritten":  # divides in place and adds a constant after its last layer
        message = r"no such layer: of \d+ calls .* the last of them 'frozen',.*attribute feature_"
        with pytest.raises(NetworkError, match=message):
            find_head(network, images)
        setattr(network, NAMED, "conv")
        found = predictions(network, images, find_head(network, images))
        assert found.features.shape == (4, 3)
    else:
        head = find_head(network, images)
        assert isinstance(network.get_submodule(head.name), nn.Linear)


class Functional(nn.Module):
    """Its last layer is no module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.Tanh())
        self.weight = nn.Parameter(torch.randn(4, 9))

    def forward(self, x):
        return functional.linear(functional.normalize(self.body(x)), self.weight)


def test_a_network_may_name_its_features(images):
    network = Functional().eval()
    with pytest.raises(NetworkError, match=r"Functional has no such layer.*parts are body\)"):
        find_head(network, images)
    setattr(network, NAMED, "body")
    head = find_head(network, images)
    assert head == Head("body", output=True)
    found = predictions(network, images, head).features
    expected = network.body(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    setattr(network, NAMED, "bodies")
    with pytest.raises(NetworkError, match="'bodies', which is none of its submodules.*body"):
        find_head(network, images)


def test_one_forward_pass_and_no_hook_is_left(images):
    network = build("cnn", (3, 16, 16), 4, np.random.default_rng(0))
    head = find_head(network, images)
    seen = []
    count = network.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    predictions(network, images, head, batch_size=4)
    count.remove()
    assert seen == [4, 3]
    assert not any(part._forward_hooks for part in network.modules())


def test_features_that_are_not_finite(images):
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Flatten(), nn.Linear(768, 3)

        def forward(self, x):
            return self.head(self.body(x).clip(-9, 9))

    network = Clipped().eval()
    setattr(network, NAMED, "body")
    images[5, 0, 0, 0] = np.inf  # clipped before the logits
    with pytest.raises(NotFiniteError, match=r"features at 'body' of image 5 \(position"):
        predictions(network, images, find_head(network, images))
