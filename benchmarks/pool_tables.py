"""Sizes of the pool side by side: seconds of every stage, and how they grow.

From runs, one a size, to the rows of a table and the exponents of the stages.
"""

from typing import NamedTuple

import numpy as np

STAGES = ("predict", "gradients", "posterior", "score", "absorb one label")
FULL_STAGES = ("posterior, full sum", "score, full sum")


class Stage(NamedTuple):
    """One stage at one size.

    Attributes:
        seconds: on the clock.
        processor: seconds of all threads together, which other work prolongs less.
        peak_gib: resident memory of the whole process.
    """

    seconds: float
    processor: float
    peak_gib: float


class Run(NamedTuple):
    """One size of the pool, in a process of its own.

    Attributes:
        candidates: U.
        stages: by name.
        before_gib: in memory with data, network and mirror, before the first stage.
        predicted_gib: beyond that, by the plan.
        held: how S is held.
        spearman: of scores by the sample with those of the full sum; None if that was not made.
        load: of the machine.
    """

    candidates: int
    stages: dict[str, Stage]
    before_gib: float
    predicted_gib: float
    held: str
    spearman: float | None
    load: str


def exponent(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Slope of log seconds against log size by least squares, and its standard error."""
    x, y = np.log(sizes), np.log(seconds)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = float(np.sqrt(left @ left / (len(x) - 2) / (x @ x))) if len(x) > 2 else float("nan")
    return slope, error


def summary(
    runs: list[Run], sample: int
) -> tuple[list[list[object]], dict[str, list[tuple[float, float]]]]:
    """A row a stage, with its seconds at each size; and the exponents.

    Exponents are of the processor's seconds and of those on the clock. Where the sum is over a
    sample they are fitted from the sample's size on: below it all candidates are summed over.
    """
    rows: list[list[object]] = []
    exponents: dict[str, list[tuple[float, float]]] = {}
    for name in (*STAGES, *FULL_STAGES):
        found = {run.candidates: run.stages[name] for run in runs if name in run.stages}
        if not found:
            continue
        cells = [_seconds(run.stages[name]) if name in run.stages else "" for run in runs]
        fitted = [u for u in found if u >= sample or name in FULL_STAGES]
        exponents[name] = []
        if len(fitted) > 1:
            exponents[name] = [
                exponent(fitted, [found[u].processor for u in fitted]),
                exponent(fitted, [found[u].seconds for u in fitted]),
            ]
        slopes = [f"{slope:.2f} ± {error:.2f}" for slope, error in exponents[name]]
        rows.append([name, *cells, *(slopes or ("", ""))])
    peaks = [max(run.stages[name].peak_gib for name in STAGES) for run in runs]
    rows.append(["peak of the process, GiB", *(f"{peak:.2f}" for peak in peaks), "", ""])
    foreseen = (f"{run.before_gib + run.predicted_gib:.2f}" for run in runs)
    rows.append(["predicted and there before, GiB", *foreseen, "", ""])
    agreements = ("" if run.spearman is None else f"{run.spearman:.4f}" for run in runs)
    rows.append(["Spearman, sample and full sum", *agreements, "", ""])
    return rows, exponents


def _seconds(stage: Stage) -> str:
    return f"{stage.processor:.3g} ({stage.seconds:.3g})"
