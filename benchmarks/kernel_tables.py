"""Rows of the kernel benchmark's tables, and its targets.

From ratios and GiB measured to cells that say whether a target is met.
"""

from dataclasses import dataclass

from benchmarks.kernel_memory import Taken
from benchmarks.measuring import Ratio

HEAD = (
    "what",
    "against",
    "seconds",
    "ratio (least–most)",
    "ratio of processor time",
    "target",
    "met",
)
MEMORY_HEAD = (
    "kernel",
    "GiB given",
    "passes",
    "predicted",
    "measured, first",
    "measured, again",
    "within the budget",
    "predicted within 25%",
)


@dataclass(frozen=True)
class Row:
    """One comparison."""

    network: str
    what: str
    against: str
    seconds: float
    ratio: Ratio
    processor: Ratio | None
    target: str
    met: bool | None

    def cells(self) -> tuple[object, ...]:
        """As the table shows it."""
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        seconds, processor = f"{self.seconds:.3g}", self.processor or ""
        return (self.what, self.against, seconds, self.ratio, processor, self.target, met)


@dataclass(frozen=True)
class MemoryRow:
    """Memory of one kernel."""

    network: str
    kernel: str
    taken: Taken

    @property
    def within(self) -> bool:
        """True if the memory measured, compiling left out, is within the budget."""
        return self.taken.again <= self.taken.budget

    @property
    def foreseen(self) -> bool:
        """The prediction is within 25% of what was measured, compiling left out."""
        return abs(self.taken.predicted / self.taken.again - 1) <= 0.25

    def cells(self) -> tuple[object, ...]:
        """As the table shows it."""
        budget, passes, *sizes = self.taken
        answers = ("yes" if answer else "**no**" for answer in (self.within, self.foreseen))
        return (self.kernel, budget, passes, *(f"{size:.3f}" for size in sizes), *answers)


def at_most(ratio: Ratio, limit: float) -> tuple[str, bool]:
    """A target that the median of the ratios is to stay below, and whether it does."""
    return f"≤ {limit:g}", ratio.median <= limit


def at_least(ratio: Ratio, limit: float) -> tuple[str, bool]:
    """A target that the median of the ratios is to reach, and whether it does."""
    return f"≥ {limit:g}", ratio.median >= limit


def within(ratio: Ratio, share: float) -> tuple[str, bool]:
    """A prediction whose median is to be off by no more than a share of what is measured."""
    return f"{1 - share:g} to {1 + share:g}", abs(ratio.median - 1) <= share
