"""Estimate a run's cost beforehand: passes, memory and seconds of its last query.

A chunk of the mirror's gradients is timed; the rest follows from counts. Nothing is written.
"""

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from bridge.mirror import Mirror
from kernel.estimate import estimate_cost
from kernel.infinite import tiling
from kernel.model import dtype_of
from kernel.options import CRITERIA, GREEDY, STREAMED
from kernel.plan import Sizes, plan_query
from pipelines.config import RunConfig
from pipelines.core.progress import keep_compiled
from pipelines.run import build_auxiliary_module, mirrored, prepared, pretrained_words
from pipelines.strategies import needs_mirror
from pipelines.strategies.base import PROBE, reads_rows
from pipelines.strategies.infinite import shrink
from trainer.data import Dataset
from trainer.networks import parameter_count
from trainer.predict import to_tensor


def dry_run(config: RunConfig, console: Console) -> None:
    """Print the plan of a run.

    Raises:
        TrainerError, BridgeError, PipelineError: as the run itself before it trains.
        KernelError: the last query, which has the most labels, does not fit in the memory.
    """
    keep_compiled()
    dataset, network = prepared(config, console)
    labelled = config.initial + max(config.cycles - 1, 0) * config.query
    pool = len(dataset.train_images)
    candidates = min(config.subset or pool, pool - labelled)
    console.print(
        f"{config.cycles} cycles of {config.strategy} on {dataset.name}: {config.initial} labels "
        f"to start with, {config.query} a query, {config.initial + config.cycles * config.query} "
        f"in the end; {parameter_count(network):,} parameters. Nothing was trained or recorded.",
        highlight=False,
    )
    if config.pretrained:
        console.print(pretrained_words(config), highlight=False, soft_wrap=True)
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    module = build_auxiliary_module(config, dataset, network)
    if module is not None:
        console.print(
            f"Trained along: a loss prediction module of {parameter_count(module):,} parameters, "
            f"reading {', '.join(module.taps)}.",
            highlight=False,
        )
    if config.strategy == "albl":
        console.print(f"Each query is by {', '.join(config.asked)}.", highlight=False)
    needs = config.needs if config.cycles else frozenset()
    rows = _repeated_work(config, candidates) if config.cycles else {}
    if "infinite" in needs:
        rows |= _infinite_kernel(config, dataset, labelled, candidates)
    if needs_mirror(needs):
        probe = dataset.normalise(dataset.train_images[:PROBE])
        with console.status("mirroring the network"):
            mirror, prefix = mirrored(network, config.twin, probe)
        if prefix is not None and reads_rows(needs, network, config.train):
            mirror = prefix.mirror
            rows["frozen part"] = f"once an image, {prefix.frontier.width:,} numbers kept of each"
            probe = prefix.rows(to_tensor(probe, network).float()).cpu().numpy()
        if "kernel" in needs:
            with console.status("timing a few gradients"):
                rows |= _kernel(config, probe[:2], mirror, labelled, candidates)
    if not needs & {"kernel", "infinite"}:
        console.print("No kernel is computed.", highlight=False)
    if rows:
        table = Table("the last query", "", title_justify="left")
        table.add_row("labelled, candidates", f"{labelled:,}, {candidates:,}")
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)


def _repeated_work(config: RunConfig, candidates: int) -> dict[str, str]:
    """Work that a strategy repeats, by strategy; `baseline.hours` stops what takes too long."""
    scored = min(config.baseline.candidates or candidates, candidates)
    finetuned = config.train.recipe == "finetune"
    length = "by fine-tuning" if finetuned else f"of {config.baseline.epochs} epochs"
    passes = 3 if config.dynamics.batch == "dissimilar" else 2
    work = {
        "naive": f"{scored:,} retrainings {length}",
        "one_step": f"{scored:,} steps of SGD",
        "ntk_no_blocks": f"{scored:,} systems of linear equations",
        "dynamical": f"{passes} passes, forward and backward",
    }
    return {name: work[name] for name in config.asked if name in work}


def _infinite_kernel(
    config: RunConfig, dataset: Dataset, labelled: int, candidates: int
) -> dict[str, str]:
    """Tiles and memory of a kernel of infinite width.

    Raises:
        KernelError: it does not fit in the memory.
    """
    image = dataset.normalise(dataset.train_images[:1])
    image = shrink(image, config.baseline.image_size)
    shape = np.broadcast_to(image, (labelled + candidates, *image.shape[1:]))
    sample = None if config.kernel.sample is None else min(config.kernel.sample, candidates)
    cut = tiling(shape, labelled, sample, config.kernel.memory_gib)
    return {
        "kernel": f"infinite width, {image.shape[2]}×{image.shape[3]} pixels",
        "tiles": f"{cut.tiles:,} of {cut.size}×{cut.size} images",
        "memory": f"{cut.peak_gib:.2f} GiB of {config.kernel.memory_gib:g} GiB",
    }


def _kernel(
    config: RunConfig, images: np.ndarray, mirror: Mirror, labelled: int, candidates: int
) -> dict[str, str]:
    """Passes, seconds and memory of the empirical kernel and its posterior, from two images.

    Raises:
        KernelError: they do not fit in the memory.
    """
    settings = config.kernel
    sample = None if settings.sample is None else min(settings.sample, candidates)
    streamed = config.strategy in STREAMED
    sizes = Sizes(labelled, candidates, sample, streamed)
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(settings.precision))
    # the cost does not depend on the projections drawn
    plan = plan_query(mirror.model(), image, sizes, settings, np.random.default_rng(0))
    cost = estimate_cost(mirror.model(), images, plan, labelled)
    count, passes = len(plan.problem.directions.projections), max(len(plan.passes), 1)
    projections = "1 projection" if count == 1 else f"{count} projections"
    rows = {
        "kernel": f"{settings.kind}, {plan.form}, {settings.precision}",
        "passes": f"{passes}, of {projections}, {plan.chunk} images at a time",
        "about": f"{cost.seconds:.1f} s, {cost.compile_seconds:.1f} s of it compiling",
        "memory": f"{plan.peak_gib:.2f} GiB of {settings.memory_gib:g} GiB",
    }
    if config.strategy in CRITERIA:
        rows["batch"] = _batch(config)
    if sample is not None:
        rows["change summed over"] = f"{sample:,} candidates"
    if plan.request.sketch is not None:
        rows["sketch"] = f"{plan.request.sketch:,} dimensions"
    return rows


def _batch(config: RunConfig) -> str:
    """Batch mode, and how often candidates are scored for a batch."""
    mode = config.lookahead.mode(config.strategy)
    step = {"top": config.query, "conditioned": 1, "hybrid": config.lookahead.interval}[mode]
    if mode == "hybrid" and config.strategy in GREEDY:
        step = 1
    times = -(-config.query // step)
    return f"{mode}, scored {times} times" if times > 1 else mode
