"""A group of runs → its figures, with captions that say n, seeds and settings, as PNG."""

import io

import pandas as pd
from matplotlib.figure import Figure

from pipelines.report import curves, pictures
from pipelines.report.groups import REFERENCE, Group
from pipelines.report.page import seed_ranges

DOTS = 200  # an inch: 1400 pixels across


def figures(group: Group, rounds: pd.DataFrame) -> list[tuple[str, str, bytes]]:
    """(name, what is seen, PNG) of each figure that the records allow."""
    names, what = curves.strategies(rounds), _setup(group)
    learning, difference = curves.curve(rounds), curves.difference(rounds)
    seeds = _told({name: curves.by_seed(rounds, name) for name in names})
    pairs = _told({name: curves.minus_random(rounds, name) for name in names if name != REFERENCE})
    interval = "Mean and 95% confidence (Student t)"
    made = [
        (
            "accuracy",
            "Test accuracy against the number of labels",
            pictures.accuracy(
                learning,
                f"{what} {interval} over seeds{_bands(learning)}; {seeds}"
                if pictures.banded(learning)
                else f"{what} {pictures.UNBANDED}; {seeds}",
            ),
        )
    ]
    if len(difference):
        caption = f"{what} {interval} of paired differences{_bands(difference)}; {pairs}"
        seen = "Accuracy minus that of random against the number of labels"
        made.append(("difference", seen, pictures.difference(difference, caption)))
    seconds = curves.query_seconds(rounds)
    if seconds.size:
        caption = f"{what} Medians over seeds and rounds, without training and evaluation; {seeds}"
        seen = "Median seconds of a query by strategy and stage"
        made.append(("time", seen, pictures.query_time(seconds, caption)))
    unfitted = rounds.loc[~rounds["fitted"].astype(bool)]
    crosses = "; crosses: single fits that did not reach their labels" if len(unfitted) else ""
    training = pictures.training(
        curves.curve(rounds, "train_accuracy"),
        curves.curve(rounds, "residual_rms"),
        unfitted,
        f"{what} Means over seeds{crosses}; {seeds}",
    )
    made.append(
        ("training", "Training accuracy and residual against the number of labels", training)
    )
    return [(name, f"{seen}, {group.title}", _png(figure)) for name, seen, figure in made]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS)
    return buffer.getvalue()


def _setup(group: Group) -> str:
    """What the group is called, and the settings that a figure must not be without."""
    prefix = "network_args."
    told = [
        f"{key.removeprefix(prefix)} {value}"
        for key, value in group.settings.items()
        if key.startswith(prefix)
    ]
    counts = {"initial": "initial labels", "query": "a query", "subset": "candidates"}
    for key, word in counts.items():
        if group.settings.get(key) is not None:
            told.append(f"{group.settings[key]} {word}")
    return f"{group.title}: {', '.join(told)}." if told else f"{group.title}."


def _bands(curve: pd.DataFrame) -> str:
    return ", no band where n = 1" if 1 in set(curve["n"]) else ""


def _told(tables: dict[str, pd.DataFrame]) -> str:
    """N and seeds of each strategy, once if they are the same for all."""
    told = {}
    for name, table in tables.items():
        n, listed = len(table), seed_ranges(" ".join(map(str, table.index)))
        told[name] = f"n = {n} (seed{'s' if n > 1 else ''} {listed})" if n else "n = 0"
    if len(set(told.values())) == 1:
        return f"{next(iter(told.values()))}."
    return ", ".join(f"{name} {text}" for name, text in told.items()) + "."
