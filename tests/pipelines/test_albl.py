"""ALBL: Exp4.P by its golden values and its meaning, draws, rewards from earlier rounds, runs."""

import dataclasses
import io
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from pipelines import dry_run, run
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, lookahead
from pipelines.strategies.albl import (
    arm_probabilities,
    least_probability,
    update_log_weights,
    weighted_accuracy,
)
from pipelines.strategies.base import Resources
from pipelines.strategies.options import (
    ALBLConfig,
    BaselineConfig,
    LookAheadConfig,
    QueryOptions,
    StrategyOptions,
)
from tests.pipelines.test_run import comparable, small
from tests.pipelines.test_strategies import context
from trainer.errors import TrainerError

# Exp4.P


def played(rounds, advice, draws, delta):
    """ln w after single draws (reward, image), each from the p of its moment."""
    logs = np.zeros(len(advice[0]))
    for (reward, image), given in zip(rounds, advice, strict=True):
        p = arm_probabilities(logs, least_probability(len(logs), draws))
        q = p @ given[:, image]
        logs = update_log_weights(
            logs, p, given[:, [image]].T, np.array([q]), reward, draws=draws, delta=delta
        )
        yield np.exp(logs)


def test_golden_values():
    """Two arms that each name a point and one that names all five alike."""
    advice = []
    for first, second in zip([0, 1, 2], [3, 3, 1], strict=True):
        given = np.zeros((3, 5))
        given[0, first] = given[1, second] = 1
        given[2] = 0.2
        advice.append(given)
    found = list(played([(0.5, 0), (0.2, 3), (0.0, 1)], advice, 10, 0.1))
    assert least_probability(3, 10) == pytest.approx(0.1913646, abs=1e-7)
    golden = [
        [1.241417999, 1.101476332, 1.128141936],
        [1.363415782, 1.276443958, 1.256101890],
        [1.498754516, 1.406970237, 1.385460368],
    ]
    np.testing.assert_allclose(found, golden, rtol=1e-9)


def test_draws_of_one_round_are_update_log_weights_together(rng):
    arms, batch = 3, 7
    logs = rng.normal(size=arms)
    p = arm_probabilities(logs, least_probability(arms, 50))
    advised = rng.dirichlet(np.ones(4), (batch, arms))[:, :, 0]
    drawn = advised @ p
    weights = np.exp(logs)
    floor = math.sqrt(math.log(arms) / (arms * 50))
    for row, q in zip(advised, drawn, strict=True):  # one after another
        for arm in range(arms):
            bonus = math.sqrt(math.log(arms / 0.2) / (arms * 50)) / p[arm]
            weights[arm] *= math.exp(floor / 2 * (0.3 * row[arm] / q + bonus))
    found = update_log_weights(logs, p, advised, drawn, 0.3, draws=50, delta=0.2)
    np.testing.assert_allclose(np.exp(found), weights, rtol=1e-12)


@pytest.mark.parametrize("arms", [2, 5])
def test_probabilities_have_a_floor_and_sum_to_1(arms, rng):
    for draws in (1, 3, 1000):
        floor = least_probability(arms, draws)
        p = arm_probabilities(rng.normal(size=arms) * 400, floor)
        assert p.sum() == pytest.approx(1)
        assert p.min() >= floor * (1 - 1e-12)
    assert least_probability(arms, 1) == 1 / arms  # the formula's is above what arms can share


def test_an_arm_that_pays_gains_its_weight(rng):
    """Images of the first arm are predicted right, those of the second are not."""
    draws, given = 2000, np.eye(2)
    logs = np.zeros(2)
    for _ in range(draws):
        p = arm_probabilities(logs, least_probability(2, draws))
        arm = int(rng.random() < p[1])
        reward = 0.9 if arm == 0 else 0.1
        logs = update_log_weights(
            logs, p, given[:, [arm]].T, p[[arm]], reward, draws=draws, delta=0.1
        )
    p = arm_probabilities(logs, least_probability(2, draws))
    assert p[0] > 0.95


def test_weighted_accuracy_by_hand():
    right, q = np.array([True, False, True]), np.array([0.5, 0.25, 1.0])
    assert weighted_accuracy(right, q) == pytest.approx((2 + 1) / (2 + 4 + 1))
    assert weighted_accuracy(~right, q) == pytest.approx(4 / 7)


# A round


def scored(count=12, albl=None, history=(), **changes):
    """A context whose entropy, margin and least confidence name different images."""
    p = np.random.default_rng(3).dirichlet(np.ones(4) / 2, count)
    given = context(p)
    if "labelled_logits" in changes:
        changes["known_logits"] = changes.pop("labelled_logits"), given.candidate_logits
    options = StrategyOptions(albl=albl or ALBLConfig())
    return dataclasses.replace(
        given, options=options, resources=Resources(history=history), **changes
    )


def albl(given, batch=4, seed=0):
    return STRATEGIES["albl"](given, batch, np.random.default_rng(seed))


ARMS = ("least_confident", "entropy")


