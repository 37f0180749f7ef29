"""How many trainings an audit still has to do and about how long they take, before any is done."""

from rich.console import Console

from pipelines.audit import trainings
from pipelines.audit.config import AuditConfig
from pipelines.audit.given import given
from pipelines.audit.run import folder_of
from pipelines.audit.subject import subjects
from pipelines.run import schedule_seconds
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count


def tell(config: AuditConfig, console: Console) -> int:
    """Print the plan of an audit, from a few training steps timed on this machine.

    Args:
        config: what would be done.
        console: where it is shown.

    Returns:
        How many trainings are left to do.

    Raises:
        TrainerError, PipelineError: what the audit itself would stop at before it trains.
    """
    keep_freed_blocks()
    taken = given(config)
    config, left, expected = taken.config, 0, 0.0
    for subject in subjects(taken, console):
        count = trainings.missing(subject, config, folder_of(config, subject))
        with console.status("timing a few steps"):
            each = schedule_seconds(
                subject.network, subject.labelled_images, subject.labels, subject.config.train
            )
        left, expected = left + count, expected + count * each
        batches, epochs = subject.config.train.plan(len(subject.labelled))
        named = subject.describe(config.width_argument)
        console.print(
            f"{f'{named}: ' if named else ''}{parameter_count(subject.network):,} parameters, "
            f"{len(trainings.jobs(subject, config))} retrainings ({config.controls} controls, "
            f"{config.candidates} candidates × {config.repeats}), {count} trainings left of "
            f"{batches * epochs} steps, about {each:.1f} s each",
            highlight=False,
        )
    console.print(
        f"in all {left} trainings, about {_time(expected)} here, and {len(config.kernels)} kernels "
        f"of {config.initial + config.subset} images a network. Longer where a schedule diverges "
        "or does not fit the labels and is followed by another. Nothing was trained or recorded.",
        highlight=False,
    )
    return left


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
