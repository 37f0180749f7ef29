"""Data sets and networks that several studies share: [L]'s and [D]'s own, and small ones.

A task is a run's settings without the strategy and seed. The small ones fit their labels on two
CPU cores in seconds, which is what look-ahead needs more than width: see
docs/results/fit_reliability.md.
"""

import dataclasses

from experiments.dynamics.config import TheoryConfig
from pipelines import cifar10, cifar100, fashion_mnist, mnist, svhn
from pipelines.caltech101 import DEFAULTS as CALTECH
from pipelines.config import RunConfig
from trainer.config import TrainConfig

LOOK_AHEAD_SEEDS = tuple(range(6))  # [L]
DYNAMICS_SEEDS = tuple(range(5))  # [D]
FIVE = tuple(range(5))

# [L]'s data sets with its networks, batches and candidates.
PAPER_L = {
    "MNIST": mnist.DEFAULTS,
    "SVHN": svhn.DEFAULTS,
    "CIFAR-10": cifar10.DEFAULTS,
    "CIFAR-100": cifar100.DEFAULTS,
}


def small(
    script: RunConfig, image_size: int = 14, initial: int = 100, query: int = 20
) -> RunConfig:
    """A data set of small images, a residual network of some 15,000 parameters, 5 queries."""
    return dataclasses.replace(
        script,
        image_size=image_size,
        initial=initial,
        query=query,
        cycles=5,
        subset=1000,
        network_args=("stages=1", "widen=1"),
    )


SMALL = {
    "MNIST 14×14": small(mnist.DEFAULTS),
    "Fashion-MNIST 14×14": small(fashion_mnist.DEFAULTS),
}
# Harder images, and so twice the labels.
SMALL_CIFAR10 = {"CIFAR-10 16×16": small(cifar10.DEFAULTS, image_size=16, initial=200, query=40)}

# For strategies that go through the candidates one by one, or whose kernels cost most: fewer of
# them, shorter runs and trainings.
SLOW = {
    "MNIST 14×14, 300 candidates": dataclasses.replace(
        SMALL["MNIST 14×14"],
        subset=300,
        cycles=3,
        train=TrainConfig(min_steps=600),
    )
}

# [D]: Adam and cross-entropy, stopped at 0.99 or after 200 epochs, nothing augmented, whole pool.
_DYNAMICS = TrainConfig(
    loss="cross_entropy", optimiser="adam", weight_decay=0.0, min_steps=0, extensions=0
)


def of_dynamics(script: RunConfig, network: str) -> RunConfig:
    """[D]'s protocol: 500 labels and a budget of 1,000, in one round unless a method says else."""
    return dataclasses.replace(
        script,
        initial=500,
        query=1000,
        cycles=1,
        subset=None,
        network=network,
        network_args=(),
        train=_DYNAMICS,
    )


PAPER_D = {
    "CIFAR-10, CNN": of_dynamics(cifar10.DEFAULTS, "cnn"),
    "CIFAR-10, ResNet18": of_dynamics(cifar10.DEFAULTS, "resnet18"),
    "SVHN, VGG11": of_dynamics(svhn.DEFAULTS, "vgg11_bn"),
    "Caltech-101, ResNet18": of_dynamics(CALTECH, "resnet18"),
}


def small_dynamics(script: RunConfig, image_size: int = 14) -> RunConfig:
    """The same training of a residual network of some 15,000 parameters: 100 labels, 200 more.

    It reaches 0.99 in seconds; the CNN was still at 0.92 after 200 epochs of 100 labels (one run,
    seed 0).
    """
    return dataclasses.replace(
        of_dynamics(script, "wide_resnet"),
        network_args=("stages=1", "widen=1"),
        image_size=image_size,
        initial=100,
        query=200,
        subset=1000,
    )


SMALL_D = {
    "MNIST 14×14, cross-entropy": small_dynamics(mnist.DEFAULTS),
    "Fashion-MNIST 14×14, cross-entropy": small_dynamics(fashion_mnist.DEFAULTS),
}


def theory(run: RunConfig, queries: tuple[int, ...], subset: int) -> TheoryConfig:
    """The measurement of dynamicAL's theory on the network that such a run begins with."""
    return TheoryConfig(
        dataset=run.dataset,
        initial=run.initial,
        subset=subset,
        queries=queries,
        figures=("mmd", "tau", "envelope", "ratio"),
        network=run.network,
        network_args=run.network_args,
        image_size=run.image_size,
        train=run.train,
    )


_SMALL_CIFAR = {"CIFAR-10 16×16, cross-entropy": small_dynamics(cifar10.DEFAULTS, image_size=16)}
SMALL_THEORY = {
    name: theory(run, (25, 50, 100), 500) for name, run in (SMALL_D | _SMALL_CIFAR).items()
}
PAPER_THEORY = {
    "CIFAR-10, CNN": theory(PAPER_D["CIFAR-10, CNN"], (250, 500, 1000), 6000),
}
