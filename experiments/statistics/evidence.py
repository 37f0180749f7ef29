"""The tables of a study → what a claim is decided by, and how much of it is there.

From `experiments.report.results` to values that an interval can be made of.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from experiments.statistics.outcomes import UNIT, having


class Frames(Protocol):
    """The tables that claims are judged by; `experiments.report.results` makes them of records."""

    @property
    def curves(self) -> pd.DataFrame:
        """A row for each round of each run: subject, arm, seed, round, labelled, test_accuracy."""
        ...

    @property
    def answers(self) -> pd.DataFrame:
        """A row for each answer of a sequential run: subject, arm, seed, labelled, test_accuracy.

        The accuracy is the linearised network's.
        """
        ...

    @property
    def measures(self) -> pd.DataFrame:
        """A row for each value measured: subject, arm, seed, quantity, x, value, state."""
        ...

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each trial: subject, arm, seed, kind, state (done, failed, begun or absent)."""
        ...


class Missing(NamedTuple):
    """Trials that a claim is about.

    Attributes:
        planned: all of them.
        pending: not there, or not finished.
        failed: ended with an error.
        unplanned: arms and subjects that this size of the study does not have.
    """

    planned: int
    pending: int
    failed: int
    unplanned: str = ""


class Evidence(NamedTuple):
    """What a claim is decided by.

    Attributes:
        what: the effect in words.
        effects: (n,), independent values of it, one a unit; positive where it is a ratio.
        unit: what one of them is, in words.
        scale: of the effects.
        missing: the trials that they come from.
        ratio: whether the mean is geometric.
        note: what else has to be said of it.
    """

    what: str
    effects: np.ndarray
    unit: str
    scale: str
    missing: Missing
    ratio: bool = False
    note: str = ""


def missing(
    trials: pd.DataFrame,
    arms: Iterable[str] | None = None,
    subjects: Iterable[str] | None = None,
    kinds: Iterable[str] | None = None,
) -> Missing:
    """How many of the trials that a claim is about are there.

    Of several arms those trials count that all of the arms have, by subject and seed: the others
    have nothing to be compared with.

    Args:
        trials: subject, arm, seed, kind, state.
        arms: those that are compared; all that there are without, whether paired or not.
        subjects: all without.
        kinds: likewise.
    """
    wanted = {"arm": arms, "subject": subjects, "kind": kinds}
    wanted = {name: list(values) for name, values in wanted.items() if values is not None}
    own = having(trials, **wanted)
    lacking = [
        str(name)
        for column, names in wanted.items()
        if column != "kind"
        for name in names
        if having(own, **{column: [name]}).empty
    ]
    if "arm" in wanted:
        arms_of = own.groupby(UNIT)["arm"].transform("nunique")
        own = pd.DataFrame(own[arms_of == len(set(wanted["arm"]))])
    failed, done = (len(having(own, state=[state])) for state in ("failed", "done"))
    nothing = ", ".join(lacking) or ("it" if own.empty else "")
    return Missing(len(own), len(own) - done - failed, failed, nothing)
