"""A round interrupted in its query takes the query up: no training again, no chunk again."""

import json

import numpy as np
import pytest

from kernel import contract, ntk, plan
from pipelines import run
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.core.record import IN_PROGRESS
from pipelines.strategies.options import KernelConfig
from trainer.fit import TrainConfig


def small(folder, **changes):
    settings = {
        "dataset": "digits",
        "initial": 12,
        "query": 3,
        "subset": 70,
        "cycles": 1,
        "network": "tests.own_network:make",
        "network_args": ("hidden=8",),
        "train": TrainConfig(epochs=2, min_steps=4, extensions=0),
        "kernel": KernelConfig(chunk=32),
        "run": folder,
    }
    return RunConfig(**settings | changes)


@pytest.fixture
def counted(monkeypatch):
    """Every kernel counts as long, and trainings and chunks are counted."""
    calls = {"fit": 0, "chunk": 0}
    fit, compute = run.fit, contract.differentiate

    def counting(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(ntk, "LONG", 0.0)
    monkeypatch.setattr(plan, "cores", lambda: 1)  # each chunk whole, so that they can be counted
    monkeypatch.setattr(run, "fit", counting("fit", fit))
    monkeypatch.setattr(contract, "differentiate", counting("chunk", compute))
    return calls


def same(one, other):
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        for key in ("indices", "scores", "test_accuracy", "fit"):
            assert mine[key] == theirs[key]


def test_an_interrupted_query_goes_on(tmp_path, counted, monkeypatch):
    whole = run.run(small(tmp_path / "whole"))
    assert counted == {"fit": 2, "chunk": 3}
    assert not (tmp_path / "whole" / IN_PROGRESS).exists()
    put = contract.AnchorRows.put

    def interrupted(self, start, chunk):
        put(self, start, chunk)
        if start == 32:
            raise KeyboardInterrupt

    counted.update(fit=0, chunk=0)
    with monkeypatch.context() as patch:
        patch.setattr(contract.AnchorRows, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run(small(tmp_path / "broken"))
    assert counted == {"fit": 1, "chunk": 2}
    assert (tmp_path / "broken" / IN_PROGRESS / "kernel").is_dir()
    resumed = run.run(small(tmp_path / "broken"))
    # whole gradients are kept after a pass, and there is one
    assert counted == {"fit": 2, "chunk": 5}
    same(resumed, whole)
    assert not (tmp_path / "broken" / IN_PROGRESS).exists()


@pytest.mark.parametrize(
    "left", [lambda content: bytes(len(content)), lambda content: content[:50]]
)
def test_a_damaged_chunk_is_said_and_computed_again(left, tmp_path, counted, monkeypatch):
    kernel = KernelConfig(chunk=32, sketch=50)
    whole = run.run(small(tmp_path / "whole", kernel=kernel))
    compute, calls = contract.sketch_gradients, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(contract, "sketch_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run(small(tmp_path / "broken", kernel=kernel))
    parts = sorted((tmp_path / "broken" / IN_PROGRESS / "kernel").glob("*-sketches-*"))
    assert len(parts) == 2
    parts[0].write_bytes(left(parts[0].read_bytes()))
    with pytest.warns(UserWarning, match=r"sketches-0 is damaged: .* computed again"):
        same(run.run(small(tmp_path / "broken", kernel=kernel)), whole)


def test_what_is_pending_under_other_settings_is_not_used(tmp_path, counted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_context", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.run(small(tmp_path / "run", seed=3))
    assert counted["fit"] == 1
    run.run(small(tmp_path / "run", seed=4))
    assert counted["fit"] == 3


def test_a_changed_state_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_context", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.run(small(tmp_path / "run"))
    state = tmp_path / "run" / IN_PROGRESS / "round.json"
    assert np.isfinite(json.loads(state.read_text())["trained"]["train_accuracy"])
    state.write_text("{")
    with pytest.raises(PipelineError, match=r"not valid JSON .* delete the folder"):
        run.run(small(tmp_path / "run"))
