"""The machines of a Ray cluster: which have room, and workers placed on them.

From an address to workers that answer, or are known to be lost. The one module that knows Ray, an
optional extra, which is imported when a cluster is asked for.
"""

import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.sweep.executor import Work
from experiments.sweep.hand import Hand, Token
from experiments.sweep.hired import Hired, Lost, Raised
from pipelines.errors import PipelineError

_STARTS = 3  # of workers that end before they begin, on one machine
_CLOSING = 5.0  # seconds that workers are given to remove what they wrote elsewhere
_REACH = 10.0  # seconds for an answer at an address
_DOUBT = 120.0  # seconds without a connection after which a worker counts as lost


@dataclass(frozen=True)
class Need:
    """What a worker takes of a machine.

    Attributes:
        cpus: cores, which are its threads too.
        gpus: GPUs or a share of one; None: one, if a machine of the cluster has any.
    """

    cpus: float = 2.0
    gpus: float | None = None

    def __post_init__(self):
        """Refuse numbers that mean nothing.

        Raises:
            PipelineError: a number out of range.
        """
        if self.cpus <= 0 or (self.gpus or 0) < 0:
            raise PipelineError(
                f"a worker cannot have {self.cpus:g} cores and {self.gpus or 0:g} GPUs: give cpus "
                "a number above 0 and gpus 0 or more."
            )


class Machine(NamedTuple):
    """A machine that may be used.

    Attributes:
        node: Ray's name of it.
        name: for people.
        room: how many workers it has cores and GPUs for, if nothing else runs on it.
    """

    node: str
    name: str
    room: int


class Machines:
    """A connection to a cluster, which lasts as long as this process."""

    def __init__(self, address: str, need: Need):
        """Connect.

        Args:
            address: as `ray.init` takes it.
            need: of a worker.

        Raises:
            PipelineError: Ray is not installed, there is no cluster, or no room for a worker.
        """
        self._ray = _connected(address)
        if need.gpus is None:
            has = any(resources.get("GPU", 0) >= 1 for _, resources in self._nodes().values())
            need = Need(need.cpus, 1.0 if has else 0.0)
        self._need = need
        self._refused: set[str] = set()
        self._dead: Counter[str] = Counter()
        if not self.now():
            has = "; ".join(
                f"{name} has {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}"
                for name, resources in self._nodes().values()
            )
            raise PipelineError(
                f"a worker needs {need.cpus:g} cores and {need.gpus:g} GPUs, and no machine of the "
                f"cluster has as many ({has}): lower --cpus or --gpus, or add a machine."
            )

    def now(self) -> list[Machine]:
        """Those that are there, are not refused, and have room for a worker."""
        found = [
            Machine(node, name, self._room(resources))
            for node, (name, resources) in sorted(self._nodes().items())
        ]
        return [one for one in found if one.room and one.node not in self._refused]

    def places(self, hired: Sequence[Hired], count: int) -> list[Machine]:
        """Where up to so many workers more have room, spread over the machines."""
        on = Counter(one.node for one in hired)
        free = [(taken, one) for one in self.now() for taken in range(on[one.node], one.room)]
        return [one for _, one in sorted(free)[:count]]

    def share(self, work: Work) -> Any:
        """Send what workers do to the cluster, once for all of them."""
        return self._ray.put(work)

    def hire(self, machine: Machine, work: Any, token: Token) -> Hired:
        """Start a worker, on that machine and no other; it is asked where it is."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._ray.remote(Hand).options(
            num_cpus=self._need.cpus,
            num_gpus=self._need.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # one thread works, the other says how far it is
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False),
        )
        return Hired(actor.remote(work, token), machine.node, machine.name)

    def heard(self, hired: Sequence[Hired], seconds: float) -> Hired | None:
        """One that has answered or is lost (see `Hired.answer`); None: none within that time."""
        end = time.monotonic() + seconds
        for one in hired:
            one.ask_again()
        references = {one.reference: one for one in hired if one.reference is not None}
        ready = self._ray.wait([*references], timeout=seconds)[0] if references else []
        for reference in ready:
            one = references[reference]
            one.answer, one.reference = self._answer(one), None
            if one.answer is not None:
                return one
        time.sleep(max(0.0, end - time.monotonic()))
        return None

    def rounds(self, hired: Iterable[Hired]) -> dict[str, int]:
        """Completed rounds by key of the trial, as the workers last said."""
        errors, found = self._ray.exceptions, {}
        for one in hired:
            if one.task is None:
                continue
            if one.counting is None:
                one.counting = one.actor.rounds.remote()
            elif self._ray.wait([one.counting], timeout=0)[0]:
                try:
                    found[one.task.key] = self._ray.get(one.counting)
                except errors.RayError:  # it is lost, which is seen to elsewhere
                    continue
                one.counting = None
        return found

    def refuse(self, node: str) -> None:
        """Use a machine no more."""
        self._refused.add(node)

    def died(self, node: str) -> bool:
        """A worker ended before it began; whether that was once too often on this machine."""
        self._dead[node] += 1
        return self._dead[node] >= _STARTS

    def end(self, hired: Iterable[Hired]) -> None:
        """End workers, whatever they are at."""
        ending = list(hired)
        closing = [one.actor.close.remote() for one in ending if not one.in_place]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSING)
        for one in ending:
            self._ray.kill(one.actor, no_restart=True)

    def _answer(self, one: Hired) -> Any:
        """What a worker says, Raised or Lost; None if that is not known yet."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(one.reference)
        except errors.RayTaskError as error:
            words = f"{type(error.cause).__name__}: {error.cause}"
            return Raised(words, error.traceback_str)
        except errors.ActorDiedError as error:
            return Lost(one.node not in self._nodes(), f"{error}")
        except errors.RayError as error:  # a connection is broken: why is known in a moment
            if one.doubted(_DOUBT):
                return Lost(True, f"{error}")
            return None
        # one that can be reached again, but whose answer went astray
        return Lost(True, "the connection was lost for a while") if one.in_doubt else answer

    def _nodes(self) -> dict[str, tuple[str, dict[str, float]]]:
        """Name and resources of the machines that are alive."""
        return {
            node["NodeID"]: (
                f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}",
                node["Resources"],
            )
            for node in self._ray.nodes()
            if node["Alive"]
        }

    def _room(self, resources: dict[str, float]) -> int:
        gpus = self._need.gpus or 0
        by_gpu = resources.get("GPU", 0) / gpus if gpus else math.inf
        return int(min(resources.get("CPU", 0) / self._need.cpus, by_gpu))


def _connected(address: str) -> Any:
    """The module, connected.

    Raises:
        PipelineError: it is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise PipelineError(
            f"the executor ray needs Ray, which is not installed here ({error}): "
            "uv pip install 'ntk-lookahead[ray]', on every machine."
        ) from error
    if ray.is_initialized():
        return ray
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"no Ray cluster at {address!r} ({f'{error}'.strip().splitlines()[0]}): start one by "
            "ray start --head, give --address HOST:PORT of another, or --address local for one "
            "that is made of this machine alone."
        ) from error
    return ray


def _reach(address: str) -> None:
    """Notice an address at which nobody answers; Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition(":")
    if colon and "://" not in address and port.isdigit():
        socket.create_connection((host, int(port)), _REACH).close()
