"""Seconds of one look of a criterion, from a small one timed on this machine."""

import time

import numpy as np

from kernel.lookahead.options import Options
from kernel.lookahead.outlook import outlook
from kernel.posterior import posterior
from kernel.regression.inputs import Features

_LABELLED, _CANDIDATES, _DIMENSIONS = 8, 512, 64


def seconds_a_look(
    criterion: str, options: Options, classes: int, sample: int, candidates: int
) -> float:
    """How long all scores take once, beyond what compiles and what makes S.

    A random problem of 512 candidates is scored, and scaled by the number of pairs.

    Args:
        criterion: one of `CRITERIA`.
        options: of the criterion.
        classes: C.
        sample: M.
        candidates: U.
    """
    rng = np.random.default_rng(0)
    features = Features(rng.normal(size=(_LABELLED + _CANDIDATES, _DIMENSIONS)), "float64")
    targets = np.eye(classes)[rng.integers(classes, size=_LABELLED)]
    f_l, f_u = (rng.normal(size=(rows, classes)) for rows in (_LABELLED, _CANDIDATES))
    made = posterior(features, targets, f_l, f_u, ridge=1.0)
    outlook(criterion, features, made, options, targets=targets).scores()
    # anew, for one may remember its scores
    seen = outlook(criterion, features, made, options, targets=targets)
    start = time.perf_counter()
    seen.scores()
    spent = time.perf_counter() - start
    return spent * sample * candidates / _CANDIDATES**2
