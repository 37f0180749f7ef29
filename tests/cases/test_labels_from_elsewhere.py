"""Labels, indices and images as JSON, data frames and other libraries give them."""

import json
from collections import OrderedDict
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pipelines.core.errors import PipelineError
from pipelines.query import compare, query
from pipelines.sequential import start
from pipelines.strategies.options import LookAheadConfig, QueryOptions
from trainer.errors import DataError

LABELS: dict[Any, Any] = {0: 0, 5: 1, 9: 2}
IMAGES = np.random.default_rng(0).normal(size=(20, 3, 2, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def expected(network):
    return query(network, IMAGES, LABELS, 3, "margin").indices.tolist()


UNDERSTOOD = {
    "keys of JSON": json.loads(json.dumps(LABELS)),
    "0-d tensors": {torch.tensor(key): torch.tensor(label) for key, label in LABELS.items()},
    "NumPy numbers": {np.uint8(key): np.int16(label) for key, label in LABELS.items()},
    "0-d arrays as labels": {key: np.array(label) for key, label in LABELS.items()},
    "whole floats": {float(key): float(label) for key, label in LABELS.items()},
    "whole fractions": {key: Fraction(label) for key, label in LABELS.items()},
    "a series as a dictionary": pd.Series(LABELS).to_dict(),
    "an ordered dictionary": OrderedDict(LABELS),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_labels_that_are_understood(name, network, expected):
    given = UNDERSTOOD[name]
    assert query(network, IMAGES, given, 3, "margin").indices.tolist() == expected
    assert compare(network, IMAGES, given, 3, ["margin"])["margin"].indices.tolist() == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "NaN": ({11: float("nan")}, "image 11 is labelled nan; .* leave images without a label out"),
    "NumPy's NaN": ({11: np.float32("nan")}, "image 11 is labelled nan"),
    "infinity": ({11: float("inf")}, "image 11 is labelled inf"),
    "None": ({11: None}, "image 11 is labelled None; .* leave images without a label out"),
    "pandas' NA": ({11: pd.NA}, "image 11 is labelled <NA>"),
    "a class name": ({11: "cat"}, "image 11 is labelled 'cat'; .* number of the class"),
    "a number as text": ({11: "1"}, "image 11 is labelled '1'; .* number of the class"),
    "a one-hot row": ({11: [1, 0, 0]}, r"image 11 is labelled \[1, 0, 0\]; .*argmax"),
    "a one-hot array": ({11: np.eye(3)[0]}, r"image 11 is labelled array.*argmax"),
    "a one-hot tensor": ({11: torch.eye(3)[0]}, "image 11 is labelled tensor.*argmax"),
    "an array of one": ({11: np.array([1])}, "image 11 is labelled array.*argmax"),
    "a long text": ({11: "c" * 999}, "image 11 is labelled 'c{38}…; "),
    "a truth value": ({11: True}, "image 11 is labelled True"),
    "half a class": ({11: 0.5}, "image 11 is labelled 0.5"),
    "a complex class": ({11: 1 + 0j}, "image 11 is labelled"),
    "a negative class": ({11: -1}, "image 11 is labelled -1"),
    "too large a class": ({11: 10**30}, "image 11 is labelled 1000"),
    "no class of the network": ({11: 3}, "image 11 is labelled 3 and the network has 3 logits"),
    "half an index": ({5.7: 1}, "numbered 5.7"),
    "no index": ({None: 1}, "numbered None"),
    "NaN as an index": ({float("nan"): 1}, "numbered nan"),
    "a path": ({"a.png": 1}, "numbered 'a.png'"),
    "half an index as text": ({"5.7": 1}, "numbered '5.7'"),
    "a truth value as an index": ({True: 1}, "numbered True"),
    "a pair": ({(1, 2): 1}, r"numbered \(1, 2\)"),
    "a negative index": ({-1: 1}, "image -1 is out of range: there are 20 images, 0 to 19"),
    "a negative index as text": ({"-1": 1}, "numbered '-1'"),
    "too large an index": ({20: 1}, "image 20 is out of range"),
    "far too large an index": ({10**30: 1}, "out of range"),
    "an image twice": ({"9": 2}, "image 9 is labelled twice, as 9 and as '9'"),
    "an image twice by tensors": (
        {torch.tensor(7): 2, torch.tensor(7.0): 1},
        "image 7 is labelled twice",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_refused_by_the_image(name, network):
    further, message = REFUSED[name]
    for ask in (
        lambda labels: query(network, IMAGES, labels, 3, "margin"),
        lambda labels: compare(network, IMAGES, labels, 3, ["margin", "mlmoc"]),
        lambda labels: start(network, IMAGES, labels, "margin"),
    ):
        with pytest.raises((PipelineError, DataError), match=message):
            ask(LABELS | further)


@pytest.mark.parametrize(
    "labelled",
    [[0, 1, None], np.zeros(20), pd.Series(LABELS), pd.DataFrame({"y": [0]}), None, "0: 1", {}],
    ids=lambda given: type(given).__name__,
)
def test_labels_that_are_no_mapping(labelled, network):
    with pytest.raises(PipelineError, match="labelled is a .* mapping|labelled set is empty"):
        query(network, IMAGES, labelled, 3, "margin")


@pytest.mark.parametrize("batch", [3.0, np.int64(3), np.float32(3), torch.tensor(3)], ids=repr)
def test_whole_numbers_of_images(batch, network, expected):
    assert query(network, IMAGES, LABELS, batch, "margin").indices.tolist() == expected


@pytest.mark.parametrize("batch", [2.5, "3", None, True, 0, -1, float("nan"), [3]], ids=repr)
def test_no_number_of_images(batch, network):
    with pytest.raises(PipelineError, match="batch_size is .*; it must be a whole number, 1 or"):
        query(network, IMAGES, LABELS, batch, "margin")
    with pytest.raises(PipelineError, match="batch_size is"):
        compare(network, IMAGES, LABELS, batch, ["margin"])


@pytest.mark.parametrize("seed", [None, -1, "0", 0.5], ids=repr)
def test_no_seed(seed, network):
    for ask in (
        lambda: query(network, IMAGES, LABELS, 3, "margin", seed=seed),
        lambda: compare(network, IMAGES, LABELS, 3, ["margin"], seed=seed),
        lambda: start(network, IMAGES, LABELS, "margin", seed=seed),
    ):
        with pytest.raises(PipelineError, match="seed is .*; it must be a whole number, 0 or more"):
            ask()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_other_precision(dtype, network):
    images = torch.tensor(IMAGES).to(dtype).requires_grad_()
    same = images.detach().float().numpy()
    found = query(network, images, LABELS, 3, "margin")
    np.testing.assert_array_equal(found.indices, query(network, same, LABELS, 3, "margin").indices)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.tensor(IMAGES).to_sparse(), "images are Tensor"),
        (torch.zeros(20, 3, 2, 2, dtype=torch.complex64), "dtype complex64"),
        (torch.zeros(20, 3, 2, 2, dtype=torch.uint8), "dtype uint8"),
        (np.ma.masked_greater(IMAGES, 1), "masked in part"),
        (IMAGES.astype(np.float64) * 1e60, "NaN or infinite"),
        (np.array(list(IMAGES), object), "dtype object"),
        (IMAGES[:0], r"shape \(0, 3, 2, 2\)"),
        (list(IMAGES), "images are list"),
        (None, "images are NoneType"),
    ],
)
def test_images_that_are_refused(images, message, network):
    with pytest.raises(PipelineError, match=message):
        query(network, images, LABELS, 3, "margin")


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"options": {"loss": "l2"}}, "options is a dict; it must be a QueryOptions"),
        ({"options": QueryOptions}, "options is a QueryOptions; it must be a QueryOptions"),
        ({"history": [[3]]}, "history holds something else"),
        ({"auxiliary_module": nn.Identity()}, "auxiliary_module is a Identity"),
        ({"oracle": [0] * 20}, "oracle is a list"),
    ],
)
def test_other_arguments_that_are_refused(further, message, network):
    with pytest.raises(PipelineError, match=message):
        query(network, IMAGES, LABELS, 3, "margin", **further)


