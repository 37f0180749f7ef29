"""Train a network on the labelled images until the labels are fitted.

Optimiser and schedule are fresh at every call, so a warm start is the same call on the same network
(docs/mathematics.md, 5). Look-ahead scores assume fitted labels, so training goes on until they
are, within limits, and the result says whether it got there:

1. A floor on the steps of a schedule (`TrainConfig.plan`). With 100 labels, one batch an epoch
   makes OneCycle climb to its rate in a few dozen steps, faster than a wide network adapts.
2. A schedule that diverges (a loss that is not finite, or above twice that of answering zeros or of
   the start once half of it is over) restarts from its first weights at half the rate.
3. A schedule that ends before the labels are fitted is followed by another at half the rate. It
   continues from there, but from the schedule's first weights if the network died: ReLUs that a
   high rate has closed for good, as happens with two classes, have no gradient to come back by.

Crops and flips are those of torchvision's RandomCrop and RandomHorizontalFlip for a whole batch,
drawn from the passed generator alone; images that are scored are never augmented.

The recipe `finetune` has a head fitted to convergence in place of all this (`trainer.finetune`),
and then, if more is trainable or images are augmented, one schedule of Adam at a small rate that
falls to zero. It trains in eval mode, so that what is trained is the function that is mirrored.
"""

import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from jaxtyping import Float, Int64, Integer, Num
from torch import nn
from torch.nn import functional

from trainer.batchnorm import BATCH_NORMS, reestimate
from trainer.config import Loss, TrainConfig
from trainer.errors import FitError
from trainer.finetune import HeadFit, fit_head
from trainer.predict import NotFiniteError, flops, forward, logits, placement, to_tensor
from trainer.randomness import seeded
from trainer.threads import limited
from trainer.trainable import is_frozen, train_mode


def crop(
    images: Float[torch.Tensor, "batch channels height width"], rng: np.random.Generator
) -> Float[torch.Tensor, "batch channels height width"]:
    """Shift each image by up to an eighth of its size: 4 pixels at 28×28 and 32×32 ([L]).

    What comes in at an edge repeats the edge, which is black on digits; zero would be the mean
    colour of normalised images.

    Args:
        images: normalised.
        rng: draws two shifts an image.
    """
    count, _, height, width = images.shape
    top, left = _padding(height), _padding(width)
    padded = functional.pad(images, (left, left, top, top), mode="replicate")
    rows = _positions(rng.integers(0, 2 * top + 1, count), height)
    columns = _positions(rng.integers(0, 2 * left + 1, count), width)
    # One gather for the whole batch; the channel axis goes last while indexing and comes back.
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(count, device=images.device)[:, None, None],
        rows.to(images.device)[:, :, None],
        columns.to(images.device)[:, None, :],
    ]
    return picked.permute(0, 3, 1, 2)


