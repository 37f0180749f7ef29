"""Work that is interrupted, wherever it is, goes on to bitwise the same end."""

import errno
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kernel import contract, ntk
from kernel import plan as plan_module
from kernel.covariance import Cross, Features, Kernel
from kernel.errors import KernelError
from kernel.jacobian import Block
from kernel.model import Model, directions
from kernel.ntk import query_kernel
from kernel.options import Request
from kernel.param_groups import param_groups
from kernel.plan import Pass, Plan, Problem, Progress, plan_problem, problem_of
from kernel.scratch import Scratch, key_of
from tests.kernel.engine_networks import CLASSES, SHAPE, images, model

COUNT, ANCHORS, CHUNK, THREADS = 9, 5, 4, 2
SHARE = CHUNK // THREADS
IMAGE = jax.ShapeDtypeStruct(SHAPE, "float64")


def problem(anchors: int) -> Problem:
    request = Request("full", precision="float64")
    return problem_of(model("Volumes"), IMAGE, COUNT, anchors, request)


def several_passes(own: Problem) -> Plan:
    """Factors and rows together, then a layer in two pieces."""
    widen, volume, head = param_groups(model("Volumes"), IMAGE)
    assert [own.sites for own in (widen, volume, head)] == [("widen",), ("volume",), ("head",)]
    every = (0, CLASSES)
    passes = (
        Pass((Block.whole(volume, "factors"), Block.whole(widen)), every),
        Pass((Block(head, "rows", 2, 0),), every),
        Pass((Block(head, "rows", 2, 1),), every),
    )
    return plan_problem(own, Request(chunk=CHUNK), "full")._replace(passes=passes)


class Interruption:
    """A report that stops everything at its n-th call, and counts them."""

    def __init__(self, after: int | None = None):
        self.after, self.calls, self.share = after, 0, 0.0

    def __call__(self, done: float, total: float) -> None:
        self.calls += 1
        assert self.share <= done / total <= 1
        self.share = done / total
        if self.calls == self.after:
            raise KeyboardInterrupt


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(plan_module, "cores", lambda: THREADS)


@pytest.fixture
def chunks(monkeypatch) -> Counted:
    counted = Counted(contract.differentiate)
    monkeypatch.setattr(contract, "differentiate", counted)
    return counted


def contracted(
    anchors: int, scratch: Scratch | None, after: int | None = None, own: Model | None = None
):
    wanted = problem(anchors)
    made, stop = several_passes(wanted), Interruption(after)
    values = contract.contract(
        own or model("Volumes"), images(COUNT), made, Progress(made, stop), scratch
    )
    assert stop.share == pytest.approx(1)  # what was done before is told too
    return values, stop.calls


