"""One schedule of training, epoch by epoch: optimiser, batches, steps.

From a network, images and labels to the mean loss of each epoch; the weights are in the network.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from trainer import augmentation, batchnorm, objective
from trainer.companion import Companion
from trainer.predict import forward, to_tensor
from trainer.train_config import TrainConfig


class Epoch(NamedTuple):
    """What an epoch came to.

    Attributes:
        loss: mean over its images, of the network alone.
        added: mean over its images of what a companion added.
    """

    loss: float
    added: float


def epochs(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    rate: float,
    rng: np.random.Generator,
    companion: Companion | None,
    done: float | None,
) -> Iterator[Epoch]:
    """Train with a fresh optimiser; after each epoch, in eval mode, yield what it came to.

    Args:
        network: trained in place, on its own device.
        images: normalised.
        labels: class of each.
        config: how.
        rate: the highest learning rate of the schedule.
        rng: draws the order of the images and the augmentation.
        companion: trained along; None for the network alone.
        done: what the companion is told of how far training is; None counts this schedule's epochs.
    """
    pixels = to_tensor(images, network)
    targets = torch.tensor(labels, device=pixels.device, dtype=torch.int64)
    batches, count = config.plan(len(labels))
    optimiser, scheduler = _optimiser(network, config, rate, batches * count, companion)
    for epoch in range(count):
        network.train()
        total, extra = torch.zeros(2, device=pixels.device)
        if companion is not None:
            companion.train()
        for chosen in np.array_split(rng.permutation(len(labels)), batches):
            where = torch.tensor(chosen, device=pixels.device)
            batch = _augmented(pixels[where], config, rng)
            batch = batch.contiguous(memory_format=torch.channels_last)
            watched = nullcontext(()) if companion is None else companion.watch(network)
            with _arithmetic(config, batch.device), watched as seen:
                answers = forward(network, batch)
            if config.precision == "bfloat16":  # losses are sums of many small numbers
                answers, seen = answers.float(), [features.float() for features in seen]
            loss = objective.mean_loss(answers, targets[where], config.loss)
            total += loss.detach() * len(chosen)
            if companion is not None:
                each = objective.losses(answers.detach(), targets[where], config.loss)
                added = companion.added(seen, each, epoch / count if done is None else done)
                extra += added.detach() * len(chosen)
                loss = loss + added
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if scheduler is not None:
                scheduler.step()
        batchnorm.freeze(network)
        if companion is not None:
            companion.eval()
        yield Epoch(total.item() / len(labels), extra.item() / len(labels))


def _arithmetic(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass, and by it the backward pass, computes in."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Reorder the convolutions' weights in memory: channels last suits a CPU."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _optimiser(
    network: nn.Module,
    config: TrainConfig,
    rate: float,
    steps: int,
    companion: Companion | None,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """The network's parameters in one group, a companion's in another, and their schedule."""
    groups = [{"params": _trained(network), "lr": rate}]
    if companion is not None:
        groups.append({"params": _trained(companion), "lr": companion.rate(rate)})
    if config.optimiser == "adam":
        return torch.optim.Adam(groups, rate, weight_decay=config.weight_decay), None
    optimiser = torch.optim.SGD(
        groups,
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    highest = [float(group["lr"]) for group in optimiser.param_groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, highest, total_steps=steps + 1, cycle_momentum=False
    )
    return optimiser, scheduler


def _trained(module: nn.Module | Companion) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _augmented(batch: torch.Tensor, config: TrainConfig, rng: np.random.Generator) -> torch.Tensor:
    if config.augmentation == "none":
        return batch
    shifted = augmentation.crop(batch, rng)
    return augmentation.flip(shifted, rng) if config.augmentation == "flip_crop" else shifted
