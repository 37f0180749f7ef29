"""Does training fit its labels? First and second cycles over many seeds, against fixed steps.

    python -m benchmarks.fit_reliability --data-dir DIR --seeds 20 --widen 2

For each seed a WideResNet of one stage is trained with L2 loss on uniformly drawn labels by
`trainer.fit` (`rule`), then again from those weights with more labels (`rule, warm`), and once from
the same first weights by 300 full-batch steps of the same optimiser and schedule with no rule at
all (`300 steps`). All three run in one process, one after another, on one thread.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import tyro
from torch import nn
from torch.nn import functional

from trainer import data
from trainer import fit as fit_module
from trainer.config import Augmentation
from trainer.fit import TrainConfig, fit, keep_freed_blocks
from trainer.networks import build
from trainer.predict import logits

NAIVE_STEPS = 300


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    data_dir: Path | None = None
    dataset: str = "mnist"
    widen: int = 2
    seeds: int = 20
    first_seed: int = 0
    compared: int = 20
    """How many of the seeds are also trained a second cycle and by fixed steps."""
    initial: int = 100
    query: int = 20
    augmentation: Augmentation = "crop"
    test_images: int = 2000
    """Drawn once, with one seed for all."""
    workers: int = 2
    """Processes, of one thread each."""


class Row(NamedTuple):
    """One network, trained."""

    seed: int
    training: str
    steps: int
    train: float
    residual: float
    test: float
    seconds: float


def measure(settings: Settings, seed: int) -> list[Row]:
    """The rows of one seed: one, or three where it is compared."""
    torch.set_num_threads(1)
    keep_freed_blocks()
    dataset = data.load(settings.dataset, settings.data_dir, download=False)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(dataset.train_labels))[: settings.initial + settings.query]
    images = dataset.normalise(dataset.train_images[drawn])
    labels = dataset.train_labels[drawn]
    tests = np.random.default_rng(0).permutation(len(dataset.test_labels))[: settings.test_images]
    test_images = dataset.normalise(dataset.test_images[tests])
    shape = dataset.train_images.shape[1:]
    network = build("wide_resnet", shape, dataset.classes, rng, {"widen": settings.widen})
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = TrainConfig(augmentation=settings.augmentation)
    rows = []

    def note(training: str, count: int, began: float, steps: int) -> None:
        seconds = time.perf_counter() - began
        answers = logits(network, images[:count])
        test = np.mean(logits(network, test_images).argmax(1) == dataset.test_labels[tests])
        train = np.mean(answers.argmax(1) == labels[:count])
        residual = np.sqrt(np.mean((np.eye(dataset.classes)[labels[:count]] - answers) ** 2))
        rows.append(Row(seed, training, steps, float(train), float(residual), float(test), seconds))

    compared = seed - settings.first_seed < settings.compared
    cycles = (("rule", settings.initial), ("rule, warm", len(drawn)))
    for training, count in cycles if compared else cycles[:1]:
        began = time.perf_counter()
        result = fit(network, images[:count], labels[:count], config, rng)
        note(training, count, began, result.steps)
    if not compared:
        return rows
    network.load_state_dict(start)
    began = time.perf_counter()
    first = slice(settings.initial)
    fixed_steps(network, images[first], labels[first], dataset.classes, config, rng)
    note(f"{NAIVE_STEPS} steps", settings.initial, began, NAIVE_STEPS)
    return rows


def fixed_steps(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    config: TrainConfig,
    rng: np.random.Generator,
) -> None:
    """The alternative: all labels in one batch, a fixed number of steps, and no rule."""
    network.train()
    rate = config.peak_learning_rate
    optimiser = torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=NAIVE_STEPS + 1, cycle_momentum=False
    )
    pixels = torch.tensor(images)
    targets = functional.one_hot(torch.tensor(labels), classes).float()
    for _ in range(NAIVE_STEPS):
        batch = fit_module.crop(pixels, rng) if config.augmentation != "none" else pixels
        loss = functional.mse_loss(network(batch), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    network.eval()


def main(settings: Settings) -> None:
    """Print a row for each training and a summary."""
    print(settings, flush=True)
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with ProcessPoolExecutor(settings.workers, context) as pool:
        seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
        for measured in pool.map(partial(measure, settings), seeds):
            rows += measured
            for row in measured:
                print(
                    f"seed {row.seed:3}  {row.training:10}  steps {row.steps:5}"
                    f"  train {row.train:.3f}  residual {row.residual:.3f}"
                    f"  test {row.test:.3f}  {row.seconds:.1f} s",
                    flush=True,
                )
    table = pd.DataFrame(rows)
    print("\n| training | n | train ≥ .99 | lowest train | mean residual rms | "
          "mean test ± standard error | lowest test | mean seconds |")  # fmt: skip
    print("| --- " * 8 + "|")
    for training, group in table.groupby("training", sort=False):
        error = group.test.std(ddof=1) / np.sqrt(len(group))
        print(
            f"| {training} | {len(group)} | {(group.train >= 0.99).sum()} | {group.train.min():.2f}"
            f" | {group.residual.mean():.3f} | {group.test.mean():.3f} ± {error:.3f}"
            f" | {group.test.min():.3f} | {group.seconds.mean():.1f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
