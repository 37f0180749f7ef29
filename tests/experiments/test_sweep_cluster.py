"""Trials on a Ray cluster: two machines, both this one; one of them is killed on the way."""

import dataclasses
import importlib.util
import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.studies.study import key_of
from experiments.sweep import cluster
from experiments.sweep.cluster import on_cluster
from experiments.sweep.executors import Job, Notice, Outcome, Started, inline
from experiments.sweep.plan import SweepConfig
from experiments.sweep.records import pack, read_note, rounds_at
from experiments.sweep.run import carry_out
from experiments.sweep.shared import source_digest
from pipelines.config import identity
from pipelines.core import record
from pipelines.core.errors import PipelineError
from tests.experiments.sweep_cases import NAME, SMALL, comparable

ROOT = Path(__file__).parents[2]
NETWORKS = "tests.experiments.cluster_networks"
_MACHINE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# a machine that is killed is noticed in seconds; workers are as important as other tests' processes
_SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "worker_niceness": 0,
}

# it is not imported here: that is when it reads whether there are tokens
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `ray`"
)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Two machines with room for one trial each, that know nothing of the checkout's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("PYTHONPATH", raising=False)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        import ray
        from ray.cluster_utils import Cluster

        head = {**_MACHINE, "include_dashboard": False, "_system_config": _SYSTEM}
        started = Cluster(initialize_head=True, head_node_args=head)
        started.add_node(**_MACHINE)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def environment(monkeypatch):
    """What connecting sets is taken back."""
    cluster_of_windows = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_task_oom_retries", cluster_of_windows):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch, environment):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PipelineError, match=r"ntk-lookahead\[ray\]"):
        list(on_cluster([], carry_out, SweepConfig(NAME, runs=tmp_path)))


def test_a_cluster_of_this_machine_listens_on_its_loopback_with_a_token(monkeypatch, environment):
    asked: dict[str, Any] = {}
    errors = SimpleNamespace(RayError=RuntimeError)
    fake = SimpleNamespace(is_initialized=bool, init=asked.update, exceptions=errors)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    assert cluster._connect("auto") is fake
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in os.environ  # of the cluster's own
    assert "include_dashboard" not in asked
    cluster._connect("local")
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert asked["include_dashboard"] is False


@needs_ray
def test_an_address_at_which_nobody_answers(tmp_path, environment):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PipelineError, match=f"no Ray cluster at '{address}' .*refused"):
            cluster._connect(address)


def job(folder: Path, seed: int, **changes: Any) -> Job:
    config = dataclasses.replace(SMALL, strategy="margin", seed=seed, **changes)
    key = key_of("run", identity(config))
    return Job(key, dataclasses.replace(config, run=folder / f"trial-{seed}"))


def settings(local, runs: Path, **changes: Any) -> SweepConfig:
    return SweepConfig(NAME, runs=runs, address=local.address, cpus=1, gpus=0, **changes)


def ends(events) -> dict[str, Outcome]:
    found = [event for event in events if isinstance(event, Outcome)]
    assert len({outcome.key for outcome in found}) == len(found)
    return {outcome.key: outcome for outcome in found}


@needs_ray
@pytest.mark.slow
def test_a_machine_is_killed_and_its_trial_done_elsewhere(local, tmp_path):
    gate, runs, events = tmp_path / "gate", tmp_path / "runs", []
    patient = {"network": f"{NETWORKS}:patient", "network_args": (f"gate={gate}",), "cycles": 6}
    jobs = [job(runs, seed, **patient) for seed in range(2)]
    (victim,) = local.worker_nodes

    def kill():
        while not all(rounds_at(one.folder) for one in jobs):
            time.sleep(0.1)
        local.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    for event in on_cluster(jobs, carry_out, settings(local, runs)):
        events.append(event)
        if isinstance(event, Notice):
            assert "was lost" in event.text
            assert all(1 <= rounds_at(one.folder) <= 6 for one in jobs)  # of 7: in the middle
            gate.touch()  # not before: processes there live on for a moment, and could end first
    killer.join()
    assert [type(event) for event in events] == [Started, Started, Notice, Outcome, Outcome]
    found = ends(events)
    # the process that was lost may still have held the directory when its trial was repeated
    states = [found[one.key].state for one in jobs]
    assert states in (["done", "done"], ["held", "done"], ["done", "held"])
    held = [one for one in jobs if found[one.key].state == "held"]
    again = ends(on_cluster(held, carry_out, settings(local, runs)))
    assert all(outcome.state == "done" for outcome in again.values())
    starts = [len(json.loads((one.folder / record.ENVIRONMENT).read_text())) for one in jobs]
    assert sorted(starts) == [1, 2]  # one of them began twice
    for there, here in zip(
        jobs, (job(tmp_path, seed, **patient) for seed in range(2)), strict=True
    ):
        assert carry_out(here).state == "done"
        assert comparable(there.folder) == comparable(here.folder)
    assert not list(runs.glob(".sweep-*"))


