"""Rows of a frozen prefix: computed once, kept, and never taken for others."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bridge import trace
from bridge.prefix import split
from kernel.errors import KernelError
from pipelines.query import QueryOptions, compare, query
from pipelines.strategies import frontier
from pipelines.strategies.frontier import FrontierRows
from pipelines.strategies.options import FrozenConfig, KernelConfig
from trainer.errors import NetworkError

SHAPE, COUNT = (3, 8, 8), 60
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(COUNT, *SHAPE)).astype(np.float32)
LABELLED = {index: index % 3 for index in range(9)}


def frozen_network(seed=0) -> nn.Module:
    """A convolution that is frozen and a head that is not."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    network[0].requires_grad_(False)
    return network.eval()


class Reads:
    """Images that count how often each is read."""

    def __init__(self):
        self.counts = np.zeros(COUNT, int)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        self.counts[indices] += 1
        return IMAGES[indices]


def rows_of(network, images: Callable, of="data", folder=None, **config) -> FrontierRows:
    found = split(network, trace.mirror(network, IMAGES[:4]), torch.tensor(IMAGES[:4]))
    assert found is not None
    return FrontierRows(found, images, COUNT, of, FrozenConfig(**config), folder)


def expected(network) -> np.ndarray:
    with torch.no_grad():
        return network[:4](torch.tensor(IMAGES)).numpy()


@pytest.fixture
def network():
    return frozen_network()


def test_each_image_is_read_once_and_only_when_it_is_asked_for(network):
    images = Reads()
    rows = rows_of(network, images)
    some = np.array([7, 3, 3, 50])
    np.testing.assert_allclose(rows(some), expected(network)[some], atol=1e-6)
    assert images.counts.sum() == 3
    everything = rows(np.arange(COUNT))
    np.testing.assert_allclose(everything, expected(network), atol=1e-6)
    assert (images.counts == 1).all()
    assert np.array_equal(rows(np.arange(COUNT)[::-1]), everything[::-1])


def test_a_folder_keeps_rows_for_later_runs(network, tmp_path):
    first = rows_of(network, Reads(), folder=tmp_path)
    made = first(np.arange(20))
    images = Reads()
    again = rows_of(frozen_network(), images, folder=tmp_path)
    assert np.array_equal(again(np.arange(20)), made)
    assert images.counts.sum() == 0
    again(np.arange(30))
    assert images.counts.sum() == 10


def test_a_folder_is_shared_with_runs_that_are_writing(network, tmp_path):
    rows_of(network, Reads(), folder=tmp_path)(np.arange(5))
    (folder,) = tmp_path.iterdir()
    unfinished = folder / ".rows.0123456789abcdef.new"
    unfinished.write_bytes(b"half")
    rows_of(network, Reads(), folder=tmp_path)(np.arange(10))
    assert unfinished.exists()


@pytest.mark.parametrize("what", ["weights", "images", "dtype", "operations"])
def test_rows_of_another_kind_are_never_used(network, tmp_path, what):
    rows_of(network, Reads(), folder=tmp_path)(np.arange(COUNT))
    images, other, of, config = Reads(), network, "data", {}
    if what == "weights":
        with torch.no_grad():
            other[0].bias[0] += 1e-3
    if what == "images":
        of = "other data"
    if what == "dtype":
        config = {"dtype": "float16"}
    if what == "operations":
        other[1] = nn.ReLU6().eval()
    rows_of(other, images, of, tmp_path, **config)(np.arange(COUNT))
    assert (images.counts == 1).all()


def test_rows_follow_frozen_weights_that_change(network):
    images = Reads()
    rows = rows_of(network, images)
    rows(np.arange(5))
    with torch.no_grad():
        network[4].weight.add_(1)  # of the tail
    rows(np.arange(5))
    assert images.counts.max() == 1
    with torch.no_grad():
        network[0].bias.add_(1)
    np.testing.assert_allclose(rows(np.arange(5)), expected(network)[:5], atol=1e-5)
    assert images.counts.max() == 2


