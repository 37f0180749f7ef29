"""Which kernel ranks candidates as the full one does? Every kind, before and after training.

    python -m benchmarks.kinds --data-dir DIR --networks wide_resnet,widen=2 cnn --seeds 5 \
        --json kinds.json --figure kinds

For each network, data set and seed: labels and candidates drawn uniformly, a network at its first
weights and after `trainer.fit` with the settings of the data set's pipeline, and the MLMOC scores
of every kind, exact and sketched, compared with those of the exact `full` kernel. Results are added
to those in the file, and what is there already is not measured again.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.kinds_figures import draw
from benchmarks.kinds_kernels import (
    contract,
    highest,
    jacobians,
    likeness,
    projections,
    sketched,
    spread,
)
from benchmarks.kinds_tables import NO_KERNEL, read, tables, write
from bridge.trace import mirror
from kernel import criteria
from kernel.covariance import Kernel
from kernel.options import REFERENCES
from kernel.posterior import posterior
from pipelines.core.progress import generator
from trainer import data
from trainer.config import Optimiser, parse_arguments
from trainer.fit import TrainConfig, fit, keep_freed_blocks
from trainer.networks import build, parameter_count
from trainer.predict import logits

SKETCHED_KINDS = ("single", "sum", "rademacher(1)", "rademacher(4)", "trace")
RANDOM_DRAWS = 1000


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    data_dir: Path | None = None
    networks: tuple[str, ...] = ("wide_resnet,widen=2", "cnn")
    """Names with arguments after commas."""
    datasets: tuple[str, ...] = ("mnist", "fashion_mnist", "cifar10")
    seeds: int = 5
    first_seed: int = 0
    labelled: int = 100
    candidates: int = 400
    image_size: int | None = None
    """Side that images are scaled to; as they are if None."""
    min_steps: int | None = None
    """Of training, in place of the pipeline's own floor."""
    optimiser: Optimiser | None = None
    """In place of the pipeline's own: [D]'s networks without BatchNorm need adam."""
    learning_rate: float | None = None
    """The highest of training, in place of the optimiser's own: 1.25 is too much for deep ones."""
    sketches: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Each a multiple of those before it; those not below the number of parameters are left out."""
    top: tuple[int, ...] = (5, 25)
    """Percentages of the candidates that are queried."""
    gib: float = 5.0
    """Of memory for the `full` kernel."""
    workers: int = 2
    """Processes, of one thread each."""
    json: Path | None = None
    figure: Path | None = None
    """Where pictures go: this with the name of each and .png after it."""


@dataclass(frozen=True)
class Case:
    """One network on one data set with one seed."""

    network: str
    dataset: str
    seed: int


def measure(settings: Settings, case: Case) -> dict[str, Any]:
    """Train one network and compare all kinds before and after."""
    torch.set_num_threads(1)
    keep_freed_blocks()
    began = time.perf_counter()
    dataset = data.load(
        case.dataset, settings.data_dir, image_size=settings.image_size, download=False
    )
    name = f"{case.network} {case.dataset}"
    drawn = generator(case.seed, name).permutation(len(dataset.train_labels))
    drawn = drawn[: settings.labelled + settings.candidates]
    images = dataset.normalise(dataset.train_images[drawn])
    labels = dataset.train_labels[drawn]
    architecture, *texts = case.network.split(",")
    network = build(
        architecture,
        images.shape[1:],
        dataset.classes,
        generator(case.seed, f"{name} weights"),
        parse_arguments(texts),
    )
    rows = list(_compare(settings, case, network, images, labels, "first weights"))
    started = time.perf_counter()
    first = slice(settings.labelled)
    config = training(settings, case.dataset)
    result = fit(
        network, images[first], labels[first], config, generator(case.seed, f"{name} training")
    )
    trained = time.perf_counter() - started
    rows += _compare(settings, case, network, images, labels, "trained")
    held_out = logits(network, images[settings.labelled :]).argmax(1)
    return {
        "network": case.network,
        "dataset": case.dataset,
        "seed": case.seed,
        "labelled": settings.labelled,
        "candidates": settings.candidates,
        "side": images.shape[-1],
        "optimiser": config.optimiser,
        "min_steps": config.min_steps,
        "learning_rate": config.peak_learning_rate,
        "parameters": parameter_count(network),
        "fitted": result.fitted,
        "steps": result.steps,
        "residual": round(result.residual_rms, 4),
        "accuracy": round(float(np.mean(held_out == labels[settings.labelled :])), 3),
        "seconds": [round(trained, 1), round(time.perf_counter() - began, 1)],
        "rows": rows,
    }


def training(settings: Settings, dataset: str) -> TrainConfig:
    """The settings of the data set's own pipeline."""
    config: TrainConfig = import_module(f"pipelines.{dataset}").DEFAULTS.train
    names = ("min_steps", "optimiser", "learning_rate")
    given = {name: getattr(settings, name) for name in names}
    return replace(config, **{key: value for key, value in given.items() if value is not None})