@needs_ray
@pytest.mark.slow
def test_records_come_back_from_machines_without_the_folder(local, tmp_path, monkeypatch):
    @contextmanager
    def nowhere(root):
        yield root / "nowhere"

    monkeypatch.setattr(cluster, "_token", nowhere)
    monkeypatch.setattr(cluster, "_ATTEMPTS", 1)
    runs = tmp_path / "runs"
    begun, deadly = job(runs, 0), job(runs, 1, network=f"{NETWORKS}:deadly", network_args=())
    assert ends(inline([job(tmp_path, 0)], carry_out)).popitem()[1].state == "done"
    alone = tmp_path / "trial-0"
    begun.folder.mkdir(parents=True)
    for name in (record.CONFIG, record.ENVIRONMENT):
        (begun.folder / name).write_bytes((alone / name).read_bytes())
    (begun.folder / "weights-000.safetensors").touch()  # of an earlier round, as it turns out
    held = job(runs, 2)
    with record.only_writer(held.folder):
        events = list(
            on_cluster([begun, deadly, held], carry_out, settings(local, runs, workers=1))
        )
    found = ends(events)
    assert [found[one.key].state for one in (begun, deadly, held)] == ["done", "failed", "held"]
    assert "was lost 1 times" in found[deadly.key].message
    assert not found[deadly.key].noted
    assert comparable(begun.folder) == comparable(alone)
    assert pack(begun.folder).keys() == pack(alone).keys()
    note = read_note(begun.folder)
    assert note is not None
    assert note["state"] == "done"
    # it went on from what was here
    assert len(json.loads((begun.folder / record.ENVIRONMENT).read_text())) == 2


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_room(local, tmp_path):
    asked = dataclasses.replace(settings(local, tmp_path), cpus=64)
    with pytest.raises(PipelineError, match="needs 64 cores .* has 1 and 0"):
        list(on_cluster([job(tmp_path, 0)], carry_out, asked))


def work(job: Job) -> Outcome:
    return Outcome(job.key, "done", 0.0, str(job.config.data_dir))


@pytest.mark.parametrize("dataset", ["digits", "images"])
def test_a_machine_uses_its_own_data_and_refuses_another_source(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("NTK_DATA_DIR", str(tmp_path / "mine"))
    theirs = dataclasses.replace(SMALL, dataset=dataset, data_dir=tmp_path / "theirs")
    one = Job("x", dataclasses.replace(theirs, run=tmp_path / "run"))
    outcome, files = cluster._attempt(one, work, tmp_path, source_digest(*cluster._PACKAGES), {})
    assert outcome.message == str(tmp_path / "theirs" if dataset == "images" else None)
    assert files is None
    with pytest.raises(PipelineError, match="has another source of ntk-lookahead"):
        cluster._attempt(one, work, tmp_path, "0123", {})


def test_workers_import_what_the_driver_imports(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(ROOT), os.__file__.rpartition("/")[0]])
    assert cluster._path().split(os.pathsep) == [str(tmp_path), str(ROOT), "${PYTHONPATH}"]


def test_ray_is_imported_when_a_cluster_is_asked_for():
    for path in (ROOT / "experiments").rglob("*.py"):
        lines = [line for line in path.read_text("utf-8").splitlines() if "import" in line]
        asks = [line for line in lines if line.split()[:2] == ["import", "ray"]]
        asks += [line for line in lines if line.split()[:1] == ["from"] and " ray." in line]
        assert all(line.startswith("    ") for line in asks), path
        assert not asks or path == Path(cluster.__file__), path
