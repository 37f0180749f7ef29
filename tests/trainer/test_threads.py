import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from trainer import threads
from trainer.config import TrainConfig
from trainer.errors import NetworkError
from trainer.fit import fit
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import find_head, flops, logits, predictions, to_tensor
from trainer.threads import GRAIN, limited

SHAPE = (3, 6, 6)


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch):
    """torch with four threads, and no word of the environment."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Spying(nn.Module):
    """A convolution and a head that notes the threads of each pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5 * 16, 4)
        self.seen: set[int] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:  # two are counted with
            self.seen.add(torch.get_num_threads())
        return self.head(self.body(images).flatten(1))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    ("work", "expected"), [(0, 1), (1.9, 1), (2, 2), (3.5, 3), (4, 4), (1000, 4)]
)
def test_threads_follow_from_the_work_of_a_step(four, work: float, expected: int) -> None:
    with limited(lambda: work * GRAIN):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


def test_threads_are_restored_after_an_error(four) -> None:
    with pytest.raises(ZeroDivisionError), limited(lambda: 0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


def test_a_number_that_was_set_is_kept_and_nothing_is_counted(
    four, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with limited(lambda: pytest.fail("counted")):
        assert torch.get_num_threads() == 4


def test_operations_are_those_of_the_layers() -> None:
    network = Spying().eval()
    assert flops(network, images(1)) == 2 * (5 * 16 * 27 + 4 * 80)
    assert flops(network, images(0)) == 0


def test_what_cannot_be_counted_keeps_every_thread(four) -> None:
    class Objecting(Spying):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError("not this size")

    network = Objecting().eval()
    assert flops(network, images(1)) == math.inf
    with limited(lambda: flops(network, images(1))):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("grain", "expected"), [(GRAIN, 1), (1.0, 4)])
def test_training_and_prediction_keep_to_the_rule(
    four, monkeypatch: pytest.MonkeyPatch, grain: float, expected: int
) -> None:
    monkeypatch.setattr(threads, "GRAIN", grain)
    network = Spying().eval()
    logits(network, images(8))
    assert network.seen == {expected}
    network.seen.clear()
    config = TrainConfig(augmentation="none", min_steps=2, epochs=1, extensions=0)
    fit(network, images(8), np.arange(8) % 4, config, np.random.default_rng(0))
    assert network.seen == {expected}
    assert torch.get_num_threads() == 4


def test_the_pass_that_counts_the_work_gives_no_features(four) -> None:
    """A network that was never counted before: one row an image, and of that image."""
    network = build("cnn", SHAPE, 4, np.random.default_rng(0))
    head = find_head(network, images(3))
    again = copy.deepcopy(network)
    counted, uncounted = (predictions(one, images(5), head, 2) for one in (network, again))
    assert counted.features.shape == (5, 128)
    np.testing.assert_array_equal(counted.features, uncounted.features)
    module = LossPrediction.of(network, images(2), np.random.default_rng(0))
    again = copy.deepcopy(network)
    predicted = [module.predict(one, images(5), 2) for one in (network, again)]
    assert predicted[0].shape == (5,)
    np.testing.assert_array_equal(predicted[0], predicted[1])


class Squeezing(nn.Module):
    """One that returns no row for a single image, and dies where it is given another size."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 36, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1)).squeeze(0)


def test_what_a_network_answers_does_not_depend_on_the_count(four) -> None:
    network = Squeezing().eval()
    assert logits(network, images(3)).shape == (3, 4)
    assert flops(network, images(1)) == 2 * 3 * 36 * 4
    with pytest.raises(NetworkError, match=r"failed on images of shape \(3, 3, 6, 5\)"):
        logits(network, images(3)[..., 1:])
    backwards = logits(network, images(3)[::-1])
    np.testing.assert_array_equal(backwards, logits(network, images(3))[::-1])
    for count in (1, 2):
        to_tensor(images(3)[::-1][:count], network)
