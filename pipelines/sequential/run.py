"""Sequential runs: labels at the start, training, then one query at a time within a budget.

Every answer is on the disk before it is absorbed. The network is trained again only when the
settings ask for it, or when the linearised network has gone stale; what an interrupted run had
finished is not computed again.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bridge.module import restore
from bridge.weights import read
from kernel.files import write_file
from pipelines.config import identity, machine_settings
from pipelines.core import record
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, keep_compiled
from pipelines.core.record import RoundInProgress
from pipelines.run import (
    Bridge,
    FirstTrainingCache,
    describe,
    fit_and_save,
    prepared,
    print_notes,
)
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.journal import Journal, open_journal, write_curve
from pipelines.sequential.learner import Event
from pipelines.sequential.session import (
    Exhausted,
    SequentialData,
    SequentialSession,
    Status,
    build_state,
    plan_sequential,
)
from pipelines.strategies.base import PROBE
from trainer.dataset import UNLABELLED, Dataset
from trainer.fit import keep_freed_blocks
from trainer.images import read_partly_labelled
from trainer.networks import load
from trainer.oracle import (
    CallableOracle,
    Command,
    DatasetOracle,
    Oracle,
    PersonOracle,
    missing_classes,
)
from trainer.pool import Pool
from trainer.predict import Piecewise, logits

Answerer = Callable[[int, str], int | Command]
"""Data-set index and a heading → the label, or a command to stop, skip or undo."""

QUERY_IMAGE = ".question.png"
KERNEL = ".kernel"  # in the run directory: finished chunks of a kernel that takes long


def answerer_of(
    config: SequentialConfig,
    dataset: Dataset,
    console: Console,
    function: Callable[[np.ndarray], object] | None = None,
) -> tuple[Answerer, str]:
    """The oracle that the settings name, one image at a time, and its name in the record.

    Args:
        config: names the oracle.
        dataset: whose images are labelled.
        console: where a person is asked.
        function: answers in its place, if it is given: data-set indices → classes.

    Raises:
        NetworkError: `oracle` names no function.
        PipelineError: a person is to be asked and nothing would be shown.
    """
    if function is not None:
        return _one_by_one(CallableOracle(function, dataset.classes)), "function"
    if config.oracle == "dataset":
        return _one_by_one(DatasetOracle(dataset.train_labels)), "dataset"
    if config.oracle == "person":
        if console.quiet:
            raise PipelineError("oracle is person, and there is no console to ask them at.")
        file = config.run_folder / QUERY_IMAGE
        person = PersonOracle(
            dataset.train_images,
            dataset.class_names,
            file,
            console,
            _read_standard_input,
            write_file,
        )
        return person.ask, "person"
    named = CallableOracle(load(config.oracle, "oracle"), dataset.classes)
    return _one_by_one(named), config.oracle


def _read_standard_input() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _one_by_one(oracle: Oracle) -> Answerer:
    return lambda index, heading: int(oracle(np.array([index], np.int64))[0])


def initial_labels(
    config: SequentialConfig, dataset: Dataset, journal: Journal, answerer: Answerer, who: str
) -> dict[int, int] | None:
    """The labelled set that the first training begins with.

    Of a data set whose labels are known, `initial` images drawn uniformly. Of a person's own, all
    that are labelled; if they are fewer than `initial`, images in random order are asked for.

    Returns:
        {data-set index: class}; None if a person stopped before.

    Raises:
        PipelineError: nobody can label as many, or they are all of one class.
        OSError: an answer cannot be written.
    """
    if dataset.complete:
        rng = generator(config.seed, "initial")
        pool = Pool.initial(len(dataset.train_images), config.initial, rng)
        return {int(index): int(dataset.train_labels[index]) for index in pool.labelled}
    known = np.flatnonzero(dataset.train_labels != UNLABELLED)
    labels = {int(index): int(dataset.train_labels[index]) for index in known}
    order = generator(config.seed, "initial").permutation(
        np.flatnonzero(dataset.train_labels == UNLABELLED)
    )
    while True:
        asked = {line["image"]: line["label"] for line in journal.of_round(None)}
        given = {image: label for image, label in asked.items() if label is not None}
        if len(labels) + len(given) >= config.initial:
            return _several_classes({**labels, **given}, dataset)
        left = [int(index) for index in order if int(index) not in asked]
        if not left:
            raise PipelineError(
                f"{len(labels) + len(given)} images are labelled and {config.initial} are to be "
                "at the start, and all others were set aside: lower initial."
            )
        heading = f"label {len(labels) + len(given) + 1} of {config.initial} to begin with"
        began = time.monotonic()
        said = answerer(left[0], heading)
        if said is Command.QUIT:
            return None
        if said is Command.UNDO:
            if asked:
                journal.take_back()
            continue
        label = said if isinstance(said, int) else None
        journal.add(
            {
                "number": len(journal.answers),
                "round": None,
                "image": left[0],
                "label": label,
                "name": None if label is None else dataset.class_names[label],
                "score": None,
                "predicted": None,
                "who": who,
                "seconds": round(time.monotonic() - began, 3),
            }
        )


def _several_classes(labels: dict[int, int], dataset: Dataset) -> dict[int, int]:
    classes = set(labels.values())
    if len(classes) < 2:
        only = dataset.class_names[next(iter(classes))]
        raise PipelineError(
            f"all {len(labels)} labels at the start are {only}: there is nothing to tell apart. "
            "Raise initial, or put images of other classes into train/CLASS/."
        )
    return labels


@dataclass(frozen=True)
class SequentialSetup:
    """Everything of a sequential run that its trainings and queries have in common.

    Attributes:
        config: of the run.
        dataset: its data.
        network: trained in place.
        bridge: its mirror.
        journal: trainings and answers so far.
        initial: {data-set index: class}, the labels at the start.
        tests: positions of the test images on which the linearised network is evaluated.
        stages: makes the record of time and memory, which shows progress.
        first: cache of first trainings; without one each run trains its own.
    """

    config: SequentialConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    journal: Journal
    initial: dict[int, int]
    tests: np.ndarray
    stages: Callable[[], Stages]
    first: FirstTrainingCache | None = None

    def labels(self, before: int) -> dict[int, int]:
        """{data-set index: class} of all labels given before a training, in their order."""
        labels = dict(self.initial)
        for line in self.journal.given:
            if line["round"] < before:
                labels[line["image"]] = line["label"]
        return labels

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the network takes them."""
        return self.dataset.normalise(self.dataset.train_images[indices])

    def restore(self, number: int) -> None:
        """Give the network the weights of a training, in eval mode.

        Raises:
            BridgeError: they are not there, or of another network.
        """
        restore(self.network, read(self.journal.run.weights(number)))
        self.network.eval()


