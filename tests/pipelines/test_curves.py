import math

import numpy as np
import pytest

from pipelines.core.errors import PipelineError
from pipelines.report import curves
from pipelines.report.build import caveats
from pipelines.report.curves import groups
from pipelines.report.drawing import spread, style_of
from tests.report_cases import ENVIRONMENT, run

# Student's t at 0.975 in closed form, for one and two degrees of freedom.
T_1 = math.tan(0.475 * math.pi)
T_2 = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))


def rounds_of(*runs):
    (group,) = groups(runs)
    return curves.tidy(group)


def warnings_of(*runs):
    (group,) = groups(runs)
    return " ".join(caveats(group, curves.tidy(group)))


def test_interval_by_hand():
    # mean 2, sd 1, n 3: half-width t/√3
    n, mean, low, high = curves.interval([1.0, 2.0, 3.0])
    assert (n, mean) == (3, 2.0)
    assert low == pytest.approx(2 - T_2 / math.sqrt(3), rel=1e-12)
    assert high == pytest.approx(2 + T_2 / math.sqrt(3), rel=1e-12)


def test_interval_of_equal_values_is_a_point():
    assert curves.interval([0.5, 0.5]) == (2, 0.5, 0.5, 0.5)


def test_interval_of_one_value_or_none_has_no_ends():
    one, none = curves.interval([0.7]), curves.interval([])
    assert one[:2] == (1, 0.7)
    assert none.n == 0
    assert np.isnan([*one[2:], *none[1:]]).all()


def test_interval_does_not_depend_on_the_order_of_seeds():
    values = [0.3, 0.9, 0.4, 0.8]
    assert curves.interval(values) == pytest.approx(curves.interval(values[::-1]), rel=1e-12)


def test_curve_by_hand():
    curve = curves.curve(rounds_of(run("margin", 0, [0.5, 0.6]), run("margin", 1, [0.5, 0.8])))
    assert curve["labelled"].tolist() == [10, 15]
    assert curve["n"].tolist() == [2, 2]
    assert curve["mean"].tolist() == pytest.approx([0.5, 0.7])
    # sd of (.6, .8) is .1·√2, over √2: half-width .1·t
    assert curve["high"].tolist() == pytest.approx([0.5, 0.7 + 0.1 * T_1])


def test_a_curve_ends_where_the_first_of_its_seeds_has_ended():
    rounds = rounds_of(
        run("margin", 0, [0.1, 0.2, 0.9]),
        run("margin", 1, [0.3, 0.4], cycles=2),
        run("random", 0, [0.1, 0.2, 0.3]),
    )
    curve = curves.curve(rounds)
    own = curve[curve["strategy"] == "margin"]
    assert own["labelled"].tolist() == [10, 15]
    assert own["mean"].tolist() == pytest.approx([0.2, 0.3])
    assert len(curve[curve["strategy"] == "random"]) == 3


def test_differences_are_paired_by_seed():
    # the seeds are far apart, the differences are not: .1 and .2, mean .15, sd .1/√2
    rounds = rounds_of(
        run("random", 0, [0.2, 0.2]),
        run("random", 1, [0.7, 0.7]),
        run("margin", 1, [0.7, 0.9]),
        run("margin", 0, [0.2, 0.3]),
    )
    last = curves.difference(rounds).iloc[-1]
    assert (last["strategy"], last["labelled"], last["n"]) == ("margin", 15, 2)
    assert last["mean"] == pytest.approx(0.15)
    assert last["high"] - last["mean"] == pytest.approx(0.05 * T_1)


def test_only_seeds_that_both_have_are_paired():
    rounds = rounds_of(
        run("random", 0, [0.2, 0.3]),
        run("random", 9, [0.9, 0.9]),
        run("margin", 0, [0.2, 0.5]),
        run("margin", 5, [0.0, 0.0]),
    )
    difference = curves.difference(rounds)
    assert difference["n"].tolist() == [1, 1]
    assert difference["mean"].tolist() == pytest.approx([0.0, 0.2])


@pytest.mark.parametrize("seed", [1, None])
def test_without_a_pair_there_is_no_difference(seed):
    runs = [run("margin", 0, [0.2, 0.5])]
    if seed is not None:
        runs.append(run("random", seed, [0.2, 0.3]))
    assert curves.difference(rounds_of(*runs)).empty
    assert math.isnan(curves.summary(rounds_of(*runs)).iloc[-1]["average_minus_random"])