@pytest.mark.parametrize("damage", ["zeros", "cut", "gone"])
def test_damaged_rows_are_computed_again(network, tmp_path, damage):
    made = rows_of(network, Reads(), folder=tmp_path)(np.arange(COUNT))
    (path,) = tmp_path.rglob("*rows-*")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-8] + (bytes(8) if damage == "zeros" else b""))
    images = Reads()
    rows = rows_of(network, images, folder=tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again = rows(np.arange(COUNT))
    assert np.array_equal(again, made)
    assert (images.counts == 1).all()
    assert (damage != "gone") == any("is damaged" in str(one.message) for one in told)


@pytest.mark.parametrize("kept", [True, False])
def test_beyond_the_memory_rows_are_read_from_the_disk(network, tmp_path, kept, monkeypatch):
    monkeypatch.setattr(frontier, "_PART_BYTES", 20 * 24 * 4)
    monkeypatch.setattr(frontier, "_BATCH", 20)
    room = 25 * 24 * 4 / 2**30  # one part of the three
    rows = rows_of(network, Reads(), folder=tmp_path if kept else None, memory_gib=room)
    np.testing.assert_allclose(rows(np.arange(COUNT)), expected(network), atol=1e-6)
    held = [isinstance(part, np.memmap) for part in rows._rows]
    assert held == [False, True, True]
    assert bool(list(tmp_path.rglob("*rows-*"))) == kept


def test_float16_takes_half_and_tells_its_error(network, tmp_path):
    rows = rows_of(network, Reads(), folder=tmp_path, dtype="float16")
    gap = np.abs(rows(np.arange(COUNT)) - expected(network)).max() / np.abs(expected(network)).max()
    assert rows.summary() == {"width": 24, "dtype": "float16", "error": pytest.approx(gap, rel=0.1)}
    assert 0 < gap < 1e-3
    (path,) = tmp_path.rglob("*rows-*")
    assert path.stat().st_size == 32 + COUNT * (8 + 24 * 2)
    with torch.no_grad():
        network[0].bias.add_(1e5)
    with pytest.raises(NetworkError, match=r"image 0 .* beyond float16: keep them in float32"):
        rows(np.arange(3))


def test_a_full_disk_is_told(network, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kernel.scratch.write_file", full)
    with pytest.raises(KernelError, match=r"need .* MiB in .* are free"):
        rows_of(network, Reads(), folder=tmp_path)(np.arange(3))


@pytest.mark.parametrize("strategy", ["mlmoc", "uherding", "dynamical"])
def test_query_starts_from_rows_and_chooses_the_same(network, strategy):
    """The same picks as of a network whose frozen part was never split."""
    options = QueryOptions(kernel=KernelConfig(precision="float64"))
    if strategy == "dynamical":
        options = QueryOptions()
    found = query(network, IMAGES, LABELLED, 5, strategy, options)
    mirror = trace.mirror(network, IMAGES[:4])  # a mirror that is given is used as it is
    whole = query(network, IMAGES, LABELLED, 5, strategy, options, mirror=mirror)
    assert found.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(found.candidate_scores, whole.candidate_scores, rtol=1e-4, atol=1e-6)
    assert found.diagnostics["frozen"] == {"width": 24, "dtype": "float32"}
    assert "frozen" not in whole.diagnostics
    if "certificate" in found.diagnostics:
        assert found.diagnostics["certificate"]["frontier"] == 24
        assert whole.diagnostics["certificate"]["frontier"] == 0


def test_a_second_query_computes_no_row_and_traces_nothing(network, monkeypatch):
    calls = []
    monkeypatch.setattr(
        frontier, "trace", lambda *given, real=trace.mirror: calls.append(1) or real(*given)
    )
    monkeypatch.setattr(
        FrontierRows,
        "_computed",
        lambda self, some, real=FrontierRows._computed: calls.append(len(some)) or real(self, some),
    )
    first = query(network, IMAGES, LABELLED, 5, "mlmoc")
    assert calls == [1, COUNT]
    with torch.no_grad():
        network[4].weight.mul_(1.5)
    second = query(network, IMAGES, {**LABELLED, int(first.indices[0]): 0}, 5, "ev_gp")
    assert calls == [1, COUNT]
    assert first.indices[0] not in second.indices
    changed = IMAGES.copy()
    changed[-1] += 1
    compare(network, changed, LABELLED, 5, ["mlmoc", "uherding"])
    assert calls == [1, COUNT, COUNT]
    network[1].forward = torch.tanh  # another function of the same tensors
    query(network, IMAGES, LABELLED, 5, "mlmoc")
    assert calls == [1, COUNT, COUNT, 1, COUNT]
