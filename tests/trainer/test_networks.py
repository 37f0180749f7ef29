"""Networks by name: sizes, initial weights from the generator, and what is refused."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from trainer.errors import NetworkError, UnknownNameError
from trainer.networks import NETWORKS, build, parameter_count
from trainer.networks.wide_resnet import wide_resnet


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def without_type_checks(monkeypatch):
    """Users run without jaxtyping's checks, which would refuse some values first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "count"),
    [
        ("wide_resnet", (1, 28, 28), {"stages": 1, "widen": 4}, 232_330),
        ("cnn", (3, 32, 32), {}, 94_538),
        ("resnet18", (3, 32, 32), {}, 11_173_962),  # the published count of the CIFAR stem
        # torchvision's vgg11_bn without its three dense layers, with one of 512 × 10.
        ("vgg11_bn", (3, 32, 32), {}, 9_225_984 + 5_130),
    ],
)
def test_parameter_counts(name, shape, arguments, count):
    assert parameter_count(build(name, shape, 10, generator(), arguments)) == count


def test_vgg_keeps_the_features_of_torchvision():
    from trainer.torchvision_compat import torchvision

    features = torchvision.models.vgg11_bn(weights=None).features
    assert parameter_count(features) == 9_225_984


@pytest.mark.parametrize(("widen", "stages", "widest"), [(1.25, 1, 40), (0.5, 1, 16), (10, 2, 640)])
def test_the_widest_layer_follows_from_the_widen_factor(widen, stages, widest):
    network = wide_resnet((1, 8, 8), 3, stages=stages, widen=widen)
    assert network.head.in_features == widest
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_stages_and_blocks_widen_and_deepen():
    two = wide_resnet((1, 8, 8), 3, stages=2, widen=1)
    assert two.head.in_features == 64  # 16k · 2²
    deep = wide_resnet((1, 8, 8), 3, widen=1, blocks=2)
    assert [getattr(block, "shortcut", None) is None for block in deep.blocks] == [False, True]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 40, 24)])
def test_every_network_takes_every_common_shape(name, shape):
    network = build(name, shape, 7, generator())
    assert not network.training
    with torch.no_grad():
        assert network(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["wide_resnet", "cnn", "resnet18"])