def test_summary_by_hand():
    summary = curves.summary(
        rounds_of(
            run("margin", 0, [0.2, 0.4, 0.6]),
            run("random", 0, [0.2, 0.3, 0.4], lines={1: {"fit": unfitted()}}),
        )
    ).set_index("strategy")
    assert summary.index.tolist() == ["random", "margin"]
    assert summary.loc["margin", ["labels", "n", "seeds", "pairs"]].tolist() == [20, 1, "0", 1]
    assert summary.loc["margin", "peak_memory_mib"] == 2048.0
    assert summary.loc["margin", "final"] == pytest.approx(0.6)
    assert summary.loc["margin", "average"] == pytest.approx(0.5)  # rounds 1 and 2
    assert summary.loc["margin", "final_minus_random"] == pytest.approx(0.2)
    assert summary.loc["margin", "average_minus_random"] == pytest.approx(0.15)
    assert summary.loc["random", ["unfitted", "fits"]].tolist() == [1, 3]


def unfitted():
    return {"fitted": False, "residual_rms": 0.4}


def test_the_average_of_a_run_without_a_query_is_not_a_number():
    row = curves.summary(rounds_of(run("margin", 0, [0.2]))).iloc[0]
    assert row["final"] == pytest.approx(0.2)
    assert math.isnan(row["average"])


def test_query_seconds_are_medians_of_rounds_with_a_query():
    def seconds(kernel):
        return {"seconds": {"fit": 9.0, "select": 1.0, "kernel": kernel, "own": 2.0}}

    first = run("mlmoc", 0, [0.1] * 4, lines={0: seconds(90.0), 1: seconds(3.0), 2: seconds(5.0)})
    rounds = rounds_of(first, run("random", 0, [0.1] * 4))
    table = curves.query_seconds(rounds)
    assert list(table) == ["predict", "kernel", "select", "own"]  # the usual order, then others
    assert table.loc["mlmoc", "kernel"] == 5.0  # of 90, 3, 5: the round that only evaluates is out
    assert math.isnan(table.at["random", "kernel"])
    summary = curves.summary(rounds).set_index("strategy")
    assert summary.loc["random", "seconds_query"] == 1.5
    assert summary.loc["mlmoc", "seconds_query"] == 8.0  # median of 93, 6, 8


def test_runs_of_other_settings_come_apart_and_are_named_by_them():
    made = groups(
        [
            run("margin", 0, [0.1, 0.2]),
            run("random", 0, [0.1, 0.2], cycles=7),
            run("margin", 0, [0.1, 0.2], train={"loss": "cross_entropy", "epochs": 3}),
            run("margin", 0, [0.1, 0.2], dataset="mnist"),
        ]
    )
    assert [(group.title, len(group.runs)) for group in made] == [
        ("digits · cnn · train.loss = cross_entropy", 1),
        ("digits · cnn · train.loss = l2", 2),
        ("mnist · cnn", 1),
    ]


def test_a_setting_that_only_some_runs_have_is_named():
    made = groups([run("margin", 0, [0.1]), run("margin", 0, [0.1], ridge=0.1)])
    assert [group.title for group in made] == [
        "digits · cnn · ridge = 0.1",
        "digits · cnn · ridge = not set",
    ]


def test_strategies_without_a_kernel_are_compared_with_every_kernel():
    def kernel(kind):
        return {"kind": kind}

    lines = {0: {"diagnostics": {"kind": "any"}}}
    random = run("random", 0, [0.1, 0.2], kernel=kernel("single"))
    single = run("mlmoc", 0, [0.1, 0.2], kernel=kernel("single"), lines=lines)
    second = run("mlmoc", 1, [0.1, 0.2], kernel=kernel("single"), lines=lines)
    trace = run("mlmoc", 0, [0.1, 0.2], kernel=kernel("trace"), lines=lines)
    assert [(group.title, group.runs) for group in groups([trace, single, second, random])] == [
        ("digits · cnn · kernel.kind = single", (random, single, second)),
        ("digits · cnn · kernel.kind = trace", (random, trace)),
    ]
    other = run("random", 1, [0.1], kernel=kernel("trace"))
    (group,) = groups([random, other])
    assert group.runs == (random, other)
    assert not any(key.startswith("kernel") for key in group.settings)


