"""Claims of a paper and their verdicts.

A claim says where an effect lies: an effect is one independent value a unit, such as the paired
difference of two methods for each task and seed. The verdict follows from its two-sided 95%
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
from experiments.statistics.significance import LEVEL, geometric, holm, p_against, p_within
from pipelines.core.errors import PipelineError
from pipelines.report.curves import interval

Verdict = Literal["reproduced", "not reproduced", "not decided by this size"]
REPRODUCED: Verdict = "reproduced"
NOT_REPRODUCED: Verdict = "not reproduced"
UNDECIDED: Verdict = "not decided by this size"
_PAIRS = "pairs of runs of one task and seed"
_NO_MEASUREMENT = ("run", "sequential")  # kinds of trials

Names = Sequence[str] | None


@dataclass(frozen=True)
class Frames:
    """Tables of a study, complete or not; accuracies are fractions.

    Attributes:
        curves: a row for each completed round of each run: task, method, seed, round, labelled,
            test_accuracy, query_seconds (NaN where nothing was queried), host, …
        answers: a row for each answer of a sequential run, with the accuracy of the linearised
            network after it: task, method, seed, round, labelled, test_accuracy.
        measures: a row for each number that an audit or another measurement ended with: task,
            method, seed, quantity, x, value, state, …
        trials: a row for each trial: task, method, seed, kind, state (done, failed, begun or
            absent), …
    """

    curves: pd.DataFrame
    answers: pd.DataFrame
    measures: pd.DataFrame
    trials: pd.DataFrame


class Effect(NamedTuple):
    """The values that decide a claim.

    Attributes:
        words: name of the effect.
        values: (n,), independent, one a unit.
        unit: definition of a unit.
        scale: points (of accuracy), %, times (a positive ratio, whose mean is geometric), or none.
        complete: whether all trials that they come from are done or failed.
        notes: further sentences, such as on trials that are missing.
    """

    words: str
    values: np.ndarray
    unit: str
    scale: str
    complete: bool
    notes: Sequence[str]


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
        if effect.complete and n > 1:
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
        scale = effect.scale
        low, high, below, above = (number(x, scale) for x in (*ends, self.low, self.high))
        region = f"between {below} and {above}"
        if math.isinf(self.high):
            region = f"above {below}"
        elif math.isinf(self.low):
            region = f"below {above}"
        value = f"{number(mean, scale)} {scale}".strip().replace(" %", "%")
        if n > 1:
            value += f" (95% interval {low} to {high}, n = {n} {effect.unit})"
        elif n == 1:
            value += f" (n = 1 of the {effect.unit}, which gives no interval)"
        else:
            value = "nothing"
        return ". ".join([f"{effect.words}: claimed {region}, found {value}", *effect.notes]) + "."


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


def _trials(
    trials: pd.DataFrame, methods: Names, tasks: Names = None, kinds: Names = None
) -> tuple[bool, list[str]]:
    """Whether all trials of a claim have ended, and sentences on those that are not done.

    Of several methods, the trials count whose task and seed all of the methods have.
    """
    wanted = {"method": methods, "task": tasks, "kind": kinds}
    wanted = {name: values for name, values in wanted.items() if values is not None}
    own = having(trials, **wanted)
    lacking = [
        name
        for column in ("method", "task")
        for name in wanted.get(column, ())
        if name not in set(own[column])
    ]
    if methods is not None:
        paired = own.groupby(UNIT)["method"].transform("nunique") == len(set(methods))
        own = pd.DataFrame(own[paired])
    failed, done = (len(having(own, state=[state])) for state in ("failed", "done"))
    pending = len(own) - done - failed
    unplanned = ", ".join(lacking) or ("it" if own.empty else "")
    sentences = {
        f"This size of the study has no trials of {unplanned}": unplanned,
        f"{pending} of its {len(own)} trials are not done": pending,
        f"{failed} of its {len(own)} trials failed and are left out": failed,
    }
    return not (pending or unplanned), [text for text, given in sentences.items() if given]


# Runs


def better(
    method: str,
    than: str,
    measure: str = "average",
    tasks: Names = None,
    *,
    by: float = 0.0,
    text: str,
) -> Claim:
    """That one method is better than another, paired by task and seed.

    Args:
        method: the better one.
        than: the other.
        measure: a name of `curves.MEASURES`.
        tasks: those that it is claimed of; all by default.
        by: at least so many points.
        text: the paper's statement, in our words.
    """
    return Claim(text, partial(_gain, method, than, measure, tasks), low=by)


def not_better(
    method: str,
    than: str,
    measure: str = "average",
    tasks: Names = None,
    *,
    margin: float = 0.0,
    text: str,
) -> Claim:
    """That one method is better than another by less than a margin in points, or not at all.

    Refuted where the whole interval is above 0. With the default margin only a method that is worse
    is shown to be no better.
    """
    effect = partial(_gain, method, than, measure, tasks)
    return Claim(text, effect, high=margin, refuted_above=0.0)


def alike(
    method: str,
    than: str,
    measure: str = "average",
    tasks: Names = None,
    *,
    within: float,
    text: str,
) -> Claim:
    """That two methods are equally good, within so many points of either sign."""
    return Claim(text, partial(_gain, method, than, measure, tasks), low=-within, high=within)


def _gain(method: str, than: str, measure: str, tasks: Names, frames: Frames) -> Effect:
    methods = (method, than)
    table = blocks(finished(frames.curves, frames.trials), measure, methods, tasks).dropna()
    complete, notes = _trials(frames.trials, methods, tasks)
    return Effect(
        words=f"{method} minus {than}, {MEASURES[measure].words}",
        values=100 * (table[method] - table[than]).to_numpy(dtype=float),
        unit=_PAIRS,
        scale="points",
        complete=complete,
        notes=notes,
    )


def faster(method: str, than: str, times: float = 1.0, *, text: str) -> Claim:
    """That the queries of one method take less time than those of another, at least so many times.

    Seconds are compared query by query, of the same round of the same task and seed on the same
    machine; a run's ratio is the geometric mean over its queries.
    """
    return Claim(text, partial(_ratio, method, than), low=times)


def _ratio(method: str, than: str, frames: Frames) -> Effect:
    curves = having(finished(frames.curves, frames.trials), method=(method, than))
    need(curves, [*TRIAL, "round", "query_seconds", "host"])
    asked = pd.DataFrame(curves[curves["query_seconds"].notna()])
    if bool((asked["query_seconds"] <= 0).any()):
        raise PipelineError(
            "a query took no time at all: seconds have to be positive to be compared; "
            "give queries that were not timed as NaN."
        )
    own, theirs = (having(asked, method=[name]) for name in (method, than))
    both = own.merge(theirs, on=[*UNIT, "round"], suffixes=("", "_than"))
    here = pd.DataFrame(both[both["host"] == both["host_than"]])
    logs = here.assign(log=np.log(here["query_seconds_than"] / here["query_seconds"]))
    elsewhere = len(both) - len(here)
    other = f"; {elsewhere} more were on two different machines and are left out"
    complete, notes = _trials(frames.trials, (method, than))
    return Effect(
        words=f"Query seconds of {than} over those of {method}",
        values=np.exp(means(logs, UNIT, "log").to_numpy(dtype=float)),
        unit=_PAIRS,
        scale="times",
        complete=complete,
        notes=[*notes, f"Over {len(here)} queries{other if elsewhere else ''}"],
    )


def reaches(
    method: str, accuracy: float, labels: int, linearised: bool = False, *, text: str
) -> Claim:
    """That a method is above an accuracy, in percent, at exactly so many labels.

    The accuracy is the trained network's, or with `linearised` that of the linearised network after
    an answer.
    """
    return Claim(text, partial(_accuracy, method, labels, linearised), low=accuracy)


def _accuracy(method: str, labels: int, linearised: bool, frames: Frames) -> Effect:
    table = finished(frames.answers if linearised else frames.curves, frames.trials)
    need(table, [*TRIAL, "labelled", "test_accuracy"])
    runs = having(table, method=[method])
    own, measured_at = having(runs, labelled=[labels]), sorted(set(runs["labelled"]))
    complete, notes = _trials(frames.trials, (method,))
    if own.empty and measured_at:
        notes.append(f"It was measured at {', '.join(map(str, measured_at))} labels")
    network = "linearised network" if linearised else "trained network"
    return Effect(
        words=f"Test accuracy of {method}'s {network} at {labels} labels",
        values=100 * means(own, UNIT, "test_accuracy").to_numpy(dtype=float),
        unit="runs, one a task and seed",
        scale="%",
        complete=complete,
        notes=notes,
    )


# Measurements: audits, dynamics and approximations


class Part(NamedTuple):
    """A selection of measured values; the mean over everything left out.

    Attributes:
        quantity: its name.
        method: which.
        state: of the network, such as initial or trained.
        x: such as a width.
    """

    quantity: str
    method: str | None = None
    state: str | None = None
    x: float | None = None

    def __str__(self) -> str:
        """The selection, for a sentence."""
        words = [self.quantity, f"of {self.method}" if self.method is not None else ""]
        words += [f"({self.state})" if self.state else ""]
        words += ["" if self.x is None else f"at x = {self.x:g}"]
        return " ".join(word for word in words if word)

    def rows(self, frames: Frames) -> pd.DataFrame:
        """Its rows, of finished trials.

        Raises:
            PipelineError: a column is missing.
        """
        need(frames.measures, [*TRIAL, "quantity", "x", "value", "state"])
        wanted = {name: [value] for name, value in self._asdict().items() if value is not None}
        own = having(finished(frames.measures, frames.trials), **wanted)
        return pd.DataFrame(own[own["value"].notna()])

    def by_unit(self, frames: Frames) -> pd.Series:
        """Its mean for each task and seed."""
        return means(self.rows(frames), UNIT, "value")


def measured(part: Part, *, above: float = -math.inf, below: float = math.inf, text: str) -> Claim:
    """That a quantity lies above or below a bound, or between two.

    Raises:
        PipelineError: neither of the bounds is given.
    """
    if math.isinf(above) and math.isinf(below):
        raise PipelineError(
            f"the claim {text!r} gives no bound of {part.quantity}: set above or below."
        )
    return Claim(text, partial(_level, part), low=above, high=below)


def _level(part: Part, frames: Frames) -> Effect:
    return _of_measurements(str(part), part.by_unit(frames), frames, part)


def greater(of: Part, than: Part, *, text: str) -> Claim:
    """That one quantity is greater than another, paired by task and seed."""
    return Claim(text, partial(_excess, of, than), low=0.0)


def _excess(of: Part, than: Part, frames: Frames) -> Effect:
    values = (of.by_unit(frames) - than.by_unit(frames)).dropna()
    return _of_measurements(f"{of} minus {than}", values, frames, of, than)


def falls(part: Part, *, text: str) -> Claim:
    """That a quantity is smaller at the last x than at the first that all methods have."""
    return Claim(text, partial(_change, part), high=0.0)


def rises(part: Part, *, text: str) -> Claim:
    """That a quantity is greater at the last x than at the first that all methods have."""
    return Claim(text, partial(_change, part), low=0.0)


def _change(part: Part, frames: Frames) -> Effect:
    table = means(part.rows(frames), [*UNIT, "method", "x"], "value").unstack("x")
    changes, spans = [pd.Series(dtype=float)], {}
    for _, rows in table.groupby(level="task"):
        # the mean over the methods is of the same methods at both ends
        shared = pd.DataFrame(rows.notna().groupby(level="method").any()).all(axis="index")
        if shared.sum() < 2:
            continue
        ends = rows.loc[:, shared.to_list()].iloc[:, [0, -1]].dropna()
        change = pd.DataFrame({"change": ends.iloc[:, 1] - ends.iloc[:, 0]})
        changes.append(means(change, UNIT, "change"))
        spans[f"{ends.columns[0]:g} to {ends.columns[1]:g}"] = None
    span = f" from x = {', '.join(spans)}" if spans else ""
    return _of_measurements(f"Change of {part}{span}", pd.concat(changes), frames, part)


def _of_measurements(words: str, values: pd.Series, frames: Frames, *parts: Part) -> Effect:
    methods = [part.method for part in parts if part.method is not None]
    kinds = sorted(set(frames.trials["kind"]) - set(_NO_MEASUREMENT))
    quantities = sorted(set(frames.measures["quantity"]))
    unknown = [part.quantity for part in parts if part.quantity not in quantities]
    named = methods if len(methods) == len(parts) else None
    complete, notes = _trials(frames.trials, named, kinds=kinds)
    if unknown and quantities:
        near = get_close_matches(unknown[0], quantities, 3, 0.3) or quantities[:3]
        listed = ", ".join(map(repr, near))
        notes.append(f"No measurement is called {unknown[0]!r}; there are {listed}")
    return Effect(
        words=words,
        values=values.to_numpy(dtype=float),
        unit="measurements, one a task and seed",
        scale="",
        complete=complete,
        notes=notes,
    )