def test_small_networks_take_the_digits(name):
    with torch.no_grad():
        assert build(name, (1, 8, 8), 10, generator())(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_vgg_refuses_the_digits():
    with pytest.raises(NetworkError, match=r"needs 16×16 pixels; the images are 8×8: use wide_res"):
        build("vgg11_bn", (1, 8, 8), 10, generator())


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_from_the_generator_alone(name):
    def weights(seed):
        return nn.utils.parameters_to_vector(
            build(name, (1, 16, 16), 2, generator(seed)).parameters()
        )

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(first, weights(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "wide_resnet",
            {"width": 4},
            r"no argument 'width'\. Known: stages, widen, blocks, dropout\.",
        ),
        ("cnn", {"width": 4}, r"'cnn' has no argument 'width'\. Known: dropout\."),
        ("tests.own_network:too_few_classes", {"width": 4}, r"'width'\. It takes none\."),
        ("cnn", {"dropout": 1}, r"cnn: dropout is 1; it must be a number of at least 0 and below"),
        ("resnet18", {"dropout": "no"}, r"resnet18: dropout is 'no'; it must be a number"),
        ("wide_resnet", {"dropout": -0.1}, r"wide_resnet: dropout is -0\.1"),
        (
            "wide_resnet",
            {"widen": 0},
            r"widen is 0; it must be a number of which 16 times is a who",
        ),
        ("wide_resnet", {"widen": 0.3}, r"widen is 0\.3; .* such as 0\.5, 1\.25 or 20"),
        ("wide_resnet", {"widen": "2x"}, r"widen is '2x'; it must be a number"),
        ("wide_resnet", {"stages": 1.5}, r"stages is 1\.5; it must be a whole number"),
        ("wide_resnet", {"blocks": "two"}, r"blocks is 'two'; it must be a whole number"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_arguments_are_checked(name, arguments, message):
    with pytest.raises(NetworkError, match=message):
        build(name, (1, 8, 8), 10, generator(), arguments)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_changes_neither_weights_nor_names_nor_what_is_answered(name, rng):
    plain = build(name, (3, 16, 16), 5, generator())
    none = build(name, (3, 16, 16), 5, generator(), {"dropout": 0})
    assert str(plain) == str(none)
    assert "Dropout" not in str(plain)
    dropping = build(name, (3, 16, 16), 5, generator(), {"dropout": 0.4})
    assert "Dropout(p=0.4" in str(dropping)
    states = plain.state_dict(), dropping.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    images = torch.from_numpy(rng.normal(size=(3, 3, 16, 16)).astype(np.float32))
    with torch.no_grad():
        assert torch.equal(plain(images), dropping(images))
        with torch.random.fork_rng():
            assert not torch.equal(dropping.train()(images), dropping(images))


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        build("resnet19", (3, 32, 32), 10, generator())


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((3, 0, 32), 10, r"input_shape is \(3, 0, 32\)"), ((3, 32, 32), 1, "classes is 1")],
)
def test_shape_and_classes_are_checked(shape, classes, message):
    with pytest.raises(NetworkError, match=message):
        build("cnn", shape, classes, generator())


OWN = """
import torch
from torch import nn

def make(input_shape, classes, hidden=8):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    layers = nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    return nn.Sequential(nn.Flatten(), *layers)

def no_module(input_shape, classes):
    return 3

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

class Plain(nn.Sequential):
    def __init__(self, classes, hidden=4):
        super().__init__(*make((1, 4, 4), classes, hidden))

def needs(input_shape, classes, depth):
    return make(input_shape, classes)

def anything(**keywords):
    return wide(**keywords)

def wide(input_shape, classes, *, width):
    return make(input_shape, classes)

NETWORK = plain()

def wrong_classes(input_shape, classes):
    return make(input_shape, classes + 1)

class Pair(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        self.inner = make(input_shape, classes)
    def forward(self, x):
        return self.inner(x), x

class OneNumber(Pair):
    def forward(self, x):
        return self.inner(x)[:, 0]

class NotFinite(Pair):
    def forward(self, x):
        return self.inner(x) / 0

def fixed_size(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "broken_networks.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_own_factory_is_imported_and_called():
    network = build("own_networks:make", (1, 4, 4), 3, generator(), {"hidden": 5})
    assert parameter_count(network) == 16 * 5 + 5 + 5 * 3 + 3


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:make", "cannot import 'nowhere_at_all'.*PYTHONPATH"),
        ("broken_networks:make", "cannot import 'broken_networks'.*not_there_at_all"),
        ("own_networks:mkae", "own_networks has no attribute 'mkae'"),
        ("own_networks:constant", "is a int, which cannot be called"),
        ("own_networks:needs", "needs the argument 'depth'.*--network-args depth=VALUE"),
        ("own_networks:anything", "could not be called with input_shape, classes: .*'width'"),
        ("own_networks:NETWORK", "is a network already; give a function that makes one"),
        ("own_networks:no_module", "returned a int; it must return a torch.nn.Module"),
        ("own_networks:wrong_classes", "returns 4 logits an image; the data have 3 classes"),
        ("own_networks:Pair", "two blank images: the network returned a tuple.*one tensor"),
        ("own_networks:OneNumber", r"returned a tensor of shape \(2,\)"),
        ("own_networks:NotFinite", "not finite"),
        ("own_networks:fixed_size", r"the network failed on images of shape \(2, 1, 4, 4\)"),
    ],
)
def test_own_factory_that_does_not_fit_is_refused(name, message):
    with pytest.raises(NetworkError, match=message):
        build(name, (1, 4, 4), 3, generator())


@pytest.mark.usefixtures("own")
def test_own_factory_need_not_take_the_shape_or_the_classes():
    network = build("own_networks:plain", (1, 4, 4), 3, generator())
    assert parameter_count(network) == 16 * 3 + 3
    wider = build("own_networks:Plain", (1, 4, 4), 3, generator(), {"hidden": 6})
    assert parameter_count(wider) == 16 * 6 + 6 + 6 * 3 + 3


@pytest.mark.usefixtures("own")
def test_own_factory_names_its_arguments():
    with pytest.raises(NetworkError, match=r"no argument 'hiden'\. Known: hidden\."):
        build("own_networks:make", (1, 4, 4), 3, generator(), {"hiden": 5})
