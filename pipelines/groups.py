"""Runs → sets of runs that may be compared, for the report.

Runs whose settings differ in more than strategy, seed and length are never averaged together: they
come apart into groups, each named by the settings in which it differs from the others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import PipelineError
from pipelines.record import Run

REFERENCE = "random"
# What may differ between runs of one group. `cycles` only says how far a run goes.
_APART = ("format", "strategy", "seed", "cycles")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but strategy, seed and length, so that they may be compared.

    Attributes:
        title: data set and network, and the settings that tell the group from the others.
        settings: what the runs have in common, nested names joined by dots.
        runs: at most one for each strategy and seed, `random` first.
        dropped: runs left out because a longer one of the same strategy and seed is there.
    """

    title: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    dropped: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    """Sort runs into groups that differ in nothing but strategy, seed and length.

    Raises:
        PipelineError: a configuration lacks data set, network, strategy or seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        for name in ("dataset", "network", "strategy", "seed", "cycles"):
            field(run.config, name, f"config.json of {run.path}")
        found.setdefault(json.dumps(_settings(run), sort_keys=True, default=str), []).append(run)
    settings = [_settings(members[0]) for members in found.values()]
    made = []
    for own, members in zip(settings, found.values(), strict=True):
        alike = [other for other in settings if _subject(other) == _subject(own)]
        differing = [key for key in sorted({*own}.union(*alike)) if not _same(key, alike)]
        shown = ", ".join(f"{key} = {own.get(key, 'not set')}" for key in differing)
        kept, dropped = _one_per_seed(members)
        made.append(Group(_subject(own) + (f" · {shown}" if shown else ""), own, kept, dropped))
    return tuple(sorted(made, key=lambda group: group.title))


def _settings(run: Run) -> dict[str, Any]:
    return _flat({key: value for key, value in run.config.items() if key not in _APART})


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _subject(settings: dict[str, Any]) -> str:
    return f"{settings['dataset']} · {settings['network']}"


def _same(key: str, settings: Sequence[dict[str, Any]]) -> bool:
    return all(key in other and other[key] == settings[0].get(key) for other in settings)


def _one_per_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    kept: dict[tuple[bool, str, int], Run] = {}
    dropped = []
    for run in runs:
        strategy = run.config["strategy"]
        key = (strategy != REFERENCE, strategy, run.config["seed"])
        other = kept.setdefault(key, run)
        if other is not run:  # the same run twice is one observation, not two
            longer, shorter = (run, other) if len(run.rounds) > len(other.rounds) else (other, run)
            kept[key] = longer
            dropped.append(shorter)
    return tuple(kept[key] for key in sorted(kept)), tuple(dropped)


def field(entry: dict[str, Any], name: str, where: str) -> Any:
    """An entry of a record.

    Raises:
        PipelineError: it is not there.
    """
    if not isinstance(entry, dict) or name not in entry:
        raise PipelineError(
            f"{where} has no {name!r}: it was edited, or written by another version. Make the run "
            "again in a new directory, or leave it out."
        )
    return entry[name]
