import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridge.errors import ParityError
from bridge.trace import mirror
from bridge.twin import At, Targets, twin
from kernel.errors import KernelError
from kernel.ntk import tf32_error
from kernel.options import KINDS
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, needing
from pipelines.strategies.options import KernelConfig, QueryOptions
from trainer.errors import DataError, NetworkError, TrainerError


class Small(nn.Module):
    """A network as people write them."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean(dim=(2, 3)))


class Pair(Small):
    def forward(self, x):
        logits = super().forward(x)
        return logits, logits.softmax(1)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture
def images(rng):
    return rng.normal(size=(30, 1, 6, 6)).astype(np.float32)


LABELLED = {4: 0, 17: 1, 2: 2, 21: 1}


OWN = set(STRATEGIES) - needing("infinite", "dropout", "hooks")  # of any network of one's own


@pytest.mark.parametrize("strategy", sorted(OWN))
def test_indices_are_those_of_the_images(strategy, model, images):
    result = query(model, images, LABELLED, 5, strategy)
    assert result.indices.dtype == np.int64
    assert len(set(result.indices.tolist())) == 5
    assert not set(result.indices.tolist()) & set(LABELLED)
    assert set(result.candidates.tolist()) == set(range(30)) - set(LABELLED)
    by_index = dict(zip(result.candidates.tolist(), result.candidate_scores, strict=True))
    assert [by_index[i] for i in result.indices.tolist()] == result.scores.tolist()
    again = query(model, torch.tensor(images), LABELLED, 5, strategy)
    np.testing.assert_array_equal(again.indices, result.indices)


def test_the_model_is_left_as_it_was(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    query(model, images, LABELLED, 2)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_order_of_the_labels_does_not_matter(model, images):
    one = query(model, images, LABELLED, 5)
    other = query(model, images, dict(reversed(LABELLED.items())), 5)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_one_candidate_and_one_label(model, images):
    assert query(model, images[:2], {1: 0}, 1).indices.tolist() == [0]


def test_subset_and_seed(model, images):
    result = query(model, images, LABELLED, 3, "random", options=QueryOptions(subset=10), seed=5)
    assert len(result.candidates) == 10
    other = query(model, images, LABELLED, 3, "random", options=QueryOptions(subset=10), seed=6)
    assert result.candidates.tolist() != other.candidates.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", ["network", "linearised"])
def test_every_kernel_option_is_used(kind, reference, model, images):
    settings = KernelConfig(kind=kind, reference=reference, precision="float64", ridge=0.1)
    result = query(model, images, LABELLED, 3, options=QueryOptions(kernel=settings))
    assert (result.diagnostics["kind"], result.diagnostics["reference"]) == (kind, reference)
    assert result.diagnostics["ridge"] == 0.1
    assert (result.candidate_scores > 0).all()


def test_the_kernel_is_asked_for_on_so_many_devices(model, images):
    with pytest.raises(KernelError, match="9999 devices were asked for"):
        query(model, images, LABELLED, 3, options=QueryOptions(kernel=KernelConfig(devices=9999)))


def test_the_error_of_tf32_is_told_where_it_is_used(model, images, monkeypatch):
    exact = query(model, images, LABELLED, 3)
    assert "tf32_error" not in exact.diagnostics

    def narrower(*arguments):  # what a processor can do
        return tf32_error(*arguments, precisions=("float32", "float64"))

    monkeypatch.setattr("pipelines.strategies.lookahead.tf32_error", narrower)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    settings = KernelConfig(kind="rademacher", precision="tf32")
    assert (
        0
        < query(model, images, LABELLED, 3, options=QueryOptions(kernel=settings)).diagnostics[
            "tf32_error"
        ]
        < 1e-5
    )


def test_a_duplicate_of_a_labelled_image_scores_zero(model, images):
    images[9] = images[17]
    result = query(model, images, LABELLED, 3)
    assert result.candidate_scores[result.candidates == 9] == 0
    assert result.diagnostics["determined"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strategy": "mlmc"}, TrainerError, "unknown strategy 'mlmc': did you mean 'mlmoc'"),
        ({"options": {"loss": "hinge"}}, TrainerError, "unknown loss 'hinge'"),
        ({"batch_size": 27}, PipelineError, "query of 27 images was asked for and 26 are not"),
        ({"batch_size": 0}, PipelineError, "batch_size is 0; it must be a whole number, 1 or more"),
        ({"options": {"subset": 2}}, PipelineError, "subset is 2 and batch_size is 3"),
        ({"labelled": {}}, PipelineError, "labelled set is empty"),
        ({"labelled": [1, 2]}, PipelineError, "labelled is a list"),
        ({"labelled": {1: 3}}, PipelineError, "image 1 is labelled 3 and the network has 3 logits"),
        ({"labelled": {1: -1}}, PipelineError, "image 1 is labelled -1"),
        ({"labelled": {1: 0.5}}, PipelineError, "image 1 is labelled 0.5"),
        ({"labelled": {30: 0}}, DataError, "30"),
        ({"images": np.zeros(30, np.float32)}, PipelineError, r"shape \(30,\)"),
        ({"images": np.zeros((30, 1, 6, 6), np.uint8)}, PipelineError, "dtype uint8"),
        ({"images": np.zeros((30, 2, 6, 6), np.float32)}, NetworkError, "2"),
        ({"images": [1]}, PipelineError, "images are list"),
        ({"model": Small().train()}, NetworkError, r"train mode"),
        ({"model": Pair().eval()}, NetworkError, "tuple"),
    ],
)
def test_bad_input(change, error, message, model, images):
    given = {"model": model, "images": images, "labelled": LABELLED, "batch_size": 3, **change}
    options = given.pop("options", {})
    with pytest.raises(error, match=message):
        query(**given, options=QueryOptions(**options))


def test_images_that_are_not_numbers_are_named(model, images):
    images[7, 0, 0, 0] = np.nan
    with pytest.raises(PipelineError, match=r"images \[7\] hold NaN"):
        query(model, images, LABELLED, 2)


def test_a_mirror_that_is_kept_is_given_the_present_weights(model, images):
    kept = mirror(model, images[:2])
    first = query(model, images, LABELLED, 3, mirror=kept)
    np.testing.assert_array_equal(first.indices, query(model, images, LABELLED, 3).indices)
    with torch.no_grad():
        model.conv.weight.mul_(-2)
    later = query(model, images, LABELLED, 3, mirror=kept)
    np.testing.assert_array_equal(later.indices, query(model, images, LABELLED, 3).indices)
    assert not np.array_equal(later.candidate_scores, first.candidate_scores)


def test_a_twin_of_ones_own_is_certified_and_used(model, images):
    def function(tree, x):
        x = jax.lax.conv_general_dilated(
            x, tree["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = (x + tree["b"] - tree["mean"]) / jnp.sqrt(tree["var"] + 1e-5)
        x = jax.nn.relu(x * tree["scale"] + tree["shift"]).mean((1, 2))
        return x @ tree["head"] + tree["bias"]

    like = {
        **{name: jnp.zeros(4) for name in ("b", "mean", "var", "scale", "shift")},
        "w": jnp.zeros((3, 3, 1, 4)),
        "head": jnp.zeros((4, 3)),
        "bias": jnp.zeros(3),
    }
    names: dict[str, Targets] = {
        "conv.weight": At("w", axes=(2, 3, 1, 0)),
        "conv.bias": "b",
        "norm.weight": "scale",
        "norm.bias": "shift",
        "norm.running_mean": "mean",
        "norm.running_var": "var",
        "norm.num_batches_tracked": None,
        "head.weight": At("head", axes=(1, 0)),
        "head.bias": "bias",
    }
    own = twin(model, images[:2], function, like, names, layout="NHWC")
    result = query(model, images, LABELLED, 5, mirror=own)
    assert result.diagnostics["certificate"]["route"] == "twin"
    usual = query(model, images, LABELLED, 5)
    np.testing.assert_array_equal(result.indices, usual.indices)
    np.testing.assert_allclose(result.candidate_scores, usual.candidate_scores, rtol=1e-4)
    wrong = twin(model, images[:2], lambda t, x: -function(t, x), like, names, layout="NHWC")
    with pytest.raises(ParityError, match="disagree in the logits"):
        query(model, images, LABELLED, 5, mirror=wrong)


def test_a_sketched_query_follows_from_its_seed(model, images):
    def scores(seed, sketch):
        settings = KernelConfig(kind="rademacher", probes=3, sketch=sketch, precision="float64")
        result = query(model, images, LABELLED, 4, options=QueryOptions(kernel=settings), seed=seed)
        assert result.diagnostics["sketch"] == sketch
        return result.candidate_scores

    np.testing.assert_array_equal(scores(1, 24), scores(1, 24))
    assert not np.array_equal(scores(1, 24), scores(2, 24))
    assert not np.array_equal(scores(1, 24), scores(1, None))
