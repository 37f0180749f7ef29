"""The executor of many machines: a Ray task for each trial, repeated by Ray where it is lost.

Ray, an optional extra, is imported when a cluster is asked for.
"""

import dataclasses
import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.sweep.executors import Event, Job, Notice, Outcome, Started, Work
from experiments.sweep.plan import SweepConfig
from experiments.sweep.records import Files, is_held, pack, unpack
from experiments.sweep.shared import source_digest
from pipelines.config import DATA_DIR_VARIABLE
from pipelines.core.errors import PipelineError
from pipelines.core.record import HeldError, only_writer

_ATTEMPTS = 3  # of a trial whose process or machine is lost
_LOOK = 2.0  # seconds between two looks at the machines
_REACH = 10.0  # seconds for an answer at an address
_PACKAGES = ("trainer", "bridge", "kernel", "pipelines", "experiments")


def on_cluster(jobs: Sequence[Job], work: Work, config: SweepConfig) -> Iterator[Event]:
    """Jobs on the machines of a Ray cluster, as many at once as there is room for.

    A worker that sees the sweep's folder works in it. Any other returns the record, which is put
    in place here. Ray repeats a task whose process or machine is lost.

    Raises:
        PipelineError: Ray is not installed, there is no cluster or no room on it, a machine has
            another source, or a worker sent a file that is none of the record.
        OSError: a record cannot be written.
    """
    ray = _connect(config.address)
    machines = _machines(ray)
    gpus = config.gpus
    if gpus is None:
        gpus = float(config.device != "cpu" and any(has["GPU"] >= 1 for has in machines.values()))
    if not _room(machines, config.cpus, gpus):
        has = "; ".join(
            f"{one['name']} has {one['CPU']:g} and {one['GPU']:g}" for one in machines.values()
        )
        raise PipelineError(
            f"a trial needs {config.cpus:g} cores and {gpus:g} GPUs, and no machine of the cluster "
            f"has as many ({has}): lower --cpus or --gpus, or add a machine."
        )
    attempt = ray.remote(_attempt).options(
        num_cpus=config.cpus,
        num_gpus=gpus,
        max_retries=_ATTEMPTS - 1,
        retry_exceptions=False,  # a trial's own failure is an outcome
        runtime_env={"env_vars": {"PYTHONPATH": _path()}},
    )
    waiting, running = deque(jobs), {}
    with _token(config.runs) as token:
        try:
            while waiting or running:
                room = max(1, _room(machines, config.cpus, gpus))
                while waiting and len(running) < min(room, config.workers or room):
                    job = waiting.popleft()
                    if is_held(job.folder):
                        yield Outcome(job.key, "held", 0.0, f"another process is in {job.folder}")
                        continue
                    files = pack(job.folder)
                    reference = attempt.remote(job, work, token, source_digest(*_PACKAGES), files)
                    running[reference] = job, frozenset(files), time.monotonic()
                    yield Started(job.key, "ray")
                for reference in ray.wait([*running], timeout=_LOOK)[0] if running else ():
                    yield _outcome(ray, reference, *running.pop(reference))
                before, machines = machines, _machines(ray)
                for node in before.keys() - machines.keys():
                    yield Notice(f"{before[node]['name']} was lost; its trials are done elsewhere")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _attempt(
    job: Job, work: Work, token: Path, source: str, files: Files
) -> tuple[Outcome, Files | None]:
    """Carry a job out on some machine; the record too, where that does not see the folder."""
    if source_digest(*_PACKAGES) != source:
        raise PipelineError(
            f"{socket.gethostname()} has another source of ntk-lookahead than the sweep: put the "
            "same on all machines, and start Ray on them again."
        )
    # a person's own images are named by their path; data sets lie in a folder of each machine
    if os.environ.get(DATA_DIR_VARIABLE) and job.config.dataset != "images":
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, data_dir=None))
    if token.exists():
        return work(job), None
    with tempfile.TemporaryDirectory(prefix="ntk-lookahead-") as scratch:
        folder = Path(scratch) / job.folder.name
        unpack(folder, files)
        there = dataclasses.replace(job.config, run=folder)
        outcome = work(dataclasses.replace(job, config=there, shared=None))
        return outcome, pack(folder)


def _outcome(ray: Any, reference: Any, job: Job, sent: frozenset[str], began: float) -> Outcome:
    """How a task ended; a record that it returned is put in place.

    Raises:
        Exception: what the worker raised, or a record cannot be put in place.
    """
    seconds = time.monotonic() - began
    try:
        outcome, files = ray.get(reference)
        if files is not None:
            with only_writer(job.folder):
                unpack(job.folder, files, sent)
        return outcome
    except HeldError as error:
        return Outcome(job.key, "held", seconds, str(error))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        why = next(iter(f"{error}".strip().splitlines()), type(error).__name__)
        message = f"its process or machine was lost {_ATTEMPTS} times: {why}"
        return Outcome(job.key, "failed", seconds, message, noted=False)


@contextmanager
def _token(root: Path) -> Iterator[Path]:
    """A file in the sweep's folder of a name that nobody guesses; who sees it sees the folder."""
    root = root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    token = root / f".sweep-{secrets.token_hex(16)}"
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _path() -> str:
    """Folders that this process imports from, those of the installation of Python aside."""
    folders = (os.path.abspath(entry) for entry in sys.path)
    own = [one for one in folders if not one.startswith((sys.prefix, sys.base_prefix))]
    return os.pathsep.join([*own, "${PYTHONPATH}"])


def _machines(ray: Any) -> dict[str, dict[str, Any]]:
    """Name, cores (`CPU`) and `GPU`s of the machines that are alive, by Ray's id of them."""
    return {
        node["NodeID"]: {
            "name": f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}",
            "CPU": node["Resources"].get("CPU", 0),
            "GPU": node["Resources"].get("GPU", 0),
        }
        for node in ray.nodes()
        if node["Alive"]
    }


def _room(machines: dict[str, dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many trials the machines have cores and GPUs for, if nothing else runs on them."""
    return sum(
        int(min(has["CPU"] / cpus, has["GPU"] / gpus if gpus else math.inf))
        for has in machines.values()
    )


def _connect(address: str) -> Any:
    """Ray, connected with a token to a cluster, or to one made of this machine on its loopback.

    Raises:
        PipelineError: it is not installed, or there is no cluster.
    """
    local = address == "local"
    # out of memory, a trial would otherwise be repeated without end
    settings = {"RAY_AUTH_MODE": "token", "RAY_task_oom_retries": f"{_ATTEMPTS - 1}"}
    if local:  # by this one Ray listens on 127.0.0.1 alone, which it replaces where it is asked for
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in settings.items():
        os.environ.setdefault(name, value)  # Ray reads them when it is imported
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise PipelineError(
            f"the executor ray needs Ray, which is not installed here ({error}): "
            "uv pip install 'ntk-lookahead[ray]', on every machine."
        ) from error
    if ray.is_initialized():
        return ray
    host, colon, port = address.rpartition(":")
    try:
        if colon and "://" not in address and port.isdigit():  # Ray would try for minutes
            socket.create_connection((host, int(port)), _REACH).close()
        options: dict[str, Any] = {"include_dashboard": False} if local else {}
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise PipelineError(
            f"no Ray cluster at {address!r} ({f'{error}'.strip().splitlines()[0]}): start one by "
            "RAY_AUTH_MODE=token ray start --head, give --address HOST:PORT of another, or "
            "--address local for one that is made of this machine alone."
        ) from error
    return ray