def test_only_the_settings_that_a_strategy_looks_at_set_it_apart():
    def dynamics(gamma):
        return {"dynamics": {"gamma": gamma}, "kernel": {"kind": "single"}}

    random, two = run("random", 0, [0.1], **dynamics(2)), run("dynamical", 0, [0.1], **dynamics(2))
    none, coreset = run("dynamical", 0, [0.1], **dynamics(0)), run("coreset", 0, [0.1])
    look = run("mlmoc", 0, [0.1], kernel={"kind": "single"}, lookahead={"batch": "top"})
    made = groups([random, two, none, coreset, look])
    assert [(group.title, group.runs) for group in made] == [
        ("digits · cnn · dynamics.gamma = 0", (random, coreset, none, look)),
        ("digits · cnn · dynamics.gamma = 2", (random, coreset, two, look)),
    ]
    # arms look at what they would look at by themselves
    albl = {"arms": ["margin", "mlmoc"], "delta": 0.1}
    other = run("albl", 0, [0.1], kernel={"kind": "trace"}, lookahead={"batch": "top"}, albl=albl)
    assert [group.runs for group in groups([random, look, other])] == [
        (random, look),
        (random, other),
    ]


def test_data_are_called_by_the_name_they_give_themselves():
    (group,) = groups([run("random", 0, [0.1], data={"name": "digits-jpeg", "sha256": "a"})])
    assert group.title == "digits-jpeg · cnn"
    assert curves.tidy(group)["dataset"].tolist() == ["digits-jpeg"]


def test_the_same_seed_twice_counts_once_the_longer_run():
    short = run("margin", 0, [0.1, 0.2], cycles=3, path="short")
    long = run("margin", 0, [0.1, 0.2, 0.3], path="long")
    for order in ([short, long], [long, short]):
        (group,) = groups(order)
        assert group.runs == (long,)
        assert group.dropped == (short,)
    assert "the shorter run left out: margin seed 0 in short." in warnings_of(short, long)


def test_caveats_name_what_is_incomplete_unequal_untrained_and_missing():
    broken = {1: {"fit": unfitted(), "train_accuracy": 0.42}}
    text = warnings_of(
        run("random", 0, [0.1, 0.2], lines={0: {"missing_classes": ["3", "7"]}}),
        run("margin", 0, [0.1, 0.2], lines={0: {"missing_classes": ["3", "7"]}}),
        run("margin", 1, [0.1, 0.2], cycles=5, lines=broken),
    )
    assert "Incomplete runs, which end their strategy's curve: margin seed 1 has 2 of 6" in text
    assert "Means are over different seeds: random has 0; margin has 0 1." in text
    assert "One seed, so no interval can be given: random." in text
    assert "margin seed 1 in round 1 (training accuracy down to 42%)" in text
    assert "Classes without a label: seed 0 in round 0 (3, 7) with random, margin." in text


def test_caveats_name_absent_references_and_mixed_versions():
    newer = ENVIRONMENT | {"versions": {"torch": "2.14.0"}}
    text = warnings_of(run("margin", 0, [0.1]), run("margin", 1, [0.1], environment=newer))
    assert "No run with the strategy 'random': no difference from it is shown." in text
    assert "more than one version: torch 2.13.0, 2.14.0." in text
    text = warnings_of(run("margin", 0, [0.1]), run("random", 1, [0.1]))
    assert "No seed in common with random, so no difference: margin." in text


def test_nothing_is_said_of_complete_equal_runs():
    assert not warnings_of(*(run(s, i, [0.1, 0.2]) for s in ("random", "margin") for i in (0, 1)))


def test_a_long_list_of_runs_is_cut():
    runs = [run("random", seed, [0.1], cycles=1) for seed in range(9)]
    assert "random seed 5 has 1 of 2 rounds; and 3 more." in warnings_of(*runs)


def test_records_without_a_needed_entry_are_named():
    bad = run("margin", 3, [0.1])
    del bad.rounds[0]["test_accuracy"]
    with pytest.raises(PipelineError, match="round 0 of margin-3 has no 'test_accuracy'"):
        rounds_of(bad)
    bad = run("margin", 3, [0.1])
    del bad.config["seed"]
    with pytest.raises(PipelineError, match="config.json of margin-3 has no 'seed'"):
        groups([bad])


def test_looks_do_not_depend_on_company_and_random_is_grey():
    assert style_of("random").colour == "#777777"
    assert style_of("my_own") == style_of("my_own") != style_of("random")


def test_spread_moves_only_what_overlaps():
    assert spread([5.0, 1.0], 1.0, 0.0, 9.0) == [5.0, 1.0]
    assert spread([5.0, 5.0], 1.0, 0.0, 9.0) == [4.5, 5.5]
    assert spread([9.0, 9.0, 0.0], 1.0, 0.0, 9.0) == [8.0, 9.0, 0.0]
    placed = spread([3.0, 3.1, 3.05, 7.0], 0.5, 0.0, 9.0)
    assert np.diff(sorted(placed)).min() >= 0.5 - 1e-12
    assert np.argsort(placed).tolist() == [0, 2, 1, 3]