def test_positions(dataset: Dataset, subset: int | None, seed: int) -> np.ndarray:
    """Test images on which the linearised network is evaluated, int64, ascending."""
    count = len(dataset.test_images)
    if subset is None or subset >= count:
        return np.arange(count)
    return np.sort(generator(seed, "tests").choice(count, subset, replace=False))


def train(setup: SequentialSetup, why: str, *, go_on: bool) -> SequentialSession | None:
    """Train on all labels so far, record it, and linearise the network.

    Args:
        setup: of the run.
        why: it is trained now, for the record.
        go_on: whether queries follow; without, no kernel is computed.
    """
    journal, dataset = setup.journal, setup.dataset
    number, stages = len(journal.run.rounds), setup.stages()
    labels = setup.labels(number)
    in_progress = RoundInProgress(journal.run)
    trained = in_progress.training()
    if trained is None:
        trained = _fit(setup, labels, number, stages)
        in_progress.save_training(trained)
    else:
        setup.restore(number)
        stages.seconds["fit"] = trained["seconds"]
    whole, some = _accuracies(setup, stages)
    session = linearise(setup, number, stages) if go_on else None
    line = {
        "round": number,
        "why": why,
        "labelled": len(labels),
        "test_accuracy": whole,
        "subset_accuracy": some,
        "linearised_accuracy": session.status.accuracy if session else None,
        "train_accuracy": trained["train_accuracy"],
        "fit": trained["fit"],
        "missing_classes": list(
            missing_classes(np.array([*labels.values()], np.int64), dataset.class_names)
        ),
        "candidates": len(session.state.candidates) if session else 0,
        "tests": len(setup.tests),
        "diagnostics": session.state.diagnostics if session else {},
        "seconds": stages.seconds,
        "peak_memory_mib": stages.peak_memory_mib,
    }
    if "shared" in trained:
        line["shared"] = trained["shared"]
    if number == 0:
        line["initial"] = {"indices": [*labels], "labels": [*labels.values()]}
    journal.train(line)
    record.clear_round_in_progress(journal.run.path)
    return session