def flip(
    images: Float[torch.Tensor, "batch channels height width"], rng: np.random.Generator
) -> Float[torch.Tensor, "batch channels height width"]:
    """Mirror each image left to right with probability one half.

    Args:
        images: normalised.
        rng: draws one number an image.
    """
    mirrored = torch.tensor(rng.random(len(images)) < 0.5, device=images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _padding(size: int) -> int:
    return max(1, round(size / 8))


def _positions(shifts: np.ndarray, size: int) -> torch.Tensor:
    return torch.tensor(shifts[:, None] + np.arange(size))


class AuxiliaryModule(nn.Module):
    """A module trained with the network, in a parameter group of its own."""

    def rate(self, network_rate: float) -> float:
        """The highest learning rate of its group, where that of the network's is given."""
        raise NotImplementedError

    def watch(self, network: nn.Module) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """Within it, one forward pass of the network fills the sequence."""
        raise NotImplementedError

    def added(
        self, seen: Sequence[torch.Tensor], losses: torch.Tensor, done: float
    ) -> torch.Tensor:
        """Scalar added to the loss of a batch.

        Args:
            seen: filled by `watch` for this batch.
            losses: (batch,), the loss of each image, detached.
            done: the part of the planned schedule that is over, from 0; 1 in extensions.
        """
        raise NotImplementedError


def mean_loss(
    answers: Float[torch.Tensor, "batch classes"],
    targets: Int64[torch.Tensor, " batch"],
    loss: Loss,
) -> Float[torch.Tensor, ""]:
    """Squared error of logits to one-hot classes, mean over both axes ([L]), or cross-entropy."""
    if loss == "cross_entropy":
        return functional.cross_entropy(answers, targets)
    return functional.mse_loss(answers, functional.one_hot(targets, answers.shape[1]).to(answers))


def losses(
    answers: Float[torch.Tensor, "batch classes"],
    targets: Int64[torch.Tensor, " batch"],
    loss: Loss,
) -> Float[torch.Tensor, " batch"]:
    """The loss of each image, whose mean is `mean_loss`."""
    if loss == "cross_entropy":
        return functional.cross_entropy(answers, targets, reduction="none")
    wanted = functional.one_hot(targets, answers.shape[1]).to(answers)
    return (answers - wanted).square().mean(dim=1)


def accuracy(
    answers: Float[np.ndarray, "labelled classes"], labels: Integer[np.ndarray, " labelled"]
) -> float:
    """Share of images whose largest logit is their label's."""
    return float(np.mean(answers.argmax(axis=1) == labels))


def residual_rms(
    answers: Float[np.ndarray, "labelled classes"],
    labels: Integer[np.ndarray, " labelled"],
    loss: Loss,
) -> float:
    """Root mean square of one-hot minus logits (l2), or minus their softmax (cross_entropy)."""
    given = scipy.special.softmax(answers, axis=1) if loss == "cross_entropy" else answers
    return float(np.sqrt(np.mean((np.eye(answers.shape[1])[labels] - given) ** 2)))


def _epochs(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    rate: float,
    rng: np.random.Generator,
    auxiliary_module: AuxiliaryModule | None,
    done: float | None,
) -> Iterator[tuple[float, float]]:
    """Train in place with a fresh optimiser; yield after each epoch, in eval mode.

    What is yielded is the mean over the images of the network's own loss, and of the auxiliary
    module's. `rate` is the highest of the schedule; `done` is the share of all training that is
    over, for the auxiliary module, and by default that of this schedule.
    """
    pixels = to_tensor(images, network)
    targets = torch.tensor(labels, device=pixels.device, dtype=torch.int64)
    batches, count = config.plan(len(labels))
    optimiser, scheduler = _optimiser(network, config, rate, batches * count, auxiliary_module)
    for epoch in range(count):
        train_mode(network)
        total, extra = torch.zeros(2, device=pixels.device)
        if auxiliary_module is not None:
            auxiliary_module.train()
        for chosen in np.array_split(rng.permutation(len(labels)), batches):
            where = torch.tensor(chosen, device=pixels.device)
            batch = _augmented(pixels[where], config, rng)
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
            watched = (
                nullcontext(()) if auxiliary_module is None else auxiliary_module.watch(network)
            )
            half = config.precision == "bfloat16"
            with torch.autocast(batch.device.type, torch.bfloat16, half), watched as seen:
                answers = forward(network, batch)
            if half:  # losses are sums of many small numbers
                answers, seen = answers.float(), [features.float() for features in seen]
            loss = mean_loss(answers, targets[where], config.loss)
            total += loss.detach() * len(chosen)
            if auxiliary_module is not None:
                each = losses(answers.detach(), targets[where], config.loss)
                added = auxiliary_module.added(seen, each, epoch / count if done is None else done)
                extra += added.detach() * len(chosen)
                loss = loss + added
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if scheduler is not None:
                scheduler.step()
        network.eval()
        if auxiliary_module is not None:
            auxiliary_module.eval()
        yield total.item() / len(labels), extra.item() / len(labels)


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Reorder the convolutions' weights in memory: channels last suits a CPU."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _optimiser(
    network: nn.Module,
    config: TrainConfig,
    rate: float,
    steps: int,
    auxiliary_module: AuxiliaryModule | None,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """Parameters of the network in one group, of the auxiliary module in another; schedule."""
    groups = [{"params": _trained(network), "lr": rate}]
    if auxiliary_module is not None:
        groups.append({"params": _trained(auxiliary_module), "lr": auxiliary_module.rate(rate)})
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


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _augmented(batch: torch.Tensor, config: TrainConfig, rng: np.random.Generator) -> torch.Tensor:
    if config.augmentation in ("auto", "none"):
        return batch
    shifted = crop(batch, rng)
    return flip(shifted, rng) if config.augmentation == "flip_crop" else shifted


def _check(network: nn.Module, images: np.ndarray, labels: np.ndarray, config: TrainConfig) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise FitError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; they must be one whole "
            "number an image, the index of its class"
        )
    if len(images) != len(labels):
        raise FitError(f"there are {len(images)} images and {len(labels)} labels; label each image")
    if len(labels) == 0:
        raise FitError("the labelled set is empty; label at least two images before training")
    finite = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        raise FitError(
            f"image {int(np.argmin(finite))} of the labelled set (counted from 0) has pixels that "
            "are not finite; leave it out or mend it"
        )
    if not any(p.requires_grad for p in network.parameters()):
        raise FitError(
            "the network has no trainable parameters; set requires_grad on those to train"
        )
    if config.augmentation in ("crop", "flip_crop") and images.ndim != 4:
        raise FitError(
            f"augmentation is {config.augmentation} and the images have shape {images.shape}: only "
            "(images, channels, height, width) can be shifted; use augmentation none"
        )


