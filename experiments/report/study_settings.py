"""The trials of a study → their settings in words, for captions, and as rows, for the page."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from experiments.statistics.outcomes import having
from experiments.studies.study import Trial
from pipelines.report.groups import flat
from pipelines.report.page import seed_ranges

# A caption's words for what the trials of a subject have in common.
_COUNTS = {
    "initial": "initial labels",
    "query": "a query",
    "budget": "questions one by one",
    "subset": "candidates",
    "cycles": "queries",
    "candidates": "retrained candidates",
    "repeats": "repeats",
    "draws": "random queries",
    "train.epochs": "epochs",
    "train.min_steps": "steps at least",
}
_SEEDLESS = ("seed",)


def common(trials: Iterable[Trial]) -> dict[str, Any]:
    """The settings that all of some trials have, nested names joined by dots; the seed apart."""
    records = [flat(trial.config.record()) for trial in trials]
    first = records[0] if records else {}
    return {
        key: value
        for key, value in first.items()
        if key not in _SEEDLESS and all(key in r and r[key] == value for r in records)
    }


def own(trials: Sequence[Trial]) -> list[tuple[str, str, str]]:
    """(subject, arm, settings that not all trials of the subject share, in words)."""
    rows = []
    for subject in dict.fromkeys(trial.subject for trial in trials):
        mine = [trial for trial in trials if trial.subject == subject]
        shared = common(mine)
        for arm in dict.fromkeys(trial.arm for trial in mine):
            settings = common(trial for trial in mine if trial.arm == arm)
            words = [f"{k} = {v}" for k, v in settings.items() if k not in shared]
            rows.append((subject, arm, ", ".join(words) or "as the others"))
    return rows


def words(trials: Sequence[Trial]) -> str:
    """What a figure of some trials must not be without, as one sentence: all that they share."""
    settings, subjects = common(trials), dict.fromkeys(trial.subject for trial in trials)
    told = []
    if "network" in settings:
        prefix = "network_args."
        of = [f"{k.removeprefix(prefix)} {v}" for k, v in settings.items() if prefix in k]
        given = settings.get("network_args")
        if isinstance(given, list | tuple):  # of a measurement
            of += [str(text).replace("=", " ") for text in given]
        told.append(" ".join([str(settings["network"]), *of]))
    skip = ("train.min_steps",) if not settings.get("train.min_steps") else ()
    skip += ("query", "cycles") if "budget" in settings else ()
    skip += ("train.epochs", "train.min_steps") if settings.get("train_steps") else ()
    counts = _COUNTS | ({"subset": "reference points"} if "candidates" in settings else {})
    told += [
        f"{settings[key]} {word}"
        for key, word in counts.items()
        if settings.get(key) is not None and key not in skip
    ]
    if settings.get("train_steps"):  # of an audit, in place of the other two
        told.append(f"{' and '.join(map(str, settings['train_steps']))} training steps")
    return f"{'; '.join(subjects)}{': ' if told else ''}{', '.join(told)}."


def seeds(frame: pd.DataFrame) -> str:
    """N and seeds of the arms that have rows in a table: those of most, then the exceptions."""
    told: dict[str, list[str]] = {}
    for arm in dict.fromkeys(frame["arm"]):
        mine = having(frame, arm=[arm])
        listed = sorted(set(mine["seed"]))
        units = len(set(zip(mine["subject"], mine["seed"], strict=True)))
        ranges = seed_ranges(" ".join(map(str, listed)))
        told.setdefault(f"n = {units} (seed{'s' if len(listed) > 1 else ''} {ranges})", []).append(
            str(arm)
        )
    usual = max(told, key=lambda text: len(told[text]), default="n = 0")
    others = [f"{', '.join(arms)}: {text}" for text, arms in told.items() if text != usual]
    return f"{usual}{' but ' if others else ''}{'; '.join(others)}."
