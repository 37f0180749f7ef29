"""Questions until the budget is spent: from settings to a run directory, resumed where it stood.

Labels at the start, training, then one question at a time; every answer is on the disk before it is
absorbed. Training again only when it is asked for, or when the linearised network has gone stale.

Who answers: from the settings of a run to a function that is asked about one image at a time.

The labels at the start: those that the data set has, and the others by asking.

From settings, data and a run directory to {data-set index: class}, before anything is trained.

Between questions: training on all labels so far, and what the next questions stand on.

From a run directory and its answers to the network as trained last and an asker that has absorbed
what was answered since; whatever was finished before an interruption is taken up.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from bridge import module
from bridge.weights import read
from pipelines import record
from pipelines.config import machine_settings
from pipelines.errors import PipelineError
from pipelines.progress import Stages, generator, keep_compiled
from pipelines.record import RoundInProgress
from pipelines.run import Bridge, FirstTrainingCache, describe, fit_and_save, prepared
from pipelines.sequential import display
from pipelines.sequential.config import Journal, SequentialConfig, open_journal
from pipelines.sequential.learner import Event, Exhausted
from pipelines.sequential.session import Asker, Scene, fits, grounds
from pipelines.strategies.base import PROBE
from trainer.dataset import UNLABELLED, Dataset
from trainer.fit import keep_freed_blocks
from trainer.images import read_partly_labelled
from trainer.networks import load
from trainer.oracle import (
    CallableOracle,
    DatasetOracle,
    Oracle,
    PersonOracle,
    Wish,
    missing_classes,
)
from trainer.pool import Pool
from trainer.predict import Piecewise, logits

Respond = Callable[[int, str], int | Wish]
"""Data-set index and a heading → the label, or what is wanted instead."""

QUESTION_IMAGE = ".question.png"


def responder(
    config: SequentialConfig,
    dataset: Dataset,
    console: Console,
    function: Callable[[np.ndarray], object] | None = None,
) -> tuple[Respond, str]:
    """Who answers, and their name in the record.

    Args:
        config: says who.
        dataset: of which images are asked.
        console: where a person is asked.
        function: answers in their place, if it is given: data-set indices → classes.

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
        file = config.run_folder / QUESTION_IMAGE
        return person(dataset, file, console).ask, "person"
    named = CallableOracle(load(config.oracle, "oracle"), dataset.classes)
    return _one_by_one(named), config.oracle


def person(dataset: Dataset, file: Path, console: Console) -> PersonOracle:
    """The person at this process's standard input."""

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    return PersonOracle(dataset.train_images, dataset.class_names, file, console, read)


def _one_by_one(oracle: Oracle) -> Respond:
    return lambda index, heading: int(oracle(np.array([index], np.int64))[0])


