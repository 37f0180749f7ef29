"""Look-ahead the slow way: the augmented system solved for one candidate and label at a time."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from kernel.covariance import Kernel
from tests.kernel_cases import one_hot, random_problem, scalar_kernel


class Problem(NamedTuple):
    """A scalar kernel between labelled images and candidates, with labels and logits."""

    kernel: Kernel
    targets: np.ndarray
    f_l: np.ndarray
    f_u: np.ndarray
    ridge: float

    @property
    def given(self):
        """What a posterior is made of, but the ridge."""
        return self.kernel, self.targets, self.f_l, self.f_u

    def before(self) -> np.ndarray:
        """Predictions for all candidates, fitted to the labelled set."""
        return self.after([], np.zeros((0, self.f_u.shape[1])))

    def after(self, candidates: int | list[int], labels: np.ndarray) -> np.ndarray:
        """Predictions for all candidates, fitted to the labelled set and these labels."""
        labelled = len(self.targets)
        extra = [candidates] if isinstance(candidates, int) else candidates
        rows = [*range(labelled), *(labelled + c for c in extra)]
        wanted = np.concatenate([self.targets, np.atleast_2d(labels)])
        logits = np.concatenate([self.f_l, self.f_u[extra]])
        k = self.kernel.values
        block = k[np.ix_(rows, rows)] + self.ridge * np.eye(len(rows))
        return self.f_u + k[labelled:, rows] @ np.linalg.solve(block, wanted - logits)

    def pseudo_label(self, candidate: int) -> np.ndarray:
        """One-hot, of the network."""
        return one_hot(self.f_u[candidate].argmax(keepdims=True), self.f_u.shape[1])[0]


def random_literal(labelled, candidates, classes, ridge, seed, rank=None) -> Problem:
    rng = np.random.default_rng(seed)
    kernel = scalar_kernel(labelled + candidates, rng, rank)
    return Problem(kernel, *random_problem(labelled, candidates, classes, rng), ridge)


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


def expected_change(problem: Problem, p: np.ndarray, reference: str) -> np.ndarray:
    base = problem.f_u if reference == "network" else problem.before()
    return np.array(
        [
            sum(
                p[c, y] * np.linalg.norm(problem.after(c, label) - base, axis=1).sum()
                for y, label in enumerate(np.eye(p.shape[1]))
            )
            for c in range(len(p))
        ]
    )


def expected_entropy(problem: Problem, p: np.ndarray, beta: float) -> np.ndarray:
    return np.array(
        [
            sum(
                p[c, y] * entropy(softmax(beta * problem.after(c, label), axis=1)).sum()
                for y, label in enumerate(np.eye(p.shape[1]))
            )
            for c in range(len(p))
        ]
    )


def flips(problem: Problem, reference: str) -> np.ndarray:
    base = problem.f_u if reference == "network" else problem.before()
    return np.array(
        [
            (problem.after(c, problem.pseudo_label(c)).argmax(1) != base.argmax(1)).sum()
            for c in range(len(problem.f_u))
        ]
    )
