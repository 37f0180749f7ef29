"""What a run would take, told before anything runs: its rounds, and the costs of its last query.

From settings and data to a table: the network is built and mirrored, a chunk of its gradients is
timed on this machine, and everything else follows from counts.

What a query by one of the slow baselines would take, by timing one piece of it on this machine.

From an untrained network, images and the sizes of a query to rows of a plan.

What a query by dynamicAL would take, by timing a few gradients on this machine.

From a network's mirror, a few images and the sizes of a query to rows of a plan.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bridge.mirror import Mirror
from kernel.estimate import dynamics_cost, estimate, posterior_seconds, seconds_a_look
from kernel.infinite import tile_seconds, tiling
from kernel.model import dtype_of
from kernel.ntk import Sizes, decide
from kernel.options import CRITERIA, GREEDY, STREAMED
from kernel.plan import cast
from pipelines.config import RunConfig
from pipelines.progress import keep_compiled
from pipelines.run import Bridge, build_auxiliary_module, prepared
from pipelines.strategies import needs_mirror
from pipelines.strategies.base import PROBE
from pipelines.strategies.baselines import answers, retrained, retraining, stepped
from pipelines.strategies.dynamical import BLOCK
from pipelines.strategies.infinite import architecture_of, shrink
from pipelines.strategies.options import BaselineConfig, DynamicsConfig, KernelConfig
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.networks import parameter_count
from trainer.predict import logits, to_tensor

TIMED = 256  # reference points whose outputs are computed to time all of them


class Asked(NamedTuple):
    """What a query would be.

    Attributes:
        network: in eval mode; its weights do not matter.
        images: of the size and kind of the query's, as many as are labelled and some more.
        labelled: L.
        candidates: U.
        classes: C.
        train: how the network is trained.
        kernel: its sample is the one over which changes are summed.
        baseline: settings.
    """

    network: nn.Module
    images: np.ndarray
    labelled: int
    candidates: int
    classes: int
    train: TrainConfig
    kernel: KernelConfig
    baseline: BaselineConfig

    @property
    def points(self) -> int:
        """Over how many candidates changes are summed."""
        return min(self.kernel.sample or self.candidates, self.candidates)

    @property
    def scored(self) -> int:
        """How many are scored, where that can be fewer than all."""
        return min(self.baseline.candidates or self.candidates, self.candidates)


def naive(asked: Asked) -> dict[str, str]:
    """One copy is retrained."""
    images = asked.images[: asked.labelled + 1]
    labels = np.arange(len(images)) % asked.classes
    config = retraining(asked.train, asked.baseline)
    points = asked.images[:TIMED]
    began = time.perf_counter()
    copied = retrained(asked.network, images, labels, config, 0)
    between = time.perf_counter()
    logits(copied, points)
    each = between - began + (time.perf_counter() - between) * asked.points / len(points)
    what = f"{asked.scored:,} of {config.epochs} epochs, {each:.2g} s each"
    return {"retrainings": what, "in all": duration(asked.scored * each)}


def one_step(asked: Asked) -> dict[str, str]:
    """One step is taken."""
    points = to_tensor(asked.images[:TIMED], asked.network)
    answers(asked.network, {}, points)
    began = time.perf_counter()
    after = stepped(asked.network, points[:1], 0, asked.baseline.step, asked.train.loss)
    between = time.perf_counter()
    answers(asked.network, after, points)
    each = between - began + (time.perf_counter() - between) * asked.points / len(points)
    what = f"{asked.scored:,}, {each:.2g} s each"
    return {"steps": what, "in all": duration(asked.scored * each)}


def infinite(asked: Asked) -> dict[str, str]:
    """One tile of the kernel of infinite width is computed."""
    images = shrink(asked.images, asked.baseline.image_size)
    examples = asked.labelled + asked.candidates
    shape = np.broadcast_to(images[:1], (examples, *images.shape[1:]))
    sample = None if asked.kernel.sample is None else asked.points
    cut = tiling(shape, asked.labelled, sample, asked.kernel.memory_gib)
    architecture = architecture_of(asked.network)
    each = tile_seconds(architecture, images, cut)
    pixels = f"{images.shape[2]}×{images.shape[3]} pixels"
    return {
        "kernel": f"infinite width, {architecture.name}, {pixels}",
        "tiles": f"{cut.tiles:,} of {cut.size}×{cut.size} images, {each:.2g} s each",
        "in all": duration(cut.tiles * each),
        "memory": f"{cut.peak_gib:.2f} GiB of {asked.kernel.memory_gib:g} GiB",
    }


def systems(asked: Asked) -> dict[str, str]:
    """One system of ntk_no_blocks is solved, beside the kernel."""
    labels = asked.labelled + 1
    system, right = np.eye(labels) + 1 / labels, np.ones((labels, asked.classes + 1))
    across = np.ones((asked.points, labels))
    began = time.perf_counter()
    np.linalg.norm(across @ np.linalg.solve(system, right)[:, :-1], axis=1).sum()
    each = time.perf_counter() - began
    what = f"{asked.scored:,} of {labels:,} equations, {duration(asked.scored * each)}"
    return {"systems, beside the kernel": what}


FORETOLD: dict[str, Callable[[Asked], dict[str, str]]] = {
    "naive": naive,
    "one_step": one_step,
    "infinite_ntk": infinite,
    "gp": infinite,
    "ntk_no_blocks": systems,
}


def estimate_lookahead(strategy: str, asked: Asked) -> dict[str, str]:
    """Rows of the plan of a baseline; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return FORETOLD[strategy](asked)


