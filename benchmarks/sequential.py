"""Labels absorbed one at a time against batches: accuracy by number of labels ([L] Figure 3a).

From finished run directories of `pipelines.sequential` and of a data set's script, with the same
seeds, to a table and a picture of means over seeds. Run it as

    python -m benchmarks.sequential RUN... [--figure FILE] [--json FILE]
"""

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import tyro

from benchmarks.measuring import markdown, write
from pipelines.core.errors import PipelineError
from pipelines.core.record import Run, read
from pipelines.report.curves import Interval, interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend without a display comes first

HEAD = ("run", "n", "at the start", "last", "average", "average above random, paired by seed")
STRETCHES = ("run", "stretches", "gained without training", "then added by SGD on the same labels")
RANDOM = "batch random"


@dataclass(frozen=True)
class Settings:
    """Run directories and output."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of complete runs."""
    figure: Path | None = None
    json: Path | None = None


def name_of(run: Run) -> str:
    """How the table calls a run: its mode and strategy."""
    mode = "sequential" if run.config.get("mode") == "sequential" else "batch"
    return f"{mode} {run.config['strategy']}"


def trained(run: Run) -> dict[int, float]:
    """Accuracy on all test images after each training, by number of labels."""
    return {line["labelled"]: line["test_accuracy"] for line in run.rounds}


def linearised(run: Run) -> dict[int, float]:
    """Accuracy of the linearised network on its test images after each label."""
    path = run.path / "answers.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    answers = [json.loads(line) for line in lines]
    return {answer["labelled"]: answer["accuracy"] for answer in answers if "accuracy" in answer}


def stretches(run: Run) -> list[tuple[float, float]]:
    """Of each stretch between two trainings: what labels absorbed gained, and what SGD then added.

    Both in accuracy on the same test images: the linearised network after the last label minus SGD
    before the first, and SGD trained on the same labels minus that.
    """
    after, found = linearised(run), []
    for before, retrained in itertools.pairwise(run.rounds):
        last = after.get(retrained["labelled"])
        if last is not None:
            accuracies = (before["subset_accuracy"], retrained["subset_accuracy"])
            found.append((last - accuracies[0], accuracies[1] - last))
    return found


def average(curve: dict[int, float]) -> float:
    """Mean accuracy after the first training."""
    return float(np.mean(list(curve.values())[1:]))


def gathered(paths: tuple[Path, ...]) -> dict[str, dict[int, Run]]:
    """Runs by name and seed.

    Raises:
        PipelineError: a run that is not complete, or of which there are two of one seed.
    """
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    for path in paths:
        run = read(path)
        if not run.complete:
            raise PipelineError(
                f"{path} is not complete: give the command that began it again, or leave it out."
            )
        seed = run.config["seed"]
        if seed in found[name_of(run)]:
            raise PipelineError(f"there are two runs of {name_of(run)} with seed {seed}.")
        found[name_of(run)][seed] = run
    return dict(found)


def shown(value: Interval) -> str:
    """In percent, with half of the 95% interval."""
    if value.n < 2:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {50 * (value.high - value.low):.1f}"


def table(runs: dict[str, dict[int, Run]]) -> list[tuple[object, ...]]:
    """A row a name: accuracy of SGD over seeds."""
    rows: list[tuple[object, ...]] = []
    for name, by_seed in runs.items():
        curves = {seed: trained(run) for seed, run in by_seed.items()}
        others = runs.get(RANDOM, {})
        above = [
            average(curve) - average(trained(others[seed]))
            for seed, curve in curves.items()
            if seed in others and name != RANDOM
        ]
        cells = [
            interval(list(curve.values())[place] for curve in curves.values()) for place in (0, -1)
        ]
        cells.append(interval(average(curve) for curve in curves.values()))
        own = shown(interval(above)) if above else ""
        rows.append((name, len(by_seed), *map(shown, cells), own))
    return rows


def without_training(runs: dict[str, dict[int, Run]]) -> list[tuple[object, ...]]:
    """A row a name of sequential runs: points per stretch, means over seeds."""
    rows: list[tuple[object, ...]] = []
    for name, by_seed in runs.items():
        found = [stretches(run) for run in by_seed.values()]
        if any(found):
            means = np.array([np.mean(own, axis=0) for own in found if own])
            cells = [shown(interval(column)) for column in means.T]
            rows.append((name, sum(map(len, found)), *cells))
    return rows


def draw(runs: dict[str, dict[int, Run]], path: Path) -> None:
    """Means over seeds: SGD as points joined by lines, the linearised network as thin lines."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, by_seed) in enumerate(runs.items()):
        colour = f"C{number}"
        means = pd.DataFrame([trained(run) for run in by_seed.values()]).mean().sort_index()
        style = "--" if name.startswith("batch") else "none"
        axes.plot(means.index, 100 * means, marker="o", ls=style, color=colour, label=name)
        frames = [linearised(run) for run in by_seed.values()]
        if any(frames):
            means = pd.DataFrame(frames).mean().sort_index()
            axes.plot(means.index, 100 * means, lw=1, color=colour)
    axes.set(xlabel="labels", ylabel="test accuracy, %")
    axes.set_title("points: trained by SGD; solid lines: linearised, after each label", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(settings: Settings) -> None:
    """Print the table and draw the picture."""
    runs = gathered(settings.runs)
    print(markdown(HEAD, table(runs)))
    print(markdown(STRETCHES, without_training(runs)))
    figures = {
        name: {
            str(seed): {"sgd": trained(run), "linearised": linearised(run)}
            for seed, run in by_seed.items()
        }
        for name, by_seed in runs.items()
    }
    write(settings.json, {"runs": [path.name for path in settings.runs]}, figures)
    if settings.figure is not None:
        draw(runs, settings.figure)


if __name__ == "__main__":
    main(tyro.cli(Settings))
