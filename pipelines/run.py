"""Active-learning runs: train, evaluate, query and label until the budget is spent; resumable."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import nn

from bridge import trace
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.module import restore, save_module, weights_of
from bridge.parity import certify
from bridge.prefix import FrozenPrefix
from bridge.twin import build_twin
from bridge.weights import Weights, read
from kernel.model import matmul_precision
from kernel.sharded import mesh
from pipelines import strategies
from pipelines.config import NetworkSettings, RunConfig, identity, machine_settings
from pipelines.core import json_io, record
from pipelines.core.entries import digest
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, keep_compiled
from pipelines.core.record import MACHINE, NOTES, RoundInProgress, Run
from pipelines.strategies import methods_of, needs_mirror
from pipelines.strategies.base import (
    PROBE,
    Labelling,
    Resources,
    build_context,
    require,
    trains_rows,
)
from pipelines.strategies.frontier import FrontierRows, certified
from trainer import data
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.dataset import with_preprocessing
from trainer.errors import NetworkError, TrainerError
from trainer.finetune import zero_head
from trainer.fit import fit, keep_freed_blocks
from trainer.networks import build_from, load
from trainer.networks.loss_prediction import LossPrediction
from trainer.networks.sources import preprocessing_in, preprocessing_of
from trainer.oracle import DatasetOracle, missing_classes
from trainer.pool import Pool
from trainer.predict import Piecewise, logits
from trainer.trainable import set_trainable


def prepared(
    config: RunConfig, console: Console, read: Callable[[], Dataset] | None = None
) -> tuple[Dataset, nn.Module]:
    """The data set (by `read`, if given) and the untrained network of a run, checked together.

    Raises:
        DataError, NetworkError, PipelineError: data or network that cannot be had, settings that
            do not fit the data, or a network that lacks what the strategy needs.
        KernelError: the kernel cannot be computed on the devices here.
    """
    if "kernel" in config.needs and config.cycles:
        mesh(config.kernel.devices)
        matmul_precision(config.kernel.precision)
    with console.status("reading the data"):
        dataset = read() if read else _loaded(config)
    _check_fit(config, dataset)
    if config.twin is not None:
        load(config.twin, "twin")
    dataset, network = with_network(config, dataset, console)
    if config.cycles:
        methods = methods_of(config.strategy, config.albl.arms)
        probe = dataset.normalise(dataset.train_images[:PROBE])
        require(methods, network, probe, config, DatasetOracle(dataset.train_labels))
    return dataset, network


def _loaded(config: RunConfig) -> Dataset:
    return data.load(
        config.dataset,
        config.data_folder,
        image_size=image_size_of(config),
        download=config.download,
    )


def image_size_of(config: NetworkSettings) -> int | None:
    """Pixels of a side: as the settings say, or the model's own configuration."""
    if config.image_size is not None:
        return config.image_size
    return preprocessing_of(config.network).size


def _check_fit(config: RunConfig, dataset: Dataset) -> None:
    known = config.dataset != "images"  # of your own images only you know
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