def _compare(
    settings: Settings,
    case: Case,
    network: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    state: str,
) -> Iterator[dict[str, Any]]:
    """One row a kind, sketch and reference, all against `full`.

    Before them what chance would give, and ‖onehot(ŷ) − f_U‖: what of MLMOC needs no kernel.
    """
    answers = logits(network, images).astype(np.float64)
    classes = answers.shape[1]
    targets = np.eye(classes)[labels[: settings.labelled]]
    known, open_ = answers[: settings.labelled], answers[settings.labelled :]
    sizes = [size for size in settings.sketches if size < parameter_count(network)]
    counts = tuple(max(1, round(share / 100 * settings.candidates)) for share in settings.top)
    name = f"{case.network} {case.dataset} {state}"
    model = mirror(network, images[:2]).astype("float32").model()
    signs = generator(case.seed, f"{name} sketch")
    found = jacobians(model, images, classes, max(sizes), signs, settings.gib)
    pseudo = open_.argmax(1)

    def scores(values: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        result = posterior(Kernel(values, "float32"), targets, known, open_)
        return {
            reference: criteria.mlmoc(result, reference) for reference in REFERENCES
        }, result.jitter

    def rows(
        kind: str, sketch: int | None, answered: dict[str, np.ndarray], exact=None, **about: float
    ) -> Iterator[dict[str, Any]]:
        for reference, own in answered.items():
            against = {"full": full[reference]} | ({"own": exact[reference]} if exact else {})
            queried = pseudo[highest(own, counts[0])]
            row = {"state": state, "kind": kind, "sketch": sketch, "reference": reference}
            row |= likeness(own, against, counts)
            row |= {"spread": spread(queried, classes), "zeros": int((queried == 0).sum())}
            yield _rounded(row | about)

    rng = generator(case.seed, f"{name} chance")
    by_chance = [rng.choice(pseudo, counts[0], replace=False) for _ in range(RANDOM_DRAWS)]
    yield _rounded(
        {"state": state, "kind": "random", "sketch": None}
        | {f"full top {count}": count / settings.candidates for count in counts}
        | {"spread": float(np.mean([spread(drawn, classes) for drawn in by_chance]))}
        | {"zeros": counts[0] * float(np.mean(pseudo == 0))}
    )
    full, jitter = scores(found.full)
    yield from rows("full", None, full, jitter=jitter)
    unlikely = np.linalg.norm(np.eye(classes)[pseudo] - open_, axis=1)
    yield from rows(NO_KERNEL, None, dict.fromkeys(REFERENCES, unlikely))
    kinds = projections(classes, generator(case.seed, f"{name} probes"))
    for kind, exact in contract(found.full, kinds).items():
        own, jitter = scores(exact)
        yield from rows(kind, None, own, jitter=jitter)
        if kind in SKETCHED_KINDS:
            for size, values in sketched(found.folded, kinds[kind], sizes).items():
                answered, jitter = scores(values)
                yield from rows(kind, size, answered, own, jitter=jitter)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


def _measured(settings: Settings, cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Runs as they end, each in a process that keeps to one core."""
    # read when NumPy is loaded and JAX starts, so they are set before there is a process
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, context) as pool:
        for future in as_completed([pool.submit(measure, settings, case) for case in cases]):
            yield future.result()


def main(settings: Settings) -> None:
    """Measure what the file has not, add it, and print and draw all that is in it."""
    runs = read(settings.json)
    done = {(run["network"], run["dataset"], run["seed"]) for run in runs}
    cases = [
        Case(network, dataset, seed)
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for network in settings.networks
        for dataset in settings.datasets
        if (network, dataset, seed) not in done
    ]
    for run in _measured(settings, cases) if cases else ():
        runs.append(run)
        write(settings.json, runs)
        keys = ("network", "dataset", "seed", "fitted", "residual", "accuracy", "seconds")
        print({key: run[key] for key in keys}, flush=True)
    print(tables(runs))
    if settings.figure is not None:
        draw(runs, settings.figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
