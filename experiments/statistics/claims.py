"""Claims of a paper and their verdicts.

A claim says where an effect lies: an effect is one independent value a unit, such as the paired
difference of two arms for each subject and seed. The verdict follows from its two-sided 95%
interval alone: inside what is claimed, outside, or neither. Holm's correction over the claims of a
study is reported beside it, never in its place. Accuracies are percent and differences points here;
the tables hold fractions.

A new claim is a function that returns a `Claim`, such as `better` of runs and `measured` of
measurements.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from experiments.statistics.curves import (
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
from pipelines.report.intervals import LEVEL, geometric, holm, interval, p_against, p_within

Verdict = Literal["reproduced", "not reproduced", "not decided by this size"]
REPRODUCED: Verdict = "reproduced"
NOT_REPRODUCED: Verdict = "not reproduced"
UNDECIDED: Verdict = "not decided by this size"
_PAIRS = "pairs of runs of one subject and seed"
_RUNS = "runs, one a subject and seed"
_MEASUREMENTS = "measurements, one a subject and seed"
_NO_MEASUREMENT = ("run", "sequential")  # kinds of trials

Names = Sequence[str] | None


@dataclass(frozen=True)
class Frames:
    """Tables of a study, complete or not; accuracies are fractions.

    Attributes:
        curves: a row for each completed round of each run: subject, arm, seed, round, labelled,
            test_accuracy, query_seconds (NaN where nothing was queried), host, …
        answers: a row for each answer of a sequential run, with the accuracy of the linearised
            network after it: subject, arm, seed, round, labelled, test_accuracy.
        measures: a row for each number that an audit or another measurement ended with: subject,
            arm, seed, quantity, x, value, state, …
        trials: a row for each trial: subject, arm, seed, kind, state (done, failed, begun or
            absent), …
    """

    curves: pd.DataFrame
    answers: pd.DataFrame
    measures: pd.DataFrame
    trials: pd.DataFrame


class Missing(NamedTuple):
    """Trials of a claim: all planned, those not done, those that failed, names without any."""

    planned: int
    pending: int
    failed: int
    unplanned: str


class Effect(NamedTuple):
    """The values that decide a claim.

    Attributes:
        words: name of the effect.
        values: (n,), independent, one a unit.
        unit: definition of a unit.
        scale: points (of accuracy), %, times (a positive ratio, whose mean is geometric), or none.
        missing: of the trials that they come from.
        note: a further sentence, or empty.
    """

    words: str
    values: np.ndarray
    unit: str
    scale: str
    missing: Missing
    note: str = ""


class Judgement(NamedTuple):
    """The verdict on a claim.

    Attributes:
        claim: the paper's statement.
        verdict: by the interval; undecided where trials are missing.
        effect: the mean over the units, in `scale`; NaN without any.
        low: end of its two-sided 95% interval; NaN for fewer than two units.
        high: the other end.
        n: units.
        unit: definition of a unit.
        scale: of the effect: points (of accuracy), %, times, or none.
        p: two-sided, of the effect being at the bound that is claimed, or at the one that refuted
            the claim; for a claim of equality, of it being outside, doubled. NaN for fewer than two
            units.
        p_holm: corrected for all claims of the study that have a p.
        sentence: effect, interval, n and missing trials, in words.
    """

    claim: str
    verdict: Verdict
    effect: float
    low: float
    high: float
    n: int
    unit: str
    scale: str
    p: float
    p_holm: float
    sentence: str


@dataclass(frozen=True)
class Claim:
    """A statement of a paper: an effect lies between two bounds.

    Attributes:
        text: the statement, in our words.
        effect: computes the effect from the tables of a study.
        low: lower bound, or −∞.
        high: upper bound, or ∞.
        refuted_above: an interval wholly above this refutes the claim; by default `high`.
    """

    text: str
    effect: Callable[[Frames], Effect]
    low: float = -math.inf
    high: float = math.inf
    refuted_above: float | None = None

    def judge(self, frames: Frames) -> Judgement:
        """The verdict, not yet corrected for other claims.

        Raises:
            PipelineError: a table lacks a column, or a query took no time.
        """
        effect = self.effect(frames)
        n, mean, low, high = (geometric if effect.scale == "times" else interval)(effect.values)
        above = self.high if self.refuted_above is None else self.refuted_above
        verdict = UNDECIDED
        if not (effect.missing.pending or effect.missing.unplanned) and n > 1:
            if self.low < low and high < self.high:
                verdict = REPRODUCED
            elif high < self.low or low > above:
                verdict = NOT_REPRODUCED
        return Judgement(
            claim=self.text,
            verdict=verdict,
            effect=mean,
            low=low,
            high=high,
            n=n,
            unit=effect.unit,
            scale=effect.scale,
            p=self._p(effect, above if verdict == NOT_REPRODUCED else self.high, verdict),
            p_holm=math.nan,
            sentence=self._sentence(effect, n, mean, (low, high)),
        )

    def _p(self, effect: Effect, high: float, verdict: Verdict) -> float:
        values, low = effect.values, self.low
        if effect.scale == "times":  # only ever claimed to be above a bound
            values, low = np.log(values), math.log(low)
        two_sided = math.isfinite(low) and math.isfinite(self.high)
        if two_sided and verdict != NOT_REPRODUCED:
            return p_within(values, low, high)
        below = math.isfinite(low) and (math.isinf(self.high) or float(np.mean(values)) < low)
        return p_against(values, low if below else high)

    def _sentence(self, effect: Effect, n: int, mean: float, ends: tuple[float, float]) -> str:
        scale, missing = effect.scale, effect.missing
        bounds = [number(bound, scale) for bound in (self.low, self.high)]
        if math.isinf(self.high):
            region = f"above {bounds[0]}"
        elif math.isinf(self.low):
            region = f"below {bounds[1]}"
        else:
            region = f"between {bounds[0]} and {bounds[1]}"
        value = f"{number(mean, scale)} {scale}".strip().replace(" %", "%")
        if n > 1:
            low, high = (number(end, scale) for end in ends)
            value += f" (95% interval {low} to {high}, n = {n} {effect.unit})"
        elif n == 1:
            value += f" (n = 1 of the {effect.unit}, which gives no interval)"
        else:
            value = "nothing"
        parts = [f"{effect.words}: claimed {region}, found {value}"]
        if missing.unplanned:
            parts.append(f"This size of the study has no trials of {missing.unplanned}")
        for count, state in (
            (missing.pending, "are not done"),
            (missing.failed, "failed and are left out"),
        ):
            parts += [f"{count} of its {missing.planned} trials {state}"] if count else []
        return ". ".join([*parts, *([effect.note] if effect.note else [])]) + "."


def judge(claims: Iterable[Claim], frames: Frames) -> tuple[Judgement, ...]:
    """Verdicts on all claims of a study, with p corrected by Holm for those that have one.

    Raises:
        PipelineError: see `Claim.judge`.
    """
    judged = [claim.judge(frames) for claim in claims]
    tests = sum(not math.isnan(one.p) for one in judged)
    corrected = []
    for one, p in zip(judged, holm([one.p for one in judged]), strict=True):
        sentence = one.sentence
        if one.verdict != UNDECIDED and p >= LEVEL:
            sentence += (
                f" Corrected by Holm for the {tests} claims of the study that are tested, p is "
                f"{p:.2g}: read the verdict with that in mind."
            )
        corrected.append(one._replace(p_holm=p, sentence=sentence))
    return tuple(corrected)


def number(value: float, scale: str) -> str:
    """A number without its unit: two decimals for accuracies, differences with their sign."""
    if scale in ("points", "%") and value:
        return f"{value:+.2f}" if scale == "points" else f"{value:.2f}"
    return f"{value:.3g}"


def _missing(trials: pd.DataFrame, arms: Names, subjects: Names, kinds: Names = None) -> Missing:
    """Trials of a claim that are not done; of several arms, those that all of the arms have."""
    wanted = {"arm": arms, "subject": subjects}
    wanted = {name: list(values) for name, values in wanted.items() if values is not None}
    own = having(trials, **wanted) if kinds is None else having(trials, **wanted, kind=kinds)
    lacking = [
        name
        for column, names in wanted.items()
        for name in names
        if having(own, **{column: [name]}).empty
    ]
    if arms is not None:
        paired = own.groupby(UNIT)["arm"].transform("nunique") == len(set(arms))
        own = pd.DataFrame(own[paired])
    failed, done = (len(having(own, state=[state])) for state in ("failed", "done"))
    unplanned = ", ".join(lacking) or ("it" if own.empty else "")
    return Missing(len(own), len(own) - done - failed, failed, unplanned)


# Runs


def better(
    arm: str,
    than: str,
    measure: str = "average",
    subjects: Names = None,
    *,
    by: float = 0.0,
    text: str,
) -> Claim:
    """That one arm is better than another, paired by subject and seed.

    Args:
        arm: the better one.
        than: the other.
        measure: a name of `curves.MEASURES`.
        subjects: those that it is claimed of; all by default.
        by: at least so many points.
        text: the paper's statement, in our words.
    """
    return Claim(text, partial(_gain, arm, than, measure, subjects), low=by)


def not_better(
    arm: str,
    than: str,
    measure: str = "average",
    subjects: Names = None,
    *,
    margin: float = 0.0,
    text: str,
) -> Claim:
    """That one arm is better than another by less than a margin in points, or not at all.

    Refuted where the whole interval is above 0. With the margin at its default only an arm that is
    worse is shown to be no better.
    """
    effect = partial(_gain, arm, than, measure, subjects)
    return Claim(text, effect, high=margin, refuted_above=0.0)


def alike(
    arm: str,
    than: str,
    measure: str = "average",
    subjects: Names = None,
    *,
    within: float,
    text: str,
) -> Claim:
    """That two arms are equally good, within so many points of either sign."""
    return Claim(text, partial(_gain, arm, than, measure, subjects), low=-within, high=within)


def _gain(arm: str, than: str, measure: str, subjects: Names, frames: Frames) -> Effect:
    arms = (arm, than)
    table = blocks(finished(frames.curves, frames.trials), measure, arms, subjects).dropna()
    return Effect(
        words=f"{arm} minus {than}, {MEASURES[measure].words}",
        values=100 * (table[arm] - table[than]).to_numpy(dtype=float),
        unit=_PAIRS,
        scale="points",
        missing=_missing(frames.trials, arms, subjects),
    )


def faster(arm: str, than: str, times: float = 1.0, subjects: Names = None, *, text: str) -> Claim:
    """That the queries of one arm take less time than those of another, at least so many times.

    Seconds are compared query by query, of the same round of the same subject and seed on the same
    machine; a run's ratio is the geometric mean over its queries.
    """
    return Claim(text, partial(_ratio, arm, than, subjects), low=times)


def _ratio(arm: str, than: str, subjects: Names, frames: Frames) -> Effect:
    wanted = {} if subjects is None else {"subject": subjects}
    curves = having(finished(frames.curves, frames.trials), arm=(arm, than), **wanted)
    need(curves, [*TRIAL, "round", "query_seconds", "host"])
    asked = pd.DataFrame(curves[curves["query_seconds"].notna()])
    if bool((asked["query_seconds"] <= 0).any()):
        raise PipelineError(
            "a query took no time at all: seconds have to be positive to be compared; "
            "give queries that were not timed as NaN."
        )
    own, theirs = (having(asked, arm=[name]) for name in (arm, than))
    both = own.merge(theirs, on=[*UNIT, "round"], suffixes=("", "_than"))
    here = pd.DataFrame(both[both["host"] == both["host_than"]])
    logs = here.assign(log=np.log(here["query_seconds_than"] / here["query_seconds"]))
    note = f"Over {len(here)} queries"
    if len(here) < len(both):
        elsewhere = len(both) - len(here)
        note += f"; {elsewhere} more were on two different machines and are left out"
    return Effect(
        words=f"Query seconds of {than} over those of {arm}",
        values=np.exp(means(logs, UNIT, "log").to_numpy(dtype=float)),
        unit=_PAIRS,
        scale="times",
        missing=_missing(frames.trials, (arm, than), subjects),
        note=note,
    )


def reaches(
    arm: str,
    accuracy: float,
    labels: int,
    linearised: bool = False,
    subjects: Names = None,
    *,
    text: str,
) -> Claim:
    """That an arm is above an accuracy, in percent, at exactly so many labels.

    The accuracy is the trained network's, or with `linearised` that of the linearised network after
    an answer.
    """
    return Claim(text, partial(_accuracy, arm, labels, linearised, subjects), low=accuracy)


def _accuracy(arm: str, labels: int, linearised: bool, subjects: Names, frames: Frames) -> Effect:
    table = finished(frames.answers if linearised else frames.curves, frames.trials)
    need(table, [*TRIAL, "labelled", "test_accuracy"])
    runs = having(table, arm=[arm], **({} if subjects is None else {"subject": subjects}))
    own, measured_at = having(runs, labelled=[labels]), sorted(set(runs["labelled"]))
    listed = f"It was measured at {', '.join(map(str, measured_at))} labels"
    network = "linearised network" if linearised else "trained network"
    return Effect(
        words=f"Test accuracy of {arm}'s {network} at {labels} labels",
        values=100 * means(own, UNIT, "test_accuracy").to_numpy(dtype=float),
        unit=_RUNS,
        scale="%",
        missing=_missing(frames.trials, (arm,), subjects),
        note=listed if own.empty and measured_at else "",
    )


# Measurements: audits, dynamics and approximations


class Part(NamedTuple):
    """A selection of measured values; the mean over everything left out.

    Attributes:
        quantity: its name.
        arm: which.
        state: of the network, such as initial or trained.
        x: such as a width.
        subjects: those that it is claimed of.
    """

    quantity: str
    arm: str | None = None
    state: str | None = None
    x: float | None = None
    subjects: Names = None

    def words(self) -> str:
        """The selection, for a sentence."""
        words = [self.quantity, f"of {self.arm}" if self.arm is not None else ""]
        words += [f"({self.state})" if self.state else ""]
        words += ["" if self.x is None else f"at x = {self.x:g}"]
        return " ".join(word for word in words if word)

    def rows(self, frames: Frames) -> pd.DataFrame:
        """Its rows, of finished trials.

        Raises:
            PipelineError: a column is missing.
        """
        need(frames.measures, [*TRIAL, "quantity", "x", "value", "state"])
        wanted = {name: [getattr(self, name)] for name in ("quantity", "arm", "state", "x")}
        wanted = {name: values for name, values in wanted.items() if values != [None]}
        wanted |= {} if self.subjects is None else {"subject": list(self.subjects)}
        own = having(finished(frames.measures, frames.trials), **wanted)
        return pd.DataFrame(own[own["value"].notna()])

    def by_unit(self, frames: Frames) -> pd.Series:
        """Its mean for each subject and seed."""
        return means(self.rows(frames), UNIT, "value")


def measured(
    quantity: str,
    arm: str | None = None,
    state: str | None = None,
    x: float | None = None,
    subjects: Names = None,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    text: str,
) -> Claim:
    """That a quantity lies above or below a bound, or between two; see `Part`.

    Raises:
        PipelineError: neither of the bounds is given.
    """
    if math.isinf(above) and math.isinf(below):
        raise PipelineError(f"the claim {text!r} gives no bound of {quantity}: set above or below.")
    part = Part(quantity, arm, state, x, subjects)
    return Claim(text, partial(_level, part), low=above, high=below)


def _level(part: Part, frames: Frames) -> Effect:
    return _of_measurements(part.words(), part.by_unit(frames), frames, part)


def greater(of: Part, than: Part, *, text: str) -> Claim:
    """That one quantity is greater than another, paired by subject and seed."""
    return Claim(text, partial(_excess, of, than), low=0.0)


def _excess(of: Part, than: Part, frames: Frames) -> Effect:
    values = (of.by_unit(frames) - than.by_unit(frames)).dropna()
    return _of_measurements(f"{of.words()} minus {than.words()}", values, frames, of, than)


def falls(
    quantity: str,
    arm: str | None = None,
    state: str | None = None,
    subjects: Names = None,
    *,
    text: str,
) -> Claim:
    """That a quantity is smaller at the last x than at the first that all arms have."""
    effect = partial(_change, Part(quantity, arm, state, subjects=subjects))
    return Claim(text, effect, high=0.0)


def rises(
    quantity: str,
    arm: str | None = None,
    state: str | None = None,
    subjects: Names = None,
    *,
    text: str,
) -> Claim:
    """That a quantity is greater at the last x than at the first that all arms have."""
    effect = partial(_change, Part(quantity, arm, state, subjects=subjects))
    return Claim(text, effect, low=0.0)


def _change(part: Part, frames: Frames) -> Effect:
    table = means(part.rows(frames), [*UNIT, "arm", "x"], "value").unstack("x")
    changes, spans = [pd.Series(dtype=float)], {}
    for _, rows in table.groupby(level="subject"):
        # the mean over the arms is of the same arms at both ends
        shared = pd.DataFrame(rows.notna().groupby(level="arm").any()).all(axis="index")
        if shared.sum() < 2:
            continue
        ends = rows.loc[:, shared.to_list()].iloc[:, [0, -1]].dropna()
        change = pd.DataFrame({"change": ends.iloc[:, 1] - ends.iloc[:, 0]})
        changes.append(means(change, UNIT, "change"))
        spans[f"{ends.columns[0]:g} to {ends.columns[1]:g}"] = None
    span = f" from x = {', '.join(spans)}" if spans else ""
    values = np.concatenate([change.to_numpy(dtype=float) for change in changes])
    return _of_measurements(f"Change of {part.words()}{span}", values, frames, part)


def _of_measurements(
    words: str, values: pd.Series | np.ndarray, frames: Frames, *parts: Part
) -> Effect:
    arms = [part.arm for part in parts if part.arm is not None]
    kinds = sorted(set(frames.trials["kind"]) - set(_NO_MEASUREMENT))
    measured_arms = arms if len(arms) == len(parts) else None
    quantities = sorted(set(frames.measures["quantity"]))
    unknown = [part.quantity for part in parts if part.quantity not in quantities]
    note = ""
    if unknown and quantities:
        near = get_close_matches(unknown[0], quantities, 3, 0.3) or quantities[:3]
        listed = ", ".join(map(repr, near))
        note = f"No measurement is called {unknown[0]!r}; there are {listed}"
    return Effect(
        words=words,
        values=np.asarray(values, dtype=float),
        unit=_MEASUREMENTS,
        scale="",
        missing=_missing(frames.trials, measured_arms, parts[0].subjects, kinds),
        note=note,
    )