def duration(seconds: float) -> str:
    """In words that are read at a glance."""
    if seconds < 120:
        return f"about {seconds:.1f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def estimate_dynamical(
    mirror: Mirror,
    images: np.ndarray,
    labelled: int,
    candidates: int,
    loss: str,
    settings: DynamicsConfig,
) -> dict[str, str]:
    """Rows of the plan.

    Args:
        mirror: of the network, whose weights do not matter.
        images: a few, as the network takes them.
        labelled: L.
        candidates: U.
        loss: of the training.
        settings: of the query.
    """
    sketch = settings.sketch if settings.batch == "dissimilar" else None
    found = dynamics_cost(
        cast(mirror.model(), settings.precision),
        images,
        labelled,
        candidates,
        BLOCK,
        loss=loss,
        sketch=sketch,
        chunk=settings.chunk,
    )
    rows = {
        "labelled, candidates": f"{labelled:,}, {candidates:,}",
        "criterion": f"gamma {settings.weight:g}, {settings.batch}, {settings.precision}",
        "chunk": f"{found.chunk:,} images at a time",
        "compiling": f"{found.compile_seconds:.1f} s, once",
        "gradient of the labelled set": f"{found.labelled_seconds:.1f} s",
        "candidates": f"{found.candidate_seconds:.1f} s",
        "memory": f"{found.peak_gib:.2f} GiB",
    }
    if sketch is not None:
        rows["sketch"] = f"{sketch:,} dimensions"
    return rows


def dry_run(config: RunConfig, console: Console) -> None:
    """Print the plan of a run.

    Args:
        config: what would be done.
        console: where it is shown.

    Raises:
        TrainerError, BridgeError, PipelineError: what the run itself would stop at.
        KernelError: the last query, which has the most labels, does not fit in the memory.
    """
    keep_compiled()
    dataset, network = prepared(config, console)
    pool = len(dataset.train_images)
    before = max(config.cycles - 1, 0)
    labelled = config.initial + before * config.query
    candidates = min(config.subset or pool, pool - labelled)
    console.print(
        f"{config.cycles} cycles of {config.strategy} on {dataset.name}: {config.initial} labels "
        f"to start with, {config.query} a query, {config.initial + config.cycles * config.query} "
        f"in the end; {parameter_count(network):,} parameters. Nothing was trained or recorded.",
        highlight=False,
    )
    companion = build_auxiliary_module(config, dataset, network)
    if companion is not None:
        console.print(
            f"Trained along: a loss prediction module of {parameter_count(companion):,} "
            f"parameters, reading {', '.join(companion.taps)}.",
            highlight=False,
        )
    if config.strategy == "albl":
        console.print(f"Each query asks {', '.join(config.asked)}.", highlight=False)
    slow: dict[str, str] = {}
    for name in config.asked:
        if name in FORETOLD and config.cycles:
            with console.status("timing a piece of a query"):
                rows = _baseline(config, name, dataset, network, labelled, candidates)
            of = f"{name}, " if len(config.asked) > 1 else ""
            slow |= {f"{of}{what}": told for what, told in rows.items()}
    if not needs_mirror(config.needs) or not config.cycles:
        if "infinite" not in config.needs or not config.cycles:
            console.print("No kernel is computed.", highlight=False)
        if slow:
            console.print(_table(slow))
        return
    with console.status("mirroring the network"):
        mirror = Bridge(network, config.twin).prepare(
            dataset.normalise(dataset.train_images[:PROBE])
        )
    with console.status("timing a few gradients"):
        look = _dynamics if config.strategy == "dynamical" else _query
        rows = look(config, dataset, mirror, labelled, candidates)
    console.print(_table(rows | slow))


