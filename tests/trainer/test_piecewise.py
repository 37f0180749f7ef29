"""Images that are made when they are read: what a network says of them, and what is in memory."""

import numpy as np
import pytest

from pipelines.strategies import STRATEGIES, dynamical
from pipelines.strategies.base import Labelling, Resources, build_context
from pipelines.strategies.options import BaldConfig, StrategyOptions
from trainer.batchnorm import dropped_logits
from trainer.config import TrainConfig
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.predict import NotFiniteError, Piecewise, find_head, logits, predictions

SHAPE = (1, 6, 6)


class Noted:
    """Stored pixels in bytes, and the most of them that were asked for at once."""

    def __init__(self, count: int):
        self.most = 0
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(256, size=(count, *SHAPE), dtype=np.uint8)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(indices))
        return self.pixels[indices].astype(np.float32) / 255


@pytest.fixture
def network(rng):
    return build("cnn", SHAPE, 3, rng, {"dropout": 0.3}).eval()


def test_every_answer_is_that_of_all_images_at_once(network, rng):
    make = Noted(50)
    indices = rng.permutation(50)[:33]
    whole, pieces = make(indices), Piecewise(make, indices)
    assert len(pieces) == 33
    make.most = 0
    asked = {
        "logits": lambda images: logits(network, images, 8),
        "dropped": lambda images: dropped_logits(network, images, np.random.default_rng(3), 8),
        "features": lambda images: (
            predictions(network, images, find_head(network, whole[:2]), 8).features
        ),
        "losses": lambda images: LossPrediction.of(
            network, whole[:2], np.random.default_rng(4)
        ).predict(network, images, 8),
    }
    for name, ask in asked.items():
        np.testing.assert_array_equal(ask(pieces), ask(whole), err_msg=name)
        assert make.most == 8, name
        make.most = 0


def test_of_no_images_there_are_no_logits(network):
    none = Piecewise(Noted(3), np.zeros(0, np.int64))
    assert logits(network, none).shape == (0, 3)


def test_an_image_that_is_not_finite_is_found_in_a_later_piece(network):
    make = Noted(20)

    def broken(indices: np.ndarray) -> np.ndarray:
        images = make(indices)
        images[indices == 13] = np.nan
        return images

    with pytest.raises(NotFiniteError, match="logits of image 13 .* has non-finite"):
        logits(network, Piecewise(broken, np.arange(20)), 8)


@pytest.mark.parametrize(
    "strategy", ["entropy", "badge", "coreset", "bald", "ll4al", "dynamical", "albl"]
)
def test_a_large_pool_is_never_in_memory_at_once(strategy, network):
    """Strategies whose time grows like the pool do not hold the pool's images."""
    make, labelled = Noted(2500), np.array([3, 8, 1200])
    pool = Pool.of(2500, labelled)
    module = LossPrediction.of(network, make(labelled), np.random.default_rng(4))
    context = build_context(
        network,
        make,
        Labelling(pool.labelled, np.arange(3), pool.unlabelled),
        [STRATEGIES[strategy]],
        train=TrainConfig(loss="cross_entropy"),
        options=StrategyOptions(bald=BaldConfig(samples=2)),
        resources=Resources(auxiliary_module=module),
    )
    found = STRATEGIES[strategy](context, 3, np.random.default_rng(5))
    assert len(found.candidates) == 2497
    assert make.most == (dynamical.BLOCK if strategy == "dynamical" else 512)
