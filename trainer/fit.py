"""Train a network on the labelled images: from images and labels to weights that fit them.

Optimiser and schedule are fresh at every call, so a warm start is the same call on the same network
(docs/mathematics.md, 5). Look-ahead scores suppose that the labels are fitted, so training goes on
until they are, within limits, and the result says whether it got there:

1. A floor on the steps of a schedule (`TrainConfig.plan`). With 100 labels, one batch an epoch
   makes OneCycle climb to its rate in a few dozen steps, faster than a wide network adapts.
2. A schedule that diverges (a loss that is not finite, or one above twice that of answering zeros
   or of the start once half of it is over) starts again from its first weights at half the rate.
3. A schedule that ends before the labels are fitted is followed by another at half the rate. It
   goes on from there, but from the schedule's first weights if the network died: ReLUs that a high
   rate has closed for good, as happens with two classes, have no gradient to come back by.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Integer, Num
from torch import nn

from trainer import batchnorm, objective
from trainer.companion import Companion
from trainer.epochs import Epoch, epochs, lay_out
from trainer.errors import FitError
from trainer.fit_checks import check_data, check_network, check_range
from trainer.predict import NotFiniteError, logits, placement
from trainer.randomness import seeded
from trainer.train_config import TrainConfig

__all__ = ["FitResult", "Progress", "TrainConfig", "fit"]

_CHECKED = 128  # images at a time, when it is asked whether labels are fitted

Progress = Callable[[int, int, str], None]
"""Told steps done, steps expected and a few words, at most ten times a second."""


class FitResult(NamedTuple):
    """What training came to; the weights are in the network."""

    steps: int
    """Optimiser steps taken, those of diverged schedules included."""
    epochs: int
    """Passes over the labelled set, likewise."""
    learning_rate: float
    """The highest rate of the last schedule."""
    train_accuracy: float
    """On the labelled images in eval mode, not augmented."""
    residual_rms: float
    """Root mean square of one-hot minus logits (l2) or minus softmax (cross_entropy)."""
    loss_history: tuple[float, ...]
    """Mean training loss of each epoch."""
    fitted: bool
    """Whether the train accuracy reached the target."""
    stopped: str
    """One sentence: how training ended, and how far it got."""


def fit(
    network: nn.Module,
    images: Num[np.ndarray, "labelled channels height width"],
    labels: Integer[np.ndarray, " labels"],
    config: TrainConfig,
    rng: np.random.Generator,
    progress: Progress | None = None,
    companion: Companion | None = None,
) -> FitResult:
    """Train in place on the labelled images; afterwards the network is in eval mode.

    The same weights, generator and machine give bit-identical results. A companion is trained
    along by the same optimiser, in a group of its own; it changes no other draw, and losses that
    are told are the network's own.

    Args:
        network: trained on its own device; the weights that it comes with are the start.
        images: normalised, floating point.
        labels: class of each image, from 0.
        config: see `TrainConfig`.
        rng: draws the order of the images, the augmentation and the network's dropout.
        progress: told how far training is.
        companion: a module trained together with the network, such as
            `trainer.networks.loss_prediction.LossPrediction`, on the network's device; its weights
            go back to their start with the network's.

    Raises:
        FitError: images and labels that do not belong together, none at all, one that is not
            finite, a label out of range, nothing to train, batches of one image for BatchNorm,
            or training that diverges at every rate; then the network has its starting weights.
        DataError: the images are not floating point.
        NetworkError: the network does not return one row of finite logits an image.
    """
    batchnorm.freeze(network)
    check_data(images, labels)
    check_network(network, len(labels), config)
    lay_out(network, torch.channels_last)
    try:
        return _fit(network, images, labels, config, rng, _throttled(progress), companion)
    finally:
        batchnorm.freeze(network)
        lay_out(network, torch.contiguous_format)


def _fit(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    rng: np.random.Generator,
    tell: Progress,
    companion: Companion | None,
) -> FitResult:
    """Schedule after schedule until the labels are fitted or a limit is reached."""
    answers = logits(network, images)
    check_range(labels, classes=answers.shape[1])
    ceiling = 2 * max(_loss(guess, labels, config) for guess in (0 * answers, answers))
    rate = config.peak_learning_rate
    history: list[float] = []
    restarts = extensions = 0
    going_on = False
    modules = [network] if companion is None else [network, companion]
    while True:
        start = [_copied(module) for module in modules]
        passes = epochs(
            network, images, labels, config, rate, rng, companion, 1.0 if going_on else None
        )
        with seeded(rng, placement(network)[0]):
            answers = _schedule(network, images, labels, config, ceiling, passes, history, tell)
        if answers is None:
            _restore(modules, start)
            if restarts == config.restarts:
                raise FitError(
                    f"training diverged {restarts + 1} times, last with learning rate {rate:.3g} "
                    f"and an epoch's loss of {history[-1]:.3g}; the network has the weights again "
                    "that it came with: lower learning_rate, or look at the images' normalisation"
                )
            restarts += 1
        else:
            accuracy = objective.accuracy(answers, labels)
            fitted = accuracy >= config.target_accuracy
            if fitted or extensions == config.extensions:
                break
            extensions += 1
            if _dead(answers):
                _restore(modules, start)
            else:
                going_on = True
        rate /= 2

    steps = len(history) * config.plan(len(labels))[0]
    stopped = (
        f"{'fitted' if fitted else 'NOT fitted'}: train accuracy {accuracy:.3f} (target "
        f"{config.target_accuracy:g}) after {steps} steps in {1 + extensions} schedule(s) and "
        f"{restarts} restart(s), last learning rate {rate:.3g}"
    )
    tell(steps, steps, stopped)
    return FitResult(
        steps=steps,
        epochs=len(history),
        learning_rate=rate,
        train_accuracy=accuracy,
        residual_rms=objective.residual_rms(answers, labels, config.loss),
        loss_history=tuple(history),
        fitted=fitted,
        stopped=stopped,
    )


def _schedule(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    ceiling: float,
    passes: Iterator[Epoch],
    history: list[float],
    tell: Progress,
) -> np.ndarray | None:
    """One schedule: the logits of the labelled images after it, or None where it diverged.

    Each epoch's mean loss goes to the end of `history`. One that is not finite is divergence, and
    so is one above `ceiling` in the second half of the schedule.
    """
    batches, count = config.plan(len(labels))
    expected = (len(history) + count) * batches
    try:
        for epoch, (loss, added) in enumerate(passes):
            history.append(loss)
            tell(len(history) * batches, expected, f"loss {loss:.4f}")
            # deep networks overshoot while the rate climbs and come back; later it is for good
            if not math.isfinite(loss + added) or (2 * epoch >= count and loss > ceiling):
                return None
            if config.stopping_rule == "fitted" and _fits(network, images, labels, config):
                break
        if config.statistics == "labelled":
            batchnorm.reestimate(network, images)
        return logits(network, images)
    except NotFiniteError:
        return None


def _fits(network: nn.Module, images: np.ndarray, labels: np.ndarray, config: TrainConfig) -> bool:
    """Whether the accuracy on the labelled images reaches its target.

    Batch by batch, and none after so many errors that it cannot: asked after every epoch, going
    through all images takes a third of the time of training on them.
    """
    right, left = 0, len(labels)
    for start in range(0, len(labels), _CHECKED):
        some = slice(start, start + _CHECKED)
        answered = logits(network, images[some]).argmax(axis=1)
        right, left = right + int((answered == labels[some]).sum()), left - len(answered)
        if (right + left) / len(labels) < config.target_accuracy:
            return False
    return True


def _dead(answers: np.ndarray) -> bool:
    """Whether most images are answered by biases alone: with the very same logits."""
    same = np.isclose(answers, np.median(answers, axis=0), rtol=1e-5, atol=1e-7).all(axis=1)
    return bool(2 * same.sum() > len(answers) > 1)


def _copied(module: nn.Module | Companion) -> Mapping[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _restore(modules: Sequence[nn.Module | Companion], states: Sequence[Mapping[str, Any]]) -> None:
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)


def _loss(answers: np.ndarray, labels: np.ndarray, config: TrainConfig) -> float:
    targets = torch.tensor(labels, dtype=torch.int64)
    return objective.mean_loss(torch.tensor(answers), targets, config.loss).item()


def _throttled(progress: Progress | None) -> Progress:
    """The same function, skipping calls less than a tenth of a second after the last."""
    last = -1.0

    def tell(done: int, expected: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if progress is not None and (now - last >= 0.1 or done >= expected):
            last = now
            progress(done, expected, text)

    return tell