@pytest.mark.parametrize("anchors", [ANCHORS, COUNT])
def test_a_kernel_goes_on_from_every_chunk(anchors, chunks, tmp_path):
    expected, calls = contracted(anchors, Scratch(tmp_path / "whole", "key"))
    whole, chunks.calls = chunks.calls, 0
    assert whole == 3 * (-(-anchors // SHARE) + -(-(COUNT - anchors) // SHARE))
    # in every stage of every pass, and at the end
    for after in {*range(1, calls, 3), calls}:
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            contracted(anchors, Scratch(folder, "key"), after)
        found, _ = contracted(anchors, Scratch(folder, "key"))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        # the anchors of an unfinished pass are differentiated again
        assert whole <= chunks.calls <= whole + -(-anchors // SHARE) + THREADS + 1
        chunks.calls = 0
    plainly, _ = contracted(anchors, None)
    for ours, theirs in zip(plainly, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(expected[0]).max())


def test_a_kernel_that_is_interrupted_again_and_again(chunks, tmp_path):
    expected, calls = contracted(ANCHORS, Scratch(tmp_path / "whole", "key"))
    stopped = 0
    for after in range(1, calls):
        try:
            contracted(ANCHORS, Scratch(tmp_path / "one", "key"), after)
        except KeyboardInterrupt:
            stopped += 1
    assert stopped > 5
    chunks.calls = 0
    found, _ = contracted(ANCHORS, Scratch(tmp_path / "one", "key"))
    assert chunks.calls <= 3 + 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_key_starts_afresh(chunks, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        contracted(ANCHORS, Scratch(tmp_path / "one", "key"), 12)
    own = model("Volumes")
    other = own._replace(params={n: 2 * p for n, p in own.params.items()})
    expected, _ = contracted(ANCHORS, Scratch(tmp_path / "other", "key"), own=other)
    whole = 3 * (3 + 2)
    chunks.calls = 0
    found, _ = contracted(ANCHORS, Scratch(tmp_path / "one", "another key"), own=other)
    assert chunks.calls == whole
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_left_is_no_larger_than_the_kernel(tmp_path):
    """Parts of finished passes are deleted, and the sums before the last."""
    (values, diagonal), _ = contracted(ANCHORS, Scratch(tmp_path / "one", "key"))
    kept = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert kept == ["key-sums-3-0-0", "key-sums-3-1-0"]
    size = sum(path.stat().st_size for path in (tmp_path / "one").iterdir())
    assert size == values.nbytes + diagonal.nbytes + 2 * 32


def test_sketches_go_on_from_every_chunk(monkeypatch, tmp_path):
    counted = Counted(contract.sketch_gradients)
    monkeypatch.setattr(contract, "sketch_gradients", counted)
    own = problem(COUNT)._replace(directions=directions("trace", CLASSES))
    made = plan_problem(own, Request(sketch=5, chunk=CHUNK), "features")

    def run(name: str, key: str = "key", after: int | None = None):
        stop, rng = Interruption(after), np.random.default_rng(1)
        scratch = Scratch(tmp_path / name, key)
        found = contract.sketches(model("Volumes"), images(COUNT), made, rng, stop, scratch)
        return tuple(np.array(array) for array in found), stop.calls

    expected, calls = run("whole")
    assert calls == -(-COUNT // SHARE)
    whole, counted.calls = counted.calls, 0
    assert whole == CLASSES * calls
    for after in range(1, calls + 1):
        with pytest.raises(KeyboardInterrupt):
            run(str(after), after=after)
        found, _ = run(str(after))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert whole <= counted.calls <= whole + CLASSES * (THREADS + 1)
        counted.calls = 0
    run("1", "another key")
    assert counted.calls == whole


def arrays(given: Kernel | Features | Cross) -> list[np.ndarray]:
    more = [given.diagonal] if isinstance(given, Cross) else []
    return [np.array(given.values), *more]


@pytest.mark.parametrize("form", ["dense", "cross", "features"])
def test_a_query_goes_on_where_it_stood(form, monkeypatch, tmp_path):
    monkeypatch.setattr(ntk, "LONG", 0.0)
    counted = Counted(contract.sketch_gradients if form == "features" else contract.differentiate)
    if form == "features":
        monkeypatch.setattr(contract, "sketch_gradients", counted)
    else:
        monkeypatch.setattr(contract, "differentiate", counted)
    options: Any = {"sample": np.array([4, 1])} if form == "cross" else {}
    sketch = 6 if form == "features" else None

    def query(folder: Path | None, after: int | None = None, factor: float = 1.0):
        own = model("Volumes")
        scaled = own._replace(params={n: factor * p for n, p in own.params.items()})
        given, decision = query_kernel(
            scaled,
            images(COUNT),
            3,
            Request("rademacher", precision="float64", sketch=sketch, chunk=CHUNK),
            rng=np.random.default_rng(2),
            progress=Interruption(after),
            folder=folder,
            **options,
        )
        assert decision.form == form
        return arrays(given)

    expected = query(tmp_path / "whole")
    whole, counted.calls = counted.calls, 0
    for found, plainly in zip(expected, query(None), strict=True):
        np.testing.assert_allclose(found, plainly, rtol=1e-12, atol=1e-13)
    counted.calls = 0
    with pytest.raises(KeyboardInterrupt):
        query(tmp_path / "one", after=3)
    for found, theirs in zip(query(tmp_path / "one"), expected, strict=True):
        np.testing.assert_array_equal(found, theirs)
    begun = (THREADS + 1) * (4 if form == "features" else 1)  # and not handed over
    again = {"dense": 5, "cross": 3, "features": 0}[form]  # chunks of an unfinished pass's anchors
    assert counted.calls <= whole + again + begun
    counted.calls = 0
    query(tmp_path / "one", factor=2.0)  # other weights: from the start
    assert counted.calls == whole


def test_a_short_query_leaves_nothing(tmp_path):
    folder = tmp_path / "query"
    query_kernel(model("Volumes"), images(4), 2, Request(chunk=2), folder=folder)
    assert not folder.exists()


def test_parts_are_taken_up_by_name_and_key(tmp_path):
    x, y, again = np.arange(6.0).reshape(2, 3), np.arange(4), np.zeros((2, 3))
    Scratch(tmp_path, "key").save("x", x, y)
    found = Scratch(tmp_path, "key")
    assert found.load("x", again, other := np.zeros(4, np.int64))
    assert (again == x).all()
    assert (other == y).all()
    assert not found.load("y", again, other)
    Scratch(tmp_path, "another")
    assert list(tmp_path.iterdir()) == []


DAMAGES = {
    "zeroed": lambda content: bytes(len(content)),
    "its end zeroed": lambda content: content[:-8] + bytes(8),
    "cut short": lambda content: content[:-8],
    "empty": lambda content: b"",
    "longer": lambda content: content + bytes(8),
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_said_and_not_read(damage, tmp_path):
    Scratch(tmp_path, "key").save("x", np.arange(1.0, 5))
    path = tmp_path / "key-x"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again, found = np.zeros(4), Scratch(tmp_path, "key")
    with pytest.warns(UserWarning, match="key-x is damaged: it holds .* computed again"):
        assert not found.load("x", again)
    assert (again == 0).all()
    assert not found.load("x", again)  # said once


@pytest.mark.parametrize("like", [np.zeros((2, 2)), np.zeros(4, np.int64), np.zeros(3)])
def test_a_part_of_another_shape_dtype_or_name_is_not_read(like, tmp_path):
    Scratch(tmp_path, "key").save("x", np.arange(1.0, 5))
    with pytest.warns(UserWarning, match="is damaged"):
        assert not Scratch(tmp_path, "key").load("x", like)
    Scratch(tmp_path, "key").save("x", np.arange(1.0, 5))
    (tmp_path / "key-x").rename(tmp_path / "key-y")
    with pytest.warns(UserWarning, match="is damaged"):
        assert not Scratch(tmp_path, "key").load("y", np.zeros(4))


@pytest.mark.parametrize(
    ("part", "damage"), [("sums", "zeroed"), ("cross", "cut short"), ("sketches", "one bit")]
)
def test_a_kernel_with_a_damaged_part_comes_to_the_same_end(part, damage, tmp_path):
    own = problem(COUNT)._replace(directions=directions("trace", CLASSES))
    sketch = plan_problem(own, Request(sketch=5, chunk=CHUNK), "features")

    def compute(name: str, after: int | None = None):
        scratch = Scratch(tmp_path / name, "key")
        if part != "sketches":
            return contracted(ANCHORS, scratch, after)[0]
        signs, stop = np.random.default_rng(1), Interruption(after)
        return contract.sketches(model("Volumes"), images(COUNT), sketch, signs, stop, scratch)

    expected = compute("whole")
    with pytest.raises(KeyboardInterrupt):
        compute("one", {"sums": 20, "cross": 8, "sketches": 4}[part])
    parts = sorted((tmp_path / "one").glob(f"key-{part}*"))
    assert parts
    parts[0].write_bytes(DAMAGES[damage](parts[0].read_bytes()))
    with pytest.warns(UserWarning, match=rf"{parts[0].name} is damaged"):
        found = compute("one")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_space_is_reserved_and_given_back(tmp_path):
    scratch = Scratch(tmp_path, "key")
    with scratch.reserved(10**6):
        assert (tmp_path / "reserve").stat().st_blocks * 512 >= 10**6
        scratch.save("x", np.zeros(50_000))
        assert (tmp_path / "reserve").stat().st_size == 10**6 - 400_032
        scratch.save("y", np.zeros(100_000))
    assert {path.name for path in tmp_path.iterdir()} == {"key-x", "key-y"}
    with scratch.reserved(10**6):  # all of it is there
        assert not (tmp_path / "reserve").exists()


FULL = r"need .* MiB in .* and .* MiB are free: free as much, or move the run directory"


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    scratch = Scratch(tmp_path, "key")
    with pytest.raises(KernelError, match=FULL), scratch.reserved(2**60):
        pass

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(KernelError, match=FULL), scratch.reserved(10):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KernelError, match=FULL):
        scratch.save("x", np.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_a_key_changes_with_every_entry_shape_and_setting():
    x = np.arange(6.0)
    keys = [
        key_of([x], "settings"),
        key_of([x + np.eye(6)[3]], "settings"),
        key_of([x.reshape(2, 3)], "settings"),
        key_of([x.astype("float32")], "settings"),
        key_of([x], "others"),
        key_of([{"a": x}, x], "settings"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of([{"a": x}], "settings") == keys[0] == key_of([x.copy()], "settings")
