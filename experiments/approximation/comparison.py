"""All kinds of kernel of one network against the full one, as rows of plain numbers.

From Θ between labelled and test images, labels and logits to distances, spectra and what kernel
regression predicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.approximation.config import FULL, ApproximationConfig
from kernel.diagnostics import contract, diagonals, distances, flat, regress, spectrum
from kernel.errors import SingularKernelError
from kernel.model import directions
from kernel.options import Precision
from pipelines.progress import generator

# What regression adds to: the logits of the network at hand ([P]), or nothing.
NETWORK, ZERO = "network", "zero"
STARTS = (NETWORK, ZERO)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Situation:
    """What one network at some weights is compared on.

    Attributes:
        full: float64 Θ (images, classes, images, classes), labelled images first, then test images.
        precision: that it was computed in.
        targets: Y, one-hot (labelled, classes).
        test_labels: int64 (test,).
        logits: float32 (images, classes), of the network.
        trained: float32 (test, classes), what the trained network answers; None without training.
        names: of the labelled images, for messages.
    """

    full: np.ndarray
    precision: Precision
    targets: np.ndarray
    test_labels: np.ndarray
    logits: np.ndarray
    trained: np.ndarray | None
    names: np.ndarray

    @property
    def count(self) -> int:
        """L."""
        return len(self.targets)


def scalar_kernels(config: ApproximationConfig, full: np.ndarray) -> dict[str, np.ndarray]:
    """Every kind asked for, between all images, by name.

    Of the kind rademacher the first projections of many are those of few, and they are the same at
    every width and state, so that what differs between these is not chance.
    """
    found = {}
    for kind in config.kinds:
        for probes in config.probes if kind == "rademacher" else (1,):
            rng = generator(config.seed, "approximation probes")
            name = f"{kind}({probes})" if kind == "rademacher" else kind
            found[name] = contract(full, directions(kind, full.shape[1], probes, rng))
    return found


def compare(config: ApproximationConfig, given: Situation) -> dict[str, Rows]:
    """Rows of `kernels`, one a kind, and of `regression`, one a kind, ridge and start.

    The full kernel has rows of its own, with which the others are compared.
    """
    kernels = scalar_kernels(config, given.full)
    return {
        "kernels": _kernels(given, kernels),
        "regression": _regression(config, given, kernels),
    }


def _kernels(given: Situation, kernels: Mapping[str, np.ndarray]) -> Rows:
    count, full = given.count, given.full
    labelled, cross = full[:count, :, :count], full[count:, :, :count]
    own = {name: kernel[:count, :count] for name, kernel in kernels.items()}
    near = distances(labelled, own)
    near_cross = distances(cross, {name: k[count:, :count] for name, k in kernels.items()})
    whole = spectrum(flat(labelled), given.precision)
    rows: Rows = [{"kind": FULL, **whole._asdict()}]
    for name, kernel in own.items():
        ends = spectrum(kernel, given.precision)
        diagonal, apart = diagonals(labelled, kernel)
        rows[0]["diagonal"] = diagonal
        rows.append(
            {
                "kind": name,
                "frobenius": near[name],
                "frobenius_cross": near_cross[name],
                **ends._asdict(),
                "largest_error": abs(ends.largest - whole.largest) / whole.largest,
                "condition_ratio": _ratio(ends.condition, whole.condition),
                "diagonal": float(kernel.diagonal().mean()),
                "diagonal_difference": apart,
            }
        )
    return rows


def _ratio(one: float, other: float) -> float:
    """NaN where either is not resolved."""
    return one / other if np.isfinite(one) and np.isfinite(other) else float("nan")


def _regression(
    config: ApproximationConfig, given: Situation, kernels: Mapping[str, np.ndarray]
) -> Rows:
    count, full = given.count, given.full
    diagonal = float(np.einsum("icic->ic", full[:count, :, :count]).mean())
    pairs = {FULL: (flat(full[:count, :, :count]), flat(full[count:, :, :count]))}
    pairs |= {name: (k[:count, :count], k[count:, :count]) for name, k in kernels.items()}
    bases = {NETWORK: given.logits.astype(np.float64), ZERO: np.zeros(given.logits.shape)}
    targets = np.stack([given.targets - bases[start][:count] for start in STARTS])
    rows: Rows = []
    for ridge in config.ridges:
        reference: dict[str, np.ndarray] = {}
        for name, (labelled, cross) in pairs.items():
            known: dict[str, Any] = {"kind": name, "ridge": ridge}
            try:
                added, known["jitter"] = regress(
                    labelled,
                    cross,
                    targets,
                    ridge * diagonal,
                    given.precision,
                    given.names.tolist(),
                )
            except SingularKernelError as error:
                rows += [known | {"start": start, "note": str(error)} for start in STARTS]
                continue
            for start, own in zip(STARTS, added, strict=True):
                predicted = bases[start][count:] + own
                if name == FULL:
                    reference[start] = predicted
                against = _predictions(given, predicted, reference.get(start))
                rows.append(known | {"start": start} | against)
    return rows


def _predictions(
    given: Situation, predicted: np.ndarray, full: np.ndarray | None
) -> dict[str, float]:
    """Accuracy, and how far predictions are from those of `full` and of the trained network."""
    found = {"accuracy": float(np.mean(predicted.argmax(1) == given.test_labels))}
    for name, other in (("", full), ("network_", given.trained)):
        if other is not None:
            away, size = np.linalg.norm(predicted - other), np.linalg.norm(other)
            found[f"{name}error"] = float(away / size) if size > 0 else float("nan")
            found[f"{name}agreement"] = float(np.mean(predicted.argmax(1) == other.argmax(1)))
    return found
