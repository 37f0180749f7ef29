"""Data sets of items in place of arrays: the same answers, read when they are needed."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from pipelines import sequential
from pipelines.errors import PipelineError
from pipelines.query import Items, QueryOptions, query
from pipelines.sequential.config import SequentialOptions
from pipelines.strategies.options import KernelConfig

COUNT, SHAPE = 40, (3, 6, 6)
IMAGES = np.random.default_rng(0).normal(size=(COUNT, *SHAPE)).astype(np.float32)
LABELLED = {index: index % 3 for index in range(6)}
SKETCH = QueryOptions(kernel=KernelConfig(sketch=64, chunk=8))


class Tracked(Dataset):
    """A torch data set of (image, label) that counts what is read."""

    def __init__(self, items: Any = IMAGES):
        self.items, self.reads = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        assert type(index) is int
        self.reads.append(index)
        return torch.tensor(self.items[index]), 99  # a label, which nothing may read


class HuggingFace:
    """As datasets.Dataset: one item is a dict, several are a dict of lists; with_transform set."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, int):
            return {name: column[key] for name, column in self.columns.items()}
        raise AssertionError("one item at a time")


class PILs(Dataset):
    """Decoded and not transformed."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return Image.new("RGB", (6, 6)), 0


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


POOLS = {
    "torch": Tracked,
    "subset": lambda: Subset(TensorDataset(torch.tensor(IMAGES)), range(COUNT)),
    "pixel_values": lambda: HuggingFace(pixel_values=list(IMAGES), image=["a photo"] * COUNT),
    "one entry": lambda: HuggingFace(img=[torch.tensor(i) for i in IMAGES], label=[7] * COUNT),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_data_set_gives_the_answers_of_its_array(network, name):
    for strategy in ("mlmoc", "margin"):
        options = SKETCH if strategy == "mlmoc" else None
        expected = query(network, IMAGES, LABELLED, 4, strategy, options)
        found = query(network, POOLS[name](), LABELLED, 4, strategy, options)
        assert found.indices.tolist() == expected.indices.tolist()
        assert np.array_equal(found.candidate_scores, expected.candidate_scores)


def test_a_session_of_a_data_set_is_that_of_its_array(network):
    options = SequentialOptions(kernel=KernelConfig(reference="linearised"))
    tests = np.arange(20) % 3
    sessions = [
        sequential.start(network, pool, LABELLED, options=options, tests=(of_tests, tests))
        for pool, of_tests in ((IMAGES, IMAGES[:20]), (Tracked(), Tracked(IMAGES[:20])))
    ]
    first, second = (session.next_query() for session in sessions)
    assert first == second
    assert sessions[0].status.accuracy == sessions[1].status.accuracy


def test_a_frozen_part_reads_each_image_of_a_data_set_once(network):
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    frozen[0].requires_grad_(False)
    pool = Tracked()
    expected = query(frozen, IMAGES, LABELLED, 4, "mlmoc")
    found = query(frozen, pool, LABELLED, 4, "mlmoc")
    assert found.indices.tolist() == expected.indices.tolist()
    assert all(pool.reads.count(index) == 1 for index in range(10, COUNT))  # the first are probes


@pytest.mark.parametrize(
    ("strategy", "most"), [("mlmoc", 8), ("margin", 512), ("coreset", 512), ("badge", 512)]
)
def test_no_more_than_a_chunk_of_images_is_there_at_a_time(network, monkeypatch, strategy, most):
    asked = []
    monkeypatch.setattr(
        "pipelines.query.Items.__getitem__",
        lambda self, some, real=Items.__getitem__: (
            asked.append(len(np.atleast_1d(np.arange(len(self))[some]))) or real(self, some)
        ),
    )
    options = SKETCH if strategy == "mlmoc" else None
    query(network, Tracked(np.concatenate([IMAGES] * 20)), LABELLED, 4, strategy, options)
    assert 0 < max(asked) <= most


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        (HuggingFace(image=[Image.new("RGB", (6, 6))] * 9), "item 0 is a dict with 0 entries"),
        (PILs(), "item 0 is of type Image, and no array or tensor: give the data set a transform"),
        (HuggingFace(pixel_values=[np.zeros(SHAPE, np.uint8)] * 9), "item 0 has dtype uint8"),
        (HuggingFace(a=[IMAGES[0]] * 9, b=[IMAGES[0]] * 9), r"2 entries of .* \(a, b\)"),
        (HuggingFace(x=[*IMAGES[:7], IMAGES[7][:, :5], IMAGES[8]]), r"item 7 is an image of shape"),
        (HuggingFace(x=[*IMAGES[:7], IMAGES[7] * np.inf, IMAGES[8]]), r"images \[7\] hold NaN"),
        (HuggingFace(pixel_values=[()] * 9), "item 0 is of type tuple"),
        (HuggingFace(x=[]), "without items"),
        ({0: IMAGES[0]}, "images are dict"),
        ("photos", "images are str"),
        ([IMAGES[0]], "images are list"),
    ],
)
def test_what_is_no_image_is_refused_by_its_item(network, pool, told):
    with pytest.raises(PipelineError, match=told):
        query(network, pool, LABELLED, 2, "mlmoc", QueryOptions())
