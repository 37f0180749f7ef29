"""The settings of ALBL, checked when they are made."""

import dataclasses
from dataclasses import dataclass

from pipelines.errors import PipelineError


@dataclass(frozen=True)
class ALBLConfig:
    """Which strategies albl draws its batches from, and how it learns which of them serves.

    Attributes:
        arms: names of strategies, at least two, without ll4al and albl itself; those of BADGE's
            published comparison by default. Of random every candidate is drawn alike.
        delta: δ of Exp4.P: its bound holds with probability 1 − δ.
        budget: T of Exp4.P, how many images will be queried in all; None takes cycles times query
            of a run, and in a loop of your own those queried so far and the batch asked for.
    """

    arms: tuple[str, ...] = ("least_confident", "coreset")
    delta: float = 0.1
    budget: int | None = None

    def __post_init__(self):
        """Refuse what nothing can be drawn with; `albl.check` looks at the names.

        Raises:
            PipelineError: too few arms, one named twice, or a number out of range.
        """
        if len(self.arms) < 2:
            raise PipelineError(
                f"albl.arms are {', '.join(self.arms) or 'none'}: name at least two strategies to "
                "choose between."
            )
        if len(set(self.arms)) < len(self.arms):
            raise PipelineError(f"albl.arms names a strategy twice: {', '.join(self.arms)}.")
        if not 0 < self.delta <= 1:
            raise PipelineError(f"albl.delta must be above 0 and at most 1, not {self.delta}.")
        if self.budget is not None and self.budget < 1:
            raise PipelineError(f"albl.budget must be 1 or more, not {self.budget}.")

    def within(self, budget: int) -> "ALBLConfig":
        """The same, with this budget where none was given."""
        return dataclasses.replace(self, budget=self.budget or max(budget, 1))
