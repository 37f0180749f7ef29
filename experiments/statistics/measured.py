"""What a paper claims of measured quantities: those of audits, dynamics and approximations.

Each claim becomes one value for each subject and seed, the mean over the arms that it is about, and
is judged by the interval over these.
"""

import math
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
import pandas as pd

from experiments.statistics.evidence import Evidence, Frames, Missing, missing
from experiments.statistics.judgement import Judgement, Region, judgement
from experiments.statistics.outcomes import TRIAL, UNIT, finished, having, means, need
from pipelines.errors import PipelineError

_UNIT = "measurements, one a subject and seed"
_COLUMNS = [*TRIAL, "quantity", "x", "value", "state"]
# A run is no measurement.
_RUNS = ("run", "sequential")


@dataclass(frozen=True)
class Part:
    """Some of the values that were measured.

    Attributes:
        quantity: its name.
        arm: which; the mean over all arms without.
        state: of the network, such as initial or trained; all without.
        x: such as a width; the mean over all without.
        subjects: likewise.
    """

    quantity: str
    arm: str | None = None
    state: str | None = None
    x: float | None = None
    subjects: tuple[str, ...] | None = None

    def words(self) -> str:
        """The part, for a sentence."""
        said = [self.quantity, f"of {self.arm}" if self.arm is not None else ""]
        said += [f"({self.state})" if self.state else ""]
        said += ["" if self.x is None else f"at x = {self.x:g}"]
        return " ".join(word for word in said if word)

    def rows(self, frames: Frames) -> pd.DataFrame:
        """The rows of it.

        Raises:
            PipelineError: a column is missing.
        """
        need(frames.measures, _COLUMNS)
        wanted: dict[str, object] = {"quantity": self.quantity, "arm": self.arm}
        wanted |= {"state": self.state, "x": self.x}
        own = finished(frames.measures, frames.trials)
        own = having(own, **{name: [v] for name, v in wanted.items() if v is not None})
        own = own if self.subjects is None else having(own, subject=self.subjects)
        return pd.DataFrame(own[own["value"].notna()])

    def by_unit(self, frames: Frames) -> pd.Series:
        """Its mean for each subject and seed."""
        return means(self.rows(frames), UNIT, "value")


def _unknown(frames: Frames, *parts: Part) -> str:
    """A word on a quantity that none of the measurements has: it may be misspelt."""
    there = sorted(set(frames.measures["quantity"]))
    names = [part.quantity for part in parts if part.quantity not in there]
    if not names or not there:
        return ""
    near = get_close_matches(names[0], there, 3, 0.3) or there[:3]
    return f"No measurement is called {names[0]!r}; there are {', '.join(map(repr, near))}"


def _missing(frames: Frames, *parts: Part) -> Missing:
    arms = [part.arm for part in parts if part.arm is not None]
    kinds = set(frames.trials["kind"]) - set(_RUNS)
    named = arms if len(arms) == len(parts) else None
    return missing(frames.trials, named, parts[0].subjects, kinds)


@dataclass(frozen=True)
class Measured(Part):
    """That a quantity lies above or below a bound, or between two.

    Attributes:
        above: the lower bound.
        below: the upper bound.
        text: what the paper says, in our words.
    """

    above: float | None = field(default=None, kw_only=True)
    below: float | None = field(default=None, kw_only=True)
    text: str = field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a claim of nothing.

        Raises:
            PipelineError: neither of the bounds is given.
        """
        if self.above is None and self.below is None:
            raise PipelineError(
                f"the claim {self.text!r} gives no bound of {self.quantity}: set above or below."
            )

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the mean is within the bounds."""
        values = self.by_unit(frames).to_numpy(dtype=float)
        evidence = Evidence(
            what=self.words(),
            effects=values,
            unit=_UNIT,
            scale="",
            missing=_missing(frames, self),
            note=_unknown(frames, self),
        )
        region = Region(
            low=-math.inf if self.above is None else self.above,
            high=math.inf if self.below is None else self.below,
        )
        return judgement(self.text, evidence, region)


@dataclass(frozen=True)
class Greater:
    """That one quantity is greater than another, paired by subject and seed.

    Attributes:
        of: the greater one.
        than: the other one.
        text: what the paper says, in our words.
    """

    of: Part
    than: Part
    text: str = field(kw_only=True)

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the paired difference is above 0."""
        difference = (self.of.by_unit(frames) - self.than.by_unit(frames)).dropna()
        evidence = Evidence(
            what=f"{self.of.words()} minus {self.than.words()}",
            effects=difference.to_numpy(dtype=float),
            unit=_UNIT,
            scale="",
            missing=_missing(frames, self.of, self.than),
            note=_unknown(frames, self.of, self.than),
        )
        return judgement(self.text, evidence, Region(low=0.0))


@dataclass(frozen=True)
class _Trend:
    """A quantity from the first to the last x that all arms have, such as the largest width.

    Attributes:
        quantity: its name.
        arm: which; the mean over all arms without.
        state: of the network; all without.
        subjects: those that it is claimed of; all without.
        text: what the paper says, in our words.
    """

    quantity: str
    arm: str | None = None
    state: str | None = None
    subjects: tuple[str, ...] | None = None
    text: str = field(kw_only=True)

    def _evidence(self, frames: Frames) -> Evidence:
        part = Part(self.quantity, self.arm, self.state, subjects=self.subjects)
        table = means(part.rows(frames), [*UNIT, "arm", "x"], "value").unstack("x")
        changes, spans = [], {}
        for subject, rows in table.groupby(level="subject"):
            # at an x that only some of the arms have, a mean over the arms is one of others
            shared = pd.DataFrame(rows.notna().groupby(level="arm").any()).all(axis="index")
            if shared.sum() < 2:
                continue
            ends = rows.loc[:, shared.to_list()].iloc[:, [0, -1]].dropna()
            change = pd.DataFrame({"change": ends.iloc[:, 1] - ends.iloc[:, 0]})
            changes.append(means(change, UNIT, "change"))
            spans[f"{ends.columns[0]:g} to {ends.columns[1]:g}"] = subject
        values = pd.concat(changes) if changes else pd.Series(dtype=float)
        span = f" from x = {', '.join(spans)}" if spans else ""
        return Evidence(
            what=f"Change of {part.words()}{span}",
            effects=np.asarray(values, dtype=float),
            unit=_UNIT,
            scale="",
            missing=_missing(frames, part),
            note=_unknown(frames, part),
        )


class Falls(_Trend):
    """That a quantity is smaller at the last x than at the first."""

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the paired change is below 0."""
        return judgement(self.text, self._evidence(frames), Region(high=0.0))


class Rises(_Trend):
    """That a quantity is greater at the last x than at the first."""

    def judge(self, frames: Frames) -> Judgement:
        """Reproduced where the whole interval of the paired change is above 0."""
        return judgement(self.text, self._evidence(frames), Region(low=0.0))
