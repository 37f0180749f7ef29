"""Questions until the budget is spent: from settings to a run directory, resumed where it stood.

Labels at the start, training, then one question at a time; every answer is on the disk before it is
absorbed. Training again only when it is asked for, or when the linearised network has gone stale.
"""

import time
from collections.abc import Callable

import numpy as np
from rich.console import Console

from pipelines import record
from pipelines.compilation import keep_compiled
from pipelines.errors import PipelineError
from pipelines.first_training import FirstTrainings
from pipelines.preparation import prepared
from pipelines.round import Bridge
from pipelines.run import describe
from pipelines.sequential import show
from pipelines.sequential.answering import PICTURE, Respond, responder
from pipelines.sequential.asker import Asker
from pipelines.sequential.beginning import labels_at_the_start
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.journal import Journal, open_journal
from pipelines.sequential.making import fits
from pipelines.sequential.question import Exhausted
from pipelines.sequential.training import Work, take_up, test_places, tidy, train
from pipelines.stages import Stages
from pipelines.strategies.situation import PROBE
from trainer.dataset import Dataset
from trainer.memory import keep_freed_blocks
from trainer.oracle_words import Wish
from trainer.unlabelled import read_partly_labelled


def run(
    config: SequentialConfig,
    console: Console | None = None,
    oracle: Callable[[np.ndarray], object] | None = None,
    first: FirstTrainings | None = None,
) -> Journal:
    """Carry out a sequential run, or the rest of it.

    Args:
        config: what to do and where to record it.
        console: where questions and answers are shown; nothing is shown without one.
        oracle: answers in place of the one that the settings name: data-set indices → classes.
        first: where the first training is kept for other runs that begin with it; None for none.

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
    dataset, network = prepared(config.plain, console, (lambda: _own(config)) if own else None)
    with record.only_writer(config.run_folder):
        journal = open_journal(config.run_folder, config.record() | {"data": describe(dataset)})
        respond, who = responder(config, dataset, console, oracle)
        show.heading(console, config, journal)
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
        (journal.run.path / PICTURE).unlink(missing_ok=True)
        show.ending(console, config, journal, finished=finished)
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
            show.trained(console, journal.run.rounds[-1])
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
            show.trained(console, journal.run.rounds[-1])


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
    heading = show.heading_of_question(config, len(journal.given), standing)
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
    show.answered(console, journal.answers[-1], config.budget, len(journal.given))
    return True


def _undo(journal: Journal, asker: Asker, console: Console) -> None:
    if not asker.events:
        show.remark(console, "nothing was answered since the network was trained: no undo")
        return
    line = journal.answers[-1]
    journal.take_back()
    asker.undo()
    show.remark(console, f"taken back: image {line['image']} ({line['name'] or 'set aside'})")


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
