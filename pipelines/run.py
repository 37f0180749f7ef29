"""Active-learning runs: train, evaluate, query and label until the budget is spent; resumable."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import nn

from bridge.mirror import Mirror
from bridge.module import restore, save_module
from bridge.parity import certify
from bridge.trace import mirror
from bridge.twin import build_twin
from bridge.weights import read
from kernel.sharded import matmul_precision, mesh
from pipelines import strategies
from pipelines.config import RunConfig, identity, machine_settings
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, keep_compiled
from pipelines.core.record import MACHINE, NOTES, RoundInProgress, Run
from pipelines.strategies import methods_of, needs_mirror
from pipelines.strategies.base import PROBE, Labelling, Resources, build_context, require
from trainer import data
from trainer import fit as fit_module
from trainer.data import Dataset
from trainer.fit import fit, keep_freed_blocks
from trainer.networks import build, load
from trainer.networks.loss_prediction import LossPrediction
from trainer.oracle import DatasetOracle, Oracle, missing_classes
from trainer.pool import Pool
from trainer.predict import Piecewise, logits


def prepared(
    config: RunConfig, console: Console, read: Callable[[], Dataset] | None = None
) -> tuple[Dataset, nn.Module]:
    """The data set and the untrained network of a run, checked against each other.

    Args:
        config: of the run.
        console: shows that data are being read.
        read: reads the data set, where it is not one of the table's.

    Raises:
        DataError, NetworkError: data or network that cannot be had, or a network without what
            the strategy needs of it.
        PipelineError: settings that do not fit the data, or a network without what the strategy
            needs of it.
        KernelError: the kernel cannot be computed on the devices here.
    """
    if "kernel" in config.needs and config.cycles:
        mesh(config.kernel.devices)
        matmul_precision(config.kernel.precision)
    with console.status("reading the data"):
        dataset = read() if read else _loaded(config)
    _check_fit(config, dataset)
    network = _network(config, dataset)
    if config.cycles:
        methods = methods_of(config.strategy, config.albl.arms)
        probe = dataset.normalise(dataset.train_images[:PROBE])
        require(methods, network, probe, config, DatasetOracle(dataset.train_labels))
    return dataset, network


def _loaded(config: RunConfig) -> Dataset:
    return data.load(
        config.dataset, config.data_folder, image_size=config.image_size, download=config.download
    )


def _check_fit(config: RunConfig, dataset: Dataset) -> None:
    known = config.dataset != "images"  # of a person's own images only that person can tell
    if known and config.train.augmentation == "flip_crop" and not dataset.flip:
        raise PipelineError(
            f"a mirror image of {dataset.name} is not of the same class, and train.augmentation is "
            "flip_crop; use crop or none."
        )
    examples = len(dataset.train_images)
    wanted = config.initial + config.cycles * config.query
    if wanted > examples:
        raise PipelineError(
            f"{config.initial} initial labels and {config.cycles} queries of {config.query} need "
            f"{wanted} images and {dataset.name} has {examples} to label: lower initial, query or "
            "cycles."
        )


def _network(config: RunConfig, dataset: Dataset) -> nn.Module:
    _, channels, height, width = dataset.train_images.shape
    network = build(
        config.network,
        (channels, height, width),
        dataset.classes,
        generator(config.seed, "weights"),
        config.network_arguments,
    )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("device is cuda and torch sees no GPU here; use --device cpu or auto.")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return network.to("cuda" if on_gpu else "cpu")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Identity of the data in a record: names, sizes and digests of all that results depend on."""
    return {
        "name": dataset.name,
        "classes": list(dataset.class_names),
        "train": list(dataset.train_images.shape),
        "test": len(dataset.test_images),
        **dataset.fingerprint(),
    }


def build_auxiliary_module(
    config: RunConfig, dataset: Dataset, network: nn.Module
) -> LossPrediction | None:
    """The module that is trained along with an untrained network; None if the strategy has none.

    Raises:
        NetworkError: the network has no feature map that it could read, or not the ones named.
    """
    if "hooks" not in config.needs or not config.cycles:
        return None
    return LossPrediction.of(
        network,
        dataset.normalise(dataset.train_images[:PROBE]),
        generator(config.seed, "companion"),
        config.ll4al.resolved(config.train.loss, dataset.classes),
    )


