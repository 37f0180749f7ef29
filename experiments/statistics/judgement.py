"""Evidence for a claim → a verdict with its interval, p and a sentence.

The verdict is decided by the two-sided 95% interval alone: it lies in what is claimed, or outside,
or neither. Holm's correction over the claims of a study is reported beside it, never in its place.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from experiments.statistics.evidence import Evidence, Frames
from pipelines.report.intervals import LEVEL, geometric, holm, interval, p_against, p_within

Verdict = Literal["reproduced", "not reproduced", "not decided by this size"]
REPRODUCED: Verdict = "reproduced"
NOT_REPRODUCED: Verdict = "not reproduced"
UNDECIDED: Verdict = "not decided by this size"


class Judgement(NamedTuple):
    """What became of a claim.

    Attributes:
        claim: what the paper says.
        verdict: by the interval; not decided either where trials are missing.
        effect: the mean over the units, in `scale`; NaN without any.
        low: end of its two-sided 95% interval; NaN for fewer than two units.
        high: the other end.
        n: units.
        unit: what one of them is, in words.
        scale: of the effect: points (of accuracy), %, times, or none.
        p: two-sided, of the effect being at the bound that is claimed, or at the one that refuted
            the claim; for a claim of equality, of it being outside, doubled. NaN for fewer than two
            units.
        p_holm: corrected for all claims of the study that have a p.
        sentence: effect, interval, n and what is missing, in words.
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


class Claim(Protocol):
    """Something that can be judged by the results of a study."""

    @property
    def text(self) -> str:
        """What the paper says, in our words."""
        ...

    def judge(self, frames: Frames) -> Judgement:
        """What becomes of it; not yet corrected for other claims."""
        ...


class Region(NamedTuple):
    """What is claimed of an effect: that it lies between two bounds.

    Attributes:
        low: −∞ where there is none.
        high: ∞ where there is none.
        against: an interval that lies wholly above this speaks against the claim; `high` without.
    """

    low: float = -math.inf
    high: float = math.inf
    against: float | None = None

    def words(self, scale: str) -> str:
        """The region, for a sentence."""
        low, high = number(self.low, scale), number(self.high, scale)
        if math.isinf(self.high):
            return f"above {low}"
        return f"below {high}" if math.isinf(self.low) else f"between {low} and {high}"


def judgement(text: str, evidence: Evidence, region: Region) -> Judgement:
    """Decide a claim.

    Args:
        text: of the claim.
        evidence: what it is decided by.
        region: where the effect lies if the claim holds.
    """
    values = evidence.effects
    n, effect, low, high = (geometric if evidence.ratio else interval)(values)
    verdict = UNDECIDED
    if not (evidence.missing.pending or evidence.missing.unplanned) and n > 1:
        above = region.high if region.against is None else region.against
        if region.low < low and high < region.high:
            verdict = REPRODUCED
        elif high < region.low or low > above:
            verdict = NOT_REPRODUCED
    sentence = _sentence(evidence, n, (effect, low, high), region)
    return Judgement(
        claim=text,
        verdict=verdict,
        effect=effect,
        low=low,
        high=high,
        n=n,
        unit=evidence.unit,
        scale=evidence.scale,
        p=_p(evidence, region, verdict),
        p_holm=math.nan,
        sentence=sentence,
    )


def _p(evidence: Evidence, region: Region, verdict: Verdict) -> float:
    values, low, high = evidence.effects, region.low, region.high
    if evidence.ratio:
        values, low = np.log(values), math.log(low)  # a ratio is only ever claimed to be above
    one_sided = math.isinf(low) or math.isinf(high)
    if verdict != NOT_REPRODUCED and not one_sided:
        return p_within(values, low, high)
    # what is refuted is so by one bound, perhaps by another than the claim's own
    above = high if region.against is None or verdict != NOT_REPRODUCED else region.against
    below = not math.isinf(low) and (math.isinf(high) or float(np.mean(values)) < low)
    return p_against(values, low if below else above)


def _sentence(evidence: Evidence, n: int, found: tuple[float, float, float], region: Region) -> str:
    scale, (effect, low, high) = evidence.scale, found
    said = f"{evidence.what}: claimed {region.words(scale)}, found"
    mean = f"{number(effect, scale)} {scale}".strip().replace(" %", "%")
    if n == 0:
        said += " nothing"
    elif n == 1:
        said += f" {mean} (n = 1 of the {evidence.unit}, which gives no interval)"
    else:
        said += (
            f" {mean} (95% interval {number(low, scale)} to {number(high, scale)}, "
            f"n = {n} {evidence.unit})"
        )
    parts, missing = [said], evidence.missing
    if missing.unplanned:
        parts.append(f"This size of the study has no trials of {missing.unplanned}")
    if missing.pending:
        parts.append(f"{missing.pending} of its {missing.planned} trials are not done")
    if missing.failed:
        parts.append(f"{missing.failed} of its {missing.planned} trials failed and are left out")
    parts += [evidence.note] if evidence.note else []
    return ". ".join(parts) + "."


def number(value: float, scale: str) -> str:
    """A number as a sentence has it, without its unit: differences of accuracy with their sign."""
    if scale in ("points", "%") and value:
        return f"{value:+.2f}" if scale == "points" else f"{value:.2f}"
    return f"{value:.3g}"


def judge(claims: Iterable[Any], frames: Frames) -> tuple[Judgement, ...]:
    """Judge all claims of a study, with p corrected by Holm for those that have one.

    Raises:
        PipelineError: a table lacks a column, or a claim names what cannot be there.
    """
    found = [claim.judge(frames) for claim in claims]
    corrected = holm([one.p for one in found])
    tests = sum(not math.isnan(one.p) for one in found)
    made = []
    for one, p in zip(found, corrected, strict=True):
        sentence = one.sentence
        if one.verdict != UNDECIDED and p >= LEVEL:
            sentence += (
                f" Corrected by Holm for the {tests} claims of the study that are tested, p is "
                f"{p:.2g}: read the verdict with that in mind."
            )
        made.append(one._replace(p_holm=p, sentence=sentence))
    return tuple(made)
