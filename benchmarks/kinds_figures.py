"""Two pictures of the study of kernel kinds, readable in grey."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from benchmarks.kinds_tables import KINDS, NO_KERNEL, STATES, Frame, at, frame
from kernel.options import REFERENCES

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend without a display comes first

MARKERS = "osD^v"


def draw(runs: list[dict[str, Any]], prefix: Path) -> None:
    """Two pictures: Spearman with `full` by kind, and of sketches with their own exact kind."""
    table = frame(runs)
    figure, axes = plt.subplots(2, 1, figsize=(8, 7.5), sharex=True, layout="constrained")
    for axis, reference in zip(axes, REFERENCES, strict=True):
        _draw_kinds(axis, table[table.sketch.isna() & (table.reference == reference)])
        axis.set_title(f"reference {reference}", loc="left", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(f"{prefix}.png", dpi=110)
    plt.close(figure)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
    for axis, reference in zip(axes, REFERENCES, strict=True):
        _draw_sketches(axis, at(table[table.sketch.notna() & table.exact], "trained", reference))
        axis.set_title(f"trained, reference {reference}", loc="left", fontsize=10)
    axes[0].set_ylabel("Spearman with the same kind, exact")
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(f"{prefix}-sketches.png", dpi=110)
    plt.close(figure)


def _draw_kinds(axis: Axes, table: Frame) -> None:
    kinds = (*KINDS, NO_KERNEL)
    networks = list(dict.fromkeys(table.network))
    for state, offset, fill in zip(STATES, (-0.2, 0.2), ("white", "0.45"), strict=True):
        for number, network in enumerate(networks):
            chosen = table[(table.state == state) & (table.network == network)]
            own = [chosen[chosen.kind == kind]["full spearman"].to_numpy() for kind in kinds]
            x = [place + offset + np.linspace(-0.15, 0.15, len(v)) for place, v in enumerate(own)]
            axis.plot(
                np.concatenate(x), np.concatenate(own), MARKERS[number % len(MARKERS)],
                mfc=fill, mec="black", ms=4.5, mew=0.7, label=f"{network}, {state}",
            )  # fmt: skip
        for place, kind in enumerate(kinds):
            mean = table[(table.state == state) & (table.kind == kind)]["full spearman"].mean()
            axis.hlines(mean, place + offset - 0.18, place + offset + 0.18, color="black", lw=2)
    axis.set_xticks(range(len(kinds)), [kind.replace("(", "\n(") for kind in kinds], fontsize=9)
    axis.set_ylabel("Spearman with full")
    axis.set_ylim(top=1.0)
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)


def _draw_sketches(axis: Axes, table: Frame) -> None:
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
    kinds = [kind for kind in KINDS if (table.kind == kind).any()]
    for number, kind in enumerate(kinds):
        own = table[table.kind == kind].groupby("sketch")["own spearman"].mean()
        axis.plot(own.index, own.to_numpy(), MARKERS[number], ls=styles[number], color="black",
                  mfc=str(number / 5), ms=5, lw=1, label=kind)  # fmt: skip
    sizes = sorted(table.sketch.unique())
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("dimensions of the sketch, k")
    axis.grid(color="0.9")
