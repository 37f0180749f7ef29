"""Images that a message names: by the numbers that a person has given, never by inner places."""

import numpy as np
import pytest
import torch
from torch import nn

import kernel.errors
import trainer.predict
from pipelines.core.progress import named_images
from pipelines.query import query
from pipelines.sequential.session import start

LABELLED = {4: 0, 11: 1, 2: 2}
HUGE = 3e38  # finite, and the sum of some is not


def network() -> nn.Module:
    """One that adds pixels up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        made.get_submodule("1").get_parameter("weight").abs_().add_(1)
    return made


class Rooted(nn.Module):
    """√ of a pixel, whose slope is infinite at 0 while the logits are finite."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(9, 9, bias=False)
        with torch.no_grad():
            self.scale.weight.copy_(torch.eye(9))
        self.head = nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.scale(x.flatten(1)).abs().sqrt())


def pictures(rng: np.random.Generator) -> np.ndarray:
    return (1 + rng.random(size=(14, 1, 3, 3))).astype(np.float32)


def test_gradients_are_renamed_and_where_they_fail_is_still_said():
    with (
        pytest.raises(kernel.errors.NotFiniteError) as told,
        named_images(np.array([30, 10]), tests=[7, 8]),
    ):
        raise kernel.errors.NotFiniteError([1, 3], "the logits are not")
    assert told.value.images == [10, "test image 8"]
    message = "gradients of images [10, test image 8] (numbered as in the data set) are not finite"
    assert f"{message}: the logits are not." in str(told.value)


def test_logits_are_renamed_with_their_cause():
    with pytest.raises(trainer.predict.NotFiniteError) as told, named_images([30, 10]):
        raise trainer.predict.NotFiniteError("logits", 1, "for some reason")
    assert str(told.value) == (
        "the logits of image 10 (numbered as in the data set) are not finite: for some reason"
    )


def test_other_errors_and_none_are_left_alone():
    with pytest.raises(ValueError, match="^as it was$"), named_images([3]):
        raise ValueError("as it was")
    with named_images([3]):
        pass


@pytest.mark.parametrize(
    ("strategy", "index"),
    [("entropy", 9), *((s, i) for s in ("badge", "coreset", "mlmoc") for i in (9, 11))],
)
def test_logits_in_a_query_of_ones_own(strategy, index, rng):
    """Of a candidate and of a labelled image, by their numbers among all images."""
    images = pictures(rng)
    images[index] = HUGE
    said = rf"logits of image {index} \(numbered as in the data set\)"
    with pytest.raises(trainer.predict.NotFiniteError, match=said):
        query(network(), images, LABELLED, 2, strategy)


@pytest.mark.parametrize("index", [9, 11])
@pytest.mark.parametrize("strategy", ["mlmoc", "dynamical"])
def test_gradients_in_a_query_of_ones_own(strategy, index, rng):
    images = pictures(rng)
    images[index, 0, 1, 1] = 0
    said = rf"gradients of images \[{index}\] \(numbered as in the data set\)"
    with pytest.raises(kernel.errors.NotFiniteError, match=said):
        query(Rooted().eval(), images, LABELLED, 2, strategy)


@pytest.mark.parametrize(("of_tests", "named"), [(False, "9"), (True, "test image 1")])
def test_one_label_at_a_time(of_tests, named, rng):
    images, tests = pictures(rng), pictures(rng)[:3]
    (tests if of_tests else images)[1 if of_tests else 9] = HUGE
    with pytest.raises(trainer.predict.NotFiniteError, match=rf"image {named} \(numbered"):
        start(network(), images, LABELLED, tests=(tests, np.array([0, 1, 2])))
    images, tests = pictures(rng), pictures(rng)[:3]
    (tests if of_tests else images)[1 if of_tests else 9, 0, 1, 1] = 0
    with pytest.raises(kernel.errors.NotFiniteError, match=rf"images \[{named}\] \(numbered"):
        start(Rooted().eval(), images, LABELLED, tests=(tests, np.array([0, 1, 2])))
