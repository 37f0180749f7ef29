"""Predicted against real changes of the outputs: rank correlations, errors, level of trust.

A field of changes is (candidates, points, classes), its size the MLMOC of each candidate. As
retrainings do not agree with each other, there is a ceiling for any predictor (docs/audit.md).
"""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from pipelines.audit.retraining import RealOutputs

REFERENCES = ("network", "linearised")
NO_KERNEL = "no kernel"
RESAMPLES = 2000
# Fractions of the ceiling: an interval that starts above the first has most of what can be known;
# one that ends below the second misses most of it.
HIGH, LOW = 0.75, 0.5
FOLLOW, PARTLY, WEAK, NO, UNDECIDED, UNKNOWABLE = (
    "follow",
    "partly",
    "weak",
    "no",
    "undecided",
    "unknowable",
)
_CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A number with its 95% bootstrap interval over the candidates; NaN where it has no value."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: np.ndarray | np.floating, resampled: np.ndarray) -> "Interval":
        """The value on all candidates, and percentiles of what the resamples gave.

        A resample that has no value, such as one of a single candidate, is left out.
        """
        known = resampled[np.isfinite(resampled)]
        if not len(known) or not np.isfinite(value):
            return cls(float("nan"), float("nan"), float("nan"))
        tail = (1 - _CONFIDENCE) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return cls(float(value), float(low), float(high))


class Errors(NamedTuple):
    """How far a predicted field is from the real one.

    Attributes:
        relative: (candidates,), ‖predicted − real‖ / ‖real‖ over points and classes; 0 is perfect
            and 1 is what predicting no change at all gets.
        cosine: (candidates,), 1 where the direction is right.
        size: (candidates,), ‖predicted‖ / ‖real‖.
        by_point: (points,), the relative error at each point, over candidates and classes.
    """

    relative: np.ndarray
    cosine: np.ndarray
    size: np.ndarray
    by_point: np.ndarray


class RealChange(NamedTuple):
    """The real change under one reference.

    Attributes:
        fields: float64 (candidates, points, classes), mean over repeats.
        scores: (candidates,), its size, the real MLMOC.
        by_repeat: (repeats, candidates), the size of each repeat's own change.
        agreeing: Spearman between repeats; None for a single one.
        ceiling: of any predictor's Spearman with `scores`, at the ends of the interval of
            `agreeing` too; None likewise.
        likeness: median cosine between repeats of a field; None likewise.
        field_ceiling: of any predictor's cosine with `fields`; None likewise.
    """

    fields: np.ndarray
    scores: np.ndarray
    by_repeat: np.ndarray
    agreeing: Interval | None
    ceiling: Interval | None
    likeness: float | None
    field_ceiling: float | None


class Row(NamedTuple):
    """A prediction under a reference, compared; medians are over candidates or points.

    Attributes:
        width: of the network; None for that of its arguments.
        steps: of its training; None for those of the settings.
        residual: root mean square of one-hot minus logits on the labelled set.
        fitted: whether the network fitted its labels.
        reference: `network` or `linearised`.
        kind: of the kernel, or `no kernel`: the score ‖onehot(ŷ) − f‖.
        sketch: dimensions; None for whole gradients.
        spearman: of predicted and real MLMOC.
        agreeing: of the MLMOC of two retrainings of the same candidates.
        ceiling: the most that any predictor can be expected to reach.
        trust: level, of `trust`.
        gain: spearman less that of the row `no kernel`, resampled together.
        error: median relative L2 error of a candidate's field.
        cosine: median cosine of a candidate's field.
        cosine_ceiling: the most that any predictor's cosine can be expected to reach.
        size: median of predicted over real size of a field.
        point_error: median relative error of a point.
        point_error_90: its 90th percentile.
        jitter: that the kernel needed.
        determined: candidates that the labelled set determines.
        scores: (candidates,), predicted MLMOC.
        errors: (candidates,), relative errors.
        cosines: (candidates,).
        point_errors: (points,).
    """

    width: int | None
    steps: int | None
    residual: float
    fitted: bool
    reference: str
    kind: str
    sketch: int | None
    spearman: Interval
    agreeing: Interval | None
    ceiling: Interval | None
    trust: str
    gain: Interval | None
    error: float
    cosine: float
    cosine_ceiling: float | None
    size: float
    point_error: float
    point_error_90: float
    jitter: float
    determined: int
    scores: np.ndarray
    errors: np.ndarray
    cosines: np.ndarray
    point_errors: np.ndarray


def change(fields: np.ndarray) -> np.ndarray:
    """Σ_x ‖change at x‖, the model output change, (…,), of fields (…, points, classes)."""
    return np.linalg.norm(fields, axis=-1).sum(axis=-1)


def errors(predicted: np.ndarray, real: np.ndarray) -> Errors:
    """Relative L2 errors, directions and sizes of fields; NaN where nothing changed."""
    difference = predicted - real
    over = (1, 2)
    size_real, size_predicted = _norm(real, over), _norm(predicted, over)
    return Errors(
        relative=_ratio(_norm(difference, over), size_real),
        cosine=_ratio((predicted * real).sum(axis=over), size_real * size_predicted),
        size=_ratio(size_predicted, size_real),
        by_point=_ratio(_norm(difference, (0, 2)), _norm(real, (0, 2))),
    )


