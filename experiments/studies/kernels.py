"""[P]'s study: how far the kernel of the sum of the logits stands for the full one, by width."""

import dataclasses

from experiments.approximation.config import ApproximationConfig
from experiments.statistics.claims import falls
from experiments.studies.study import Grid, Study
from experiments.studies.subjects import DYNAMICS_SEEDS, FIVE
from trainer.config import TrainConfig

_OWN = "experiments.approximation.networks:"
_BASE = ApproximationConfig(
    dataset="mnist",
    image_size=14,
    initial=60,
    test=60,
    train=TrainConfig(optimiser="adam", min_steps=500, epochs=150, weight_decay=0.0),
)


def _of(
    base: ApproximationConfig, network: str, argument: str, *widths: int
) -> ApproximationConfig:
    return dataclasses.replace(base, network=network, width_argument=argument, widths=widths)


_SMALL = {
    "MNIST 14×14, fully connected": _of(_BASE, f"{_OWN}fcn", "width", 64, 128, 256, 512, 1024),
    "MNIST 14×14, convolutions": _of(_BASE, f"{_OWN}convnet", "width", 16, 32, 64),
    "MNIST 14×14, wide ResNet": dataclasses.replace(
        _of(_BASE, "wide_resnet", "widen", 1, 2, 4),
        network_args=("stages=1",),
        train=TrainConfig(min_steps=500),
    ),
}
# For a GPU: of [P] the data set and the families of networks; counts and widths are chosen here.
_LARGE = dataclasses.replace(
    _BASE, dataset="cifar10", image_size=None, initial=1000, test=500, memory_gib=60.0
)
_PAPER = {
    "CIFAR-10, fully connected": _of(_LARGE, f"{_OWN}fcn", "width", 128, 256, 512, 1024, 2048),
    "CIFAR-10, convolutions": _of(_LARGE, f"{_OWN}convnet", "width", 32, 64, 128, 256),
    "CIFAR-10, wide ResNet": dataclasses.replace(
        _of(_LARGE, "wide_resnet", "widen", 1, 2, 4, 8, 10), network_args=("stages=2",)
    ),
}
_STATES = (("initial", "at initialisation"), ("trained", "after training"))

APPROXIMATION = Study(
    name="approximation",
    title="One number in place of a block",
    source="[P], its figures by width",
    question=(
        "Does the kernel of the sum of the logits come near the full one as the network grows?"
    ),
    paper=(
        "The relative Frobenius error, that of the largest eigenvalue and that of kernel "
        "regression fall as the width grows, at initialisation and after training."
    ),
    small=(Grid(_SMALL, {"kinds": {}}, FIVE),),
    paper_size=(Grid(_PAPER, {"kinds": {}}, DYNAMICS_SEEDS),),
    claims=tuple(
        claim
        for state, words in _STATES
        for claim in (
            falls(
                "frobenius error, sum",
                state=state,
                text=f"The relative Frobenius error falls with the width {words}.",
            ),
            falls(
                "largest eigenvalue error, sum",
                state=state,
                text=f"The error of the largest eigenvalue falls with the width {words}.",
            ),
            falls(
                "regression error, sum, ridge 0, zero",
                state=state,
                text=f"With λ = 0 the error of kernel regression falls with the width {words}.",
            ),
        )
    ),
)
