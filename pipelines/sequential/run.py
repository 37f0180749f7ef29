"""Sequential runs: labels at the start, training, then one query at a time within a budget.

Every answer is on the disk before it is absorbed. The network is trained again when the settings
ask for it, or when the linearised network is stale; an interrupted run keeps its finished parts.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from kernel.files import write_file
from pipelines.config import identity, machine_settings
from pipelines.core import record
from pipelines.core.entries import changed
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator, keep_compiled
from pipelines.run import (
    FirstTrainingCache,
    RunSetup,
    describe,
    first_weights,
    image_size_of,
    mirror_and_rows,
    prepared,
    print_caveats,
    print_heading,
    print_notes,
)
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.journal import ANSWERS, Journal, open_journal, write_curve
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
from pipelines.strategies.frontier import FrontierRows
from trainer.dataset import UNLABELLED, Dataset
from trainer.fit import keep_freed_blocks
from trainer.images import read_partly_labelled
from trainer.networks import load
from trainer.oracle import CallableOracle, Command, DatasetOracle, PersonOracle
from trainer.pool import Pool
from trainer.predict import Piecewise

Answerer = Callable[[int, str], int | Command]
"""Data-set index and heading → the label, or a command to stop, skip or undo."""

QUERY_IMAGE = ".question.png"
KERNEL = ".kernel"  # in the run directory: finished chunks of a kernel that takes long


def _answerer(
    config: SequentialConfig,
    dataset: Dataset,
    console: Console,
    function: Callable[[np.ndarray], object] | None,
) -> tuple[Answerer, str]:
    """The oracle, one image at a time, and its name in the record.

    Raises:
        NetworkError: `oracle` names no function.
        PipelineError: a person is to be asked without a console.
    """
    if function is None and config.oracle == "person":
        if console.quiet:
            raise PipelineError("oracle is person, and there is no console to ask them at.")
        person = PersonOracle(
            dataset.train_images,
            dataset.class_names,
            config.run_folder / QUERY_IMAGE,
            console,
            _read_standard_input,
            write_file,
        )
        return person.ask, "person"
    if function is not None:
        oracle, name = CallableOracle(function, dataset.classes), "function"
    elif config.oracle == "dataset":
        oracle, name = DatasetOracle(dataset.train_labels), "dataset"
    else:
        oracle = CallableOracle(load(config.oracle, "oracle"), dataset.classes)
        name = config.oracle
    return lambda index, heading: int(oracle(np.array([index], np.int64))[0]), name


def _read_standard_input() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@dataclass(frozen=True, kw_only=True)
class SequentialSetup(RunSetup):
    """The parts of a sequential run that its trainings and queries share.

    Attributes:
        journal: trainings and answers so far.
        answerer: labels one image at a time.
        who: its name in the record.
        tests: positions of the test images on which the linearised network is evaluated.
        initial: {data-set index: class}, the labels at the start, once there are enough.
    """

    config: SequentialConfig
    mirror: Mirror
    journal: Journal
    answerer: Answerer
    who: str
    tests: np.ndarray
    initial: dict[int, int] = field(default_factory=dict)

    def labels(self, before: int) -> dict[int, int]:
        """{data-set index: class} of all labels given before a training, in their order."""
        labels = dict(self.initial)
        for line in self.journal.given:
            if line["round"] < before:
                labels[line["image"]] = line["label"]
        return labels

    def query(
        self,
        image: int,
        heading: str,
        number: int | None,
        score: float | None = None,
        predicted: int | None = None,
    ) -> dict[str, Any] | Command:
        """Ask for a label, and write it to the journal, after training `number` (None: the first).

        Returns:
            The line of the journal, with the label None where the image was skipped; or the command
            to quit or to undo, of which nothing is written.
        """
        began = time.monotonic()
        answer = self.answerer(image, heading)
        if answer is Command.QUIT or answer is Command.UNDO:
            return answer
        label = answer if isinstance(answer, int) else None
        line = {
            "number": len(self.journal.answers),
            "round": number,
            "image": image,
            "label": label,
            "name": None if label is None else self.dataset.class_names[label],
            "score": score,
            "predicted": predicted,
            "who": self.who,
            "seconds": round(time.monotonic() - began, 3),
        }
        self.journal.add(line)
        return line


def initial_labels(setup: SequentialSetup) -> dict[int, int] | None:
    """The labelled set of the first training.

    `initial` images drawn uniformly; of your own images all that are labelled, and images in random
    order are queried until there are `initial`.

    Returns:
        {data-set index: class}; None if a person stopped before.

    Raises:
        PipelineError: there are too few images, or all labels are of one class.
        OSError: an answer cannot be written.
    """
    config, dataset, journal = setup.config, setup.dataset, setup.journal
    rng = generator(config.seed, "initial")
    if dataset.complete:
        pool = Pool.initial(len(dataset.train_images), config.initial, rng)
        return {int(index): int(dataset.train_labels[index]) for index in pool.labelled}
    known = np.flatnonzero(dataset.train_labels != UNLABELLED)
    labels = {int(index): int(dataset.train_labels[index]) for index in known}
    order = rng.permutation(np.flatnonzero(dataset.train_labels == UNLABELLED))
    first = [line["image"] for line in journal.of_round(None)]
    if first != order[: len(first)].tolist():
        raise changed(
            f"{journal.run.path / ANSWERS} begins with the images {str(first[:5])[1:-1]}, … and "
            f"the settings draw {str(order[:5].tolist())[1:-1]}, …: it is of another run"
        )
    while True:
        queried = {line["image"]: line["label"] for line in journal.of_round(None)}
        given = {image: label for image, label in queried.items() if label is not None}
        count = len(labels) + len(given)
        if count >= config.initial:
            return _several_classes({**labels, **given}, dataset)
        left = [int(index) for index in order if int(index) not in queried]
        if not left:
            raise PipelineError(
                f"{count} images are labelled and {config.initial} are to be at the start, and all "
                "others were set aside: lower initial."
            )
        heading = f"label {count + 1} of {config.initial} to begin with"
        answer = setup.query(left[0], heading, None)
        if answer is Command.QUIT:
            return None
        if answer is Command.UNDO and queried:
            journal.take_back()


def _several_classes(labels: dict[int, int], dataset: Dataset) -> dict[int, int]:
    classes = set(labels.values())
    if len(classes) < 2:
        only = dataset.class_names[next(iter(classes))]
        raise PipelineError(
            f"all {len(labels)} labels at the start are {only}: there is nothing to distinguish. "
            "Raise initial, or put images of other classes into train/CLASS/."
        )
    return labels


def train(setup: SequentialSetup, why: str, *, go_on: bool) -> SequentialSession | None:
    """Train on all labels so far, record it, and linearise the network if queries follow."""
    journal, dataset = setup.journal, setup.dataset
    number, stages = len(journal.run.rounds), Stages(setup.console)
    labels = setup.labels(number)
    indices, classes = (np.array([*values], np.int64) for values in (labels, labels.values()))
    line = setup.train(journal.run, indices, classes, stages)
    line |= {"why": why, "tests": len(setup.tests), "test_accuracy": None, "subset_accuracy": None}
    if len(dataset.test_images):
        right = setup.test_predictions(stages) == dataset.test_labels
        line["test_accuracy"] = float(right.mean())
        line["subset_accuracy"] = float(right[setup.tests].mean())
    session = linearise(setup, number, stages) if go_on else None
    line |= {
        "linearised_accuracy": session.status.accuracy if session else None,
        "candidates": len(session.state.candidates) if session else 0,
        "diagnostics": session.state.diagnostics if session else {},
        "seconds": stages.seconds,
        "peak_memory_mib": stages.peak_memory_mib,
    }
    if number == 0:
        line["initial"] = {"indices": [*labels], "labels": [*labels.values()]}
    journal.train(line)
    record.clear_round_in_progress(journal.run.path)
    print_training(setup.console, line)
    return session


def linearise(setup: SequentialSetup, number: int, stages: Stages) -> SequentialSession:
    """The session after a training whose weights are on the disk, with all answers since."""
    config, dataset, run = setup.config, setup.dataset, setup.journal.run
    labels = setup.labels(number)
    skipped = {
        line["image"]
        for line in setup.journal.answers
        if line["label"] is None and (line["round"] is None or line["round"] < number)
    }
    taken = np.array([*labels, *(skipped - labels.keys())], np.int64)
    pool = Pool.of(len(dataset.train_images), taken)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    frontier = setup.frontier
    prefix, network, start = None, setup.network, setup.mirror
    if frontier is not None:
        prefix, network, start = frontier.prefix, frontier.prefix.tail, frontier.prefix.mirror
    with stages("certificate"):
        probe = setup.images(np.concatenate([candidates, pool.labelled])[:PROBE])
        mirror = start.with_weights(weights_of(network))
        certificate = certify(setup.network, mirror, probe, prefix).summary()
    tests = None
    if frontier is not None:
        with stages("frozen part") as advance:
            frontier(np.concatenate([pool.labelled, candidates]), advance)
            tests = frontier(setup.test_rows(setup.tests)) if len(setup.tests) else None
    elif len(setup.tests):
        tests = Piecewise(
            lambda positions: dataset.normalise(dataset.test_images[positions]), setup.tests
        )
    state = build_state(
        weights_of(setup.network),
        (mirror, certificate),
        SequentialData(
            network=network,
            images=frontier or setup.images,
            labelled=labels,
            candidates=candidates,
            test_images=tests,
            test_labels=dataset.test_labels[setup.tests],
            classes=dataset.classes,
        ),
        config.strategy,
        config.options,
        (config.seed, number),
        progress=stages,
        folder=run.path / KERNEL,
    )
    events = [Event(line["image"], line["label"]) for line in setup.journal.of_round(number)]
    with stages("posterior"):
        return SequentialSession(state, events)


def run(
    config: SequentialConfig,
    console: Console | None = None,
    oracle: Callable[[np.ndarray], object] | None = None,
    first: FirstTrainingCache | None = None,
    read_dataset: Callable[[], Dataset] | None = None,
) -> Journal:
    """Carry out a sequential run, or the rest of it.

    Args:
        config: of the run, and where it is recorded.
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
        settings = identity(config) | {"data": describe(dataset)}
        machine = machine_settings(config) | {record.NOTES: list(dataset.notes)}
        journal = open_journal(config.run_folder, settings, machine)
        answerer, who = _answerer(config, dataset, console, oracle)
        print_heading(console, config, "sequential · ")
        print_notes(console, journal.run)
        if journal.answers:
            console.print(f"{len(journal.answers)} answers are on disk; going on", style="dim")
        tests = np.arange(len(dataset.test_images))
        if config.test_subset is not None and config.test_subset < len(tests):
            rng = generator(config.seed, "tests")
            tests = np.sort(rng.choice(len(tests), config.test_subset, replace=False))
        mirror, frontier = _mirror(config, dataset, network, len(tests), console)
        setup = SequentialSetup(
            config=config,
            dataset=dataset,
            network=network,
            mirror=mirror,
            console=console,
            journal=journal,
            answerer=answerer,
            who=who,
            tests=tests,
            first=first,
            frontier=frontier,
            start=first_weights(config, network),
        )
        initial = initial_labels(setup)
        finished = initial is not None and _spend_budget(replace(setup, initial=initial))
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
    return read_partly_labelled(config.data_folder, image_size_of(config), config.class_names)