def test_no_module(network):
    with pytest.raises(PipelineError, match="model is a function; it must be a Module"):
        query(lambda x: x, IMAGES, LABELS, 3, "margin")  # pyright: ignore[reportArgumentType]


HYBRID = QueryOptions(lookahead=LookAheadConfig(batch="hybrid"))
ANSWERS: dict[str, tuple[Any, str | None]] = {
    "a list": ([1], None),
    "a tensor": (torch.tensor([1]), None),
    "a series": (pd.Series([1], index=[7]), None),
    "whole floats": ([1.0], None),
    "a class name": (["cat"], r"image \d+ is labelled 'cat'; labels are whole numbers from 0 to 2"),
    "nothing": ([None], r"image \d+ is labelled None"),
    "a row": ([[0, 1, 0]], r"image \d+ is labelled \[0, 1, 0\]"),
    "NaN": (np.array([np.nan]), r"image \d+ is labelled nan"),
    "a truth value": (np.array([True]), r"image \d+ is labelled True"),
    "a class too many": (np.array([3]), r"image \d+ is labelled 3"),
    "two answers": ([1, 2], r"the oracle answered \[1, 2\]; one class for each of 1"),
    "one number": (1, "the oracle answered 1; one class"),
    "a 0-d array": (np.array(1), "the oracle answered 1; one class"),
    "a mapping": ({0: 1}, r"the oracle answered \{0: 1\}; one class"),
    "a set": ({1}, r"the oracle answered \{1\}; one class"),
    "a text": ("1", "the oracle answered 1; one class"),
    "no answer": (None, "the oracle answered None; one class"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_an_oracle(name, network):
    answers, message = ANSWERS[name]
    if message is None:
        found = query(network, IMAGES, LABELS, 2, "mlmoc", HYBRID, oracle=lambda indices: answers)
        assert found.diagnostics["answers"] == [1]
        return
    with pytest.raises(PipelineError, match=message):
        query(network, IMAGES, LABELS, 2, "mlmoc", HYBRID, oracle=lambda indices: answers)


def test_answers_one_at_a_time(network):
    session = start(network, IMAGES, LABELS, "margin")
    image = session.next_query().image
    labels: list[Any] = [None, float("nan"), "cat", [0, 1, 0], True, 3, -1]
    for label in labels:
        with pytest.raises(PipelineError, match=f"image {image} is labelled"):
            session.add_label(image, label)
    half, text, label = cast(Any, 0.5), cast(Any, str(image)), cast(Any, torch.tensor(1))
    with pytest.raises(PipelineError, match="numbered 0.5"):
        session.add_label(half, 1)
    session.add_label(text, label)
    assert session.labels[image] == 1
