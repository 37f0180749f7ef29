"""Seconds and peak memory of scoring a pool against its size: one picture, readable in grey."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes

from benchmarks.pool_tables import FULL_STAGES, STAGES, Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend without a display comes first

MARKERS, STYLES = "osD^vPX", ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), "-", "--")


def draw(runs: Sequence[Run], path: Path) -> None:
    """Seconds by stage above; below memory, of the stages with a reference sample."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(8, 8), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    for number, name in enumerate((*STAGES, *FULL_STAGES)):
        found = [run for run in runs if name in run.stages]
        if found:
            upper.plot(
                [run.candidates for run in found], [run.stages[name].processor for run in found],
                MARKERS[number], ls=STYLES[number], color="black", label=name,
                mfc="white" if name in FULL_STAGES else str(number / 6), ms=6, lw=1,
            )  # fmt: skip
    upper.set_yscale("log")
    upper.set_ylabel("seconds of the processor, all threads together")
    _legend(upper)
    sizes = [run.candidates for run in runs]
    peaks = [max(run.stages[name].peak_gib for name in STAGES) for run in runs]
    lower.plot(sizes, peaks, "o-", color="black", mfc="black", ms=6, lw=1, label="measured")
    predicted = [run.before_gib + run.predicted_gib for run in runs]
    lower.plot(
        sizes, predicted, "s--", color="black", mfc="white", ms=6, lw=1,
        label="predicted, and what was there before",
    )  # fmt: skip
    lower.set_ylim(bottom=0)
    lower.set_ylabel("peak memory of the process, GiB")
    lower.set_xscale("log")
    lower.set_xticks(sizes, [f"{size:,}" for size in sizes])
    lower.minorticks_off()
    lower.set_xlabel("candidates, U")
    _legend(lower)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _legend(axis: Axes) -> None:
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    # beside the curves, which leave no corner free
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
