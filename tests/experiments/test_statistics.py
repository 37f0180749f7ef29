"""Intervals, blocks and tests: against published examples, scipy, and what follows by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.statistics.curves import (
    blocks,
    finished,
    own_models,
    summary,
)
from experiments.statistics.ranks import critical_difference, friedman, post_hoc
from experiments.statistics.significance import geometric, holm, p_against, p_within
from pipelines.core.errors import PipelineError
from pipelines.report.curves import interval

# Demšar 2006, Table 6: AUC of C4.5 plain, with parameter m, with cf, and with both tuned. The last
# row but one prints 0.975 twice and ranks them 2 and 3: they were not equal before rounding.
DEMSAR = pd.DataFrame(
    [
        (0.763, 0.768, 0.771, 0.798),
        (0.599, 0.591, 0.590, 0.569),
        (0.954, 0.971, 0.968, 0.967),
        (0.628, 0.661, 0.654, 0.657),
        (0.882, 0.888, 0.886, 0.898),
        (0.936, 0.931, 0.916, 0.931),
        (0.661, 0.668, 0.609, 0.685),
        (0.583, 0.583, 0.563, 0.625),
        (0.775, 0.838, 0.866, 0.875),
        (1.000, 1.000, 1.000, 1.000),
        (0.940, 0.962, 0.965, 0.962),
        (0.619, 0.666, 0.614, 0.669),
        (0.972, 0.981, 0.9751, 0.975),
        (0.957, 0.978, 0.946, 0.970),
    ],
    columns=["C4.5", "m", "cf", "m+cf"],
)


def runs(accuracies, task="s", labels=(10, 20, 30)):
    """Curves of a dictionary method → seed → accuracies."""
    return pd.DataFrame(
        {
            "task": task,
            "method": method,
            "seed": seed,
            "round": number,
            "labelled": labelled,
            "test_accuracy": accuracy,
        }
        for method, seeds in accuracies.items()
        for seed, values in seeds.items()
        for number, (labelled, accuracy) in enumerate(zip(labels, values, strict=False))
    )


def t_test(values, mean, **how) -> Any:
    return stats.ttest_1samp(values, mean, **how)


def p_of(test: Any) -> float:
    return test.pvalue


def test_intervals_are_scipy_s():
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 2.0, 9)
    found, theirs = interval(values), t_test(values, 0.3)
    between = theirs.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [between.low, between.high])
    assert found.n == 9
    assert p_against(values, 0.3) == pytest.approx(p_of(theirs))
    positive = np.exp(values)
    assert geometric(positive).mean == pytest.approx(stats.gmean(positive))
    assert geometric(positive).low == pytest.approx(math.exp(found.low))


def test_equivalence_is_two_one_sided_tests_and_says_what_the_interval_says():
    rng = np.random.default_rng(1)
    for spread in (0.2, 0.6, 1.0, 2.0):
        values = rng.normal(0.2, spread, 6)
        one_sided = [
            p_of(t_test(values, -1.0, alternative="greater")),
            p_of(t_test(values, 1.0, alternative="less")),
        ]
        p, (_, _, low, high) = p_within(values, -1.0, 1.0), interval(values)
        assert p == pytest.approx(min(1.0, 2 * max(one_sided)))
        assert (p < 0.05) == (-1.0 < low and high < 1.0)


def test_what_is_said_of_hardly_any_values():
    assert interval([]).n == 0
    assert math.isnan(interval([]).mean)
    assert interval([2.0]).mean == 2.0
    assert math.isnan(interval([2.0]).low)
    assert math.isnan(p_against([2.0]))
    assert math.isnan(p_within([2.0], 0.0, 3.0))
    assert interval([2.0, 2.0]) == (2, 2.0, 2.0, 2.0)
    assert (p_against([2.0, 2.0], 2.0), p_against([2.0, 2.0], 1.0)) == (1.0, 0.0)
    rounded = [0.93 - 0.91, 0.94 - 0.92, 0.95 - 0.93]  # all .02, but for rounding
    assert len(set(rounded)) > 1
    assert (p_against(rounded, 0.02), p_against(rounded)) == (1.0, 0.0)
    assert (p_within([2.0, 2.0], 1.0, 3.0), p_within([2.0, 2.0], 2.0, 3.0)) == (0.0, 1.0)


def test_demsar_s_example():
    found = friedman(DEMSAR)
    published = {"C4.5": 3.143, "m": 2.000, "cf": 2.893, "m+cf": 1.964}
    assert found.ranks.to_dict() == pytest.approx(published, abs=5e-4)
    assert list(found.ranks.index) == ["m+cf", "m", "cf", "C4.5"]
    assert found.uncorrected == pytest.approx(9.28, abs=5e-3)
    assert found.f == pytest.approx(3.69, abs=5e-3)
    assert found.f_p < 0.05  # the paper: above the critical value 2.85 of F(3, 39)
    assert stats.f.isf(0.05, 3, 39) == pytest.approx(2.85, abs=0.01)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=5e-3)
    assert (found.blocks, found.dropped) == (14, 0)
    corrected = stats.friedmanchisquare(*DEMSAR.to_numpy().T)
    assert found.chi2 == pytest.approx(corrected.statistic)
    assert found.chi2 > found.uncorrected  # some of its rows have ties


def test_demsar_s_pairs():
    """At .10 C4.5 is worse than m and than m+cf, and of cf nothing can be said."""
    table = post_hoc(DEMSAR).set_index(["method", "other"])
    apart = {pair for pair in table.index if table.loc[pair, "p_nemenyi"] < 0.10}
    assert apart == {("C4.5", "m"), ("C4.5", "m+cf")}
    assert min(table["p_nemenyi"]) > 0.05


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)]
)
def test_critical_values_are_those_of_demsar_s_table_5(methods, q):
    scale = math.sqrt(methods * (methods + 1) / (6 * 20))
    assert critical_difference(methods, 20) / scale == pytest.approx(q, abs=1.5e-3)


def test_holm_by_hand():
    # sorted: .01·4, .02·3, .03·2 → no less than the one before, .04·1 likewise
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    first, nothing, last = holm([0.02, math.nan, 0.5])
    assert math.isnan(nothing)
    assert (first, last) == pytest.approx((0.04, 0.5))
    assert holm([]) == []


def test_pairs_are_paired_t_tests_of_the_blocks_that_both_have():
    rng = np.random.default_rng(2)
    table = pd.DataFrame(rng.normal(0.9, 0.01, (7, 3)), columns=["a", "b", "c"])
    table.loc[[5, 6], "c"] = np.nan
    found = post_hoc(table).set_index(["method", "other"])
    for pair, n in {("a", "b"): 7, ("a", "c"): 5, ("b", "c"): 5}.items():
        first, second = (table[method].to_numpy()[:n] for method in pair)
        theirs = stats.ttest_rel(first, second)
        assert found.loc[pair, "n"] == n
        assert found.loc[pair, "p"] == pytest.approx(p_of(theirs))
    assert found["p_holm"].tolist() == pytest.approx(holm(found["p"].tolist()))
    assert friedman(table).dropped == 2
    assert "seed" in friedman(table).unit


def test_friedman_of_alike_and_of_perfectly_ranked_methods():
    alike = friedman(pd.DataFrame(np.ones((4, 3)), columns=list("abc")))
    assert (alike.chi2, alike.p, alike.uncorrected) == (0.0, 1.0, 0.0)
    assert alike.ranks.tolist() == [2.0, 2.0, 2.0]
    ranked = friedman(pd.DataFrame([[3.0, 2.0, 1.0]] * 4, columns=list("abc")))
    assert ranked.ranks.to_dict() == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert ranked.uncorrected == pytest.approx(8.0)  # n(k − 1), its largest value
    assert (ranked.f, ranked.f_p) == (math.inf, 0.0)


def test_too_little_for_friedman_is_said():
    two = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 1.0], "c": [np.nan, np.nan]})
    with pytest.raises(PipelineError, match=r"there are 2 methods \(a, b\) and 2 such blocks"):
        friedman(two)
    assert np.isnan(post_hoc(two)["p_nemenyi"].to_numpy()).all()
    one = pd.DataFrame({"a": [1.0, np.nan], "b": [2.0, 1.0], "c": [2.0, 1.0]})
    with pytest.raises(PipelineError, match="1 such blocks"):
        friedman(one)


def test_a_run_s_number_by_hand():
    curves = runs({"a": {0: (0.5, 0.6, 0.9), 1: (0.4, 0.8, 0.8)}, "b": {0: (0.5, 0.7, 0.8)}})
    average, final = blocks(curves), blocks(curves, "final")
    assert average.loc[("s", 0)].to_dict() == pytest.approx({"a": 0.75, "b": 0.75})
    assert final.loc[("s", 1), "a"] == 0.8
    assert math.isnan(average.loc[("s", 1), "b"])
    # two trapezia of the same width, by the whole width
    area = ((0.5 + 0.6) / 2 + (0.6 + 0.9) / 2) / 2
    assert blocks(curves, "area").loc[("s", 0), "a"] == pytest.approx(area)


def test_methods_are_compared_where_all_were_measured():
    """Other steps of labels, and runs that stopped: nothing is compared with something else."""
    fine = runs({"fine": {0: (0.1, 0.2, 0.3, 0.4, 0.5)}}, labels=(10, 15, 20, 25, 30))
    coarse = runs({"coarse": {0: (0.1, 0.4, 0.6), 1: (0.1, 0.4)}})
    table = blocks(pd.concat([fine, coarse]))
    assert table.loc[("s", 0)].to_dict() == pytest.approx({"fine": 0.4, "coarse": 0.5})
    assert ("s", 1) not in table.index  # it stopped at 20
    assert blocks(coarse).loc[("s", 0), "coarse"] == pytest.approx(0.5)
    # with later beginnings: what one method began with is nothing that it chose
    late = runs({"late": {0: (0.7, 0.9)}}, labels=(20, 30))
    table = blocks(pd.concat([coarse, late]))
    assert table.loc[("s", 0)].to_dict() == pytest.approx({"coarse": 0.6, "late": 0.9})


def test_only_what_is_done_counts():
    curves = runs({"a": {0: (0.1, 0.2), 1: (0.3, 0.4)}})
    trials = pd.DataFrame(
        {"task": "s", "method": "a", "seed": [0, 1], "kind": "run", "state": ["begun", "done"]}
    )
    assert set(finished(curves, trials)["seed"]) == {1}
    none = finished(curves, trials.iloc[:0])
    assert none.empty
    assert list(none.columns) == list(curves.columns)


def test_tables_against_loops():
    rng = np.random.default_rng(3)
    values = {
        method: {seed: rng.uniform(0.5, 0.9, 3) for seed in seeds}
        for method, seeds in {"random": range(6), "a": range(1, 7), "b": (0, 2, 4)}.items()
    }
    curves = pd.concat([runs(values), runs({"random": {0: (0.1, 0.2, 0.3)}}, task="other")])
    both = {"a": range(1, 6), "b": (0, 2, 4)}
    table = summary(curves).set_index(["task", "method"])
    p = []
    for method, seeds in both.items():
        mean = [values[method][s][1:].mean() - values["random"][s][1:].mean() for s in seeds]
        row = table.loc[("s", method)]
        assert row["pairs"] == len(seeds)
        assert row["better"] == sum(m > 0 for m in mean)
        assert row["average_gained"] == pytest.approx(np.mean(mean))
        assert row["average_gained_high"] == pytest.approx(interval(mean).high)
        p.append(p_against(mean))
    assert table.loc["s"].loc[["a", "b"], "average_gained_holm"].tolist() == pytest.approx(holm(p))
    assert table.loc[("s", "random"), "pairs"] == 0
    assert table.loc[("s", "random"), "n"] == 6
    assert math.isnan(table.loc[("other", "random"), "final_low"])


def test_tables_of_nothing_have_their_columns():
    none = runs({"a": {0: (0.5, 0.6)}}).iloc[:0]
    assert blocks(none).empty
    assert summary(none).empty


def test_tables_that_cannot_be_read_are_refused():
    curves = runs({"a": {0: (0.5, 0.6)}})
    with pytest.raises(PipelineError, match="no measure 'mean': choose from average, final, area"):
        blocks(curves, "mean")
    with pytest.raises(PipelineError, match="lacks labelled, test_accuracy"):
        blocks(curves.drop(columns=["labelled", "test_accuracy"]))
    with pytest.raises(PipelineError, match=r"method 'a', seed 0 has 10 labels twice"):
        blocks(pd.concat([curves, curves]))


def test_models_of_strategies_are_compared_with_the_network_of_the_same_run():
    table = runs({"gp": {0: (0.5, 0.6, 0.7), 1: (0.4, 0.6, 0.8)}, "random": {0: (0.5, 0.5, 0.5)}})
    own = [0.6, 0.5, np.nan, 0.8, 0.7, np.nan, *[np.nan] * 3]  # nothing is queried at the end
    found = own_models(table.assign(own_accuracy=own))
    assert found[["task", "method", "labelled", "n"]].to_numpy().tolist() == [
        ["s", "gp", 10, 2],
        ["s", "gp", 20, 2],
    ]
    assert found["own"].tolist() == pytest.approx([0.7, 0.6])
    assert found["network"].tolist() == pytest.approx([0.45, 0.6])
    assert found["gained"].tolist() == pytest.approx([0.25, 0.0])
    half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.4], ddof=1) / math.sqrt(2)
    assert found["gained_high"].tolist()[0] == pytest.approx(0.25 + half)
    assert own_models(table.assign(own_accuracy=np.nan)).empty
    with pytest.raises(PipelineError, match="lacks own_accuracy"):
        own_models(table)
