"""The executors by name; a new one is a function from a sweep's settings to an executor."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from experiments.sweep.cluster import Cluster
from experiments.sweep.config import SweepConfig
from experiments.sweep.executor import Executor
from experiments.sweep.inline import Inline
from experiments.sweep.machines import Need
from experiments.sweep.processes import Processes
from experiments.sweep.shares import cores_here, default_workers, gpus_here, shares
from trainer.errors import lookup


def _processes(config: SweepConfig) -> Processes:
    cores = cores_here()
    gpus = () if config.device == "cpu" else gpus_here(torch.cuda.device_count(), os.environ)
    workers = config.workers or default_workers(len(cores), len(gpus))
    return Processes(shares(workers, cores, gpus, os.environ))


def _ray(config: SweepConfig) -> Cluster:
    need = Need(config.cpus, 0.0 if config.device == "cpu" else config.gpus)
    return Cluster(config.runs, config.address, need, config.workers)


EXECUTORS: Mapping[str, Callable[[SweepConfig], Executor]] = MappingProxyType(
    {
        "here": lambda config: Inline(),
        "processes": _processes,
        "ray": _ray,
    }
)


def executor_of(config: SweepConfig) -> Executor:
    """The executor that the settings name.

    Raises:
        UnknownNameError: there is none of that name.
        PipelineError: it is not available here, or not with these settings.
    """
    return lookup(EXECUTORS, config.executor, "executor")(config)
