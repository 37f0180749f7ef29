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
        seconds: without those of the compiler.
        compiling: seconds of the compiler.
        peak_gib: resident memory of the whole process.
    """

    seconds: float
    compiling: float
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
) -> tuple[list[list[object]], dict[str, tuple[float, float]]]:
    """A row a stage, with seconds at each size and the exponent; and the exponents.

    Those of a sum over a sample are fitted from the sample's size on: below it all are summed over.
    """
    rows: list[list[object]] = []
    exponents = {}
    for name in (*STAGES, *FULL_STAGES):
        found = {run.candidates: run.stages[name] for run in runs if name in run.stages}
        if not found:
            continue
        cells = [
            f"{found[run.candidates].seconds:.3g}" if name in run.stages else "" for run in runs
        ]
        fitted = [u for u in found if u >= sample or name in FULL_STAGES]
        if len(fitted) > 1:
            exponents[name] = exponent(fitted, [found[u].seconds for u in fitted])
            slope, error = exponents[name]
            cells.append(f"{slope:.2f} ± {error:.2f}")
        else:
            cells.append("")
        rows.append([name, *cells])
    peaks = [max(run.stages[name].peak_gib for name in STAGES) for run in runs]
    spent = (sum(stage.compiling for stage in run.stages.values()) for run in runs)
    rows.append(["compiling, of all stages", *(f"{seconds:.3g}" for seconds in spent), ""])
    rows.append(["peak of the process, GiB", *(f"{peak:.2f}" for peak in peaks), ""])
    rows.append(
        ["predicted and there before", *(f"{r.before_gib + r.predicted_gib:.2f}" for r in runs), ""]
    )
    agreements = ("" if run.spearman is None else f"{run.spearman:.4f}" for run in runs)
    rows.append(["Spearman, sample and full sum", *agreements, ""])
    return rows, exponents
