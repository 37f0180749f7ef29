"""What the measurement still has to do, and about how long its trainings take."""

from rich.console import Console

from experiments.dynamics.config import OF_KERNEL, TheoryConfig, of_epochs
from experiments.dynamics.gammas import gammas
from experiments.dynamics.run import left, mirrored
from experiments.dynamics.state import check_memory
from experiments.dynamics.subject import subject
from pipelines.progress import keep_compiled
from pipelines.run import schedule_seconds
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count


def tell(config: TheoryConfig, console: Console) -> int:
    """Print the plan of a measurement, from a few training steps timed on this machine.

    Args:
        config: what would be done.
        console: where it is shown.

    Returns:
        How many pieces are left to measure.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: what the measurement itself would
            stop at before it trains.
    """
    keep_freed_blocks()
    keep_compiled()
    if config.runs:
        gammas(config.runs)
        console.print(f"accuracy by γ is read from {len(config.runs)} runs", highlight=False)
    if not config.measured:
        return 0
    whole = subject(config, console)
    with console.status("mirroring the network"):
        mirror = mirrored(whole)
    missing, count = left(whole), len(whole.labelled)
    with console.status("timing a few steps"):
        each = schedule_seconds(
            whole.network, whole.images[:count], whole.labels[:count], config.train
        )
    _, schedule = config.train.plan(count)
    console.print(
        f"{parameter_count(whole.network):,} parameters, {count} labels, {len(whole.candidates)} "
        f"candidates; {len(missing)} measurements left: {', '.join(missing) or 'none'}",
        highlight=False,
    )
    if OF_KERNEL & set(config.figures):
        shape, request = whole.dataset.image_shape, config.request
        gib = check_memory(mirror.model(), shape, len(whole.labels), request, config.sketch)
        console.print(
            f"two kernels ({config.kind}) of {len(whole.labels):,} images, {gib:.2f} GiB of "
            f"{config.memory_gib:g} GiB; one training, at most about {_time(each)}",
            highlight=False,
        )
    epochs = [epoch for epoch in config.epochs if f"ratio-{epoch}" in missing]
    if epochs:
        every = {epoch: of_epochs(config.train, epoch, count) for epoch in epochs if epoch}
        steps = sum(train.plan(count)[1] for train in every.values())
        backward = len(epochs) * (config.repeats + 1) * sum(config.queries)
        console.print(
            f"R at {len(epochs)} epochs: trainings of {steps} epochs in all, about "
            f"{_time(each * steps / schedule)}, and {backward:,} backward passes of one image",
            highlight=False,
        )
    console.print("Nothing was trained or recorded.", highlight=False)
    return len(missing)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
