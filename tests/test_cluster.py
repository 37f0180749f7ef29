"""Trials on a Ray cluster of several machines, all on this one; one is killed on the way."""

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest
import torch

from experiments.studies.study import key_of
from experiments.sweep import cluster
from experiments.sweep.carry import carry_out, read_note
from experiments.sweep.executor import Said, Started, Tick
from experiments.sweep.inline import Inline
from experiments.sweep.machines import Need
from experiments.sweep.recorded import rounds_at
from experiments.sweep.task import Outcome, Task
from pipelines import digits, record
from pipelines.errors import PipelineError
from trainer.fit import TrainConfig

pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`")

from ray.cluster_utils import Cluster as Local

_ROOM: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# a machine that is killed is noticed in seconds; workers are as important as other tests' processes
_SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "worker_niceness": 0,
}
SMALL = dataclasses.replace(
    digits.DEFAULTS,
    strategy="margin",
    initial=20,
    query=5,
    subset=60,
    cycles=6,
    network="tests.own_network:make",
    network_args=("hidden=8",),
    train=TrainConfig(epochs=2, min_steps=20, extensions=0),
)


@pytest.fixture(scope="module")
def local():
    """Two machines with room for one worker each, beside the one that the driver is on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        head = {**_ROOM, "include_dashboard": False, "_system_config": _SYSTEM}
        started = Local(initialize_head=True, head_node_args=head)
        started.add_node(**_ROOM)
        yield started
        import ray

        ray.shutdown()
        started.shutdown()


def task(folder, seed: int, **changes) -> Task:
    config = dataclasses.replace(SMALL, seed=seed, **changes)
    key = key_of("run", config.record())
    return Task(key, dataclasses.replace(config, run=folder / f"trial-{seed}"))


def executor(local, root, workers=None) -> cluster.Cluster:
    return cluster.Cluster(root, local.address, Need(cpus=1, gpus=0), workers)


def inline(tasks) -> list[Outcome]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers, so that sums are in the same order
    try:
        return [event for event in Inline()(tasks, carry_out) if isinstance(event, Outcome)]
    finally:
        torch.set_num_threads(threads)


def comparable(folder) -> list[dict]:
    """The rounds without what depends on the hour."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "peak_memory_mib")}
        for line in record.read(folder).rounds
    ]


@pytest.mark.slow
def test_a_machine_is_killed_and_its_trial_done_elsewhere(local, tmp_path):
    gate, root = tmp_path / "gate", tmp_path / "runs"
    settings = {"network": "tests.cluster_networks:patient", "network_args": (f"gate={gate}",)}
    tasks = [task(root, seed, **settings) for seed in range(3)]
    tasks.append(task(root, 3, network="tests.own_network:too_few_classes", network_args=()))
    (victim,) = local.worker_nodes
    on_victim, killed = [], None
    events = []
    for event in executor(local, root)(tasks, carry_out):
        events.append(event)
        if isinstance(event, Started) and event.worker.endswith(victim.node_id[:6]):
            on_victim.append(event.key)
        if on_victim and killed is None and isinstance(event, Tick):
            trial = next(one for one in tasks if one.key == on_victim[0])
            if rounds_at(trial.folder):
                killed = rounds_at(trial.folder)
                local.remove_node(victim, allow_graceful=False)
        if killed is not None and isinstance(event, Said):
            gate.touch()  # not before: processes there live on for a moment, and could end first
    assert killed is not None
    assert 1 <= killed <= 6  # rounds, of 7: in the middle
    assert any(isinstance(event, Said) and "was lost" in event.text for event in events)
    ends = {event.key: event for event in events if isinstance(event, Outcome)}
    assert [ends[one.key].state for one in tasks] == ["done", "done", "done", "failed"]
    assert sum(isinstance(event, Outcome) for event in events) == 4
    assert "9" in ends[tasks[3].key].message
    note = read_note(tasks[3].folder)
    assert note is not None
    assert "Traceback" in note["attempts"][0]["traceback"]
    starts = [event.worker for event in events if isinstance(event, Started)]
    assert max(Counter(starts).values()) > 1  # a process serves several trials
    again = [task(tmp_path / "here", seed, **settings) for seed in range(3)]
    assert [end.state for end in inline(again)] == ["done"] * 3
    for there, here in zip(tasks, again, strict=False):
        assert comparable(there.folder) == comparable(here.folder)
        assert len(record.read(there.folder).rounds) == 7
    assert not list(root.glob(".sweep-*"))


@pytest.mark.slow
def test_records_come_back_from_machines_without_the_folder(local, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    written = cluster.Token
    monkeypatch.setattr(cluster, "Token", lambda path, text: written(path, text + " elsewhere"))
    tasks = [task(root, seed) for seed in range(2)]
    tasks.append(task(root, 2, network="tests.cluster_networks:deadly", network_args=()))
    # one of them was begun here
    assert inline([task(tmp_path / "here", seed) for seed in range(2)])[0].state == "done"
    begun = tmp_path / "here" / "trial-0"
    tasks[0].folder.mkdir(parents=True)
    for name in (record.CONFIG, record.ENVIRONMENT):
        (tasks[0].folder / name).write_bytes((begun / name).read_bytes())
    events = list(executor(local, root, workers=1)(tasks, carry_out))
    ends = {event.key: event for event in events if isinstance(event, Outcome)}
    assert [ends[one.key].state for one in tasks] == ["done", "done", "failed"]
    assert "died, and it was attempt 2" in ends[tasks[2].key].message
    note = read_note(tasks[2].folder)
    assert note is not None
    assert note["state"] == "failed"
    for seed in range(2):
        there, here = tasks[seed].folder, tmp_path / "here" / f"trial-{seed}"
        assert comparable(there) == comparable(here)
        names = [path.name for path in there.iterdir() if path.name != record.LOCK]
        assert sorted(names) == sorted(
            path.name for path in here.iterdir() if path.name != record.LOCK
        )
    starts = json.loads((tasks[0].folder / record.ENVIRONMENT).read_text())
    assert len(starts) == 2  # it went on from what was here


@pytest.mark.slow
def test_a_cluster_without_room(local, tmp_path):
    with pytest.raises(PipelineError, match="needs 64 cores .* has 1 and 0"):
        cluster.Cluster(tmp_path, local.address, Need(cpus=64, gpus=0))
