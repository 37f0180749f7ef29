"""Claims and their verdicts, labels saved, what queries cost: where the answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.statistics.claims import (
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Frames,
    Part,
    alike,
    better,
    falls,
    faster,
    greater,
    judge,
    measured,
    not_better,
    reaches,
    rises,
)
from experiments.statistics.curves import costs, labels_saved, median, saving
from experiments.statistics.ranks import draw, friedman, post_hoc
from experiments.statistics.significance import geometric, holm, p_against
from pipelines.core.errors import PipelineError
from pipelines.report.curves import interval

SEEDS = 6
NOISE = np.array([0.004, -0.002, 0.001, -0.003, 0.002, 0.0])  # of one seed of a method


def tables(levels, measures=(), states=None, hosts=None, tasks=("s",)) -> Frames:
    """Methods whose accuracy is a level and noise, alike at every number of labels but the first.

    Args:
        levels: mean accuracy and seconds of a query, by method.
        measures: (method, quantity, state, x, value): with noise, of each seed.
        states: of trials that are not done, by method and seed.
        hosts: by method; one without.
        tasks: each the same.
    """
    rows, trials, answers, values = [], [], [], []
    methods = list(dict.fromkeys([*levels, *(row[0] for row in measures)]))
    for task in tasks:
        for number, method in enumerate(methods):
            for seed in range(SEEDS):
                who = {"task": task, "method": method, "seed": seed}
                state = (states or {}).get((method, seed), "done")
                kind = "run" if method in levels else "dynamics"
                trials.append(who | {"kind": kind, "state": state})
                noise = NOISE[(seed + number) % SEEDS]
                for quantity, at, x, value in (row[1:] for row in measures if row[0] == method):
                    row = {"quantity": quantity, "state": at, "x": x, "value": value + noise}
                    values.append(who | row)
                if method not in levels or state == "absent":
                    continue
                level, seconds = levels[method]
                for turn in range(3):
                    row = who | {"round": turn, "labelled": 10 + 10 * turn}
                    accuracy = level + noise if turn else 0.5
                    asked = seconds * math.exp(10 * noise) if turn < 2 else math.nan
                    host = (hosts or {}).get(method, "here")
                    row |= {"test_accuracy": accuracy, "query_seconds": asked, "host": host}
                    rows.append(row)
                    answers.append(row | {"test_accuracy": accuracy + 0.05})
    columns = ["task", "method", "seed", "quantity", "state", "x", "value"]
    frames = (pd.DataFrame(rows), pd.DataFrame(answers), pd.DataFrame(values, columns=columns))
    return Frames(*frames, pd.DataFrame(trials))


LEVELS = {"random": (0.80, 0.01), "good": (0.83, 1.0), "twin": (0.831, 0.1), "bad": (0.78, 1.0)}


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (better("good", "random", text=""), REPRODUCED),
        (better("good", "random", by=5.0, text=""), NOT_REPRODUCED),
        (better("bad", "random", text=""), NOT_REPRODUCED),
        (better("good", "twin", text=""), UNDECIDED),
        (not_better("good", "random", text=""), NOT_REPRODUCED),
        (not_better("good", "random", margin=5.0, text=""), REPRODUCED),
        (not_better("good", "random", margin=3.0, text=""), NOT_REPRODUCED),
        (not_better("bad", "random", text=""), REPRODUCED),
        (not_better("good", "twin", text=""), UNDECIDED),
        (not_better("good", "twin", margin=1.0, text=""), REPRODUCED),
        (alike("good", "twin", within=1.0, text=""), REPRODUCED),
        (alike("good", "random", within=1.0, text=""), NOT_REPRODUCED),
        (alike("good", "twin", within=0.1, text=""), UNDECIDED),
        (faster("random", "good", times=50.0, text=""), REPRODUCED),
        (faster("random", "good", times=100.0, text=""), UNDECIDED),
        (faster("good", "random", text=""), NOT_REPRODUCED),
        (reaches("good", 82.0, 30, text=""), REPRODUCED),
        (reaches("good", 84.0, 30, text=""), NOT_REPRODUCED),
        (reaches("good", 84.0, 30, linearised=True, text=""), REPRODUCED),
        (reaches("good", 83.2, 30, text=""), UNDECIDED),
        (reaches("good", 82.0, 25, text=""), UNDECIDED),
    ],
)
def test_verdicts_on_runs(claim, verdict):
    found = claim.judge(tables(LEVELS))
    assert found.verdict == verdict, found.sentence
    bounds = [found.low, found.high]
    assert verdict == UNDECIDED or not np.isnan(bounds).any()


def test_p_is_of_the_bound_that_decided():
    frames = tables(LEVELS)
    gained = 100 * (0.83 - 0.80)
    gain = better("good", "random", text="").judge(frames)
    refuted = not_better("good", "random", margin=3.0, text="").judge(frames)
    assert refuted.effect == pytest.approx(gained, abs=1.5)
    assert refuted.p == pytest.approx(gain.p)  # against 0, not against a margin near the effect
    unlike = alike("good", "random", within=1.0, text="").judge(frames)
    assert unlike.p == pytest.approx(better("good", "random", by=1.0, text="").judge(frames).p)
    assert alike("random", "good", within=1.0, text="").judge(frames).p == pytest.approx(unlike.p)
    held = not_better("good", "random", margin=5.0, text="").judge(frames)
    assert held.p < 0.05
    assert held.p != pytest.approx(gain.p)


def test_a_verdict_is_of_the_paired_interval():
    frames = tables(LEVELS)
    found = better("good", "random", text="what it says").judge(frames)
    at = frames.curves[frames.curves["round"] > 0].pivot_table(
        index="seed", columns="method", values="test_accuracy"
    )
    gained = (100 * (at["good"] - at["random"])).to_numpy()
    assert (found.n, found.effect, found.low, found.high) == pytest.approx(tuple(interval(gained)))
    assert found.p == pytest.approx(p_against(gained))
    assert (found.claim, found.scale) == ("what it says", "points")
    assert found.sentence == (
        "good minus random, test accuracy averaged over the rounds after the first query: claimed "
        f"above 0, found {found.effect:+.2f} points (95% interval {found.low:+.2f} to "
        f"{found.high:+.2f}, n = 6 pairs of runs of one task and seed)."
    )
    final = better("good", "random", "final", text="").judge(frames)
    assert final.effect == pytest.approx(found.effect)  # as flat as the curves are
    area = better("good", "random", "area", text="").judge(frames)
    assert area.effect == pytest.approx(found.effect * 0.75)  # half of the first step is missing
    # Swapped, everything changes its sign and nothing else.
    other = better("random", "good", text="").judge(frames)
    assert (other.effect, other.low, other.high) == pytest.approx(
        (-found.effect, -found.high, -found.low)
    )


def test_a_ratio_is_of_the_same_query_of_the_same_run():
    frames = tables(LEVELS)
    found = faster("random", "good", times=50.0, text="").judge(frames)
    seconds = frames.curves[frames.curves["round"] == 0].pivot(
        index="seed", columns="method", values="query_seconds"
    )
    expected = geometric(seconds["good"] / seconds["random"])
    assert (found.n, found.effect, found.low, found.high) == pytest.approx(tuple(expected))
    assert "Over 12 queries." in found.sentence
    logs = np.log((seconds["good"] / seconds["random"]).to_numpy())
    assert found.p == pytest.approx(p_against(logs, math.log(50)))
    apart = faster("random", "good", text="").judge(tables(LEVELS, hosts={"good": "there"}))
    assert (apart.verdict, apart.n) == (UNDECIDED, 0)
    assert "12 more were on two different machines" in apart.sentence
    with pytest.raises(PipelineError, match="took no time at all"):
        faster("random", "good", text="").judge(tables(LEVELS | {"good": (0.8, 0.0)}))


def test_missing_trials_decide_nothing_and_failed_ones_are_left_out():
    claim = better("good", "random", text="")
    begun = claim.judge(tables(LEVELS, states={("good", 1): "begun", ("good", 2): "absent"}))
    assert (begun.verdict, begun.n) == (UNDECIDED, 4)
    assert "2 of its 12 trials are not done." in begun.sentence
    failed = claim.judge(tables(LEVELS, states={("good", 1): "failed"}))
    assert (failed.verdict, failed.n) == (REPRODUCED, 5)
    assert "1 of its 12 trials failed and are left out." in failed.sentence
    elsewhere = claim.judge(tables(LEVELS, states={("twin", 1): "absent"}))
    assert elsewhere.verdict == REPRODUCED
    unknown = better("nobody", "random", text="").judge(tables(LEVELS))
    assert (unknown.verdict, unknown.n) == (UNDECIDED, 0)
    assert "This size of the study has no trials of nobody." in unknown.sentence
    lost = {("good", seed): "failed" for seed in range(1, SEEDS)}
    single = claim.judge(tables(LEVELS, states=lost))
    assert (single.verdict, single.n) == (UNDECIDED, 1)
    assert math.isnan(single.p)
    assert "which gives no interval" in single.sentence


def test_claims_of_one_task_or_of_all():
    frames = tables(LEVELS, tasks=("s", "t"))
    assert better("good", "random", text="").judge(frames).n == 12
    assert better("good", "random", tasks=("t",), text="").judge(frames).n == 6
    found = better("good", "random", tasks=("t", "u"), text="").judge(frames)
    assert found.verdict == UNDECIDED
    assert "no trials of u" in found.sentence


def test_holm_goes_over_the_claims_that_are_tested():
    frames = tables(LEVELS)
    claims = (
        better("good", "random", text="a"),
        better("nobody", "random", text="b"),
        alike("good", "twin", within=1.0, text="c"),
    )
    first, second, third = judge(claims, frames)
    assert (first.p_holm, third.p_holm) == pytest.approx(tuple(holm([first.p, third.p])))
    assert math.isnan(second.p_holm)
    assert "Holm" not in first.sentence
    # One that the interval decides and Holm does not: it is said.
    even = better("good", "twin", text="")
    weak = better("good", "twin", text="", by=even.judge(frames).low - 0.01)
    many = judge([weak, *[even] * 30], frames)
    assert many[0].verdict == REPRODUCED
    assert many[0].p < 0.05 <= many[0].p_holm
    assert "Corrected by Holm for the 31 claims" in many[0].sentence
    assert judge([], frames) == ()


MEASURES = [
    ("audit", "tau", "initial", 0.0, 0.3),
    ("audit", "tau", "trained", 0.0, 0.5),
    ("audit", "error", "trained", 32.0, 0.6),
    ("audit", "error", "trained", 64.0, 0.9),
    ("audit", "error", "trained", 256.0, 0.9),
    ("audit", "error", "trained", 128.0, 0.4),
    ("sum", "error", "trained", 32.0, 0.8),
    ("sum", "error", "trained", 128.0, 0.7),
]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (measured(Part("tau"), above=0.2, text=""), REPRODUCED),
        (measured(Part("tau"), above=0.6, text=""), NOT_REPRODUCED),
        (measured(Part("tau"), above=0.4, text=""), UNDECIDED),
        (measured(Part("tau", state="trained"), above=0.4, below=0.6, text=""), REPRODUCED),
        (measured(Part("tau", state="initial"), above=0.4, below=0.6, text=""), NOT_REPRODUCED),
        (measured(Part("error", method="sum", x=32.0), below=0.9, text=""), REPRODUCED),
        (measured(Part("error", method="sum", x=33.0), below=0.9, text=""), UNDECIDED),
        (rises(Part("error", method="audit"), text=""), REPRODUCED),
        (falls(Part("error"), text=""), REPRODUCED),
        (rises(Part("error", method="sum"), text=""), NOT_REPRODUCED),
        (rises(Part("tau"), text=""), UNDECIDED),
        (greater(Part("tau", state="trained"), Part("tau", state="initial"), text=""), REPRODUCED),
        (greater(Part("error", "audit"), Part("error", "sum"), text=""), NOT_REPRODUCED),
    ],
)
def test_verdicts_on_measurements(claim, verdict):
    found = claim.judge(tables(LEVELS, MEASURES))
    assert found.verdict == verdict, found.sentence


def test_a_unit_of_measurement_is_a_task_and_seed():
    frames = tables(LEVELS, MEASURES)
    found = falls(Part("error"), text="").judge(frames)
    # the mean over the methods: (0.4 − 0.6 + 0.7 − 0.8) / 2, and the noise of a seed cancels
    assert (found.n, found.effect) == (SEEDS, pytest.approx(-0.15))
    assert "Change of error from x = 32 to 128: claimed below 0" in found.sentence
    assert measured(Part("tau"), above=0.0, text="").judge(frames).effect == pytest.approx(
        0.4 + NOISE.mean()
    )
    begun = tables(LEVELS, MEASURES, states={("sum", 0): "begun"})
    found = falls(Part("error", method="sum"), text="").judge(begun)
    assert (found.verdict, found.n) == (UNDECIDED, SEEDS - 1)
    assert falls(Part("error", method="audit"), text="").judge(begun).verdict == NOT_REPRODUCED
    misspelt = measured(Part("taus"), above=0.0, text="").judge(begun)
    assert "No measurement is called 'taus'; there are 'tau'." in misspelt.sentence
    between = reaches("good", 82.0, 25, text="").judge(begun)
    assert "It was measured at 10, 20, 30 labels." in between.sentence
    with pytest.raises(PipelineError, match="gives no bound of tau: set above or below"):
        measured(Part("tau"), text="")


def run(method, seed, accuracies, labels=(100, 120, 140, 160)):
    who = {"task": "s", "method": method, "seed": seed}
    pairs = enumerate(zip(labels, accuracies, strict=False))
    return [
        who | {"round": n, "labelled": l, "test_accuracy": a, "query_seconds": 0.5 + n}
        for n, (l, a) in pairs
    ]


def test_labels_saved_by_hand():
    curves = pd.DataFrame(
        [
            *run("random", 0, (0.5, 0.6, 0.6, 0.7)),
            *run("a", 0, (0.5, 0.6, 0.8, 0.6)),  # halfway from 120 to 140
            *run("random", 1, (0.5, 0.7, 0.8, 0.7)),  # ends with what it had at 120
            *run("a", 1, (0.5, 0.5, 0.6, 0.6)),  # never
            *run("a", 2, (0.5, 0.6, 0.7, 0.8)),  # nothing to compare with
            *run("random", 3, (0.5, 0.6, 0.7, 0.8)),
            *run("a", 3, (0.9, 0.6, 0.7, 0.8)),  # from the first
        ]
    )
    found = labels_saved(curves).set_index("seed")
    assert found["saved"].to_dict() == pytest.approx({0: 30.0, 1: -40.0, 3: 60.0})
    assert found["labels"].to_dict() == pytest.approx({0: 130.0, 1: 160.0, 3: 100.0})
    assert found["reference_labels"].to_dict() == pytest.approx({0: 160.0, 1: 120.0, 3: 160.0})
    assert found["censored"].to_dict() == {0: False, 1: True, 3: False}
    (row,) = saving(labels_saved(curves)).to_dict("records")
    assert (row["n"], row["reached"], row["median"]) == (3, 2, 30.0)
    assert math.isnan(row["low"])
    assert row["share"] == pytest.approx(30 / 160)
    # An accuracy given: the reference of seed 0 never reaches it, so that its pair says nothing.
    given = labels_saved(curves, target=0.75)
    assert given["seed"].tolist() == [1, 3]
    assert given["saved"].tolist() == pytest.approx([-30.0, 50.0])
    assert saving(given.iloc[:0]).empty


def test_a_median_s_interval_holds_what_it_says():
    assert median(np.arange(6.0)) == (6, 2.5, 0.0, 5.0)  # 1 − 2/2⁶ = .969
    assert np.isnan(median(np.arange(5.0))[2:]).all()
    # Ranks 2 and 8 of 9: 1 − 2·(1 + 9)/2⁹ = .961.
    assert median(np.arange(9.0)) == (9, 4.0, 1.0, 7.0)
    _, middle, low, _ = median(np.array([-math.inf, *range(1, 6)]))
    assert middle == 2.5
    assert math.isnan(low)
    assert math.isnan(median(np.array([-math.inf, -math.inf, 1.0]))[1])
    assert median(np.array([]))[0] == 0


def test_what_queries_cost():
    frames = tables(LEVELS)
    found = costs(frames.curves).set_index("method")
    asked = frames.curves[(frames.curves["method"] == "good") & (frames.curves["round"] == 0)]
    assert found.loc["good", "seconds"] == pytest.approx(geometric(asked["query_seconds"]).mean)
    assert found.loc["good", ["n", "queries", "pairs"]].tolist() == [6, 12, 6]
    judged = better("good", "random", text="").judge(frames)
    assert 100 * found.loc["good", "gained_low"] == pytest.approx(judged.low)
    assert found.loc["random", "gained"] == 0
    assert np.isnan(found.loc["random", "gained_low"])


def test_the_diagram_joins_what_no_test_told_apart():
    rng = np.random.default_rng(0)
    levels = np.array([0.9, 0.899, 0.7, 0.698])
    names = ["a", "b", "c_under", "$d$"]
    table = pd.DataFrame(levels + rng.normal(0, 0.004, (20, 4)), columns=names)
    found, pairs = friedman(table), post_hoc(table)
    axes = Figure().add_subplot()
    draw(axes, found, pairs)
    texts = [text.get_text() for text in axes.texts]
    for name, rank in found.ranks.items():
        assert any(str(name) in one and f"{rank:.2f}" in one for one in texts)
    assert any("Nemenyi" in one for one in texts)
    bars = [line for line in axes.lines if line.get_marker() == "o"]
    joined = {tuple(np.round(np.sort(np.asarray(bar.get_xdata())), 6)) for bar in bars}
    ranks = {str(name): float(rank) for name, rank in found.ranks.items()}
    better, worse = (sorted(ranks[name] for name in two) for two in (names[:2], names[2:]))
    assert joined == {tuple(np.round(better, 6)), tuple(np.round(worse, 6))}
