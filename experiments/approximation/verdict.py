"""From what was measured to plain sentences of this network and seed.

They state numbers; whether a claim holds is for a study of several seeds to say.
"""

import numpy as np

from experiments.approximation.comparison import NETWORK, ZERO, Rows
from experiments.approximation.config import FULL, INITIAL, TRAINED
from experiments.approximation.run import Found
from experiments.approximation.tables import by_width, exponent, kinds, rows, series_of

_IN_WORDS = {INITIAL: "at initialisation", TRAINED: "after training"}


def sentences(found: Found) -> dict[str, str]:
    """One sentence for each thing measured, of the first kind asked for."""
    table, kind = rows(found), kinds(found)[0]
    ridges = found.config.ridges
    said = {
        "frobenius": f"Relative Frobenius error of {kind}: "
        + _told(found, table, "frobenius error", kind),
        "largest": f"Relative error of the largest eigenvalue with {kind}: "
        + _told(found, table, "largest eigenvalue error", kind),
        "condition": f"Condition number with {kind} over that of full: "
        + _told(found, table, "condition number ratio", kind),
    }
    for ridge, start in [(ridges[0], NETWORK), *((ridge, ZERO) for ridge in ridges)]:
        words = f"λ = {ridge:g} of the mean diagonal of full" if ridge else "λ = 0"
        words += f", from {'the logits of the network' if start == NETWORK else '0'}"
        known = "regression accuracy"
        own, full = (
            _told(found, table, known, series_of(name, ridge, start), False)
            for name in (kind, FULL)
        )
        error = _told(found, table, "regression error", series_of(kind, ridge, start))
        said[f"regression {ridge:g} {start}"] = (
            f"Kernel regression with {words}, {kind} against full on test images: relative "
            f"difference {error}; accuracy of {kind} {own}; of full {full}"
        )
    said = {name: f"{text}." for name, text in said.items()}
    unfitted = [own for own in found.widths if own.notes and not own.notes["fitted"]]
    if unfitted:
        which = ", ".join(str(own.subject.width) for own in unfitted if own.subject.width)
        said["training"] = (
            f"NOT fitted to their labels: {'width ' + which if which else 'the network'}; what is "
            "said after training is of networks still on their way."
        )
    return said


def _told(found: Found, table: Rows, measure: str, series: str, falls: bool = True) -> str:
    return ", ".join(
        f"{_ends(*by_width(table, state, measure, series), falls)} {_IN_WORDS[state]}"
        for state in (INITIAL, TRAINED)
        if state in found.config.states
    )


def _ends(widths: np.ndarray, values: np.ndarray, falls: bool) -> str:
    """From the narrowest to the widest, with the exponent where that says something."""
    if not len(values):
        return "no number"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    told = f"{values[0]:.3g} at width {widths[0]:g} to {values[-1]:.3g} at {widths[-1]:g}"
    power = exponent(widths, values) if falls and len(values) > 2 else float("nan")
    return f"{told} (as width^{power:.2f})" if np.isfinite(power) else told
