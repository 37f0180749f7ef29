"""A group of runs → what a reader must know before believing its figures, in plain sentences.

Nothing is left out of a report silently: what is missing, unequal or untrained stands at its top.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pandas as pd

from pipelines.record import Run
from pipelines.report.curves import minus_random, strategies
from pipelines.report.groups import REFERENCE, Group

_LISTED = 6  # so many runs are named; of the others, how many


def caveats(group: Group, rounds: pd.DataFrame) -> tuple[str, ...]:
    """What to know about a group of runs.

    Args:
        group: the runs.
        rounds: their tidy table.
    """
    found = [
        _sentence(
            "The same strategy and seed twice, the shorter run left out",
            (f"{_name(run)} in {run.path}" for run in group.dropped),
        ),
        _sentence(
            "Incomplete runs, which end their strategy's curve",
            (
                f"{_name(run)} has {len(run.rounds)} of {run.config['cycles'] + 1} rounds"
                for run in group.runs
                if not run.complete
            ),
        ),
        *_seeds(rounds),
        _sentence("Fits that did not reach their labels", _unfitted(group)),
        _sentence("Classes without a label", _missing(group)),
        *_versions(group),
    ]
    return tuple(text for text in found if text)


def _seeds(rounds: pd.DataFrame) -> list[str]:
    names = strategies(rounds)
    seeds = {name: set(rounds.loc[rounds["strategy"] == name, "seed"]) for name in names}
    found = []
    if len({frozenset(own) for own in seeds.values()}) > 1:
        listed = (f"{name} has {_numbers(own)}" for name, own in seeds.items())
        found.append(_sentence("Means are over different seeds", listed, listed=len(names)))
    single = [name for name in names if len(seeds[name]) == 1]
    if single:
        found.append(_sentence("One seed, so no interval can be given", single, listed=len(names)))
    others = [name for name in names if name != REFERENCE]
    if REFERENCE not in seeds:
        found.append(f"No run with the strategy {REFERENCE!r}: no difference from it is shown.")
        return found
    unpaired = [name for name in others if minus_random(rounds, name).empty]
    found.append(_sentence(f"No seed in common with {REFERENCE}, so no difference", unpaired))
    return found


def _numbers(seeds: Iterable[int]) -> str:
    return " ".join(map(str, sorted(seeds)))


def _unfitted(group: Group) -> Iterator[str]:
    for run in group.runs:
        failed = [line for line in run.rounds if not line["fit"]["fitted"]]
        if failed:
            worst = 100 * min(line["train_accuracy"] for line in failed)
            listed = ", ".join(str(line["round"]) for line in failed)
            yield f"{_name(run)} in round {listed} (training accuracy down to {worst:.0f}%)"


def _missing(group: Group) -> Iterator[str]:
    alike: defaultdict[str, list[str]] = defaultdict(list)  # seeds start alike in all strategies
    for run in group.runs:
        lacking = [line for line in run.rounds if line.get("missing_classes")]
        if lacking:
            first, last = lacking[0], lacking[-1]
            until = f" to {last['round']}" if last is not first else ""
            classes = ", ".join(map(str, first["missing_classes"]))
            alike[f"seed {run.config['seed']} in round {first['round']}{until} ({classes})"].append(
                run.config["strategy"]
            )
    for text, names in alike.items():
        yield f"{text} with {', '.join(names)}"


def _versions(group: Group) -> list[str]:
    seen: dict[str, dict[str, None]] = {}
    for run in group.runs:
        for start in run.environment:
            versions = start.get("versions", {}) | {"the commit": start.get("commit")}
            for package, version in versions.items():
                seen.setdefault(package, {})[str(version)] = None
    mixed = [f"{name} {', '.join(found)}" for name, found in seen.items() if len(found) > 1]
    return [_sentence("Made with more than one version", mixed, listed=len(mixed))]


def _name(run: Run) -> str:
    return f"{run.config['strategy']} seed {run.config['seed']}"


def _sentence(what: str, items: Iterable[str], listed: int = _LISTED) -> str:
    items = list(items)
    more = f"; and {len(items) - listed} more" if len(items) > listed else ""
    return f"{what}: {'; '.join(items[:listed])}{more}." if items else ""