def _table(rows: dict[str, str]) -> Table:
    table = Table("the last query", "", title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _baseline(
    config: RunConfig,
    strategy: str,
    dataset: Dataset,
    network: nn.Module,
    labelled: int,
    candidates: int,
) -> dict[str, str]:
    images = dataset.normalise(dataset.train_images[: max(labelled + 1, TIMED)])
    sizes = (labelled, candidates, dataset.classes)
    asked = Asked(network, images, *sizes, config.train, config.kernel, config.baseline)
    known = {"labelled, candidates": f"{labelled:,}, {candidates:,}"}
    return known | estimate_lookahead(strategy, asked)


def _dynamics(
    config: RunConfig, dataset: Dataset, mirror: Mirror, labelled: int, candidates: int
) -> dict[str, str]:
    images = dataset.normalise(dataset.train_images[:2])
    return estimate_dynamical(
        mirror, images, labelled, candidates, config.train.loss, config.dynamics
    )


def _query(
    config: RunConfig, dataset: Dataset, mirror: Mirror, labelled: int, candidates: int
) -> dict[str, str]:
    settings = config.kernel
    images = dataset.normalise(dataset.train_images[:2])
    sample = None if settings.sample is None else min(settings.sample, candidates)
    streamed = config.strategy in STREAMED
    sizes = Sizes(labelled, candidates, sample, settings.sketch, streamed)
    shape = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(settings.precision))
    decision = decide(mirror.model(), shape, sizes, settings)
    anchors = labelled + sample if decision.form == "cross" and sample is not None else None
    cost = estimate(
        mirror.model(),
        np.asarray(images),
        labelled + candidates,
        settings,
        anchors=anchors,
        sketch=settings.sketch,
    )
    after = posterior_seconds(sizes, dataset.classes, decision, cost)
    projections = "1 projection" if cost.projections == 1 else f"{cost.projections} projections"
    rows = {
        "labelled, candidates": f"{labelled:,}, {candidates:,}",
        "kernel": f"{settings.kind}, {decision.form}, {settings.precision}",
        "passes": f"{cost.passes}, of {projections}, {cost.chunk} images at a time",
        "compiling": f"{cost.compile_seconds:.1f} s, once",
        "gradients": f"{cost.gradient_seconds:.1f} s",
        "products": f"{cost.product_seconds:.1f} s",
        "posterior and scores": f"{after:.1f} s",
        **_batch(config, dataset.classes, sample or candidates, candidates),
        "memory": f"{decision.peak_gib:.2f} GiB of {settings.memory_gib:g} GiB",
    }
    if settings.sample is not None:
        rows["change summed over"] = f"{sample:,} candidates"
    if settings.sketch is not None:
        rows["sketch"] = f"{settings.sketch:,} dimensions"
    return rows


def _batch(config: RunConfig, classes: int, sample: int, candidates: int) -> dict[str, str]:
    """How the batch is made, and what that takes beyond the first scores."""
    if config.strategy not in CRITERIA:
        return {}
    ahead = config.lookahead
    mode = ahead.mode(config.strategy)
    step = {"top": config.query, "conditioned": 1, "hybrid": ahead.interval}[mode]
    if mode == "hybrid" and config.strategy in GREEDY:
        step = 1
    looks = -(-config.query // step)
    rows = {"batch": f"{mode}, {looks} looks" if looks > 1 else mode}
    if config.kernel.kind != "full":
        options = ahead.criterion_options(config.kernel.reference, 0)
        each = seconds_a_look(config.strategy, options, classes, sample, candidates)
        rows["all looks"] = f"{looks * each:.1f} s"
    return rows
