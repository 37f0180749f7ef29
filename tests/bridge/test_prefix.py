"""A network split at the frontier of its frozen prefix computes what the whole network does."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bridge import trace
from bridge.errors import ParityError
from bridge.module import copy_module, weights_of
from bridge.parity import certify
from bridge.prefix import split
from kernel.ntk import empirical_ntk
from kernel.options import Request
from trainer.predict import find_head, predictions

SHAPE = (3, 8, 8)


class Block(nn.Module):
    """Two convolutions beside a skip connection, with BatchNorm and dropout."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.conv2(functional.relu(self.norm(self.conv1(x)))))


class Net(nn.Module):
    """A stem, two blocks, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Middle(Net):
    """What is frozen lies behind a trainable stem, but for a branch of its own."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(3, 4, 8)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)) + self.branch(x).flatten(1))


class Shared(nn.Module):
    """One trainable layer before and after a frozen one, and one frozen layer twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(192, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.twice(torch.tanh(self.first(x.flatten(1)))))
        return self.head(torch.tanh(self.twice(self.head.weight.sum() * x)))


class Tied(nn.Module):
    """The frozen projection of the images is, transposed, the trainable head's partner."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Linear(192, 6, bias=False), nn.Linear(6, 6)
        self.out = nn.Linear(6, 192, bias=False)
        self.out.weight = nn.Parameter(self.embed.weight.T.clone())
        self.embed.weight.requires_grad_(False)
        self.again = self.inner  # a second name of the same layer

    def forward(self, x):
        return self.out(self.again(self.inner(self.embed(x.flatten(1)))))[:, :3]