def _check_batches(network: nn.Module, labels: np.ndarray, config: TrainConfig) -> None:
    smallest = len(labels) // config.plan(len(labels))[0]
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and not is_frozen(m)]
    if smallest < 2 and norms:
        raise FitError(
            f"a batch of {smallest} image cannot train BatchNorm, whose statistics need several: "
            "label at least two images, and set batch_size and smallest_batch to 2 or more"
        )


def _check_range(labels: np.ndarray, classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise FitError(
            f"label {int(labels[wrong[0]])} of image {int(wrong[0])} of the labelled set is out of "
            f"range: the network has {classes} classes, 0 to {classes - 1}"
        )


_CHECKED = 128  # images at a time, when it is asked whether labels are fitted

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps expected and a few words, at most ten times a second."""


class FitResult(NamedTuple):
    """Outcome of a training; the weights are in the network."""

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
    images: Num[np.ndarray, "labelled ..."],
    labels: Integer[np.ndarray, " labels"],
    config: TrainConfig,
    rng: np.random.Generator,
    progress: Progress | None = None,
    auxiliary_module: AuxiliaryModule | None = None,
) -> FitResult:
    """Train in place on the labelled images; afterwards the network is in eval mode.

    The same weights, generator and machine give bit-identical results. An auxiliary module is
    trained along by the same optimiser, in a group of its own; it changes no other draw, and losses
    that are reported are the network's own.

    Args:
        network: trained on its own device; the weights that it comes with are the start.
        images: normalised, floating point; or rows, as a network takes them that is the rest of
            another.
        labels: class of each image, from 0.
        config: see `TrainConfig`.
        rng: draws the order of the images, the augmentation and the network's dropout.
        progress: called as training goes on.
        auxiliary_module: a module trained together with the network, such as
            `trainer.networks.loss_prediction.LossPrediction`, on the network's device; its weights
            go back to their start with the network's.

    Raises:
        FitError: images and labels that do not belong together, none at all, one that is not
            finite, a label out of range, nothing to train, batches of one image for BatchNorm,
            or training that diverges at every rate; then the network has its starting weights.
        DataError: the images are not floating point.
        NetworkError: the network does not return one row of finite logits an image.
    """
    network.eval()
    if config.recipe == "finetune":
        _check(network, images, labels, config)
        _check_range(labels, logits(network, images[:2]).shape[1])
        if auxiliary_module is not None:
            raise FitError(
                "the recipe finetune trains no module along with the network: give the recipe "
                "scratch"
            )
        return _finetuned(network, images, labels, config, rng, _throttled(progress))
    _check(network, images, labels, config)
    _check_batches(network, labels, config)
    _lay_out(network, torch.channels_last)
    batch = -(-len(labels) // config.plan(len(labels))[0])
    of_a_step = lambda: 3 * batch * flops(network, images[:1])  # a backward pass costs two forward
    try:
        with limited(of_a_step):
            return _fit(
                network, images, labels, config, rng, _throttled(progress), auxiliary_module
            )
    finally:
        network.eval()
        _lay_out(network, torch.contiguous_format)


def _finetuned(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    rng: np.random.Generator,
    report: Progress,
) -> FitResult:
    """The head to convergence; then all that is trainable, if that is more, at a small rate."""
    device, _ = placement(network)
    targets = torch.tensor(labels, device=device, dtype=torch.int64)
    own_loss = lambda answers: mean_loss(answers, targets, config.loss)
    head = fit_head(network, images, own_loss, config.loss, config.penalty)
    history, steps = list(head.history), 0
    report(len(history), len(history), f"loss {history[-1]:.4f}" if history else "")
    how = f"{len(history)} steps of L-BFGS on the head"
    if not head.converged:
        how += ", which did not converge"
    if head.rest or config.augmentation not in ("auto", "none"):
        small = replace(config, batch_size=_SMALL.batch, smallest_batch=1, epochs=_SMALL.epochs)
        small = replace(small, min_steps=_SMALL.steps)
        batches, epochs = small.plan(len(labels))
        passes = _small_steps(network, (images, targets), small, head, rng)
        for done, average in enumerate(passes, start=1):
            history.append(average)
            report(done * batches, epochs * batches, f"loss {average:.4f}")
        steps = epochs * batches
        how += f" and {steps} of Adam on all that is trained"
    answers = logits(network, images)
    train_accuracy = accuracy(answers, labels)
    residual = residual_rms(answers, labels, config.loss)
    fitted = train_accuracy >= config.target_accuracy
    stopped = (
        f"{'fitted' if fitted else 'NOT fitted'}: train accuracy {train_accuracy:.3f} (target "
        f"{config.target_accuracy:g}), residual {residual:.3g}, after {how}"
    )
    report(len(history), len(history), stopped)
    return FitResult(
        steps=len(head.history) + steps,
        epochs=len(history),
        learning_rate=_SMALL.rate if steps else 0.0,
        train_accuracy=train_accuracy,
        residual_rms=residual,
        loss_history=tuple(history),
        fitted=fitted,
        stopped=stopped,
    )


class _Small(NamedTuple):
    """Adam's schedule for the parameters of a pretrained network."""

    rate: float = 1e-4
    batch: int = 32
    epochs: int = 20
    steps: int = 200


_SMALL = _Small()


def _small_steps(
    network: nn.Module,
    data: tuple[np.ndarray, torch.Tensor],
    config: TrainConfig,
    head: HeadFit,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Train in place in eval mode, the rate falling to zero as a cosine; yield each epoch's loss.

    What of the head was penalised keeps its penalty.
    """
    images, targets = data
    pixels = to_tensor(images, network)
    batches, epochs = config.plan(len(targets))
    apart = {id(parameter) for parameter in head.penalised}
    others = [parameter for parameter in _trained(network) if id(parameter) not in apart]
    groups = [{"params": others}, {"params": list(head.penalised), "weight_decay": head.decay}]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], _SMALL.rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches * epochs)
    half = config.precision == "bfloat16"
    for _ in range(epochs):
        total = torch.zeros((), device=pixels.device)
        for chosen in np.array_split(rng.permutation(len(targets)), batches):
            where = torch.tensor(chosen, device=pixels.device)
            batch = _augmented(pixels[where], config, rng)
            with torch.autocast(batch.device.type, torch.bfloat16, half):
                answers = forward(network, batch)
            loss = mean_loss(answers.float() if half else answers, targets[where], config.loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            total += loss.detach() * len(chosen)
        yield total.item() / len(targets)


def _fit(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    rng: np.random.Generator,
    report: Progress,
    auxiliary_module: AuxiliaryModule | None,
) -> FitResult:
    """Schedule after schedule until the labels are fitted or a limit is reached."""
    answers = logits(network, images)
    _check_range(labels, classes=answers.shape[1])
    ceiling = 2 * max(_loss(guess, labels, config) for guess in (0 * answers, answers))
    rate = config.peak_learning_rate
    history: list[float] = []
    restarts = extensions = 0
    going_on = False
    modules = nn.ModuleList([m for m in (network, auxiliary_module) if m is not None])
    while True:
        start = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
        passes = _epochs(
            network, images, labels, config, rate, rng, auxiliary_module, 1.0 if going_on else None
        )
        with seeded(rng, placement(network)[0]):
            answers = _schedule(network, images, labels, config, ceiling, passes, history, report)
        if answers is None:
            modules.load_state_dict(start)
            if restarts == config.restarts:
                raise FitError(
                    f"training diverged {restarts + 1} times, last with learning rate {rate:.3g} "
                    f"and an epoch's loss of {history[-1]:.3g}; the network has the weights again "
                    "that it came with: lower learning_rate, or look at the images' normalisation"
                )
            restarts += 1
        else:
            train_accuracy = accuracy(answers, labels)
            fitted = train_accuracy >= config.target_accuracy
            if fitted or extensions == config.extensions:
                break
            extensions += 1
            if _dead(answers):
                modules.load_state_dict(start)
            else:
                going_on = True
        rate /= 2

    steps = len(history) * config.plan(len(labels))[0]
    stopped = (
        f"{'fitted' if fitted else 'NOT fitted'}: train accuracy {train_accuracy:.3f} (target "
        f"{config.target_accuracy:g}) after {steps} steps in {1 + extensions} schedule(s) and "
        f"{restarts} restart(s), last learning rate {rate:.3g}"
    )
    report(steps, steps, stopped)
    return FitResult(
        steps=steps,
        epochs=len(history),
        learning_rate=rate,
        train_accuracy=train_accuracy,
        residual_rms=residual_rms(answers, labels, config.loss),
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
    passes: Iterator[tuple[float, float]],
    history: list[float],
    report: Progress,
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
            report(len(history) * batches, expected, f"loss {loss:.4f}")
            # deep networks overshoot while the rate climbs and come back; later it is for good
            if not math.isfinite(loss + added) or (2 * epoch >= count and loss > ceiling):
                return None
            if config.stopping_rule == "fitted" and _fits(network, images, labels, config):
                break
        if config.statistics == "labelled":
            reestimate(network, images)
        return logits(network, images)
    except NotFiniteError:
        return None


def _fits(network: nn.Module, images: np.ndarray, labels: np.ndarray, config: TrainConfig) -> bool:
    """True if the accuracy on the labelled images reaches its target.

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
    """True if most images get the very same logits, those of the biases alone."""
    same = np.isclose(answers, np.median(answers, axis=0), rtol=1e-5, atol=1e-7).all(axis=1)
    return bool(2 * same.sum() > len(answers) > 1)


def _loss(answers: np.ndarray, labels: np.ndarray, config: TrainConfig) -> float:
    targets = torch.tensor(labels, dtype=torch.int64)
    return mean_loss(torch.tensor(answers), targets, config.loss).item()


def _throttled(progress: Progress | None) -> Progress:
    """The same function, skipping calls less than a tenth of a second after the last."""
    last = -1.0

    def throttled(done: int, expected: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if progress is not None and (now - last >= 0.1 or done >= expected):
            last = now
            progress(done, expected, text)

    return throttled


# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30


def keep_freed_blocks() -> bool:
    """Raise glibc's thresholds for handing memory back to 1 GiB; call it before training starts.

    Returns:
        Whether it was done: only on Linux with glibc; elsewhere nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(
        libc.mallopt(option, _KEPT_BYTES) == 1 for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)
    )
