"""The settings of BALD, checked when they are made."""

from dataclasses import dataclass

from pipelines.errors import PipelineError


@dataclass(frozen=True)
class BaldConfig:
    """How bald samples what the network might answer.

    Attributes:
        samples: forward passes over all candidates with dropout at work.
    """

    samples: int = 20

    def __post_init__(self):
        """Refuse what no disagreement can be measured with.

        Raises:
            PipelineError: fewer than two samples.
        """
        if self.samples < 2:
            raise PipelineError(
                f"bald.samples must be 2 or more, not {self.samples}: one pass agrees with itself."
            )