def test_a_batch_is_drawn_from_the_heads_of_the_arms():
    given = scored(albl=ALBLConfig(arms=ARMS, budget=40))
    heads = [STRATEGIES[arm](given, 4, np.random.default_rng(9)).indices for arm in ARMS]
    seen = set()
    for seed in range(30):
        found = albl(given, seed=seed)
        assert len(set(found.indices.tolist())) == 4
        said = found.diagnostics
        np.testing.assert_allclose(said["probabilities"], [0.5, 0.5])
        # once the draws are put back in an order in which they could have been made,
        # each was the first of an arm's batch that was left
        left = dict(zip(found.indices.tolist(), said["advised"], strict=True))
        taken: list[int] = []
        while left:
            now = [next(i for i in head.tolist() if i not in taken) for head in heads]
            possible = [i for i in left if left[i] == [float(i == n) for n in now]]
            assert possible
            taken.append(possible[0])
            del left[possible[0]]
        q = np.array(said["advised"]) @ [0.5, 0.5]
        np.testing.assert_allclose(said["drawn"], q)
        assert sum(said["taken"].values()) == 4
        seen.add(tuple(found.indices.tolist()))
    assert len(seen) > 1


def test_scores_say_how_much_of_the_advice_asks_for_an_image():
    given = scored(albl=ALBLConfig(arms=(*ARMS, "random"), budget=40))
    found = albl(given)
    p = found.diagnostics["probabilities"]
    batches = [STRATEGIES[arm](given, 4, np.random.default_rng(9)).indices for arm in ARMS]
    for index, score in zip(found.candidates, found.candidate_scores, strict=True):
        expected = p[2] * 4 / 12 + sum(w for w, b in zip(p, batches, strict=False) if index in b)
        assert score == pytest.approx(expected)
    assert found.scores.tolist() == sorted(found.scores, reverse=True)


def test_random_advises_all_that_is_left_alike():
    given = scored(3, albl=ALBLConfig(arms=("random", "entropy"), budget=40))
    found = albl(given, 3)
    shares = sorted(row[0] for row in found.diagnostics["advised"])
    assert shares == pytest.approx([1 / 3, 1 / 2, 1])
    assert sorted(found.indices.tolist()) == [10, 11, 12]
    counts = np.zeros(3)
    given = scored(3, albl=ALBLConfig(arms=("random", "entropy"), budget=1))
    head = STRATEGIES["entropy"](given, 1, np.random.default_rng(0)).indices[0]
    for seed in range(400):
        counts[albl(given, 1, seed).indices[0] - 10] += 1
    expected = [1 / 6 + (index == head) / 2 for index in (10, 11, 12)]
    np.testing.assert_allclose(counts / 400, expected, atol=0.08)


# From round to round


def history_and_truth():
    """Two rounds of ALBL and the state after them: images 0..5 are drawn and labelled."""
    lines = [
        {
            "indices": [0, 1, 2],
            "diagnostics": {
                "arms": list(ARMS),
                "probabilities": [0.5, 0.5],
                "advised": [[1, 0], [1, 0], [1, 1]],
                "drawn": [0.5, 0.5, 1.0],
                "reward": None,
            },
        },
        {"indices": [30], "diagnostics": {"kind": "single"}},  # of another strategy
        {
            "indices": [3, 4],
            "diagnostics": {
                "arms": list(ARMS),
                "probabilities": [0.6, 0.4],
                "advised": [[1, 0], [0, 1]],
                "drawn": [0.6, 0.4],
                "reward": 0.75,
            },
        },
    ]
    right = np.array([True, True, False, True, False, True])
    labels = np.array([0, 1, 2, 3, 0, 1])
    logits = np.eye(4)[np.where(right, labels, (labels + 1) % 4)]
    return lines, {
        "labelled": np.array([0, 1, 2, 3, 4, 5]),
        "labels": labels,
        "labelled_logits": logits.astype(np.float32),
    }


def test_weights_follow_from_the_whole_history():
    lines, state = history_and_truth()
    given = scored(history=tuple(lines), albl=ALBLConfig(arms=ARMS, delta=0.2, budget=20), **state)
    said = albl(given).diagnostics
    earned = (2 * 1 + 2 * 1 + 1 * 0 + 1 / 0.6 * 1 + 1 / 0.4 * 0) / (2 + 2 + 1 + 1 / 0.6 + 1 / 0.4)
    assert said["reward"] == pytest.approx(earned)
    floor = math.sqrt(math.log(2) / (2 * 20))
    bonus = math.sqrt(math.log(2 / 0.2) / (2 * 20))
    logs = [
        floor / 2 * (0.75 * (1 / 0.5 + 1 / 0.5 + 1) + 3 * bonus / 0.5)
        + floor / 2 * (earned / 0.6 + 2 * bonus / 0.6),
        floor / 2 * (0.75 * 1 + 3 * bonus / 0.5) + floor / 2 * (earned / 0.4 + 2 * bonus / 0.4),
    ]
    weights = np.exp(logs) / np.exp(logs).sum()
    np.testing.assert_allclose(said["weights"], weights, rtol=1e-10)
    np.testing.assert_allclose(said["probabilities"], (1 - 2 * floor) * weights + floor)


