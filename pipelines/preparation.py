"""From settings to data and an untrained network, with everything checked that can be by then."""

from collections.abc import Callable

import torch
from rich.console import Console
from torch import nn

from kernel.engine.devices import mesh
from kernel.engine.tf32 import arithmetic
from pipelines.config import RunConfig
from pipelines.data_memory import remembered
from pipelines.errors import PipelineError
from pipelines.seeds import generator
from pipelines.strategies.requirements import require
from pipelines.strategies.situation import PROBE
from trainer import data
from trainer.data import Dataset
from trainer.networks import build


def prepared(
    config: RunConfig, console: Console, read: Callable[[], Dataset] | None = None
) -> tuple[Dataset, nn.Module]:
    """The data set and the network of a run.

    Args:
        config: of the run.
        console: where it is said that data are being read.
        read: reads the data set, where it is not one of the table's.

    Raises:
        DataError, NetworkError: data or network that cannot be had, or a network without what
            the strategy needs of it.
        PipelineError: settings that do not fit the data, or a network without what the strategy
            needs of it.
        KernelError: a kernel that is to be computed, and cannot be on the devices here.
    """
    if "kernel" in config.needs and config.cycles:
        mesh(config.kernel.devices)
        arithmetic(config.kernel.precision)
    with console.status("reading the data"):
        dataset = read() if read else _loaded(config)
    _check_fit(config, dataset)
    network = _network(config, dataset)
    if config.cycles:
        few = dataset.normalise(dataset.train_images[:PROBE])
        require(config.needs, network, few)
    return dataset, network


def _loaded(config: RunConfig) -> Dataset:
    folder, size = config.data_folder, config.image_size
    return remembered(
        (config.dataset, folder.absolute(), size),
        lambda: data.load(config.dataset, folder, image_size=size, download=config.download),
    )


def _check_fit(config: RunConfig, dataset: Dataset) -> None:
    known = config.dataset != "images"  # of a person's own images only that person can tell
    if known and config.train.augmentation == "flip_crop" and not dataset.flip:
        raise PipelineError(
            f"a mirror image of {dataset.name} is not of the same class, and train.augmentation is "
            "flip_crop; use crop or none."
        )
    examples = len(dataset.train_images)
    wanted = config.initial + config.cycles * config.query
    if wanted > examples:
        raise PipelineError(
            f"{config.initial} initial labels and {config.cycles} queries of {config.query} need "
            f"{wanted} images and {dataset.name} has {examples} to label: lower initial, query or "
            "cycles."
        )


def _network(config: RunConfig, dataset: Dataset) -> nn.Module:
    _, channels, height, width = dataset.train_images.shape
    network = build(
        config.network,
        (channels, height, width),
        dataset.classes,
        generator(config.seed, "weights"),
        config.network_arguments,
    )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("device is cuda and torch sees no GPU here; use --device cpu or auto.")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return network.to("cuda" if on_gpu else "cpu")
