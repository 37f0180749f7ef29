"""What a paper claims of runs, as values that a study lists: each is judged by the runs' curves.

Accuracies are percent and differences points, here and in every judgement; the tables hold
fractions. Claims of measured quantities are in `experiments.statistics.measured` and come from here
too.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from experiments.statistics.evidence import Evidence, Frames, missing
from experiments.statistics.judgement import Judgement, Region, judge, judgement
from experiments.statistics.measured import Falls, Greater, Measured, Part, Rises
from experiments.statistics.outcomes import (
    MEASURES,
    TRIAL,
    UNIT,
    blocks,
    finished,
    having,
    means,
    need,
)
from pipelines.errors import PipelineError

__all__ = [
    "Alike",
    "Better",
    "Falls",
    "Faster",
    "Greater",
    "Judgement",
    "Measured",
    "NotBetter",
    "Part",
    "Reaches",
    "Rises",
    "judge",
]
_PAIRS = "pairs of runs of one subject and seed"
_RUNS = "runs, one a subject and seed"


@dataclass(frozen=True)
class _Pair:
    """Two arms compared by a number of each run, paired by subject and seed."""

    arm: str
    than: str
    measure: str = "average"
    subjects: tuple[str, ...] | None = None
    text: str = field(kw_only=True)

    def _evidence(self, frames: Frames) -> Evidence:
        arms = (self.arm, self.than)
        done = finished(frames.curves, frames.trials)
        table = blocks(done, self.measure, arms, self.subjects).dropna()
        return Evidence(
            what=f"{self.arm} minus {self.than}, {MEASURES[self.measure].words}",
            effects=100 * (table[self.arm] - table[self.than]).to_numpy(dtype=float),
            unit=_PAIRS,
            scale="points",
            missing=missing(frames.trials, arms, self.subjects),
        )


@dataclass(frozen=True)
class Better(_Pair):
    """That one arm is better than another.

    Attributes:
        arm: the better one.
        than: the other.
        measure: a name of `experiments.statistics.outcomes.MEASURES`.
        subjects: those that it is claimed of; all without.
        by: at least so many points.
        text: what the paper says, in our words.
    """

    by: float = field(default=0.0, kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval is above `by`."""
        return judgement(self.text, self._evidence(frames), Region(low=self.by))


@dataclass(frozen=True)
class NotBetter(_Pair):
    """That one arm is no better than another.

    Attributes:
        margin: points; what is better by less than that is no better. Without it only an arm that
            is worse is shown to be no better.
    """

    margin: float = field(default=0.0, kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval is below the margin, refuted where it is above 0."""
        region = Region(high=self.margin, against=0.0)
        return judgement(self.text, self._evidence(frames), region)


@dataclass(frozen=True)
class Alike(_Pair):
    """That two arms are equally good.

    Attributes:
        within: points of either sign.
    """

    within: float = field(kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval is within, refuted where all of it is outside."""
        region = Region(low=-self.within, high=self.within)
        return judgement(self.text, self._evidence(frames), region)


@dataclass(frozen=True)
class Faster:
    """That the queries of one arm take less time than those of another.

    Seconds are compared query by query, of the same round of the same subject and seed on the same
    machine, and a run's ratio is the geometric mean over its queries.

    Attributes:
        arm: the faster one.
        than: the slower one.
        times: at least so many times.
        subjects: those that it is claimed of; all without.
        text: what the paper says, in our words.
    """

    arm: str
    than: str
    times: float = 1.0
    subjects: tuple[str, ...] | None = None
    text: str = field(kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the ratio is above `times`.

        Raises:
            PipelineError: a query that took no time.
        """
        arms = (self.arm, self.than)
        curves = finished(frames.curves, frames.trials)
        wanted = {"arm": arms} | ({} if self.subjects is None else {"subject": self.subjects})
        ratios, queries, elsewhere = _ratios(having(curves, **wanted), *arms)
        note = f"Over {queries} queries"
        if elsewhere:
            note += f"; {elsewhere} more were on two different machines and are left out"
        evidence = Evidence(
            what=f"Query seconds of {self.than} over those of {self.arm}",
            effects=ratios,
            unit=_PAIRS,
            scale="times",
            missing=missing(frames.trials, arms, self.subjects),
            ratio=True,
            note=note,
        )
        return judgement(self.text, evidence, Region(low=self.times))


def _ratios(curves: pd.DataFrame, arm: str, than: str) -> tuple[np.ndarray, int, int]:
    need(curves, [*TRIAL, "round", "query_seconds"])
    asked = pd.DataFrame(curves[curves["query_seconds"].notna()])
    if bool((asked["query_seconds"] <= 0).any()):
        raise PipelineError(
            "a query took no time at all: seconds have to be positive to be compared; "
            "give queries that were not timed as NaN."
        )
    keys = [*UNIT, "round"]
    ours, theirs = (having(asked, arm=[name]) for name in (arm, than))
    both = ours.merge(theirs, on=keys, suffixes=("", "_than"))
    if "host" in curves:
        here = pd.DataFrame(both[both["host"] == both["host_than"]])
    else:
        here = both
    logs = here.assign(log=np.log(here["query_seconds_than"] / here["query_seconds"]))
    ratios = np.exp(means(logs, UNIT, "log").to_numpy(dtype=float))
    return ratios, len(here), len(both) - len(here)


@dataclass(frozen=True)
class Reaches:
    """That an arm reaches an accuracy with a number of labels.

    Attributes:
        arm: which.
        accuracy: percent.
        labels: how many; the accuracy counts that was measured at exactly so many.
        linearised: whether it is that of the linearised network after an answer, and not that of a
            trained network.
        subjects: those that it is claimed of; all without.
        text: what the paper says, in our words.
    """

    arm: str
    accuracy: float
    labels: int
    linearised: bool = False
    subjects: tuple[str, ...] | None = None
    text: str = field(kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the mean is above the accuracy."""
        table = finished(frames.answers if self.linearised else frames.curves, frames.trials)
        need(table, [*TRIAL, "labelled", "test_accuracy"])
        runs = having(table, arm=[self.arm])
        runs = runs if self.subjects is None else having(runs, subject=self.subjects)
        own, there = having(runs, labelled=[self.labels]), sorted(set(runs["labelled"]))
        nothing = f"It was measured at {', '.join(map(str, there))} labels"
        network = "linearised network" if self.linearised else "trained network"
        evidence = Evidence(
            what=f"Test accuracy of {self.arm}'s {network} at {self.labels} labels",
            effects=100 * means(own, UNIT, "test_accuracy").to_numpy(dtype=float),
            unit=_RUNS,
            scale="%",
            missing=missing(frames.trials, (self.arm,), self.subjects),
            note=nothing if own.empty and there else "",
        )
        return judgement(self.text, evidence, Region(low=self.accuracy))
