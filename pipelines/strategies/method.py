"""A row of the strategy table: the function that chooses, and what it has to be given.

What is named in `needs` is checked before anything is trained, and computed once a round whatever
the number of strategies that ask for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from pipelines.errors import PipelineError
from pipelines.strategies.situation import Query, Situation, Strategy

# What a strategy may need, and who computes it.
NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "logits": "logits of the labelled images and the candidates, by `Situation.logits`",
        "features": "penultimate features of both, in the same forward pass, by `situate`",
        "images": "the images themselves, through `Situation.images`",
        "kernel": "the mirror and its empirical NTK, by `lookahead.kernel_of`",
        "gradients": "the mirror and loss gradients through it, by `kernel.dynamics.gradients`",
        "infinite": "a kernel of infinite width, by `infinite.analytic`",
        "training": "SGD on copies of the network, by the strategy itself",
        "dropout": "a network with dropout, of which `bald` draws passes",
        "hooks": "a module trained together with the network, by the strategy's own row",
        "draws": "random numbers for more than ties, so that scores are not of the images alone",
        "history": "the earlier rounds of this run, through `Situation.history`",
    }
)


@dataclass(frozen=True)
class Method:
    """A strategy and what it needs; it is called as the strategy itself.

    Attributes:
        choose: situation, batch size and generator → the query.
        needs: names of NEEDS.
    """

    choose: Strategy
    needs: frozenset[str]

    def __post_init__(self):
        """Refuse a need that nobody computes.

        Raises:
            ValueError: it is not in NEEDS.
        """
        unknown = self.needs - set(NEEDS)
        if unknown:
            raise ValueError(f"needs {sorted(unknown)} are not among {', '.join(NEEDS)}")

    def __call__(self, situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
        """Choose a batch.

        Raises:
            PipelineError: none are asked for, or more than there are candidates.
        """
        candidates = len(situation.candidates)
        if not 1 <= batch_size <= candidates:
            raise PipelineError(
                f"a query of {batch_size} images was asked for and there are {candidates} "
                "candidates: ask for 1 to that many."
            )
        if "logits" in self.needs:
            situation.logits()  # before other stages, whose seconds are their own
        return self.choose(situation, batch_size, rng)


def method(choose: Strategy, *needs: str) -> Method:
    """A row, written shortly."""
    return Method(choose, frozenset(needs))
