"""Cost of scoring a whole pool, as it grows to 50,000 candidates.

From MNIST and a network to seconds and peak memory of each stage against U, with the exponent of
each by a fit of their logarithms: sketched gradients, posterior, scores and the absorption of one
label, with changes summed over a sample, and over all candidates where that is feasible. Run it as

    python -m benchmarks.pool --data-dir DIR [--json FILE] [--figure FILE]
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import rankdata

from benchmarks.measuring import Memory, apart, load, machine, markdown, watched, write
from benchmarks.pool_figure import draw
from benchmarks.pool_tables import FULL_STAGES, Run, Stage, summary
from bridge.trace import mirror
from kernel.covariance import AnyKernel
from kernel.criteria import mlmoc
from kernel.ntk import query_kernel
from kernel.options import Request
from kernel.plan import Plan
from kernel.posterior import Posterior, absorb, posterior
from pipelines.strategies.base import reference_sample
from trainer import data
from trainer.fit import keep_freed_blocks
from trainer.networks import build
from trainer.predict import logits

LIMIT_GIB = 10.0


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    data_dir: Path | None = None
    dataset: str = "mnist"
    image_size: int | None = None
    widen: int = 1
    """Of the WideResNet of one stage; its weights are random."""
    candidates: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 50_000)
    full_sum: tuple[int, ...] = (1000, 3000, 10_000)
    """Of those, at which the change is summed over all candidates too."""
    labelled: int = 1000
    sketch: int = 4096
    sample: int = 2000
    memory_gib: float = 8.0
    seed: int = 0
    json: Path | None = None
    figure: Path | None = None


def measure(settings: Settings, candidates: int) -> Run:
    """All stages at one size."""
    keep_freed_blocks()
    dataset = data.load(
        settings.dataset, settings.data_dir, image_size=settings.image_size, download=False
    )
    rng = np.random.default_rng(settings.seed)
    drawn = rng.choice(len(dataset.train_images), settings.labelled + candidates, replace=False)
    images = dataset.normalise(dataset.train_images[drawn])
    labels = dataset.train_labels[drawn]
    network = build(
        "wide_resnet",
        images.shape[1:],
        dataset.classes,
        rng,
        {"stages": 1, "widen": settings.widen},
    )
    model = mirror(network, images[:2]).model()
    targets = np.eye(dataset.classes)[labels]
    known = slice(settings.labelled)
    sample = reference_sample(candidates, settings.sample, rng)
    request = Request(sketch=settings.sketch, memory_gib=settings.memory_gib)
    stages: dict[str, Stage] = {}
    watch = lambda name, work: _noted(stages, name, work)
    # what is compiled once a run is compiled here, on a few images
    rng_of_few = np.random.default_rng(settings.seed)
    query_kernel(model, images[:64], 1, request, rng=rng_of_few)
    answers, memory = watch("predict", lambda: logits(network, images).astype(np.float64))
    (kernel, plan), _ = watch(
        "gradients",
        lambda: query_kernel(model, images, settings.labelled, request, sample=sample, rng=rng),
    )
    scores = _sampled(watch, kernel, plan, targets, answers, sample, settings.labelled)
    agreement = None
    if candidates in settings.full_sum:
        whole, _ = watch(
            FULL_STAGES[0], lambda: _posterior(kernel, targets[known], answers, None, plan)
        )
        full, _ = watch(FULL_STAGES[1], lambda: mlmoc(whole))
        agreement = float(np.corrcoef(rankdata(scores), rankdata(full))[0, 1])
    how = "kept" if plan.keep else "streamed"
    return Run(candidates, stages, memory.before, plan.peak_gib, how, agreement, load())


def _sampled(
    watch: Callable[[str, Callable[[], Any]], tuple[Any, Memory]],
    kernel: AnyKernel,
    plan: Plan,
    targets: np.ndarray,
    answers: np.ndarray,
    sample: np.ndarray | None,
    labelled: int,
) -> np.ndarray:
    """Scores by the reference sample; the one best is then labelled and absorbed."""
    result, _ = watch(
        "posterior", lambda: _posterior(kernel, targets[:labelled], answers, sample, plan)
    )
    mlmoc(result)  # compiles
    scores, _ = watch("score", lambda: mlmoc(result))
    best = int(np.argmax(scores))
    watch("absorb one label", lambda: absorb(result, best, targets[labelled + best]))
    return scores


def _posterior(
    kernel: AnyKernel,
    targets: np.ndarray,
    answers: np.ndarray,
    sample: np.ndarray | None,
    plan: Plan,
) -> Posterior:
    known, open_ = answers[: len(targets)], answers[len(targets) :]
    return posterior(kernel, targets, known, open_, sample=sample, keep=plan.keep)


def _noted(stages: dict[str, Stage], name: str, work: Callable[[], Any]) -> tuple[Any, Memory]:
    """Run a stage and keep its seconds and the peak of the whole process."""

    def timed() -> tuple[Any, float, float]:
        clock, processor = time.perf_counter(), time.process_time()
        result = work()
        return result, time.perf_counter() - clock, time.process_time() - processor

    (result, seconds, processor), memory = watched(timed)
    stages[name] = Stage(seconds, processor, memory.peak)
    return result, memory


def main(settings: Settings) -> None:
    """Measure every size, print the table as it grows, write the figures and draw them."""
    runs: list[Run] = []
    for candidates in settings.candidates:
        runs = sorted([*runs, apart(measure, settings, candidates)])  # by size
        rows, exponents = summary(runs, settings.sample)
        sizes = (f"U = {run.candidates:,}" for run in runs)
        head = ["processor seconds (on the clock)", *sizes, "exponent", "(on the clock)"]
        print(markdown(head, rows), flush=True)
        record = [run._asdict() for run in runs]
        write(settings.json, asdict(settings), {"runs": record, "exponents": exponents})
    peak = max(stage.peak_gib for run in runs for stage in run.stages.values())
    met = "met" if peak <= LIMIT_GIB else "missed"
    print(
        f"L = {settings.labelled:,}, k = {settings.sketch:,}, M = {settings.sample:,}; one run a "
        f"size, seed {settings.seed}; highest peak {peak:.2f} GiB, target {LIMIT_GIB:g}: {met}. "
        f"{machine()}; {load()}."
    )
    if settings.figure is not None:
        draw(runs, settings.figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
