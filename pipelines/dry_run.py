"""What a run would take, told before anything runs: its rounds, and the costs of its last query.

From settings and data to a table: the network is built and mirrored, a chunk of its gradients is
timed on this machine, and everything else follows from counts.
"""

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from bridge.mirror import Mirror
from kernel.estimate import estimate, posterior_seconds
from kernel.kinds import dtype_of
from kernel.lookahead import CRITERIA, GREEDY, STREAMED
from kernel.lookahead.timing import seconds_a_look
from kernel.pool import Sizes, decide
from pipelines.companion import companion_of
from pipelines.compilation import keep_compiled
from pipelines.config import RunConfig
from pipelines.preparation import prepared
from pipelines.round import Bridge
from pipelines.strategies import foretold_dynamics, mirrored
from pipelines.strategies.foretold import FORETOLD, TIMED, Asked, foretell
from pipelines.strategies.situation import PROBE
from trainer.data import Dataset
from trainer.networks import parameter_count


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
    companion = companion_of(config, dataset, network)
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
    if not mirrored(config.needs) or not config.cycles:
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
    return known | foretell(strategy, asked)


def _dynamics(
    config: RunConfig, dataset: Dataset, mirror: Mirror, labelled: int, candidates: int
) -> dict[str, str]:
    images = dataset.normalise(dataset.train_images[:2])
    return foretold_dynamics.foretell(
        mirror, images, labelled, candidates, config.train.loss, config.dynamics
    )


def _query(
    config: RunConfig, dataset: Dataset, mirror: Mirror, labelled: int, candidates: int
) -> dict[str, str]:
    settings, request = config.kernel, config.kernel.request
    images = dataset.normalise(dataset.train_images[:2])
    sample = None if settings.sample is None else min(settings.sample, candidates)
    streamed = config.strategy in STREAMED
    sizes = Sizes(labelled, candidates, sample, settings.sketch, streamed)
    shape = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(request.precision))
    decision = decide(mirror.model(), shape, sizes, request)
    anchors = labelled + sample if decision.form == "cross" and sample is not None else None
    cost = estimate(
        mirror.model(),
        np.asarray(images),
        labelled + candidates,
        request,
        anchors=anchors,
        sketch=settings.sketch,
    )
    after = posterior_seconds(sizes, dataset.classes, decision, cost)
    projections = "1 projection" if cost.projections == 1 else f"{cost.projections} projections"
    rows = {
        "labelled, candidates": f"{labelled:,}, {candidates:,}",
        "kernel": f"{settings.kind}, {decision.form}, {request.precision}",
        "passes": f"{cost.passes}, of {projections}, {cost.chunk} images at a time",
        "compiling": f"{cost.compile_seconds:.1f} s, once",
        "gradients": f"{cost.gradient_seconds:.1f} s",
        "products": f"{cost.product_seconds:.1f} s",
        "posterior and scores": f"{after:.1f} s",
        **_batch(config, dataset.classes, sample or candidates, candidates),
        "memory": f"{decision.peak_gib:.2f} GiB of {request.memory_gib:g} GiB",
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
        options = ahead.options(config.kernel.reference, 0)
        each = seconds_a_look(config.strategy, options, classes, sample, candidates)
        rows["all looks"] = f"{looks * each:.1f} s"
    return rows