def resamples(candidates: int, rng: np.random.Generator, count: int = RESAMPLES) -> np.ndarray:
    """Bootstrap draws of the candidates' positions, (count, candidates).

    Drawn once for all comparisons, so that differences are paired.
    """
    return rng.integers(candidates, size=(count, candidates))


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, ties by mean ranks; NaN of a constant."""
    a, b = (rankdata(values, axis=-1) for values in (one, other))
    a, b = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return _ratio((a * b).sum(axis=-1), scale)


def correlation(predicted: np.ndarray, real: np.ndarray, draws: np.ndarray) -> Interval:
    """Spearman between two scores of the candidates, (candidates,) each."""
    value = spearman(predicted, real)
    return Interval.of(value, spearman(predicted[draws], real[draws]))


def agreement(scores: np.ndarray, draws: np.ndarray) -> Interval:
    """Mean Spearman over all pairs of repeats, of scores (repeats, candidates)."""
    pairs = list(combinations(scores, 2))
    drawn = np.mean([spearman(a[draws], b[draws]) for a, b in pairs], axis=0)
    return Interval.of(np.mean([spearman(a, b) for a, b in pairs]), drawn)


def ceiling(agreeing: float, repeats: int) -> float:
    """The largest correlation that any predictor can be expected to reach with the mean of repeats.

    If two repeats correlate by r, the mean of n of them has the reliability nr / (1 + (n−1)r)
    (Spearman and Brown, 1910), and nothing correlates with it by more than its square root
    (Spearman, 1904). Exact for sums of a signal and independent noise, an estimate for ranks.
    r below 0 counts as 0.
    """
    r = max(agreeing, 0.0)
    return float(np.sqrt(repeats * r / (1 + (repeats - 1) * r)))


def likeness(fields: np.ndarray) -> float:
    """Median over candidates of the mean cosine between repeats, the first axis of the fields."""
    pairs = [errors(a, b).cosine for a, b in combinations(fields, 2)]
    return median(np.mean(pairs, axis=0))


def floor(controls: np.ndarray) -> float:
    """Mean change over all pairs of controls, outputs (controls, points, classes)."""
    return float(np.mean([change(a - b) for a, b in combinations(controls, 2)]))


def median(values: np.ndarray) -> float:
    """Of those that are numbers; NaN if none is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def trust(correlation: Interval, agreeing: Interval | None, ceiling: Interval | None) -> str:
    """The level of trust in a ranking.

    By the interval of the correlation and the ceiling c: `follow` if it starts at HIGH·c or
    above; `weak` if it starts above 0 and ends below LOW·c; `partly` if it starts above 0
    otherwise; `no` if it does not start above 0 and ends below LOW·c; `undecided` if it ends above.
    Where the agreement of two retrainings is not above 0 with 95% confidence, c means nothing:
    `partly` if the correlation starts above 0, `unknowable` if not. Of a single repeat, agreement
    and ceiling are None, and c counts as 1.
    """
    if agreeing is not None and not agreeing.low > 0:
        return PARTLY if correlation.low > 0 else UNKNOWABLE
    c = 1.0 if ceiling is None else ceiling.value
    if not correlation.low > 0:
        return NO if correlation.high < LOW * c else UNDECIDED
    if correlation.low >= HIGH * c:
        return FOLLOW
    return WEAK if correlation.high < LOW * c else PARTLY


def real_change(
    real: RealOutputs, before: np.ndarray, reference: str, draws: np.ndarray
) -> RealChange:
    """The real change to compare with.

    Relative to the trained network (`network`) a retraining's change includes that of training on
    alone. For `linearised` the mean of the controls is subtracted in place of the outputs before,
    and from each repeat a control of its own, so that repeats are independent of each other.
    `before` has the outputs of the trained network, (points, classes).
    """
    repeats = len(real.retrained)
    if reference == "network":
        base, own = before, np.broadcast_to(before, (repeats, *before.shape))
    else:
        base, own = real.controls.mean(axis=0), real.controls[:repeats]
    fields = real.retrained.mean(axis=0) - base
    each = real.retrained - own[:, None]
    by_repeat = change(each)
    if repeats == 1:
        return RealChange(fields, change(fields), by_repeat, None, None, None, None)
    agreeing, cosine = agreement(by_repeat, draws), likeness(each)
    return RealChange(
        fields=fields,
        scores=change(fields),
        by_repeat=by_repeat,
        agreeing=agreeing,
        ceiling=Interval(*(ceiling(r, repeats) for r in agreeing)),
        likeness=cosine,
        field_ceiling=ceiling(cosine, repeats),
    )


def compare(
    about: dict[str, Any],
    predicted: np.ndarray | None,
    scores: np.ndarray,
    real: RealChange,
    draws: np.ndarray,
    baseline: np.ndarray | None,
) -> Row:
    """The row of one prediction: a field, or None for a score without one, and its MLMOC.

    `about` has the entries of a `Row` that describe network and kernel; `baseline` is the score
    without a kernel, None for its own row.
    """
    ranks = correlation(scores, real.scores, draws)
    gain = None
    if baseline is not None:
        without = spearman(baseline, real.scores)
        drawn = [spearman(s[draws], real.scores[draws]) for s in (scores, baseline)]
        gain = Interval.of(np.float64(ranks.value) - without, drawn[0] - drawn[1])
    if predicted is None:
        none = np.full(len(scores), np.nan)
        off = Errors(none, none, none, np.full(real.fields.shape[1], np.nan))
    else:
        off = errors(predicted, real.fields)
    points = off.by_point[np.isfinite(off.by_point)]
    return Row(
        **about,
        spearman=ranks,
        agreeing=real.agreeing,
        ceiling=real.ceiling,
        trust=trust(ranks, real.agreeing, real.ceiling),
        gain=gain,
        error=median(off.relative),
        cosine=median(off.cosine),
        cosine_ceiling=real.field_ceiling,
        size=median(off.size),
        point_error=median(points),
        point_error_90=float(np.quantile(points, 0.9)) if len(points) else float("nan"),
        scores=scores,
        errors=off.relative,
        cosines=off.cosine,
        point_errors=off.by_point,
    )


def _norm(array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((array**2).sum(axis=axes))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Above over below, NaN where below is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
