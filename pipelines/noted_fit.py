"""One training outside of a run: what is noted of it, and how long one takes here."""

import copy
import dataclasses
import math
import time
from typing import Any

import numpy as np
from torch import nn

from pipelines.stages import Advance
from trainer.fit import FitResult, TrainConfig, fit


def noted_fit(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    rng: np.random.Generator,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Train in place, and say how it ended.

    Args:
        network: trained from the weights that it has.
        images: as the network takes them.
        labels: the class of each.
        train: how.
        rng: of everything random in it.
        advance: told how far it is.

    Returns:
        `steps`, `train_accuracy`, `residual_rms`, `fitted`, `stopped` and `seconds`, JSON-able.
    """
    began = time.perf_counter()
    result: FitResult = fit(network, images, labels, train, rng, advance)
    return {
        "steps": result.steps,
        "train_accuracy": result.train_accuracy,
        "residual_rms": result.residual_rms,
        "fitted": result.fitted,
        "stopped": result.stopped,
        "seconds": round(time.perf_counter() - began, 3),
    }


def schedule_seconds(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    train: TrainConfig,
    steps: int = 20,
) -> float:
    """How long one schedule of training takes here, from a few steps of it on a copy."""
    network = copy.deepcopy(network)
    batches, epochs = train.plan(len(labels))
    few = math.ceil(steps / batches)
    short = dataclasses.replace(train, epochs=few, min_steps=few * batches, extensions=0)
    fit(network, images, labels, short, np.random.default_rng(0))  # the first steps warm up
    began = time.perf_counter()
    done = fit(network, images, labels, short, np.random.default_rng(0))
    return (time.perf_counter() - began) / done.steps * batches * epochs
