"""From a rank correlation, its interval and its ceiling to a level of trust, and to one sentence.

The thresholds are fractions of what any predictor could reach here, so that a network whose
retrainings disagree with each other is not held against the prediction (docs/audit.md).
"""

from collections.abc import Sequence

from pipelines.audit.comparison import Interval

# Of the ceiling: where the interval starts above the first, the ranking is most of what can be
# known; where it ends below the second, most of what could be known is missed.
HIGH, LOW = 0.75, 0.5

FOLLOW, PARTLY, WEAK, NO, UNDECIDED, UNKNOWABLE = (
    "follow",
    "partly",
    "weak",
    "no",
    "undecided",
    "unknowable",
)
_ADVICE = {
    FOLLOW: "Follow the look-ahead's ranking here",
    PARTLY: "Follow the look-ahead's ranking here in part",
    WEAK: "Expect little of the look-ahead's ranking here",
    NO: "Do not follow the look-ahead's ranking here",
    UNDECIDED: "Whether to follow the look-ahead's ranking here is undecided",
    UNKNOWABLE: "Rely on no look-ahead here, for retraining is not shown to repeat itself",
}


def trust(found: Interval, agreeing: Interval | None, ceiling: Interval | None) -> str:
    """The level of trust in a ranking.

    By the interval of the correlation and the ceiling c: `follow` if it starts at HIGH·c or
    above; `weak` if it starts above 0 and ends below LOW·c; `partly` if it starts above 0
    otherwise; `no` if it does not start above 0 and ends below LOW·c; `undecided` if it ends above.
    Where the agreement of two retrainings is not above 0 with 95% confidence, c means nothing:
    `partly` if the correlation starts above 0, `unknowable` if not.

    Args:
        found: Spearman between predicted and real change.
        agreeing: Spearman between repeats; None for a single repeat, whose ceiling is unknown.
        ceiling: c; None counts as 1.
    """
    if agreeing is not None and not agreeing.low > 0:
        return PARTLY if found.low > 0 else UNKNOWABLE
    c = 1.0 if ceiling is None else ceiling.value
    if not found.low > 0:
        return NO if found.high < LOW * c else UNDECIDED
    if found.low >= HIGH * c:
        return FOLLOW
    return WEAK if found.high < LOW * c else PARTLY


def sentence(
    level: str,
    what: str,
    found: Interval,
    candidates: int,
    agreeing: Interval | None,
    ceiling: Interval | None,
    caveats: Sequence[str] = (),
) -> str:
    """How far to trust the look-ahead, in one sentence.

    Args:
        level: of `trust`.
        what: the prediction that is spoken of, such as `single, reference network`.
        found: as for `trust`; so are `agreeing` and `ceiling`.
        candidates: how many were retrained with.
        agreeing: see `found`.
        ceiling: see `found`.
        caveats: clauses that are added.
    """
    if found.value != found.value:
        measured = (
            f"MLMOC ({what}) and real retraining cannot be ranked against each other, for one of "
            f"them is the same for all {candidates} candidates"
        )
    else:
        measured = (
            f"MLMOC ({what}) and real retraining rank {candidates} candidates with a Spearman of "
            f"{_shown(found)}"
        )
    if agreeing is None or ceiling is None:
        limit = "and without repeats the most that is possible is not known"
    elif agreeing.value != agreeing.value:
        limit = (
            "and whether two retrainings agree cannot be told, for what one of them changes is the "
            "same for all"
        )
    elif not agreeing.low > 0:
        limit = f"and two retrainings with the same candidates agree with {_shown(agreeing)}"
    else:
        limit = (
            f"where no predictor can be expected above {_shown(ceiling)}, for two retrainings "
            f"with the same candidates agree with {agreeing.value:.2f}"
        )
    more = "" if level not in (UNDECIDED, UNKNOWABLE) else "; more --candidates narrow the interval"
    return f"{_ADVICE[level]}: {measured}, {limit}{more}{''.join(f'; {c}' for c in caveats)}."


def _shown(interval: Interval) -> str:
    return f"{interval.value:.2f} (95% interval {interval.low:.2f} to {interval.high:.2f})"
