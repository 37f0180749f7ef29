"""What is said of gradients that are not finite: of which images, and from which layer on."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bridge.trace import mirror
from kernel import plan
from kernel.errors import KernelError
from kernel.model import Model
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.taps import not_finite
from tests.kernel_cases import mlp

CLASSES = 2


class Chain(nn.Module):
    """first → exp → middle → √|·| → head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.exp(self.first(x.flatten(1)))
        return self.head(torch.sqrt(torch.abs(self.middle(x))))


@pytest.fixture(scope="module")
def chain() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Chain().eval()
    return mirror(network, np.ones((2, 1, 2, 2), "float32")).model()


def images(count: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 1, 2, 2)).astype("float32")


def changed(model: Model, **factors: float) -> Model:
    """The same function with some arrays multiplied."""
    scaled = {n: p * factors.get(n.replace(".", "_"), 1.0) for n, p in model.params.items()}
    return Model(model.function, scaled, model.frozen)


def said(model: Model, given: np.ndarray, places: list[int]) -> str:
    return str(not_finite(model, given, places, np.eye(CLASSES)))


def test_an_image_that_is_not_finite(chain):
    given = images()
    given[4, 0, 1, 1] = np.nan
    message = said(chain, given, [4])
    assert message.startswith("the gradients of images [4] (places in the set given)")
    assert "the first of them holds values that are not finite" in message


def test_only_five_images_are_named(chain):
    given = np.full_like(images(), np.inf)
    assert "images [0, 1, 2, 3, 4] and 4 more (places" in said(chain, given, list(range(9)))


def test_weights_that_are_not_finite(chain):
    broken = changed(chain, middle_weight=float("nan"), head_bias=float("inf"))
    assert "the weights head.bias, middle.weight are not finite" in said(broken, images(), [0])


def test_an_activation_that_overflows(chain):
    broken = changed(chain, first_weight=1e4, first_bias=1e4)  # exp of it
    given = np.sign(chain.params["first.weight"][0]).reshape(1, 1, 2, 2) * np.ones((2, 1, 1, 1))
    message = said(broken, np.asarray(given, np.float32), [1])
    assert "what enters the layer 'middle' is not finite" in message


def test_logits_that_overflow(chain):
    broken = changed(chain, head_weight=3e38, middle_bias=1e3)
    assert "the logits are not finite, although what enters the last layer 'head' is" in said(
        broken, images(), [0]
    )


def test_a_gradient_that_is_infinite(chain):
    """√ at 0 has an infinite slope: what comes back to the layer before it is not finite."""
    broken = changed(chain, middle_weight=0.0, middle_bias=0.0)
    message = said(broken, images(), [0])
    assert "the gradient that comes back to the layer 'middle' is not finite" in message


def test_products_that_overflow(chain):
    """Inputs and cotangents are finite, and too large for each other."""
    broken = changed(chain, first_weight=1e-25, head_weight=1e25)
    message = said(broken, images() * np.float32(1e25), [0])
    assert "the products of its layers' inputs and cotangents overflow" in message


def test_a_function_without_taps(rng):
    own = mlp(4, 3, CLASSES, rng)
    huge = changed(own, first_weight=1e308, second_weight=1e308)
    message = said(huge, rng.normal(size=(3, 4)), [2])
    assert "where in the network is not known, because its layers cannot be observed" in message
    wrong = changed(own, first_weight=float("nan"))
    assert "the weights first.weight are not finite" in said(wrong, np.ones((1, 4)), [0])


def test_a_kernel_says_it(chain, monkeypatch):
    monkeypatch.setattr(plan, "cores", lambda: 1)
    broken = changed(chain, middle_weight=0.0, middle_bias=0.0)
    with pytest.raises(KernelError, match=r"images \[0, 1, 2\].*comes back to the layer 'middle'"):
        empirical_ntk(broken, images(5), Request(chunk=3))


@pytest.mark.parametrize("sketch", [None, 5])
def test_only_the_bad_images_are_named(chain, sketch):
    given = images(7)
    given[5] = np.inf
    with pytest.raises(KernelError, match=r"images \[5\] \(places"):
        empirical_ntk(chain, given, Request(sketch=sketch, chunk=3), rng=np.random.default_rng(0))
