"""Data sets and networks that several studies share: [L]'s and [D]'s own, and small ones.

A task is a run's settings without the strategy and seed: those of a data set's script, varied.
The small ones fit their labels on two CPU cores in seconds, which is what look-ahead needs more
than width: see docs/results/fit_reliability.md.
"""

import dataclasses
from pathlib import Path
from typing import TypeVar

from experiments.dynamics.config import TheoryConfig
from experiments.studies.study import vary
from pipelines.config import NetworkSettings, RunConfig, defaults_of

LOOK_AHEAD_SEEDS = tuple(range(6))  # [L]
DYNAMICS_SEEDS = tuple(range(5))  # [D]
FIVE = tuple(range(5))

Settings = TypeVar("Settings", bound=NetworkSettings)


def as_jpeg(settings: Settings) -> Settings:
    """The same on CIFAR-10 as lossy JPEG: `cifar10-jpeg` in the folder of the data sets.

    The folder holds `train.zip` and `test.zip`. Small studies were done on these images.
    """
    return dataclasses.replace(settings, dataset="images", data_dir=Path("cifar10-jpeg"))


# [L]'s data sets with its networks, batches and candidates.
PAPER_L = {
    "MNIST": defaults_of("mnist"),
    "SVHN": defaults_of("svhn"),
    "CIFAR-10": defaults_of("cifar10"),
    "CIFAR-100": defaults_of("cifar100"),
}


# A residual network of some 15,000 parameters, 5 queries.
_SMALL = {
    "image_size": 14,
    "initial": 100,
    "query": 20,
    "cycles": 5,
    "subset": 1000,
    "network_args": ("stages=1", "widen=1"),
}
SMALL = {
    "MNIST 14×14": vary(defaults_of("mnist"), _SMALL),
    "Fashion-MNIST 14×14": vary(defaults_of("fashion_mnist"), _SMALL),
}
# Harder images, and so twice the labels.
SMALL_CIFAR10 = {
    "CIFAR-10 16×16": as_jpeg(
        vary(defaults_of("cifar10"), {**_SMALL, "image_size": 16, "initial": 200, "query": 40})
    )
}

# For strategies that go through the candidates one by one, or whose kernels cost most: fewer of
# them, shorter runs and trainings.
SLOW = {
    "MNIST 14×14, 300 candidates": vary(
        SMALL["MNIST 14×14"], {"subset": 300, "cycles": 3, "train.min_steps": 600}
    )
}

# [D]: Adam and cross-entropy, stopped at 0.99 or after 200 epochs, nothing augmented, whole pool.
_DYNAMICS = {
    "initial": 500,
    "query": 1000,
    "cycles": 1,
    "subset": None,
    "network_args": (),
    "train.loss": "cross_entropy",
    "train.optimiser": "adam",
    "train.learning_rate": None,
    "train.weight_decay": 0.0,
    "train.min_steps": 0,
    "train.extensions": 0,
    "train.augmentation": "none",
}


def of_dynamics(dataset: str, network: str) -> RunConfig:
    """[D]'s protocol: 500 labels and a budget of 1,000, in one round unless a method says else."""
    return vary(defaults_of(dataset), {**_DYNAMICS, "network": network})


PAPER_D = {
    "CIFAR-10, CNN": of_dynamics("cifar10", "cnn"),
    "CIFAR-10, ResNet18": of_dynamics("cifar10", "resnet18"),
    "SVHN, VGG11": of_dynamics("svhn", "vgg11_bn"),
    "Caltech-101, ResNet18": of_dynamics("caltech101", "resnet18"),
}


def small_dynamics(dataset: str, image_size: int = 14) -> RunConfig:
    """The same training of a residual network of some 15,000 parameters: 100 labels, 200 more.

    It reaches 0.99 in seconds; the CNN was still at 0.92 after 200 epochs of 100 labels (one run,
    seed 0).
    """
    return vary(
        of_dynamics(dataset, "wide_resnet"),
        {
            "network_args": ("stages=1", "widen=1"),
            "image_size": image_size,
            "initial": 100,
            "query": 200,
            "subset": 1000,
        },
    )


SMALL_D = {
    "MNIST 14×14, cross-entropy": small_dynamics("mnist"),
    "Fashion-MNIST 14×14, cross-entropy": small_dynamics("fashion_mnist"),
}


def theory(run: RunConfig, queries: tuple[int, ...], subset: int) -> TheoryConfig:
    """The measurement of dynamicAL's theory on the network that such a run begins with."""
    return TheoryConfig(
        dataset=run.dataset,
        data_dir=run.data_dir,
        initial=run.initial,
        subset=subset,
        queries=queries,
        figures=("mmd", "tau", "envelope", "ratio"),
        network=run.network,
        network_args=run.network_args,
        image_size=run.image_size,
        train=run.train,
    )


_SMALL_CIFAR = {"CIFAR-10 16×16, cross-entropy": as_jpeg(small_dynamics("cifar10", image_size=16))}
SMALL_THEORY = {
    name: theory(run, (25, 50, 100), 500) for name, run in (SMALL_D | _SMALL_CIFAR).items()
}
PAPER_THEORY = {
    "CIFAR-10, CNN": theory(PAPER_D["CIFAR-10, CNN"], (250, 500, 1000), 6000),
}