def test_draws_that_nobody_labelled_earn_nothing():
    lines, state = history_and_truth()
    left = {name: values[5:] for name, values in state.items()}
    given = scored(history=tuple(lines[:1]), albl=ALBLConfig(arms=ARMS, budget=20), **left)
    said = albl(given).diagnostics
    assert said["reward"] is None
    assert said["weights"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["margin", "entropy"]}, "drawn from the arms margin, entropy and albl.arms are"),
        ({"drawn": [0.5]}, "has 3 indices, 3 rows of advice and 1 prob"),
        ({"probabilities": "half"}, "cannot be understood"),
    ],
)
def test_a_history_of_something_else_is_refused(change, message):
    lines, state = history_and_truth()
    line = lines[0] | {"diagnostics": lines[0]["diagnostics"] | change}
    with pytest.raises(PipelineError, match=message):
        albl(scored(history=(line,), albl=ALBLConfig(arms=ARMS), **state))


# Arms


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("entropy", "margn"), "unknown strategy 'margn': did you mean 'margin'"),
        (("entropy", "entropy"), "names a strategy twice"),
        (("entropy",), "name at least two"),
        (("entropy", "ll4al"), "names ll4al, which trains a module together"),
        (("entropy", "albl"), "names albl itself"),
    ],
)
def test_arms_that_cannot_be(arms, message):
    with pytest.raises((PipelineError, TrainerError), match=message):
        RunConfig("digits", strategy="albl", albl=ALBLConfig(arms=arms))


def test_arms_that_ask_for_labels_are_refused():
    arms = ALBLConfig(arms=("flip", "entropy"))
    with pytest.raises(PipelineError, match="asks for the labels of every pick of flip"):
        RunConfig("digits", strategy="albl", albl=arms, lookahead=LookAheadConfig(batch="hybrid"))


@pytest.mark.parametrize("changes", [{"delta": 0.0}, {"delta": 1.5}, {"budget": 0}])
def test_settings_out_of_range(changes):
    with pytest.raises(PipelineError, match=f"albl.{next(iter(changes))} must be"):
        ALBLConfig(**changes)


# Runs and loops of one's own


def test_a_run_that_stopped_learns_the_same(tmp_path, monkeypatch):
    settings = {"strategy": "albl", "albl": ALBLConfig(arms=("margin", "coreset", "random"))}
    whole = run.run(small(tmp_path / "whole", **settings))
    said = [line["diagnostics"] for line in whole.rounds[:-1]]
    assert [one["budget"] for one in said] == [10, 10]
    assert said[0]["reward"] is None
    assert 0 <= said[1]["reward"] <= 1
    assert said[1]["weights"] != said[0]["weights"]

    def stop(console, line):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "print_round", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(small(tmp_path / "stopped", **settings))
    monkeypatch.undo()
    assert comparable(run.run(small(tmp_path / "stopped", **settings))) == comparable(whole)


def test_arms_share_what_they_need(rng, monkeypatch):
    made = []
    real = lookahead.query_kernel
    monkeypatch.setattr(lookahead, "query_kernel", lambda *a, **k: made.append(a) or real(*a, **k))
    images = rng.normal(size=(20, 1, 2, 2)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    arms = ALBLConfig(arms=("mlmoc", "eer", "entropy"))
    found = query(model, images, {0: 0, 1: 1, 2: 2}, 6, "albl", options=QueryOptions(albl=arms))
    assert len(made) == 1
    assert len(set(found.indices.tolist())) == 6


def test_a_dry_run_tells_of_the_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)
    settings = RunConfig(
        "digits",
        strategy="albl",
        albl=ALBLConfig(arms=("naive", "one_step")),
        initial=20,
        query=5,
        subset=30,
        cycles=1,
        network="tests.own_network:make",
        baseline=BaselineConfig(epochs=1, candidates=4),
        run=tmp_path / "run",
    )
    told = io.StringIO()
    dry_run.dry_run(settings, Console(file=told, width=200))
    assert "1 cycles of albl on digits" in told.getvalue()
    assert "Each query is by naive, one_step." in told.getvalue()
    assert re.search("naive .* 4 retrainings of 1 epochs", told.getvalue())
    assert re.search("one_step .* 4 steps of SGD", told.getvalue())


def test_a_loop_of_ones_own(rng):
    images = rng.normal(size=(20, 1, 2, 2)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    labels = {0: 0, 1: 1, 2: 2}
    earlier, arms = [], ALBLConfig(arms=("margin", "coreset"))
    for _ in range(3):
        found = query(
            model, images, labels, 4, "albl", options=QueryOptions(albl=arms), history=earlier
        )
        labels |= {int(index): int(index) % 3 for index in found.indices}
        earlier.append(found)
    assert [one.diagnostics["budget"] for one in earlier] == [4, 8, 12]
    assert len(labels) == 15
    assert earlier[2].diagnostics["reward"] is not None
    rest = query(model, images, labels, 5, "albl", options=QueryOptions(albl=arms), history=earlier)
    assert sorted([*labels, *rest.indices.tolist()]) == list(range(20))
