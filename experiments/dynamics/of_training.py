"""The approximation ratio R at one moment of training: random queries, and the one of dynamicAL.

From a network to rows of numbers: gradients of single candidates by one sweep over them, and one
backward pass over each query, without a gradient for each image ever being held.
"""

from typing import Any

import numpy as np

from experiments.dynamics.of_kernel import DYNAMICAL, RANDOM
from experiments.dynamics.state import State
from kernel.diagnostics import Ratios, energy_of, ratios
from trainer import fit


def ratio_rows(state: State) -> dict[str, Any]:
    """R(Q|S) of the queries of every size, and where training is.

    Args:
        state: the network.

    Returns:
        `dynamics` G(S), `mean_norm` of ‖g_u‖² over the candidates, `train_accuracy`, and `rows`:
        for each size and way of choosing the median of R, its quartiles, the ratio of means, and R
        of every query.
    """
    subject, config = state.subject, state.subject.config
    count, found = len(subject.labelled), state.measured
    deltas, inner = found.delta(), found.inner
    rows: list[dict[str, Any]] = []
    chosen = [
        (size, name, sets)
        for size in config.queries
        for name, sets in (
            (RANDOM, subject.sets(size, config.repeats)),
            (DYNAMICAL, state.best(size)[None]),
        )
    ]
    whole, done = sum(int(sets.sum()) for _, _, sets in chosen), 0
    with state.stages("queries") as advance:
        for size, name, sets in chosen:
            squares = []
            for members in sets:
                places = count + np.flatnonzero(members)
                own = (subject.images[places], state.cotangents[places])
                squares.append(energy_of(state.model, *own))
                done += len(places)
                advance(done, whole, f"{name}, b = {size}")
            own = ratios(deltas, inner, np.array(squares), sets)
            rows.append({"queries": size, "chosen": name, "draws": len(sets), **_summary(own)})
    right = fit.accuracy(state.logits[:count], subject.labels[:count])
    return {
        "dynamics": state.dynamics,
        "mean_norm": float(found.norms.mean()),
        "train_accuracy": right,
        "certificate": state.mirror[1],
        "rows": rows,
    }


def _summary(found: Ratios) -> dict[str, Any]:
    known = found.each[np.isfinite(found.each)]
    low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (np.nan, np.nan)
    return {
        "median": found.median,
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        "ratio_of_means": found.of_means,
        "each": found.each,
    }
