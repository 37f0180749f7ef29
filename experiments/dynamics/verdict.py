"""From what was measured to one plain sentence a figure.

Sentences speak of the first of the sizes of query asked for. The thresholds are conventions, stated
in docs/dynamics.md; the numbers stand beside them.
"""

from collections.abc import Callable
from typing import Any

from experiments.dynamics.config import FIGURES
from experiments.dynamics.of_kernel import DYNAMICAL, RANDOM
from experiments.dynamics.run import G_MSE, INITIAL, STATES, TRAINED, Found
from experiments.dynamics.tables import Rows, column, distinct, tables, where

SMALL = 0.1  # of B, up to which an MMD adds little to it
AGREE = 0.5  # where the interval of τ starts above, two measures rank alike
NEAR = 0.1  # of 1, within which R counts as there
_IN_WORDS = {INITIAL: "at initialisation", TRAINED: "after training"}
_SETS = {"S": "S", RANDOM: "S with a random query", DYNAMICAL: "S with dynamicAL's query"}


def sentences(found: Found) -> dict[str, str]:
    """One sentence for each figure asked for; a plain one for a figure that was left out."""
    known = tables(found)
    said = {}
    for figure in FIGURES:
        if figure == "gamma" and figure in found.config.figures:
            said[figure] = _gamma(found)
        elif figure in found.config.figures:
            said[figure] = _SENTENCES[figure](known[figure])
    if found.notes is not None and not found.notes["fitted"]:
        said["training"] = (
            f"The network has NOT fitted its labels (train accuracy "
            f"{found.notes['train_accuracy']:.2f}): what is said of it after training is of a "
            "network still on its way."
        )
    return said


def _mmd(rows: Rows) -> str:
    size = rows[0]["queries"]
    own = where(rows, queries=size)
    missing = sum(row["bound"] is None for row in own)
    if missing:
        return (
            f"MMD against B: B does not exist for {missing} of {len(own)} queries of {size}, whose "
            "kernels are singular; another kind of kernel, or float64, may have one."
        )
    told = ", ".join(
        f"{_mean(own, network=state, chosen=DYNAMICAL):.2g} {_IN_WORDS[state]} (random queries: "
        f"{_mean(own, network=state, chosen=RANDOM):.2g})"
        for state in STATES
    )
    worst = float(column(own, "share").max())
    judged = (
        "small beside B in every case"
        if worst <= SMALL
        else f"not small beside B everywhere, up to {worst:.2g} of it"
    )
    jittered = sum(row["jitter"] > 0 for row in own)
    caveat = f"; {jittered} of {len(own)} kernels needed jitter, which makes B too small"
    return (
        f"MMD against B: for dynamicAL's query of {size}, MMD as a share of B is {told}: {judged}"
        f"{caveat if jittered else ''}."
    )


def _mean(rows: Rows, **wanted: Any) -> float:
    return float(column(where(rows, **wanted), "share").mean())


def _tau(rows: Rows) -> str:
    size = rows[0]["queries"]
    parts = []
    for state in STATES:
        (row,) = where(rows, network=state, queries=size, measure=G_MSE)
        if row["tau"] is None:
            parts.append(f"{_IN_WORDS[state]} one of them is constant")
            continue
        low, high = row["tau_low"], row["tau_high"]
        parts.append(
            f"{_IN_WORDS[state]} τ = {row['tau']:.2f} (95% interval {low:.2f} to {high:.2f}: "
            f"{_agreement(low, high)})"
        )
    return (
        f"Whether G_MSE and alignment rank {rows[0]['draws']} random queries of {size} alike: "
        f"{', '.join(parts)}."
    )


def _agreement(low: float, high: float) -> str:
    if low > AGREE:
        return "they agree"
    if low > 0:
        return "they agree weakly"
    return "they disagree" if high < 0 else "not shown"


def _envelope(rows: Rows) -> str:
    parts = []
    for name, words in _SETS.items():
        own = where(rows, network=INITIAL, set=name)
        below = [row["time"] for row in own if row["error"] <= 0.5]
        when = f"{below[0]:.3g}" if below else f"more than {own[-1]['time']:.3g}"
        parts.append(f"{when} for {words}")
    return (
        "Envelope: at initialisation, gradient flow on the kernel would halve the squared error by "
        f"the time {', '.join(parts)} (in units of 1/λ_max of S)."
    )


def _ratio(rows: Rows) -> str:
    size = rows[0]["queries"]
    epochs = distinct(rows, "epoch")
    parts, near = [], []
    for name, words in ((RANDOM, "the median over random queries"), (DYNAMICAL, "dynamicAL's")):
        medians = [
            float(column(where(rows, queries=size, chosen=name, epoch=epoch), "median")[0])
            for epoch in (min(epochs), max(epochs))
        ]
        parts.append(f"{words} {medians[0]:.2f} and {medians[1]:.2f}")
        near.append(abs(medians[1] - 1) <= NEAR)
    judged = {
        (True, True): "both end near 1",
        (True, False): "only random queries end near 1",
        (False, True): "only dynamicAL's ends near 1",
        (False, False): "neither ends near 1",
    }[near[0], near[1]]
    return (
        f"Approximation ratio R of queries of {size} after {min(epochs)} and {max(epochs)} epochs: "
        f"{', '.join(parts)}: {judged}."
    )


def _gamma(found: Found) -> str:
    if found.gammas is None:
        return (
            "Accuracy by γ is left out: it is read from recorded runs of the strategy dynamical, "
            "and none were given with --runs."
        )
    parts = []
    for row in found.gammas.averages:
        name = RANDOM if row["gamma"] == RANDOM else f"γ = {row['gamma']}"
        ends = "" if row["n"] < 2 else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        parts.append(f"{name} {100 * row['mean']:.1f}%{ends}, n = {row['n']}")
    if not parts:
        return "Accuracy by γ: the runs have no round after their first query yet."
    return (
        "Accuracy by γ, averaged over the rounds after the first query (95% interval over seeds): "
        f"{'; '.join(parts)}."
    )


_SENTENCES: dict[str, Callable[[Rows], str]] = {
    "mmd": _mmd,
    "tau": _tau,
    "envelope": _envelope,
    "ratio": _ratio,
}
