"""What the study still has to do, and about how long its trainings and kernels take."""

from rich.console import Console

from experiments.approximation.config import FULL, TRAINED, ApproximationConfig
from experiments.approximation.run import check_memory, states_left
from experiments.approximation.subject import subjects
from kernel.estimate import estimate
from kernel.options import Request
from pipelines.progress import keep_compiled
from pipelines.run import schedule_seconds
from trainer.fit import keep_freed_blocks
from trainer.networks import parameter_count


def tell(config: ApproximationConfig, console: Console) -> int:
    """Print the plan, from a few training steps and gradients timed on this machine.

    Args:
        config: what would be done.
        console: where it is shown.

    Returns:
        How many states of networks are left to measure.

    Raises:
        TrainerError, BridgeError, KernelError, PipelineError: what the study itself would stop at
            before it trains.
    """
    keep_freed_blocks()
    keep_compiled()
    every = subjects(config, console)
    gib = check_memory(config, every[0].dataset.classes)
    images = config.initial + config.test
    console.print(
        f"a full kernel of {images:,} images: at least {gib:.2f} GiB of {config.memory_gib:g} GiB",
        highlight=False,
    )
    request = Request(FULL, precision=config.precision, memory_gib=config.memory_gib)
    total = 0
    for subject in every:
        left = states_left(subject)
        total += len(left)
        name = "" if subject.width is None else f"{config.width_argument} {subject.width}: "
        about = f"{name}{parameter_count(subject.network):,} parameters; "
        if not left:
            console.print(f"{about}all is measured", highlight=False)
            continue
        with console.status("timing a few steps and gradients"):
            cost = estimate(subject.mirror.model(), subject.images, images, request)
            count = len(subject.labelled)
            training = schedule_seconds(
                subject.network, subject.images[:count], subject.labels, subject.run.train
            )
        trained = f", a training of at most {training:.0f} s" if TRAINED in left else ""
        console.print(
            f"{about}left: {', '.join(left)}, about {cost.seconds:.0f} s a kernel{trained}",
            highlight=False,
        )
    console.print("Nothing was trained or recorded.", highlight=False)
    return total