def linearise(setup: SequentialSetup, number: int, stages: Stages) -> SequentialSession:
    """The session after a training whose weights are on the disk, with all answers since."""
    config, dataset, run = setup.config, setup.dataset, setup.journal.run
    labels = setup.labels(number)
    aside = {
        line["image"]
        for line in setup.journal.answers
        if line["label"] is None and (line["round"] is None or line["round"] < number)
    }
    taken = np.array([*labels, *(aside - labels.keys())], np.int64)
    pool = Pool.of(len(dataset.train_images), taken)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    with stages("certificate"):
        probe = setup.images(np.concatenate([candidates, pool.labelled])[:PROBE])
        certified = setup.bridge.cross(run, number, probe)
    tests = dataset.normalise(dataset.test_images[setup.tests]) if len(setup.tests) else None
    state = build_state(
        setup.network,
        certified,
        SequentialData(
            images=setup.images,
            labelled=labels,
            candidates=candidates,
            test_images=tests,
            test_labels=dataset.test_labels[setup.tests],
            classes=dataset.classes,
        ),
        config.strategy,
        config.options,
        config.seed,
        rng=generator(config.seed, "kernel", number),
        progress=stages,
        folder=run.path / KERNEL,
    )
    events = [Event(line["image"], line["label"]) for line in setup.journal.of_round(number)]
    with stages("posterior"):
        return SequentialSession(state, events)


def _fit(
    setup: SequentialSetup, labels: dict[int, int], number: int, stages: Stages
) -> dict[str, Any]:
    """Train and save; returns the record of it."""
    config, run = setup.config, setup.journal.run
    if number:  # a warm start, from the last training
        restore(setup.network, read(run.weights(number - 1)))
    images = setup.images(np.array([*labels], np.int64))
    classes = np.array([*labels.values()], np.int64)
    return fit_and_save(
        setup.network, images, classes, config, run, number, stages, first=setup.first
    )


def _accuracies(setup: SequentialSetup, stages: Stages) -> tuple[float | None, float | None]:
    """The trained network's, on all test images and on those of the linearised network."""
    dataset = setup.dataset
    if not len(dataset.test_images):
        return None, None
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        predicted = logits(setup.network, tests).argmax(axis=1)
    right = predicted == dataset.test_labels
    return float(right.mean()), float(right[setup.tests].mean())


def run(
    config: SequentialConfig,
    console: Console | None = None,
    oracle: Callable[[np.ndarray], object] | None = None,
    first: FirstTrainingCache | None = None,
    read_dataset: Callable[[], Dataset] | None = None,
) -> Journal:
    """Carry out a sequential run, or the rest of it.

    Args:
        config: what to do and where to record it.
        console: where queries and answers are shown; nothing is shown without one.
        oracle: answers in place of the one that the settings name: data-set indices → classes.
        first: cache of first trainings, for several runs that begin with the same one.
        read_dataset: reads the data set, in place of the one that the settings name, unless that
            is a folder of images.

    Returns:
        The run as its directory holds it; not complete if a person stopped.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: each with one plain message; what
            was answered before stays.
        OSError: a file cannot be written; what was answered before is safe.
    """
    keep_freed_blocks()
    keep_compiled()
    console = console or Console(quiet=True)
    if config.dataset == "images":
        read_dataset = lambda: _own_images(config)
    dataset, network = prepared(config.rounds_of_one, console, read_dataset)
    with record.only_writer(config.run_folder):
        asked = identity(config) | {"data": describe(dataset)}
        machine = machine_settings(config) | {record.NOTES: list(dataset.notes)}
        journal = open_journal(config.run_folder, asked, machine)
        answerer, who = answerer_of(config, dataset, console, oracle)
        print_heading(console, config, journal)
        bridge = Bridge(network, config.twin)
        tests = test_positions(dataset, config.test_subset, config.seed)
        _check(config, dataset, bridge, len(tests), console)
        initial = initial_labels(config, dataset, journal, answerer, who)
        finished = initial is not None
        if initial is not None:
            setup = SequentialSetup(
                config=config,
                dataset=dataset,
                network=network,
                bridge=bridge,
                journal=journal,
                initial=initial,
                tests=tests,
                stages=lambda: Stages(console),
                first=first,
            )
            finished = _spend_budget(setup, answerer, who, console)
        journal.flush()
        (journal.run.path / QUERY_IMAGE).unlink(missing_ok=True)
        print_ending(console, config, journal, finished=finished)
    return journal


