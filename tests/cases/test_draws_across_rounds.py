"""Draws of successive rounds under one seed are independent of the candidates' positions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from kernel.covariance import Kernel
from pipelines.query import compare, query
from pipelines.sequential import SequentialSession
from pipelines.strategies.options import QueryOptions
from tests.sequential_cases import CANDIDATES, linearisation, state

ROUNDS = 200


def check_uniform(positions: list[int], count: int) -> None:
    """Each position as often as another, and not as in the round before."""
    counts = np.bincount(positions, minlength=count)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(positions[1:], positions[:-1])[0, 1]) < 0.25


@pytest.mark.parametrize("strategy", ["random", "margin"])  # margin: of ties
def test_sessions_after_successive_trainings(strategy, rng):
    start = linearisation("dense", rng)
    alike = replace(
        start,
        kernel=Kernel(np.eye(start.kernel.values.shape[0]), "float64"),
        logits=np.zeros_like(start.logits),
    )
    positions = []
    for number in range(ROUNDS):
        made = SequentialSession(replace(state(strategy, start=alike), round_number=number))
        again = SequentialSession(made.state)
        image = made.next_query().image
        assert again.next_query().image == image
        positions.append(made.state.candidates.tolist().index(image))
    check_uniform(positions, CANDIDATES)


@pytest.mark.parametrize("options", [QueryOptions(), QueryOptions(subset=2)])
def test_queries_of_successive_labelled_sets(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    images = np.random.default_rng(0).normal(size=(ROUNDS + 20, 1, 2, 2)).astype(np.float32)
    shares, together = [], []
    for labelled in range(2, ROUNDS):
        known = {index: index % 2 for index in range(labelled)}
        chosen = query(model, images, known, 1, "random", options).indices[0]
        shares.append((chosen - labelled) / (len(images) - labelled))  # of the candidates
        if labelled < 20:
            both = compare(model, images, known, 1, ["random", "entropy"], options)
            together.append(both["random"].indices[0] == chosen)
    check_uniform([int(10 * share) for share in shares], 10)
    assert all(together)
