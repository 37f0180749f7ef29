"""Runs → sets of runs that may be compared, for the report.

Runs whose settings differ in more than strategy, seed and length are never averaged together: they
come apart into groups, each named by the settings in which it differs from the others.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.config import completed
from pipelines.errors import PipelineError
from pipelines.record import Run
from pipelines.strategies import SETTINGS, settings_of

REFERENCE = "random"
# What may differ between runs of one group. `cycles` only says how far a run goes; the others, how
# much is computed at a time.
_APART = {"format", "strategy", "seed", "cycles", "kernel.memory_gib", "kernel.chunk"}


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
    """Sort runs with at least one round into groups that may be compared.

    The settings of a kernel say nothing about a strategy without one, those of dynamicAL nothing
    about any other: a run is in the group of every value of settings that it does not look at, so
    that random's is in all of them.

    Raises:
        PipelineError: a configuration lacks data set, network, strategy or seed.
    """
    alike: dict[str, list[_Entry]] = {}
    for run in runs:
        for name in ("dataset", "network", "strategy", "seed", "cycles"):
            field(run.config, name, f"config.json of {run.path}")
        entry = _entry(run)
        alike.setdefault(_key(entry.shared), []).append(entry)
    members = [own for entries in alike.values() for own in _comparable(entries)]
    settings = [_settings(own) for own in members]
    made = []
    for own, values in zip(members, settings, strict=True):
        kept, dropped = _one_per_seed([entry.run for entry in own])
        made.append(Group(_title(values, settings), values, kept, dropped))
    return tuple(sorted(made, key=lambda group: group.title))


class _Entry(NamedTuple):
    """A run, the settings that count for every strategy, and by section those of its own."""

    run: Run
    shared: dict[str, Any]
    own: dict[str, dict[str, Any]]


def _entry(run: Run) -> _Entry:
    whole = completed(run.config)
    strategy, arms = str(whole["strategy"]), whole["albl"]["arms"]
    looked_at = settings_of(strategy, arms)
    shared = {name: value for name, value in whole.items() if name not in SETTINGS}
    own = {
        name: _counting({name: whole[name]})
        for name in sorted(SETTINGS & looked_at)
        if name in whole
    }
    return _Entry(run, _counting(shared), own)


def _counting(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(settings).items() if key not in _APART}


def _comparable(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """Largest sets in which no two runs look at the same section with different values."""
    values: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        for section, own in entry.own.items():
            values.setdefault(section, {})[_key(own)] = own
    found: list[list[_Entry]] = []
    for chosen in itertools.product(*values.values()):
        picked = dict(zip(values, chosen, strict=True))
        found.append(
            [e for e in entries if all(_key(own) == picked[name] for name, own in e.own.items())]
        )
    sets = [{id(entry) for entry in one} for one in found]
    return [
        one
        for number, (one, own) in enumerate(zip(found, sets, strict=True))
        if not any(own < other for other in sets) and own not in sets[:number]
    ]


def _settings(entries: Sequence[_Entry]) -> dict[str, Any]:
    """Of a group: what counts for all, and what some of its runs look at."""
    settings = dict(entries[0].shared)
    for entry in entries:
        for own in entry.own.values():
            settings |= own
    return settings


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _title(own: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    """Data set and network, and in what the settings differ from others of these two."""
    alike = [other for other in settings if subject(other) == subject(own)]
    shown = []
    for key in sorted({*own}.union(*alike)):
        apart = key.split(".")[0] in SETTINGS
        values = [other.get(key) for other in alike if key in other or not apart]
        if any(value != values[0] for value in values) and (key in own or not apart):
            shown.append(f"{key} = {own.get(key, 'not set')}")
    return " · ".join([*subject(own), *([", ".join(shown)] if shown else [])])


def subject(settings: dict[str, Any]) -> tuple[str, str]:
    """Data set, under the name it gives itself (a lossy copy says so), and network."""
    return str(settings.get("data.name", settings["dataset"])), str(settings["network"])


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with nested names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


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