def _own_images(config: SequentialConfig) -> Dataset:
    if not config.data_folder.exists():
        raise PipelineError(
            f"{config.data_folder} does not exist: give --data-dir the folder, zip or tar of your "
            "images."
        )
    return read_partly_labelled(config.data_folder, config.image_size, config.class_names)


def _check(
    config: SequentialConfig, dataset: Dataset, bridge: Bridge, tests: int, console: Console
) -> None:
    """Refuse a network without a mirror, or too little memory, before anything is trained."""
    labelled = config.initial + (config.budget if config.retrains else 0)
    probe = dataset.normalise(dataset.train_images[:PROBE])
    with console.status("mirroring the network"):
        mirror = bridge.prepare(probe)
    candidates = min(config.subset or len(dataset.train_images), len(dataset.train_images))
    candidates = min(candidates, len(dataset.train_images) - config.initial)
    if candidates < 1:
        raise PipelineError(
            f"all {len(dataset.train_images)} images are labelled at the start: lower initial."
        )
    # refused before anything is trained; sizes do not depend on the projections drawn
    rng = np.random.default_rng(0)
    plan_sequential(mirror, probe[0], labelled, candidates, tests, config.kernel, rng)


def _spend_budget(setup: SequentialSetup, answerer: Answerer, who: str, console: Console) -> bool:
    """Query, absorb and train until the budget is spent; False if a person stopped before."""
    config, journal = setup.config, setup.journal
    session: SequentialSession | None = None
    if journal.unfollowed:
        session = _resumed(setup, console)
        journal.follow(_follows(session))
    while True:
        why = _why_train(setup, session)
        if why is not None:
            session = None  # so that there are never two of them in memory
            session = train(setup, why, go_on=len(journal.given) < config.budget)
            print_training(console, journal.run.rounds[-1])
        if len(journal.given) >= config.budget:
            if why is None:
                shutil.rmtree(journal.run.path / KERNEL, ignore_errors=True)
                return True
            continue
        if session is None:
            session = _resumed(setup, console)
            continue  # perhaps it has gone stale already
        try:
            if not _query(setup, session, answerer, who, console):
                return False
        except Exhausted:
            since = journal.of_round(len(journal.run.rounds) - 1)
            if not (config.retrains and since):
                raise
            session = None
            session = train(setup, "no candidate was left", go_on=True)
            print_training(console, journal.run.rounds[-1])


def _resumed(setup: SequentialSetup, console: Console) -> SequentialSession:
    number = len(setup.journal.run.rounds) - 1
    with console.status("absorbing the answers since the training"):
        setup.restore(number)
        return linearise(setup, number, setup.stages())


def _why_train(setup: SequentialSetup, session: SequentialSession | None) -> str | None:
    """Why the network is to be trained now; None if it is not."""
    config, journal = setup.config, setup.journal
    if not journal.run.rounds:
        return "the labels at the start"
    number = len(journal.run.rounds) - 1
    since = sum(line["label"] is not None for line in journal.of_round(number))
    if len(journal.given) >= config.budget:
        return "the budget is spent" if config.final_training and since else None
    if config.retrain_every is not None and since >= config.retrain_every:
        return f"{since} answers"
    limit = config.retrain_when_stale
    if limit is not None and session is not None and session.status.drift > limit:
        return f"stale: drift {session.status.drift:.4f}"
    return None


def _query(
    setup: SequentialSetup,
    session: SequentialSession,
    answerer: Answerer,
    who: str,
    console: Console,
) -> bool:
    """One query and its answer; False if a person stops."""
    config, journal = setup.config, setup.journal
    query = session.next_query()
    began = time.monotonic()
    said = answerer(query.image, query_heading(config, len(journal.given), session.status))
    if said is Command.QUIT:
        return False
    if said is Command.UNDO:
        _undo(journal, session, console)
        return True
    label = said if isinstance(said, int) else None
    line = {
        "number": len(journal.answers),
        "round": len(journal.run.rounds) - 1,
        "image": query.image,
        "label": label,
        "name": None if label is None else setup.dataset.class_names[label],
        "score": query.score,
        "predicted": query.predicted,
        "who": who,
        "seconds": round(time.monotonic() - began, 3),
    }
    journal.add(line)  # on the disk before it is absorbed
    if label is None:
        session.skip(query.image)
    else:
        session.add_label(query.image, label)
    journal.follow(_follows(session))
    print_answer(console, journal.answers[-1], config.budget, len(journal.given))
    return True