def with_network(
    config: RunConfig, dataset: Dataset, console: Console
) -> tuple[Dataset, nn.Module]:
    """The untrained network of a run, and its data set with the preprocessing of the network.

    Raises:
        TrainerError: a network or weights that cannot be had, or do not fit the images.
        PipelineError: there is no GPU, and one was asked for.
    """
    known = preprocessing_of(config.network)
    mean, std = config.mean or known.mean, config.std or known.std
    channels = max(dataset.train_images.shape[1], len(mean or ()), len(std or ()))

    def built(channels: int) -> tuple[nn.Module, tuple[str, ...]]:
        shape = (channels, *dataset.image_shape[1:])
        rng, arguments = generator(config.seed, "weights"), config.network_arguments
        return build_from(config.network, shape, dataset.classes, rng, arguments, config.weights)

    try:
        network, notes = built(channels)
    except NetworkError as refusal:
        if channels != 1:
            raise
        try:  # grayscale images, and a user's own network that takes three channels
            channels = 3
            network, notes = built(channels)
        except TrainerError:
            raise refusal from None
    own = preprocessing_in(network)
    dataset = with_preprocessing(dataset, mean or own.mean, std or own.std, channels)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    if config.trainable is not None:
        probe = dataset.normalise(dataset.train_images[:PROBE])
        set_trainable(network, config.trainable, probe)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("device is cuda and torch sees no GPU here; use --device cpu or auto.")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return dataset, network.to("cuda" if on_gpu else "cpu")


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
    """First trainings, cached for other runs that begin with the same one."""

    def get_or_train(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        config: RunConfig,
        train: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Train the network by `train`, or load the weights that it had after the same training.

        Returns:
            The record that `train` returned, then or now, and `shared`, the entry's name.
        """
        ...


def mirrored(
    network: nn.Module, twin: str | None, probe: np.ndarray
) -> tuple[Mirror, FrozenPrefix | None]:
    """The mirror of a network or the user's twin, and its frozen prefix; certified.

    Raises:
        NetworkError, BridgeError: as `certified_mirror`.
    """
    if twin is not None:
        return certified_mirror(network, twin, probe), None
    made = trace.mirror(network, probe)
    return made, certified(network, made, probe)[0]


def certified_mirror(network: nn.Module, twin: str | None, probe: np.ndarray) -> Mirror:
    """The JAX mirror of a network, or the user's twin of it (`module:function`), certified.

    Raises:
        NetworkError: there is no such function.
        BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
    """
    if twin is None:
        made = trace.mirror(network, probe)
    else:
        made = build_twin(load(twin, "twin"), network, probe)
    certify(network, made, probe)
    return made


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """The parts of a run that its rounds share.

    Attributes:
        config: of the run.
        dataset: its data.
        network: trained in place.
        mirror: of the network, with any weights; None where no strategy reads it.
        console: shows progress.
        auxiliary_module: trained along with the network; None for none.
        first: cache of first trainings; without one each run trains its own.
        frontier: rows of the network's frozen prefix, of the train images and then the test
            images; None where it has none.
        start: the run's first weights, where every round starts from them.
    """

    config: RunConfig
    dataset: Dataset
    network: nn.Module
    mirror: Mirror | None
    console: Console
    auxiliary_module: LossPrediction | None = None
    first: FirstTrainingCache | None = None
    frontier: FrontierRows | None = None
    start: Weights | None = None

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Training images by data-set index, as the network takes them, float32."""
        return self.dataset.normalise(self.dataset.train_images[indices])

    def test_rows(self, positions: np.ndarray) -> np.ndarray:
        """Indices of test images among the rows of the frontier."""
        return len(self.dataset.train_images) + positions

    def restore(self, run: Run, number: int) -> None:
        """Load a round's checked weights into the network, in eval mode, and the auxiliary module.

        Raises:
            BridgeError: they are of another module.
        """
        restore(self.network, read(run.weights(number)))
        self.network.eval()
        if self.auxiliary_module is not None:
            restore(self.auxiliary_module, read(run.auxiliary_weights(number)))

    def train(
        self, run: Run, indices: np.ndarray, labels: np.ndarray, stages: Stages
    ) -> dict[str, Any]:
        """Train on the labelled set from where rounds start, or load a finished training.

        The weights are on the disk when it returns. Indices and labels are int64 (labelled,).

        Returns:
            Entries of the round's record.

        Raises:
            FitError: a labelled set that cannot be trained on, or training that diverges.
            PipelineError: the last round's weights are missing or were changed.
        """
        number, in_progress = len(run.rounds), round_in_progress(run, indices, labels)
        trained = in_progress.training()
        if trained is None:
            if number:
                run.check_weights(number - 1)
                self.restore(run, number - 1)
                if self.start is not None:
                    restore(self.network, self.start)
            start_training(self.network, self.config.train, self.images(indices[:PROBE]))
            trained = self.fit_and_save(run, indices, labels, stages)
            in_progress.save_training(trained)
        else:
            self.restore(run, number)
        stages.seconds["fit"] = trained.pop("seconds")
        missing = missing_classes(labels, self.dataset.class_names)
        return {
            "round": number,
            "labelled": len(labels),
            **trained,
            "missing_classes": list(missing),
        }

    def fit_and_save(
        self, run: Run, indices: np.ndarray, labels: np.ndarray, stages: Stages
    ) -> dict[str, Any]:
        """Train in place, from rows of the frozen prefix where it can be, and save.

        Returns:
            `train_accuracy`, `fit`, `seconds` and the digests `weights` and, with an auxiliary
            module, `auxiliary_weights`, JSON-able; `shared` too, the name of the entry, where the
            training is cached in `first`.
        """
        network, module, number = self.network, self.auxiliary_module, len(run.rounds)
        if self.frontier is not None and module is None and trains_rows(self.config.train):
            part: nn.Module = self.frontier.prefix.tail
            with stages("frozen part") as advance:
                images = self.frontier(indices, advance)
        else:
            part, images = network, self.images(indices)

        def train() -> dict[str, Any]:
            rng = generator(self.config.seed, "fit", number)
            with stages("fit") as advance:
                fitted = fit(part, images, labels, self.config.train, rng, advance, module)
            names = ("steps", "epochs", "fitted", "stopped", "residual_rms")
            return {
                "train_accuracy": fitted.train_accuracy,
                "fit": {name: getattr(fitted, name) for name in names},
                "seconds": stages.seconds["fit"],
            }

        if self.first is None or number or module is not None:
            trained = train()
        else:
            trained = self.first.get_or_train(network, images, labels, self.config, train)
        provenance = {"round": str(number)}
        saved = {"weights": (network, run.weights(number))}
        if module is not None:
            saved["auxiliary_weights"] = (module, run.auxiliary_weights(number))
        for name, (saved_part, path) in saved.items():
            save_module(saved_part, path, provenance)
            trained[name] = digest(path.read_bytes())
        return trained

    def test_predictions(self, stages: Stages) -> np.ndarray:
        """Predicted classes of all test images, int64 (tests,)."""
        if self.frontier is not None:
            indices = self.test_rows(np.arange(len(self.dataset.test_images)))
            with stages("frozen part") as advance:
                self.frontier(indices, advance)
            with stages("evaluate"):
                tail = self.frontier.prefix.tail
                return logits(tail, Piecewise(self.frontier, indices)).argmax(axis=1)
        with stages("evaluate"):
            tests = Piecewise(self.dataset.normalise, self.dataset.test_images)
            return logits(self.network, tests).argmax(axis=1)


def start_training(network: nn.Module, train: TrainConfig, images: np.ndarray) -> None:
    """Zero the head of a network with pretrained weights, unless its recipe does.

    Raises:
        NetworkError: there is no layer that makes the logits of these images.
    """
    if train.init == "pretrained" and train.recipe != "finetune":
        zero_head(network, images)


def first_weights(config: NetworkSettings, network: nn.Module) -> Weights | None:
    """Weights that every round starts from; None where a round starts from the last one's."""
    return weights_of(network) if config.train.init in ("initial", "pretrained") else None


def round_in_progress(run: Run, indices: np.ndarray, labels: np.ndarray) -> RoundInProgress:
    """Finished parts of the next round, which trains on these labels."""
    return RoundInProgress(run, dict(zip(indices.tolist(), labels.tolist(), strict=True)))


def one_round(setup: RunSetup, run: Run, pool: Pool, labels: np.ndarray) -> dict[str, Any]:
    """Train on the labelled set, evaluate, and unless this is the last round query a batch.

    Labels are int64 (labelled,), those of `pool.labelled`.

    Returns:
        The line of the record; the weights are on disk before it is returned.
    """
    stages = Stages(setup.console)
    line = setup.train(run, pool.labelled, labels, stages)
    right = setup.test_predictions(stages) == setup.dataset.test_labels
    line["test_accuracy"] = float(right.mean())
    if len(run.rounds) == setup.config.cycles:
        line |= {"candidates": 0, "indices": [], "scores": [], "labels": [], "diagnostics": {}}
    else:
        line |= _query(setup, run, pool, labels, stages)
    return line | {"seconds": stages.seconds, "peak_memory_mib": stages.peak_memory_mib}


def _query(
    setup: RunSetup, run: Run, pool: Pool, labels: np.ndarray, stages: Stages
) -> dict[str, Any]:
    config, dataset, number = setup.config, setup.dataset, len(run.rounds)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    method, oracle = strategies.get(config.strategy), DatasetOracle(dataset.train_labels)
    context = build_context(
        setup.network,
        setup.images,
        Labelling(pool.labelled, labels, candidates),
        [method],
        train=config.train,
        options=config.with_budget(),
        resources=Resources(
            progress=stages,
            folder=round_in_progress(run, pool.labelled, labels).kernel_folder,
            oracle=oracle,
            history=run.rounds,
            auxiliary_module=setup.auxiliary_module,
            test_set=(
                lambda positions: dataset.normalise(dataset.test_images[positions]),
                dataset.test_labels,
            ),
            frontier=setup.frontier,
        ),
        mirror=setup.mirror,
    )
    query = method(context, config.query, generator(config.seed, config.strategy, number))
    return {
        "candidates": len(candidates),
        "indices": query.indices.tolist(),
        "scores": query.scores.tolist(),
        "labels": oracle(query.indices).tolist(),
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
        config: of the run, and where it is recorded.
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
        settings = identity(config) | {"data": describe(dataset)}
        machine = machine_settings(config) | {NOTES: list(dataset.notes)}
        run = record.open_run(config.run_folder, settings, machine)
        print_heading(console, config)
        for sentence in config.ignored([config.strategy]):
            console.print(sentence, style="yellow", highlight=False, soft_wrap=True)
        print_notes(console, run)
        print_rounds(console, run)
        mirror = frontier = None
        if not run.complete:
            needed = needs_mirror(config.needs) and bool(config.cycles)
            with console.status("mirroring the network"):
                mirror, frontier = mirror_and_rows(config, dataset, network, needed=needed)
        setup = RunSetup(
            config=config,
            dataset=dataset,
            network=network,
            mirror=mirror,
            console=console,
            auxiliary_module=auxiliary_module,
            first=first,
            frontier=frontier,
            start=first_weights(config, network),
        )
        return _rounds(setup, run)


def mirror_and_rows(
    config: RunConfig, dataset: Dataset, network: nn.Module, *, needed: bool
) -> tuple[Mirror | None, FrontierRows | None]:
    """The certified mirror of a run's network, and rows of its frozen prefix if it has one.

    Args:
        config: of the run.
        dataset: its data.
        network: in eval mode.
        needed: a strategy needs the mirror; otherwise it is made for the prefix alone, and a
            network that cannot be mirrored goes without.
    """
    all_trained = all(parameter.requires_grad for parameter in network.parameters())
    if not needed and (all_trained or config.twin is not None):
        return None, None
    probe = dataset.normalise(dataset.train_images[:PROBE])
    try:
        mirror, prefix = mirrored(network, config.twin, probe)
    except BridgeError:
        if needed:
            raise
        return None, None
    if prefix is None:
        return (mirror if needed else None), None
    folder = config.frozen.folder or config.run_folder.parent / "frozen"
    trained = len(dataset.train_images)
    examples = trained + len(dataset.test_images)

    def images(indices: np.ndarray) -> np.ndarray:
        own, tests = indices[indices < trained], indices[indices >= trained] - trained
        pixels = dataset.train_images[own], dataset.test_images[tests]
        return dataset.normalise(np.concatenate(pixels))  # indices are ascending

    of = json_io.digest(describe(dataset))
    return mirror, FrontierRows(prefix, images, examples, of, config.frozen, folder)


def _rounds(setup: RunSetup, run: Run) -> Run:
    config, dataset, console = setup.config, setup.dataset, setup.console
    pool = Pool.initial(
        len(dataset.train_images), config.initial, generator(config.seed, "initial")
    )
    labels = DatasetOracle(dataset.train_labels)(pool.labelled)
    for line in run.rounds:
        pool, labels = _acquire(pool, labels, line)
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


def print_heading(console: Console, config: RunConfig, mode: str = "") -> None:
    """Print the run in one line."""
    console.print(
        f"[bold]{config.dataset}[/bold] · {mode}{config.strategy} · seed {config.seed} · "
        f"{config.network} {' '.join(config.network_args)}",
        highlight=False,
    )
    if config.pretrained:
        console.print(pretrained_words(config), highlight=False, soft_wrap=True)


def pretrained_words(config: NetworkSettings) -> str:
    """Settings of a run that a pretrained network changes."""
    train, origin = config.train, config.weights or "downloaded"
    return (
        f"pretrained weights ({origin}) · trainable {config.trainable} · recipe "
        f"{train.recipe} ({train.loss}) · rounds start from {train.init or 'previous'} weights · "
        f"augmentation {train.augmentation}"
    )


def print_notes(console: Console, run: Run) -> None:
    """Print the notes on the data, which qualify an accuracy."""
    for note in run.config[MACHINE].get(NOTES, ()):
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def print_rounds(console: Console, run: Run) -> None:
    """Print the names of the columns and the completed rounds."""
    console.print("".join(f"{name:>{width}}" for name, width in (*_COLUMNS, *_TIMES)), style="dim")
    for line in run.rounds:
        print_round(console, line)
    if run.rounds and not run.complete:
        console.print(f"resumed after round {len(run.rounds) - 1}", style="dim")


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
    print_caveats(console, line, indent=" " * 6)


def print_caveats(console: Console, line: dict[str, Any], indent: str = "") -> None:
    """Print in words labels not fitted and classes not labelled."""
    missing, caveats = line["missing_classes"], []
    if not line["fit"]["fitted"]:
        caveats.append(f"the labels were not fitted: {line['fit']['stopped']}")
    if "ties" in line.get("diagnostics", {}):
        caveats.append(line["diagnostics"]["ties"])
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        caveats.append(f"no label yet of: {', '.join(missing[:_NAMED])}{more}")
    for text in caveats:
        console.print(indent + text, style="yellow", highlight=False, markup=False, soft_wrap=True)
