"""Settings of a training and of LL4AL's loss prediction module, and arguments of a network.

Defaults of the training are those of [L] (docs/mathematics.md, 5), with a floor on the
optimiser's steps that few labels need.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from trainer.errors import NetworkError, TrainerError

Loss = Literal["l2", "cross_entropy"]
Optimiser = Literal["sgd", "adam"]
Stop = Literal["schedule", "fitted"]
Augmentation = Literal["auto", "none", "crop", "flip_crop"]
Statistics = Literal["running", "labelled"]
Precision = Literal["float32", "bfloat16"]
Recipe = Literal["scratch", "finetune"]
Init = Literal["previous", "initial", "pretrained"]


# Chosen by accuracy and residual: Caltech-101, nine classes, 36 labels, EfficientNet-lite0.
_PENALTY: Mapping[Loss, float] = MappingProxyType({"l2": 0.3, "cross_entropy": 0.001})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one call of `trainer.fit.fit`."""

    recipe: Recipe | None = None
    """scratch: by the schedules below ([L]). finetune: `trainer.finetune`, which reads loss,
    augmentation, precision, target_accuracy and head_penalty alone: in eval mode throughout, the
    head zeroed and fitted first, to convergence; then, at a small rate, whatever else is trained.
    By default finetune for a pretrained network in a run or measurement, scratch elsewhere."""
    init: Init | None = None
    """Weights that a round of a run starts from. previous: those of the last round; initial: those
    of the run's start; pretrained: the same with a zeroed head. By default pretrained for a
    pretrained network that is finetuned, previous elsewhere."""
    head_penalty: float | None = None
    """Of finetune: how much large weights of the head cost, μ of `trainer.finetune`, in units of
    the spread of its inputs. By default 0.001 for cross_entropy and 0.3 for l2."""
    loss: Loss = "l2"
    """l2: squared error to one-hot labels, mean over batch and classes ([L]); or cross-entropy."""
    optimiser: Optimiser = "sgd"
    """sgd: momentum and a OneCycle schedule ([L]); adam: a constant rate ([D])."""
    learning_rate: float | None = None
    """The highest rate of the schedule; by default 1.25 for sgd and 0.001 for adam."""
    momentum: float = 0.9
    """Of sgd."""
    nesterov: bool = True
    """Of sgd."""
    weight_decay: float = 1e-4
    """Of either optimiser, on every parameter."""
    batch_size: int = 128
    """The largest batch."""
    smallest_batch: int = 16
    """The floor on steps cuts no batch below this: BatchNorm needs some images to count on."""
    epochs: int = 200
    """Passes over the labelled set in one schedule, or more where `min_steps` asks for them."""
    min_steps: int = 1000
    """The floor on the steps of a schedule: by smaller batches first, then by more epochs."""
    stop: Stop | None = None
    """schedule: at its end; fitted: as soon as `target_accuracy` is reached, at the end of an
    epoch. By default schedule for l2 ([L]) and fitted for cross_entropy ([D])."""
    target_accuracy: float = 0.99
    """Eval-mode accuracy on the labelled set, not augmented, from which it counts as fitted."""
    extensions: int = 2
    """Further schedules, each at half the rate, for a labelled set that is not fitted; from the
    weights at which the last one began if the network died in it."""
    restarts: int = 6
    """How often a schedule that diverges is restarted at half the rate."""
    augmentation: Augmentation = "auto"
    """crop: shifts by up to an eighth of the size; flip_crop: and mirror images; auto: the data
    set's in a run or measurement, none elsewhere."""
    statistics: Statistics = "running"
    """Of BatchNorm after training: running averages, or recomputed on the labelled images."""
    precision: Precision = "float32"
    """Of the products of a training step. bfloat16 takes less time on hardware that has it;
    weights, optimiser and loss stay in float32, and so do the answers of a trained network."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TrainerError: naming the field, its value and the values allowed.
        """
        for name, choices in (
            ("loss", get_args(Loss)),
            ("optimiser", get_args(Optimiser)),
            ("augmentation", get_args(Augmentation)),
            ("statistics", get_args(Statistics)),
            ("precision", get_args(Precision)),
            ("stop", (None, *get_args(Stop))),
            ("recipe", (None, *get_args(Recipe))),
            ("init", (None, *get_args(Init))),
        ):
            value = getattr(self, name)
            _require(value in choices, name, value, f"one of {', '.join(map(str, choices))}")
        for name in ("batch_size", "smallest_batch", "epochs"):
            _require(_whole(self, name, 1), name, getattr(self, name), "a whole number from 1")
        for name in ("min_steps", "extensions", "restarts"):
            _require(_whole(self, name, 0), name, getattr(self, name), "a whole number from 0")
        rate = self.peak_learning_rate
        _require(0 < rate < math.inf, "learning_rate", rate, "positive and finite")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(
            0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or positive"
        )
        _require(
            0 < self.target_accuracy <= 1, "target_accuracy", self.target_accuracy, "in (0, 1]"
        )
        penalty = self.penalty
        _require(0 <= penalty < math.inf, "head_penalty", penalty, "0 or positive")
        if self.optimiser == "sgd" and self.nesterov and self.momentum == 0:
            raise TrainerError(
                "nesterov is true with momentum 0; give a momentum or set nesterov to false"
            )

    @property
    def peak_learning_rate(self) -> float:
        """The highest rate of the schedule; by default the optimiser's."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1.25 if self.optimiser == "sgd" else 1e-3

    @property
    def penalty(self) -> float:
        """Of the head's weights in finetune; by default the loss's."""
        if self.head_penalty is not None:
            return self.head_penalty
        return _PENALTY[self.loss]

    @property
    def stopping_rule(self) -> Stop:
        """When a schedule ends; by default the loss's."""
        if self.stop is not None:
            return self.stop
        return "schedule" if self.loss == "l2" else "fitted"

    def plan(self, labelled: int) -> tuple[int, int]:
        """One schedule over a labelled set: (batches an epoch, epochs).

        With one batch of 100 images an epoch, OneCycle climbs to its rate in too few steps and the
        loss of a wide network diverges; smaller batches give more steps for the same arithmetic.
        So the floor on steps is met by smaller batches as far as `smallest_batch` allows, and only
        then by more epochs.

        Args:
            labelled: how many images, at least 1.
        """
        for_size = math.ceil(labelled / self.batch_size)
        for_steps = math.ceil(self.min_steps / self.epochs)
        batches = max(for_size, min(for_steps, labelled // self.smallest_batch), 1)
        return batches, max(self.epochs, math.ceil(self.min_steps / batches))


@dataclass(frozen=True)
class LossPredictionConfig:
    """Settings of LL4AL's loss prediction module (`trainer.networks.loss_prediction`).

    Attributes:
        taps: modules of the network whose outputs it reads, by the names that named_modules gives;
            none takes the stages of the papers' networks, and of your own network the last module
            at each resolution.
        width: to which each of these outputs, averaged over positions, is projected.
        margin: of the ranking loss, ξ.
        weight: of the ranking loss beside the network's own, λ; with 0 the network is trained as
            if alone, and the module learns nothing.
        detach: part of the schedule's epochs after which its gradient no longer enters the network.
        learning_rate: the highest of the module's own, never above the network's. Where it is too
            high all predictions become the same, and rank_correlation null in the record.
        grad_scale: share of the module's gradient at the feature maps that enters the network; by
            default all of it, and in runs with l2, which is a mean over C classes, 1/C.
    """

    taps: tuple[str, ...] = ()
    width: int = 128
    margin: float = 1.0
    weight: float = 1.0
    detach: float = 0.6
    learning_rate: float = 0.01
    grad_scale: float | None = None


def _whole(config: TrainConfig, name: str, least: int) -> bool:
    value = getattr(config, name)
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise TrainerError(f"{name} is {value!r}; it must be {wanted}")


TIMM, TORCHVISION = "timm", "torchvision"
RANDOM = "none"  # as weights: a random draw


def source_of(network: str) -> tuple[str, str] | None:
    """The library and the name in it of `timm:NAME` or `torchvision:NAME`; None for others."""
    library, colon, name = network.partition(":")
    return (library, name) if colon and library in (TIMM, TORCHVISION) else None


def is_pretrained(network: str, weights: str | None) -> bool:
    """Whether a network of this name starts from weights that were trained before.

    Args:
        network: a name as of `trainer.networks.build`.
        weights: as of `trainer.networks.build_from`.
    """
    if weights is not None:
        return weights != RANDOM
    return source_of(network) is not None


_LAST = re.compile(r"last:([1-9][0-9]*)")


def last_blocks(trainable: str) -> int | None:
    """N of `last:N`; None for `head`, `all` and regular expressions.

    Raises:
        NetworkError: it is none of these.
    """
    if trainable in ("head", "all"):
        return None
    if trainable.startswith("last:"):
        found = _LAST.fullmatch(trainable)
        if found is None:
            raise NetworkError(
                f"trainable is {trainable!r}; after last: comes the number of blocks, such as "
                "last:2"
            )
        return int(found[1])
    try:
        re.compile(trainable)
    except re.error as error:
        raise NetworkError(
            f"trainable is {trainable!r}, which is neither head, all nor last:N, and no regular "
            f"expression of parameters' names: {error}"
        ) from error
    return None


Argument = int | float | str


def parse_arguments(texts: Iterable[str]) -> dict[str, Argument]:
    """Arguments of a network from texts like `widen=2`; numbers become numbers.

    Raises:
        NetworkError: a text is not of that form.
    """
    return dict(_name_and_value(text) for text in texts)


def _name_and_value(argument: str) -> tuple[str, Argument]:
    name, equals, text = argument.partition("=")
    if not (name and equals and text):
        raise NetworkError(
            f"network argument {argument!r} is not of the form name=value, such as widen=2."
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return name, text
    return name, value if isinstance(value, int | float) else text