def _undo(journal: Journal, session: SequentialSession, console: Console) -> None:
    if not session.events:
        _remark(console, "nothing was answered since the network was trained: no undo")
        return
    line = journal.answers[-1]
    journal.take_back()
    session.undo()
    _remark(console, f"taken back: image {line['image']} ({line['name'] or 'set aside'})")


def _follows(session: SequentialSession) -> dict[str, object]:
    status = session.status
    return {
        "labelled": status.labelled,
        "accuracy": status.accuracy,
        "drift": status.drift,
        "foreseen": status.foreseen,
        "rounding": status.rounding,
        "refreshed": status.refreshed,
    }


def print_heading(console: Console, config: SequentialConfig, journal: Journal) -> None:
    """Print the run in one line, and how many answers are on disk."""
    console.print(
        f"[bold]{config.dataset}[/bold] · sequential · {config.strategy} · seed {config.seed} · "
        f"{config.network} {' '.join(config.network_args)}",
        highlight=False,
    )
    print_notes(console, journal.run)
    if journal.answers:
        console.print(f"{len(journal.answers)} answers are on disk; going on", style="dim")


def query_heading(config: SequentialConfig, answered: int, status: Status) -> str:
    """The line above a query."""
    accuracy = _percent(status.accuracy)
    known = "" if status.accuracy is None else f" · linearised network {accuracy} right"
    return f"question {answered + 1} of {config.budget} · {status.labelled} labels{known}"


def print_answer(console: Console, line: dict[str, Any], budget: int, count: int) -> None:
    """Print one answer, and accuracy and drift after it."""
    what = escape(line["name"]) if line["name"] is not None else "set aside"
    right = "=" if line["predicted"] == line["label"] else "≠"
    console.print(
        f"{count:>4}/{budget} image {line['image']:<6} {what:<12} {right} "
        f"{line['score']:>9.4g}  test {_percent(line['accuracy']):>6}  drift {line['drift']:.3f}",
        highlight=False,
        soft_wrap=True,
    )


def print_training(console: Console, line: dict[str, Any]) -> None:
    """Print one training, and in words labels not fitted and classes not labelled."""
    console.print(
        f"trained on {line['labelled']} labels ({line['why']}): test "
        f"{_percent(line['test_accuracy'])}, train {_percent(line['train_accuracy'])}; "
        f"{sum(line['seconds'].values()):.1f} s",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    if not line["fit"]["fitted"]:
        console.print(
            f"the labels were not fitted: {line['fit']['stopped']}", style="yellow", soft_wrap=True
        )
    if line["missing_classes"]:
        named = ", ".join(line["missing_classes"][:10])
        console.print(f"no label yet of: {escape(named)}", style="yellow", highlight=False)


def print_ending(
    console: Console, config: SequentialConfig, journal: Journal, *, finished: bool
) -> None:
    """Print a table of trainings, draw the curve, and say where record and picture are."""
    if journal.run.rounds:
        console.print(_table(journal))
        print_notes(console, journal.run)
        _remark(
            console,
            f"accuracy on {journal.run.rounds[0]['tests']} test images (SGD, all: on all of them), "
            "of the network as trained, linearised, and then with the answers",
        )
        picture = write_curve(journal)
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"record:  {journal.run.path}", highlight=False, soft_wrap=True, markup=False)
    if not finished:
        left = config.budget - len(journal.given)
        _remark(console, f"stopped with {left} questions left; the same command goes on from here")


def _remark(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f}%"


def _table(journal: Journal) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False, show_edge=False
    )
    for name in ("labels", "SGD, all", "SGD", "linearised", "answers", "then", "foreseen", "drift"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name) + 1)
    for line in journal.run.rounds:
        own = [a for a in journal.of_round(line["round"]) if a["label"] is not None]
        last = own[-1] if own else None
        table.add_row(
            str(line["labelled"]),
            _percent(line["test_accuracy"]),
            _percent(line["subset_accuracy"]),
            _percent(line["linearised_accuracy"]),
            str(len(own)),
            _percent(last["accuracy"]) if last else "",
            f"{100 * last['foreseen'] / len(own):.0f}%" if last else "",
            f"{last['drift']:.4f}" if last else "",
        )
    return table