def labels_at_the_start(
    config: SequentialConfig, dataset: Dataset, journal: Journal, respond: Respond, who: str
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
        said = respond(left[0], heading)
        if said is Wish.QUIT:
            return None
        if said is Wish.UNDO:
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


KERNEL = ".kernel"  # in the run directory: finished chunks of a kernel that takes long


@dataclass(frozen=True)
class Work:
    """What stays the same from question to question.

    Attributes:
        config: of the run.
        dataset: what is labelled.
        network: trained in place.
        bridge: its mirror.
        journal: what has happened.
        start: {data-set index: class}, the labels at the start.
        tests: places of the test images on which the linearised network is evaluated.
        stages: makes what notes time and memory, and shows progress.
        first: cache of first trainings; without one each run trains its own.
    """

    config: SequentialConfig
    dataset: Dataset
    network: nn.Module
    bridge: Bridge
    journal: Journal
    start: dict[int, int]
    tests: np.ndarray
    stages: Callable[[], Stages]
    first: FirstTrainingCache | None = None

    def labels(self, before: int) -> dict[int, int]:
        """{data-set index: class} of all labels given before a training, in their order."""
        labels = dict(self.start)
        for line in self.journal.given:
            if line["round"] < before:
                labels[line["image"]] = line["label"]
        return labels

    def images(self, indices: np.ndarray) -> np.ndarray:
        """As the network takes them."""
        return self.dataset.normalise(self.dataset.train_images[indices])


def test_places(dataset: Dataset, subset: int | None, seed: int) -> np.ndarray:
    """Places of the test images on which the linearised network is evaluated, in order."""
    count = len(dataset.test_images)
    if subset is None or subset >= count:
        return np.arange(count)
    return np.sort(generator(seed, "tests").choice(count, subset, replace=False))


def train(work: Work, why: str, *, ask_on: bool) -> Asker | None:
    """Train on all labels so far, write it to the record, and make what is asked from it.

    Args:
        work: of the run.
        why: it is trained now, for the record.
        ask_on: whether questions follow; without, no kernel is computed.
    """
    journal, dataset = work.journal, work.dataset
    number, stages = len(journal.run.rounds), work.stages()
    labels = work.labels(number)
    in_progress = RoundInProgress(journal.run)
    trained = in_progress.training()
    if trained is None:
        trained = _fit(work, labels, number, stages)
        in_progress.save_training(trained)
    else:
        module.restore(work.network, read(journal.run.weights(number)))
        work.network.eval()
        stages.seconds["fit"] = trained["seconds"]
    whole, some = _accuracies(work, stages)
    asker = make_asker(work, number, stages) if ask_on else None
    line = {
        "round": number,
        "why": why,
        "labelled": len(labels),
        "test_accuracy": whole,
        "subset_accuracy": some,
        "linearised_accuracy": asker.standing.accuracy if asker else None,
        "train_accuracy": trained["train_accuracy"],
        "fit": trained["fit"],
        "missing_classes": list(
            missing_classes(np.array([*labels.values()], np.int64), dataset.class_names)
        ),
        "candidates": len(asker.grounds.candidates) if asker else 0,
        "tests": len(work.tests),
        "diagnostics": asker.grounds.diagnostics if asker else {},
        "seconds": stages.seconds,
        "peak_memory_mib": stages.peak_memory_mib,
    }
    if "shared" in trained:
        line["shared"] = trained["shared"]
    if number == 0:
        line["initial"] = {"indices": [*labels], "labels": [*labels.values()]}
    journal.train(line)
    record.clear_round_in_progress(journal.run.path)
    return asker


def take_up(work: Work) -> Asker:
    """The asker of the last training, with everything that was said since."""
    number = len(work.journal.run.rounds) - 1
    module.restore(work.network, read(work.journal.run.weights(number)))
    work.network.eval()
    return make_asker(work, number, work.stages())


def make_asker(work: Work, number: int, stages: Stages) -> Asker:
    """What questions after a training are asked by; its weights are on the disk."""
    config, dataset, run = work.config, work.dataset, work.journal.run
    labels = work.labels(number)
    aside = {
        line["image"]
        for line in work.journal.answers
        if line["label"] is None and (line["round"] is None or line["round"] < number)
    }
    taken = np.array([*labels, *(aside - labels.keys())], np.int64)
    pool = Pool.of(len(dataset.train_images), taken)
    candidates = pool.candidates(config.subset, generator(config.seed, "subset", number))
    with stages("certificate"):
        probe = work.images(np.concatenate([candidates, pool.labelled])[:PROBE])
        mirror, certificate = work.bridge.cross(run, number, probe)
    tests = dataset.normalise(dataset.test_images[work.tests]) if len(work.tests) else None
    made = grounds(
        work.network,
        mirror,
        certificate,
        Scene(
            images=work.images,
            labelled=labels,
            candidates=candidates,
            test_images=tests,
            test_labels=dataset.test_labels[work.tests],
            classes=dataset.classes,
        ),
        config.strategy,
        config.options,
        config.kernel,
        loss=config.train.loss,
        seed=config.seed,
        rng=generator(config.seed, "kernel", number),
        stages=stages,
        folder=run.path / KERNEL,
    )
    said = [Event(line["image"], line["label"]) for line in work.journal.of_round(number)]
    with stages("posterior"):
        return Asker(made, said)


def tidy(work: Work) -> None:
    """Delete what only an unfinished run needs."""
    shutil.rmtree(work.journal.run.path / KERNEL, ignore_errors=True)


def _fit(work: Work, labels: dict[int, int], number: int, stages: Stages) -> dict[str, Any]:
    """Train and save; what the record says of it."""
    config, run = work.config, work.journal.run
    if number:  # a warm start, from the last training
        module.restore(work.network, read(run.weights(number - 1)))
    images = work.images(np.array([*labels], np.int64))
    classes = np.array([*labels.values()], np.int64)
    return fit_and_save(
        work.network, images, classes, config, run, number, stages, first=work.first
    )


def _accuracies(work: Work, stages: Stages) -> tuple[float | None, float | None]:
    """The trained network's, on all test images and on those of the linearised network."""
    dataset = work.dataset
    if not len(dataset.test_images):
        return None, None
    with stages("evaluate"):
        tests = Piecewise(dataset.normalise, dataset.test_images)
        answers = logits(work.network, tests).argmax(axis=1)
    right = answers == dataset.test_labels
    return float(right.mean()), float(right[work.tests].mean())


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
        console: where questions and answers are shown; nothing is shown without one.
        oracle: answers in place of the one that the settings name: data-set indices → classes.
        first: cache of first trainings, for several runs that begin with the same one.
        read_dataset: reads the data set, in place of what the settings name, unless that is a
            folder of images.

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
    own = config.dataset == "images"
    dataset, network = prepared(
        config.plain, console, (lambda: _own(config)) if own else read_dataset
    )
    with record.only_writer(config.run_folder):
        asked = config.record() | {"data": describe(dataset)}
        journal = open_journal(config.run_folder, asked, machine_settings(config))
        respond, who = responder(config, dataset, console, oracle)
        display.print_heading(console, config, journal)
        bridge = Bridge(network, config.twin)
        tests = test_places(dataset, config.test_subset, config.seed)
        _check(config, dataset, bridge, len(tests), console)
        start = labels_at_the_start(config, dataset, journal, respond, who)
        finished = start is not None
        if start is not None:
            work = Work(
                config,
                dataset,
                network,
                bridge,
                journal,
                start,
                tests,
                lambda: Stages(console),
                first,
            )
            finished = _questions(work, respond, who, console)
        journal.flush()
        (journal.run.path / QUESTION_IMAGE).unlink(missing_ok=True)
        display.ending(console, config, journal, finished=finished)
    return journal


def _own(config: SequentialConfig) -> Dataset:
    if not config.data_folder.exists():
        raise PipelineError(
            f"{config.data_folder} does not exist: give --data-dir the folder, zip or tar of your "
            "images."
        )
    return read_partly_labelled(config.data_folder, config.image_size, config.class_names)


def _check(
    config: SequentialConfig, dataset: Dataset, bridge: Bridge, tests: int, console: Console
) -> None:
    """Refuse what cannot be mirrored or held before anything is trained or asked."""
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
    fits(mirror, probe[0], labelled, candidates, tests, config.kernel)


def _questions(work: Work, respond: Respond, who: str, console: Console) -> bool:
    """Ask, absorb and train until the budget is spent; False if a person stopped before."""
    config, journal = work.config, work.journal
    asker: Asker | None = None
    if journal.unfollowed:
        asker = _taken_up(work, console)
        journal.follow(_follows(asker))
    while True:
        why = _why_train(work, asker)
        if why is not None:
            asker = None  # so that there are never two of them in memory
            left = config.budget - len(journal.given)
            asker = train(work, why, ask_on=left > 0)
            display.trained(console, journal.run.rounds[-1])
        if len(journal.given) >= config.budget:
            if why is None:
                tidy(work)
                return True
            continue
        if asker is None:
            asker = _taken_up(work, console)
            continue  # perhaps it has gone stale already
        try:
            if not _ask(work, asker, respond, who, console):
                return False
        except Exhausted:
            since = journal.of_round(len(journal.run.rounds) - 1)
            if not (config.retrains and since):
                raise
            asker = None
            asker = train(work, "no candidate was left", ask_on=True)
            display.trained(console, journal.run.rounds[-1])


def _taken_up(work: Work, console: Console) -> Asker:
    with console.status("absorbing what was answered since the training"):
        return take_up(work)


def _why_train(work: Work, asker: Asker | None) -> str | None:
    """Why the network is to be trained now; None if it is not."""
    config, journal = work.config, work.journal
    if not journal.run.rounds:
        return "the labels at the start"
    number = len(journal.run.rounds) - 1
    since = sum(line["label"] is not None for line in journal.of_round(number))
    if len(journal.given) >= config.budget:
        return "the budget is spent" if config.final_training and since else None
    if config.retrain_every is not None and since >= config.retrain_every:
        return f"{since} answers"
    limit = config.retrain_when_stale
    if limit is not None and asker is not None and asker.standing.drift > limit:
        return f"stale: drift {asker.standing.drift:.4f}"
    return None


def _ask(work: Work, asker: Asker, respond: Respond, who: str, console: Console) -> bool:
    """One question and what is said to it; False if a person stops."""
    config, journal = work.config, work.journal
    question, standing = asker.question(), asker.standing
    began = time.monotonic()
    heading = display.heading_of_question(config, len(journal.given), standing)
    said = respond(question.image, heading)
    if said is Wish.QUIT:
        return False
    if said is Wish.UNDO:
        _undo(journal, asker, console)
        return True
    label = said if isinstance(said, int) else None
    line = {
        "number": len(journal.answers),
        "round": len(journal.run.rounds) - 1,
        "image": question.image,
        "label": label,
        "name": None if label is None else work.dataset.class_names[label],
        "score": question.score,
        "predicted": question.predicted,
        "who": who,
        "seconds": round(time.monotonic() - began, 3),
    }
    journal.add(line)
    if label is None:
        asker.skip(question.image)
    else:
        asker.tell(question.image, label)
    journal.follow(_follows(asker))
    display.answered(console, journal.answers[-1], config.budget, len(journal.given))
    return True


def _undo(journal: Journal, asker: Asker, console: Console) -> None:
    if not asker.events:
        display.remark(console, "nothing was answered since the network was trained: no undo")
        return
    line = journal.answers[-1]
    journal.take_back()
    asker.undo()
    display.remark(console, f"taken back: image {line['image']} ({line['name'] or 'set aside'})")


def _follows(asker: Asker) -> dict[str, object]:
    standing = asker.standing
    return {
        "labelled": standing.labelled,
        "accuracy": standing.accuracy,
        "drift": standing.drift,
        "foreseen": standing.foreseen,
        "rounding": standing.rounding,
        "refreshed": standing.refreshed,
    }