class SequenceFirst(nn.Module):
    """The frozen part hands on a sequence whose first axis is not the batch, and the batch size."""

    def __init__(self):
        super().__init__()
        self.project, self.mix, self.head = nn.Linear(64, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.project(x.flatten(2)).transpose(0, 1)  # (channels, batch, 5)
        x = torch.tanh(self.mix(x)).transpose(0, 1)
        return self.head(x.reshape(x.shape[0], -1, 5).mean(1))


class OneByOne(Net):
    """The batch size is a plain number in forward."""

    def forward(self, x):
        return super().forward(x).reshape(int(x.shape[0]), 3)


def only(network, *trainable):
    """Freeze all but the parameters whose names begin so."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    return network.eval()


def with_statistics(network):
    """Running statistics that differ from those of a new layer."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.get_buffer("running_mean").normal_()
            part.get_buffer("running_var").uniform_(0.5, 2)
    return network


CASES = {
    "head": (Net, ("head",), 4),
    "last block": (Net, ("blocks.1", "head"), 4 * 64),
    "inside a block": (Net, ("blocks.1.conv2", "head"), 2 * 4 * 64),  # the skip connection, too
    "middle": (Middle, ("stem", "head"), 4 + 192),  # the branch's output, and the images
    "shared": (Shared, ("head",), 6),
    "tied": (Tied, ("inner", "out"), 6),
    "sequence first": (SequenceFirst, ("mix", "head"), 3 * 5),  # before it is turned
    "one by one": (OneByOne, ("head",), 4),
}


@pytest.fixture(params=CASES)
def case(request):
    made, trainable, width = CASES[request.param]
    torch.manual_seed(0)
    network = only(with_statistics(made()), *trainable)
    images = torch.randn(5, *SHAPE)
    return network, images, width


def test_split_network_equals_the_whole(case):
    network, images, width = case
    mirror = trace.mirror(network, images)
    found = split(network, mirror, images)
    assert found is not None
    assert found.frontier.width == width
    rows = found.rows(images)
    assert rows.shape == (5, width)
    with torch.no_grad():
        torch.testing.assert_close(found.tail(rows), network(images), rtol=0, atol=1e-6)
    certificate = certify(network, found.mirror, images.numpy(), found)
    assert certificate.frontier == width
    assert certificate.parameters == len(mirror.params)
    # the kernel from rows is the kernel from images, in float64
    exact = Request(kind="trace", precision="float64")
    own = empirical_ntk(mirror.model(), images.double().numpy(), exact)
    tail = empirical_ntk(found.mirror.model(), found.rows(images.double()).numpy(), exact)
    np.testing.assert_allclose(tail.values, own.values, rtol=1e-9, atol=1e-12)


def test_tail_shares_parameters_and_asks_no_frozen_gradient():
    network, images = only(Net(), "blocks.1", "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    own = dict(network.named_parameters())
    assert all(own[name] is p for name, p in found.tail.named_parameters())
    trainable = {name for name, p in found.tail.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in own.items() if p.requires_grad}
    rows = found.rows(images)
    found.tail(rows).square().sum().backward()
    assert not rows.requires_grad
    assert {name for name, p in own.items() if p.grad is not None} == trainable
    expected = copy_module(network)
    expected(images).square().sum().backward()
    for name, parameter in expected.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(own[name].grad, parameter.grad)


def test_tail_ignores_train_mode_and_shows_its_layers_to_hooks():
    network, images = only(with_statistics(Net()), "blocks.1", "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    rows = found.rows(images)
    expected = found.tail(rows)
    found.tail.train()
    assert torch.equal(found.tail(rows), expected)
    found.tail.eval()
    features = predictions(network, images.numpy(), find_head(network, images.numpy()))
    head = find_head(found.tail, rows.numpy())
    assert head.name == "head"
    again = predictions(found.tail, rows.numpy(), head)
    np.testing.assert_allclose(again.features, features.features, rtol=1e-5, atol=1e-6)


def test_tail_follows_its_network_and_its_mirror_too():
    network, images = only(Net(), "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    version, digest = found.version, found.digest()
    with torch.no_grad():
        network.head.weight.mul_(3)
    assert (found.version, found.digest()) == (version, digest)
    with pytest.raises(ParityError, match="head.weight"):
        certify(network, found.mirror, images.numpy(), found)
    new = found.mirror.with_weights(weights_of(found.tail))
    certify(network, new, images.numpy(), found)
    with torch.no_grad():
        network.get_parameter("stem.bias").add_(1)
    assert found.version != version
    assert found.digest() != digest
    network.stem = copy.deepcopy(network.stem)
    assert not found.is_of(network)
    with pytest.raises(ParityError, match="split it again"):
        certify(network, new, images.numpy(), found)


def test_a_patched_forward_is_noticed():
    network, images = only(Net(), "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    stem = network.stem
    stem.__dict__["forward"] = lambda x: 2 * nn.Conv2d.forward(stem, x)
    with pytest.raises(ParityError, match="disagree at layer .head"):
        certify(network, found.mirror, images.numpy(), found)


class Mixing(Net):
    """The frozen part subtracts the mean of the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


def test_a_prefix_that_mixes_its_batch_is_refused():
    network, images = only(Mixing(), "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    with pytest.raises(ParityError, match="other images of"):
        certify(network, found.mirror, images.numpy(), found)


@pytest.mark.parametrize("trainable", [("stem", "blocks", "head"), ("stem",)])
def test_nothing_frozen_before_the_first_trainable_parameter_is_no_prefix(trainable):
    network, images = only(Net(), *trainable), torch.randn(4, *SHAPE)
    assert split(network, trace.mirror(network, images), images) is None


def test_a_copied_tail_is_of_its_own():
    network, images = only(Net(), "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    other = copy_module(found.tail, device=None)
    rows = found.rows(images)
    assert torch.equal(other(rows), found.tail(rows))
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    assert not torch.equal(other(rows), found.tail(rows))
    assert torch.equal(found.tail(rows), network(images))


def test_the_linear_head_alone_is_one_operator():
    network, images = only(Net(), "head"), torch.randn(4, *SHAPE)
    found = split(network, trace.mirror(network, images), images)
    assert found is not None
    assert [node.op for node in found.tail.program.nodes] == ["aten.linear.default"]
    x = jnp.asarray(found.rows(images).numpy())
    assert found.mirror.apply(found.mirror.params, x).shape == (4, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a prefix run by CUDA")
def test_rows_of_a_gpu_are_those_of_the_processor():
    network, images = only(with_statistics(Net()), "blocks.1", "head"), torch.randn(4, *SHAPE)
    mirror = trace.mirror(network, images)
    here = split(network, mirror, images)
    there = split(copy_module(network, "cuda"), mirror, images.cuda())
    assert here is not None
    assert there is not None
    exact = there.rows(images.double().cuda()).cpu()
    torch.testing.assert_close(exact, here.rows(images.double()), rtol=1e-9, atol=1e-12)
    logits = there.tail(there.rows(images.cuda())).cpu()
    torch.testing.assert_close(logits, here.tail(here.rows(images)), rtol=1e-4, atol=1e-5)