def _mirror(
    config: SequentialConfig, dataset: Dataset, network: nn.Module, tests: int, console: Console
) -> tuple[Mirror, FrontierRows | None]:
    """The certified mirror of the untrained network, and rows of its frozen prefix.

    Too little memory is refused here already.
    """
    labelled = config.initial + (config.budget if config.retrains else 0)
    images = len(dataset.train_images)
    candidates = min(config.subset or images, images - config.initial)
    with console.status("mirroring the network"):
        mirror, frontier = mirror_and_rows(config, dataset, network, needed=True)
    assert mirror is not None
    if candidates < 1:
        raise PipelineError(f"all {images} images are labelled at the start: lower initial.")
    rng = np.random.default_rng(0)  # sizes do not depend on the projections drawn
    if frontier is None:
        planned, image = mirror, dataset.normalise(dataset.train_images[:1])[0]
    else:
        planned, image = frontier.prefix.mirror, np.zeros(frontier.prefix.frontier.width)
    plan_sequential(planned, image, labelled, candidates, tests, config.kernel, rng)
    return mirror, frontier


def _spend_budget(setup: SequentialSetup) -> bool:
    """Query, absorb and train until the budget is spent; False if a person stopped before."""
    config, journal = setup.config, setup.journal
    session: SequentialSession | None = None
    if journal.unfollowed:
        session = _resumed(setup)
        journal.follow(_follows(session))
    while True:
        why = _why_train(setup, session)
        if why is not None:
            session = None  # so that there are never two of them in memory
            session = train(setup, why, go_on=len(journal.given) < config.budget)
        if len(journal.given) >= config.budget:
            if why is None:
                shutil.rmtree(journal.run.path / KERNEL, ignore_errors=True)
                return True
            continue
        if session is None:
            session = _resumed(setup)
            continue  # it may be stale already
        try:
            if not _query(setup, session):
                return False
        except Exhausted:
            since = journal.of_round(len(journal.run.rounds) - 1)
            if not (config.retrains and since):
                raise
            session = None
            session = train(setup, "no candidate was left", go_on=True)


def _resumed(setup: SequentialSetup) -> SequentialSession:
    run = setup.journal.run
    number = len(run.rounds) - 1
    with setup.console.status("absorbing the answers since the training"):
        run.check_weights(number)
        setup.restore(run, number)
        return linearise(setup, number, Stages(setup.console))


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


def _query(setup: SequentialSetup, session: SequentialSession) -> bool:
    """One query and its answer; False if a person stops."""
    config, journal, console = setup.config, setup.journal, setup.console
    image, score, predicted = session.next_query()
    heading = query_heading(config, len(journal.given), session.status)
    line = setup.query(image, heading, len(journal.run.rounds) - 1, score, predicted)
    if line is Command.UNDO:
        _undo(journal, session, console)
    if isinstance(line, Command):
        return line is not Command.QUIT
    if line["label"] is None:
        session.skip(image)
    else:
        session.add_label(image, line["label"])
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
    """Entries of an answer's line that are known once it is absorbed."""
    entries = session.status._asdict()
    del entries["answered"]
    return entries


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
    print_caveats(console, line)


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
