"""Cost of a posterior, of MLMOC and of absorbing a label, given the kernel.

From random kernels of the sizes asked for to ratios: against the matrix products and the
factorisation that the posterior consists of, against look-ahead one candidate at a time, and
against a sweep over the memory that absorbing a label must touch. Run it as

    python -m benchmarks.lookahead [--json FILE] [--labelled 1000] [--candidates 6000]
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
import tyro

from benchmarks.measuring import Ratio, Times, machine, markdown, turns, write
from kernel import criteria
from kernel.covariance import Features, Kernel
from kernel.options import REFERENCES
from kernel.posterior import Posterior, absorb, posterior

PRODUCTS, ONE_BY_ONE, ABSORBING = 1.5, 500.0, 3.0  # targets


@dataclass(frozen=True)
class Settings:
    """Sizes of the random problems.

    Attributes:
        labelled: L.
        candidates: U.
        classes: C, one row each.
        repeats: turns.
        solved: candidates that are really solved for one at a time; their time is scaled to all.
        pool: candidates of the streamed posterior.
        dimensions: k of its features, in float32.
        sample: M, its reference sample.
        seed: of everything.
        json: where the figures go.
    """

    labelled: int = 1000
    candidates: int = 6000
    classes: tuple[int, ...] = (10, 100)
    repeats: int = 5
    solved: int = 10
    pool: int = 50_000
    dimensions: int = 4096
    sample: int = 2000
    seed: int = 0
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """One comparison: what, against what, and whether the target is met by the median."""

    what: str
    against: str
    seconds: float
    ratio: Ratio
    target: str
    met: bool | None

    def cells(self) -> tuple[object, ...]:
        """As the table shows it."""
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return (self.what, self.against, f"{self.seconds:.3g}", self.ratio, self.target, met)


HEAD = ("what", "against", "seconds", "ratio (least–most)", "target", "met")


def kernel_between(examples: int, rng: np.random.Generator) -> np.ndarray:
    """A kernel of which no candidate is determined: low rank and a diagonal."""
    features = rng.normal(size=(examples, 400))
    values = features @ features.T
    values.flat[:: examples + 1] += 50.0
    return values


def problem(labelled: int, candidates: int, classes: int, rng: np.random.Generator):
    """Targets and logits of a network that has nearly fitted its labels."""
    targets = np.eye(classes)[rng.integers(classes, size=labelled)]
    known = targets + 0.05 * rng.normal(size=targets.shape)
    return targets, known, 0.3 * rng.normal(size=(candidates, classes))


def bare(
    values: np.ndarray,
    targets: np.ndarray,
    known: np.ndarray,
    open_: np.ndarray,
    square: np.ndarray,
) -> None:
    """Factor, solve, AᵀA, D and DRᵀ by NumPy and SciPy; no difference, check or score.

    Products go to `square`, memory that is there already.
    """
    split = len(targets)
    factor = np.linalg.cholesky(values[:split, :split])
    solve = lambda right: scipy.linalg.solve_triangular(
        factor, right, lower=True, check_finite=False
    )
    a = solve(values[:split, split:])
    drift = a.T @ solve(targets - known)
    np.matmul(a.T, a, out=square)
    np.matmul(drift, open_.T, out=square)


def one_at_a_time(
    values: np.ndarray, targets: np.ndarray, known: np.ndarray, open_: np.ndarray, solved: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Scores of the first candidates, each by itself, in three ways; the labelled set is known."""
    split = len(targets)
    k_ll, k_ul = values[:split, :split], np.ascontiguousarray(values[split:, :split])
    residual = targets - known
    drift = k_ul @ np.linalg.solve(k_ll, residual)
    lower = np.linalg.cholesky(k_ll)
    wanted = np.eye(open_.shape[1])[open_.argmax(axis=1)] - open_

    def block(solve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """[L] Eq. 12: v = K_LL⁻¹k, and the move of every prediction by one column."""
        scores = []
        for place in range(solved):
            k = values[:split, split + place]
            v = solve(k)
            left = values[split + place, split + place] - k @ v
            moves = (values[split:, split + place] - k_ul @ v) / left
            changes = drift + moves[:, None] * (wanted[place] - drift[place])
            scores.append(np.linalg.norm(changes, axis=1).sum())
        return np.array(scores)

    def augmented() -> np.ndarray:
        """The system with one more label, solved whole."""
        scores = []
        for place in range(solved):
            rows = [*range(split), split + place]
            right = np.concatenate([residual, wanted[place : place + 1]])
            coefficients = np.linalg.solve(values[np.ix_(rows, rows)], right)
            scores.append(np.linalg.norm(values[split:, rows] @ coefficients, axis=1).sum())
        return np.array(scores)

    return {
        "block formula, K_LL solved anew": lambda: block(lambda k: np.linalg.solve(k_ll, k)),
        "block formula, K_LL factored once": lambda: block(
            lambda k: scipy.linalg.cho_solve((lower, True), k, check_finite=False)
        ),
        "augmented system": augmented,
    }


def scoring(settings: Settings, classes: int, rng: np.random.Generator) -> list[Row]:
    """Posterior and MLMOC against their products, and against one candidate at a time."""
    values = kernel_between(settings.labelled + settings.candidates, rng)
    given = problem(settings.labelled, settings.candidates, classes, rng)
    ours = {
        f"posterior and MLMOC ({reference}), C = {classes}": lambda r=reference: criteria.mlmoc(
            posterior(Kernel(values, "float64"), *given), r
        )
        for reference in REFERENCES
    }
    single = one_at_a_time(values, *given, settings.solved)
    agree = next(iter(ours.values()))()[: settings.solved]
    for name, work in single.items():
        np.testing.assert_allclose(work(), agree, rtol=1e-6, err_msg=name)
    square = np.zeros((settings.candidates, settings.candidates))
    taken = turns({"bare": lambda: bare(values, *given, square), **ours}, settings.repeats)
    rows = [
        compared(name, "its products and factorisation", taken[name], taken["bare"], PRODUCTS)
        for name in ours
    ]
    # apart, for their many small solves leave the threads of BLAS in another state
    apart = turns(single, settings.repeats)
    scale = settings.candidates / settings.solved
    network = next(iter(ours))
    for name, times in apart.items():
        scaled = Times(tuple(scale * second for second in times.seconds))
        ratio = scaled.over(taken[network])
        met = ratio.median >= ONE_BY_ONE
        rows.append(Row(f"{name}, C = {classes}", network, scaled.median, ratio, "≥ 500", met))
    return rows


def compared(what: str, against: str, ours: Times, theirs: Times, target: float | None) -> Row:
    """A row whose ratio is to stay below its target."""
    ratio = ours.over(theirs)
    met = None if target is None else ratio.median <= target
    return Row(what, against, ours.median, ratio, "" if target is None else f"≤ {target:g}", met)


class Absorber:
    """Absorbs one candidate after another, for every call consumes the posterior before."""

    def __init__(self, start: Posterior, labels: np.ndarray):
        """Start from a posterior; candidate i gets row i of the labels."""
        self.posterior, self.labels, self.next = start, labels, 0

    def __call__(self) -> None:
        """Absorb the next."""
        self.posterior = absorb(self.posterior, self.next, self.labels[self.next])
        self.next += 1


def absorbing(settings: Settings, rng: np.random.Generator) -> list[Row]:
    """One label into a dense S, against multiplying that S by a number in place."""
    values = kernel_between(settings.labelled + settings.candidates, rng)
    rows = []
    for classes in settings.classes:
        given = problem(settings.labelled, settings.candidates, classes, rng)
        work = Absorber(
            posterior(Kernel(values, "float64"), *given), np.eye(classes)[given[2].argmax(1)]
        )
        s = np.asarray(work.posterior.covariance.kept)
        sweep = lambda s=s: np.multiply(s, 1.0, out=s)
        taken = turns({"sweep": sweep, "absorb": work}, 3 * settings.repeats)
        what = f"absorbing a label, S kept, C = {classes}"
        rows.append(
            compared(what, "read, change, write S", taken["absorb"], taken["sweep"], ABSORBING)
        )
    return rows


def streaming(settings: Settings, rng: np.random.Generator) -> list[Row]:
    """One label into a posterior of features, against one sweep over them."""
    examples = settings.labelled + settings.pool
    features = rng.standard_normal((examples, settings.dimensions), np.float32)
    classes = settings.classes[0]
    given = problem(settings.labelled, settings.pool, classes, rng)
    sample = rng.choice(settings.pool, settings.sample, replace=False)
    vector = rng.standard_normal(settings.dimensions, np.float32)
    labels = np.eye(classes)[rng.integers(classes, size=settings.pool)]
    sizes = f"U = {settings.pool:,}, k = {settings.dimensions:,}, M = {settings.sample:,}"
    rows = []
    for keep in (False, True):
        start = posterior(Features(features, "float32"), *given, sample=sample, keep=keep)
        works = {"sweep": lambda: features @ vector, "absorb": Absorber(start, labels)}
        taken = turns(works, settings.repeats)
        how = "kept" if keep else "streamed"
        what = f"absorbing a label, {sizes}, S {how}"
        rows.append(compared(what, "Φ times a vector", taken["absorb"], taken["sweep"], None))
    return rows


def main(settings: Settings) -> None:
    """Print the table and write the figures as they grow: the whole takes minutes."""
    rng = np.random.default_rng(settings.seed)
    parts = [partial(scoring, settings, classes, rng) for classes in settings.classes]
    rows: list[Row] = []
    for part in (*parts, partial(absorbing, settings, rng), partial(streaming, settings, rng)):
        rows += part()
        print(markdown(HEAD, [row.cells() for row in rows]), flush=True)
        write(settings.json, asdict(settings), [asdict(row) for row in rows])
    print(
        f"L = {settings.labelled:,}, U = {settings.candidates:,}; n = {settings.repeats} turns "
        f"({3 * settings.repeats} for absorbing with S kept), seed {settings.seed}; one at a time: "
        f"{settings.solved} candidates run, scaled to {settings.candidates:,}. {machine()}."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
