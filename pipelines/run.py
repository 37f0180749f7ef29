"""Rounds until the budget is spent: from settings to a run directory, resumed wherever it stood."""

import hashlib
from typing import Any

import numpy as np
from rich.console import Console

from bridge import export
from bridge.weights import read
from pipelines import pending, record, table
from pipelines.companion import companion_of, take_up
from pipelines.compilation import keep_compiled
from pipelines.config import RunConfig, completed
from pipelines.first_training import FirstTrainings
from pipelines.preparation import prepared
from pipelines.record import Run
from pipelines.round import Bridge, Setting, play
from pipelines.seeds import generator
from pipelines.stages import Stages
from pipelines.strategies import mirrored
from pipelines.strategies.situation import PROBE
from trainer.data import Dataset
from trainer.memory import keep_freed_blocks
from trainer.oracle import DatasetOracle
from trainer.pool import Pool


def run(
    config: RunConfig, console: Console | None = None, first: FirstTrainings | None = None
) -> Run:
    """Carry out a run, or the rest of it.

    Args:
        config: what to do and where to record it.
        console: where progress and a row a round are shown; nothing is shown without one.
        first: where the first training is kept for other runs that begin with it; None for none.

    Returns:
        The complete run, as its directory holds it.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message; what
            was recorded before stays.
        OSError: a file cannot be written; the last completed round is safe.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    dataset, network = prepared(config, console)
    companion = companion_of(config, dataset, network)
    with record.only_writer(config.run_folder):
        asked = config.record() | {"data": describe(dataset)}
        so_far = record.open_run(config.run_folder, asked, completed)
        oracle, bridge = DatasetOracle(dataset.train_labels), Bridge(network, config.twin)
        setting = Setting(
            config, dataset, network, bridge, oracle, lambda: Stages(console), companion, first
        )
        return _rounds(setting, so_far, console)


def _rounds(setting: Setting, run: Run, console: Console) -> Run:
    config, dataset, oracle = setting.config, setting.dataset, setting.oracle
    start = generator(config.seed, "initial")
    pool = Pool.initial(len(dataset.train_images), config.initial, start)
    labels = oracle(pool.labelled)
    for line in run.rounds:
        pool, labels = _acquire(pool, labels, line)
    table.heading(console, config, run)
    if run.rounds and not run.complete:
        export.restore(setting.network, read(run.weights(len(run.rounds) - 1)))
        take_up(setting.companion, run, len(run.rounds) - 1)
    if mirrored(config.needs) and config.cycles and not run.complete:
        with console.status("mirroring the network"):
            setting.bridge.prepare(dataset.normalise(dataset.train_images[:PROBE]))
    while not run.complete:
        line = play(setting, run, pool, labels)
        if not run.rounds:
            line["initial"] = {"indices": pool.labelled.tolist(), "labels": labels.tolist()}
        run = record.append(run, line)
        pending.clear(run.path)
        table.row(console, line)
        pool, labels = _acquire(pool, labels, line)
    table.ending(console, run)
    return run


def _acquire(pool: Pool, labels: np.ndarray, line: dict[str, Any]) -> tuple[Pool, np.ndarray]:
    if not line["indices"]:
        return pool, labels
    answers = np.asarray(line["labels"], np.int64)
    return pool.acquire(np.asarray(line["indices"], np.int64)), np.concatenate([labels, answers])


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the record says of the data: enough to notice that they are not the same any more."""
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images):
        digest.update(np.ascontiguousarray(array).data)
    return {
        "name": dataset.name,
        "classes": list(dataset.class_names),
        "train": list(dataset.train_images.shape),
        "test": len(dataset.test_images),
        "sha256": digest.hexdigest()[:16],
    }