class FirstTrainingCache(Protocol):
    """First trainings of runs, kept for other runs that begin with the same one."""

    def get_or_train(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: RunConfig,
        train: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Leave the network as its first training does, by `train` or from the cache.

        Args:
            network: with its initial weights; is trained in place, or given the weights.
            images: labelled, as the network takes them.
            labels: the class of each.
            config: of the run.
            train: trains the network in place; returns `train_accuracy`, `fit` and `seconds`.

        Returns:
            What `train` returned, here or in an earlier run, and `shared`, the entry's name.
        """
        ...


def fit_and_save(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: RunConfig,
    run: Run,
    number: int,
    stages: Stages,
    auxiliary_module: LossPrediction | None = None,
    first: FirstTrainingCache | None = None,
) -> dict[str, Any]:
    """Train from the network's present weights and save.

    Args:
        network: is trained in place.
        images: labelled, as the network takes them.
        labels: the class of each.
        config: of the run.
        run: where the weights go.
        number: of the training in this run, from 0.
        stages: records time and shows progress.
        auxiliary_module: trained along and saved beside the network; None for none.
        first: cache of first trainings; without one each run trains its own.

    Returns:
        `train_accuracy`, `fit` and `seconds`, JSON-able; with `first` also `shared`, the name of
        the training there, of a training that can be shared.

    Raises:
        FitError: images and labels that cannot be trained on, or training that diverges.
    """

    def train() -> dict[str, Any]:
        with stages("fit") as advance:
            rng = generator(config.seed, "fit", number)
            fitted = fit(network, images, labels, config.train, rng, advance, auxiliary_module)
        return {
            "train_accuracy": fitted.train_accuracy,
            "fit": {
                "steps": fitted.steps,
                "epochs": fitted.epochs,
                "fitted": fitted.fitted,
                "stopped": fitted.stopped,
                "residual_rms": fitted.residual_rms,
            },
            "seconds": stages.seconds["fit"],
        }

    if first is None or number or auxiliary_module is not None:
        trained = train()
    else:
        trained = first.get_or_train(network, images, labels, config, train)
        stages.seconds["fit"] = trained["seconds"]
    provenance = {"round": str(number)}
    if auxiliary_module is not None:  # first: weights of the network end a training
        save_module(auxiliary_module, run.auxiliary_weights(number), provenance)
    save_module(network, run.weights(number), provenance)
    return trained


class Bridge:
    """The JAX mirror of a run's network, traced and compiled once and given new weights after.

    Attributes:
        mirror: once it is made.
    """

    def __init__(self, network: nn.Module, twin: str | None = None):
        """No mirror is made before one is asked for.

        Args:
            network: whose mirror it is.
            twin: `module:function` of a mirror of the user's own, called with the network and a
                few images.

        Raises:
            NetworkError: there is no such function.
        """
        self._network = network
        self._twin = None if twin is None else load(twin, "twin")
        self.mirror: Mirror | None = None

    def prepare(self, probe: np.ndarray) -> Mirror:
        """Make and certify the mirror now, so that a network without one is not trained first.

        Raises:
            BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        """
        self.mirror = self._make(probe)
        certify(self._network, self.mirror, probe)
        return self.mirror

    def cross(
        self, run: Run, round_number: int, probe: np.ndarray
    ) -> tuple[Mirror, dict[str, Any]]:
        """The mirror with the weights that a round saved, and its certificate, JSON-able.

        Raises:
            BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
        """
        weights = read(run.weights(round_number))
        if self.mirror is None:
            self.mirror = self._make(probe)
        self.mirror = self.mirror.with_weights(weights)
        return self.mirror, certify(self._network, self.mirror, probe).summary()

    def _make(self, probe: np.ndarray) -> Mirror:
        if self._twin is None:
            return mirror(self._network, probe)
        return build_twin(self._twin, self._network, probe)


@dataclass(frozen=True)
class RunSetup:
    """Everything of a run that its rounds have in common.

    Attributes:
        config: of the run.
        dataset: its data.
        network: trained in place.
        bridge: its mirror.
        oracle: labels.
        stages: makes the record of a round's time and memory, which shows progress.
        auxiliary_module: trained along with the network; None for none.
        first: cache of first trainings; without one each run trains its own.
    """

    config: RunConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    oracle: Oracle
    stages: Callable[[], Stages]
    auxiliary_module: LossPrediction | None = None
    first: FirstTrainingCache | None = None

    def restore(self, run: Run, number: int) -> None:
        """Give the network, and the auxiliary module, the weights that a round saved.

        Raises:
            BridgeError: they are not there, or of another module.
        """
        restore(self.network, read(run.weights(number)))
        if self.auxiliary_module is not None:
            restore(self.auxiliary_module, read(run.auxiliary_weights(number)))


def one_round(setup: RunSetup, run: Run, pool: Pool, labels: np.ndarray) -> dict[str, Any]:
    """Train on the labelled set, evaluate, and unless this is the last round query a batch.

    Args:
        setup: of the run.
        run: the rounds so far; this one is the next.
        pool: labelled and unlabelled images.
        labels: int64 (labelled,), the answers for `pool.labelled`, in that order.

    Returns:
        The line of the record; the weights are on disk before it is returned.
    """
    config, dataset, network = setup.config, setup.dataset, setup.network
    number, stages = len(run.rounds), setup.stages()
    in_progress = RoundInProgress(run)
    trained = in_progress.training()
    if trained is None:
        images = dataset.normalise(dataset.train_images[pool.labelled])
        trained = fit_and_save(
            network,
            images,
            labels,
            config,
            run,
            number,
            stages,
            setup.auxiliary_module,
            setup.first,
        )
        in_progress.save_training(trained)
    else:
        setup.restore(run, number)
        network.eval()
        stages.seconds["fit"] = trained["seconds"]
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        accuracy = fit_module.accuracy(logits(network, tests), dataset.test_labels)
    line = {
        "round": number,
        "labelled": len(pool.labelled),
        "test_accuracy": accuracy,
        "train_accuracy": trained["train_accuracy"],
        "fit": trained["fit"],
        "missing_classes": list(missing_classes(labels, dataset.class_names)),
    }
    if "shared" in trained:
        line["shared"] = trained["shared"]
    if number == config.cycles:
        queried = {"candidates": 0, "indices": [], "scores": [], "labels": [], "diagnostics": {}}
    else:
        queried = _query(setup, run, pool, labels, stages, in_progress)
    return line | queried | {"seconds": stages.seconds, "peak_memory_mib": stages.peak_memory_mib}


def _query(
    setup: RunSetup,
    run: Run,
    pool: Pool,
    labels: np.ndarray,
    stages: Stages,
    in_progress: RoundInProgress,
) -> dict[str, Any]:
    config, dataset, number = setup.config, setup.dataset, len(run.rounds)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    method = strategies.get(config.strategy)
    context = build_context(
        setup.network,
        lambda indices: dataset.normalise(dataset.train_images[indices]),
        Labelling(pool.labelled, labels, candidates),
        [method],
        train=config.train,
        options=dataclasses.replace(config, albl=config.albl.within(config.cycles * config.query)),
        resources=Resources(
            progress=stages,
            folder=in_progress.kernel_folder,
            oracle=setup.oracle,
            history=run.rounds,
            auxiliary_module=setup.auxiliary_module,
            test_set=(
                lambda positions: dataset.normalise(dataset.test_images[positions]),
                dataset.test_labels,
            ),
        ),
        mirror=setup.bridge.mirror,
    )
    query = method(context, config.query, generator(config.seed, config.strategy, number))
    return {
        "candidates": len(candidates),
        "indices": query.indices.tolist(),
        "scores": query.scores.tolist(),
        "labels": setup.oracle(query.indices).tolist(),
        "diagnostics": query.diagnostics,
    }


def run(
    config: RunConfig,
    console: Console | None = None,
    first: FirstTrainingCache | None = None,
    read_dataset: Callable[[], Dataset] | None = None,
) -> Run:
    """Carry out a run, or the rest of it.

    Args:
        config: what to do and where to record it.
        console: where progress and a row a round are shown; nothing is shown without one.
        first: cache of first trainings, for several runs that begin with the same one.
        read_dataset: reads the data set, in place of the one that the settings name.

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
    dataset, network = prepared(config, console, read_dataset)
    auxiliary_module = build_auxiliary_module(config, dataset, network)
    with record.only_writer(config.run_folder):
        asked = identity(config) | {"data": describe(dataset)}
        machine = machine_settings(config) | {NOTES: list(dataset.notes)}
        so_far = record.open_run(config.run_folder, asked, machine)
        setup = RunSetup(
            config=config,
            dataset=dataset,
            network=network,
            bridge=Bridge(network, config.twin),
            oracle=DatasetOracle(dataset.train_labels),
            stages=lambda: Stages(console),
            auxiliary_module=auxiliary_module,
            first=first,
        )
        return _rounds(setup, so_far, console)


def _rounds(setup: RunSetup, run: Run, console: Console) -> Run:
    config, dataset = setup.config, setup.dataset
    pool = Pool.initial(
        len(dataset.train_images), config.initial, generator(config.seed, "initial")
    )
    labels = setup.oracle(pool.labelled)
    for line in run.rounds:
        pool, labels = _acquire(pool, labels, line)
    print_heading(console, config, run)
    if run.rounds and not run.complete:
        setup.restore(run, len(run.rounds) - 1)
    if needs_mirror(config.needs) and config.cycles and not run.complete:
        with console.status("mirroring the network"):
            setup.bridge.prepare(dataset.normalise(dataset.train_images[:PROBE]))
    while not run.complete:
        line = one_round(setup, run, pool, labels)
        if not run.rounds:
            line["initial"] = {"indices": pool.labelled.tolist(), "labels": labels.tolist()}
        run = record.append(run, line)
        record.clear_round_in_progress(run.path)
        print_round(console, line)
        pool, labels = _acquire(pool, labels, line)
    print_notes(console, run)
    console.print(f"record: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"next:   python -m pipelines.report {run.path}", highlight=False, soft_wrap=True)
    return run


def _acquire(pool: Pool, labels: np.ndarray, line: dict[str, Any]) -> tuple[Pool, np.ndarray]:
    if not line["indices"]:
        return pool, labels
    answers = np.asarray(line["labels"], np.int64)
    return pool.acquire(np.asarray(line["indices"], np.int64)), np.concatenate([labels, answers])


_COLUMNS = (("round", 5), ("labels", 7), ("test acc", 9), ("train acc", 10), ("residual", 9))
_TIMES = (("fit s", 7), ("query s", 8))
_FIT = ("fit", "evaluate")
_NAMED = 10  # classes without a label; the record has them all


def print_heading(console: Console, config: RunConfig, run: Run) -> None:
    """Print the run in one line, its completed rounds and the names of the columns."""
    console.print(
        f"[bold]{config.dataset}[/bold] · {config.strategy} · seed {config.seed} · "
        f"{config.network} {' '.join(config.network_args)}",
        highlight=False,
    )
    print_notes(console, run)
    console.print("".join(f"{name:>{width}}" for name, width in (*_COLUMNS, *_TIMES)), style="dim")
    for line in run.rounds:
        print_round(console, line)
    if run.rounds and not run.complete:
        console.print(f"resumed after round {len(run.rounds) - 1}", style="dim")


def print_notes(console: Console, run: Run) -> None:
    """Print what is to be known of the data before an accuracy is read."""
    for note in run.config[MACHINE].get(NOTES, ()):
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def print_round(console: Console, line: dict[str, Any]) -> None:
    """Print a round as a row, and below it in words labels not fitted and classes not labelled."""
    seconds = line["seconds"]
    fit = sum(seconds.get(stage, 0.0) for stage in _FIT)
    query = sum(seconds.values()) - fit
    console.print(
        f"{line['round']:>5}{line['labelled']:>7}{line['test_accuracy']:>9.4f}"
        f"{line['train_accuracy']:>10.4f}{line['fit']['residual_rms']:>9.4f}"
        f"{fit:>7.1f}{query:>8.1f}",
        highlight=False,
    )
    if not line["fit"]["fitted"]:
        console.print(f"      the labels were not fitted: {line['fit']['stopped']}", style="yellow")
    missing = line["missing_classes"]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        named = ", ".join(missing[:_NAMED])
        console.print(f"      no label yet of: {named}{more}", style="yellow", highlight=False)
