"""The first training of a seed, done once: the same bits as a training of one's own."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experiments.sweep import shared as module
from experiments.sweep.shared import FirstTrainings, source_digest
from pipelines import run
from pipelines.core.record import only_writer
from pipelines.sequential import run as sequential
from tests.experiments.sweep_cases import SMALL, comparable, settings
from tests.own_network import make
from tests.sequential_cases import config as sequential_config


@pytest.fixture
def shared(tmp_path):
    return FirstTrainings(tmp_path / "shared")


@pytest.fixture
def fits(monkeypatch):
    """How many trainings there were."""
    calls, real = [], run.fit

    def counted(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(run, "fit", counted)
    return calls


def name_in(path):
    return comparable(path)[0]["shared"]


def test_a_run_that_begins_with_the_training_of_another(tmp_path, shared, fits):
    run.run(settings("random", cycles=0, run=tmp_path / "other"), first=shared)
    assert len(fits) == 1
    run.run(settings("entropy", run=tmp_path / "mine"), first=shared)
    assert len(fits) == 3
    run.run(settings("entropy", run=tmp_path / "alone"))
    assert len(fits) == 6
    assert comparable(tmp_path / "mine", "shared") == comparable(tmp_path / "alone")
    assert name_in(tmp_path / "mine") == name_in(tmp_path / "other")
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [name_in(tmp_path / "mine")]
    assert "shared" not in comparable(tmp_path / "mine")[1]
    mine, other = (run.record.read(tmp_path / name).rounds[0] for name in ("mine", "other"))
    assert mine["seconds"]["fit"] == other["seconds"]["fit"]  # what it took where it was done


def test_a_sequential_run_begins_with_it_too(tmp_path, shared, monkeypatch):
    def trains(setup, *arguments):
        assert setup.first is shared
        raise KeyboardInterrupt  # the rest is as in a run

    monkeypatch.setattr(run.RunSetup, "fit_and_save", trains)
    with pytest.raises(KeyboardInterrupt):
        sequential.run(sequential_config(tmp_path / "one", budget=0), first=shared)


def test_what_is_trained_along_is_not_shared(tmp_path, shared, fits):
    plain = {"network": "cnn", "network_args": (), "cycles": 1}
    run.run(settings("random", **plain | {"cycles": 0, "run": tmp_path / "one"}), first=shared)
    asked = settings("random", strategy="ll4al", run=tmp_path / "ll4al", **plain)
    run.run(asked, first=shared)
    assert len(fits) == 3
    assert "shared" not in comparable(tmp_path / "ll4al")[0]


def trained(shared, calls, seed=0, labels=None, images=None, **changes):
    """A training that only notes that it was done and moves the weights."""
    config = settings("random", **changes)
    torch.manual_seed(seed)
    network = make((1, 4, 4), 3, hidden=5)
    images = np.ones((6, 1, 4, 4), np.float32) if images is None else images
    labels = np.zeros(6, np.int64) if labels is None else labels

    def train():
        calls.append(config)
        with torch.no_grad():
            next(network.parameters()).add_(len(calls))
        return {"seconds": 1.5, "fit": {"steps": 3}}

    notes = shared.get_or_train(network, images, labels, config, train)
    return notes, next(network.parameters()).detach().clone()


def test_only_what_the_training_follows_from_counts(shared, monkeypatch):
    calls = []
    notes, weight = trained(shared, calls)
    again, same = trained(shared, calls, strategy="entropy", query=7, cycles=1)
    assert len(calls) == 1
    assert again == notes
    assert torch.equal(weight, same)
    assert (notes["seconds"], notes["fit"]) == (1.5, {"steps": 3})
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"labels": np.arange(6) % 3},
        {"images": np.zeros((6, 1, 4, 4), np.float32)},
        {"train": type(SMALL.train)(epochs=3)},
    ]
    for changes in others:
        before = len(calls)
        other, _ = trained(shared, calls, **changes)
        assert len(calls) == before + 1, changes
        assert other["shared"] != notes["shared"]
    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "__version__", "0.1")
        trained(shared, calls)
    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "get_num_threads", lambda: 99)
        trained(shared, calls)
    with monkeypatch.context() as patch:
        patch.setattr(module, "source_digest", lambda *_: "another version")
        trained(shared, calls)
    assert len(calls) == 8


@pytest.mark.parametrize("what", ["weights.safetensors", "training.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_what_was_changed_is_trained_anew(what, damage, shared, tmp_path):
    calls = []
    notes, _ = trained(shared, calls)
    file = tmp_path / "shared" / notes["shared"] / what
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:20])
    else:
        file.write_bytes(b'{"of": {}, "notes": {}}')
    again, _ = trained(shared, calls)
    assert len(calls) == 2
    assert again == notes
    trained(shared, calls)
    assert len(calls) == 2


def test_two_at_once_train_once(shared, tmp_path):
    calls, ended = [], []
    notes, _ = trained(shared, calls)
    folder = tmp_path / "shared" / notes["shared"]
    with only_writer(folder):  # as another process that trains
        thread = threading.Thread(target=lambda: ended.append(trained(shared, calls)))
        thread.start()
        thread.join(0.3)
        assert not ended
    thread.join(30)
    assert ended[0][0] == notes
    assert len(calls) == 1


def test_the_digest_follows_each_file_of_the_source(tmp_path, monkeypatch):
    assert source_digest("experiments") != source_digest("trainer", "experiments")
    study = tmp_path / "experiments" / "studies" / "mine.py"
    study.parent.mkdir(parents=True)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "experiments")])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    digests = set()
    for text in ("a = 1", "a = 2"):
        study.write_text(text)
        digests.add(source_digest.__wrapped__("experiments"))
    study.rename(study.with_name("other.py"))
    digests.add(source_digest.__wrapped__("experiments"))
    assert len(digests) == 3
