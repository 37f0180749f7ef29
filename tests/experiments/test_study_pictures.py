import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from experiments.drawing import styles
from experiments.report.figures import answers, forest, gain
from experiments.report.measures import Family, families, measured, panels
from experiments.report.page import p_value, percent
from pipelines.report.drawing import style_of

NAN = math.nan


def xy(line):
    """(points, 2), float64, of what is drawn."""
    return np.asarray(line.get_xydata(), dtype=float)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_forest_shows_every_interval_and_fills_the_sure_ones():
    table = pd.DataFrame(
        [
            ("one", "margin", 5, 0.02, 0.01, 0.03),
            ("one", "mlmoc", 5, 0.01, -0.01, 0.03),
            ("two", "margin", 1, -0.02, NAN, NAN),
        ],
        columns=["task", "method", "n", "mean", "low", "high"],
    )
    figure = forest(table, "caption", style_of)
    said = texts(figure)
    assert "+2.0 (+1.0 to +3.0), n = 5" in said
    assert "−2.0, n = 1" in said
    assert {"one", "two"} <= set(said)
    lines = figure.axes[0].lines
    markers = [line for line in lines if line.get_marker() in ("^", "P")]
    filled = [to_rgb(line.get_markerfacecolor()) != (1, 1, 1) for line in markers]
    assert filled == [True, False, False]
    intervals = [xy(line)[:, 0] for line in lines if len(xy(line)) == 2][1:]
    np.testing.assert_allclose(intervals, [[1, 3], [-1, 3]])


def test_intervals_longer_than_the_picture_end_in_heads():
    long = [("one", "mlmoc", 3, 0.01, -0.3, 0.32), ("one", "margin", 3, 0.02, 0.01, 0.03)]
    table = pd.DataFrame(long, columns=["task", "method", "n", "mean", "low", "high"])
    (axes,) = forest(table, "caption", style_of).axes
    heads = {
        line.get_marker(): xy(line)[0] for line in axes.lines if line.get_marker() in ("<", ">")
    }
    assert {side: end[1] for side, end in heads.items()} == {"<": 1, ">": 1}  # of `mlmoc` alone
    np.testing.assert_allclose([heads["<"][0], heads[">"][0]], axes.get_xlim())
    long = [("random", 0.01, 0.0, NAN, NAN), ("mlmoc", 2.0, 0.02, -0.3, 0.03)]
    columns = ["method", "seconds", "gained", "gained_low", "gained_high"]
    (axes,) = gain(pd.DataFrame(long, columns=columns), "caption", style_of).axes
    (head,) = [xy(line)[0] for line in axes.lines if line.get_marker() == "v"]
    np.testing.assert_allclose(head, [2.0, axes.get_ylim()[0]])


def test_costs_are_drawn_where_they_are_with_every_name():
    table = pd.DataFrame(
        [("random", 0.01, 0.0, NAN, NAN), ("mlmoc", 2.0, 0.02, 0.01, 0.03)],
        columns=["method", "seconds", "gained", "gained_low", "gained_high"],
    )
    figure = gain(table, "caption", style_of)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mlmoc", "random"]
    points = [xy(line)[0] for line in axes.lines if line.get_marker() in ("o", "P")]
    np.testing.assert_allclose(points, [[2.0, 2.0], [0.01, 0.0]])


def test_answers_are_a_line_and_trainings_markers():
    columns = ["strategy", "labelled", "mean", "low", "high"]
    after = pd.DataFrame([("one", 11, 0.5, 0.4, 0.6), ("one", 12, 0.6, 0.5, 0.7)], columns=columns)
    trained = pd.DataFrame(
        [("one", 10, 0.5, 0.4, 0.6), ("one", 12, 0.7, 0.6, 0.8), ("random", 10, 0.5, 0.4, 0.6)],
        columns=columns,
    )
    (axes,) = answers(after, trained, "caption", style_of).axes
    drawn = {line.get_linestyle(): xy(line)[:, 1].tolist() for line in axes.lines[:2]}
    assert drawn == {"-": [50.0, 60.0], "None": [50.0, 70.0]}


@pytest.fixture
def measures():
    rows = [
        ("s", "a", seed, f"m, {series}", width, width * 10.0**power + seed, state, "m", series)
        for seed in (0, 1)
        for power, series in enumerate(("sum", "trace"))
        for state in ("initial", "trained")
        for width in (8.0, 1.0)
    ]
    columns = ["task", "method", "seed", "quantity", "x", "value", "state", "measure", "series"]
    return pd.DataFrame(rows, columns=columns).assign(axis="width")


def test_measures_are_means_over_seeds_by_line_state_and_x(measures):
    table = measured(measures)
    assert set(table["line"]) == {"sum", "trace"}
    assert set(table["n"]) == {2}
    assert table["mean"].tolist() == [8.5, 1.5, 8.5, 1.5, 80.5, 10.5, 80.5, 10.5]
    half = 12.706204736 * 0.5  # t(0.975, 1) · sd/√2
    np.testing.assert_allclose(table["high"] - table["mean"], half)
    many = measured(pd.concat([measures, measures.assign(method="b")]))
    assert set(many["line"]) == {"a, sum", "a, trace", "b, sum", "b, trace"}


def test_measures_of_other_lines_are_other_figures(measures):
    other = measures[measures["series"] == "sum"].assign(measure="other")
    third = measures.assign(measure="third")
    found = families(measured(pd.concat([measures, other, third])))
    assert [set(part.table["measure"]) for part in found] == [{"m", "third"}, {"other"}]
    nothing = measures.assign(value=0.0, measure="nothing")
    assert len(families(measured(pd.concat([measures, nothing])))) == 1


def test_more_lines_than_can_be_seen_are_parted_by_their_last_words(measures):
    kinds = [measures.assign(series=f"{k}, ridge {r}") for k in "abcde" for r in (0, 1)]
    found = families(measured(pd.concat(kinds)))
    assert [part.of for part in found] == ["ridge 0", "ridge 1"]
    assert all(set(part.table["line"]) == set("abcde") for part in found)
    figure = panels(found[0], "caption")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["M, at initialisation", "M, trained"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert "ridge 0" in [text.get_text() for text in figure.texts]


def test_a_panel_shows_the_means_hollow_where_nothing_is_trained(measures):
    figure = panels(Family("", measured(measures)), "caption")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "M"
    assert axes.get_yscale() == "log"  # 1.5 to 80.5
    hollow = [to_rgb(line.get_markerfacecolor()) == (1, 1, 1) for line in axes.lines]
    assert hollow == [True, False, True, False]
    np.testing.assert_allclose(xy(axes.lines[0])[:, 1], [1.5, 8.5])
    np.testing.assert_allclose(xy(axes.lines[2])[:, 1], [10.5, 80.5])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["sum", "trace", "at initialisation", "trained"]


def test_what_has_no_x_is_drawn_too(measures):
    figure = panels(Family("", measured(measures.assign(x=NAN, axis=""))), "caption")
    assert len(figure.axes[0].get_xticks()) == 0


def test_numbers_are_told_with_their_intervals():
    row = {"mean": -0.0123, "low": -0.02, "high": 0.01}
    assert percent(row, "mean", ("low", "high"), "+") == "−1.23 (−2.00 to +1.00)"
    assert percent({"a": 0.5, "a_low": NAN, "a_high": NAN}, "a") == "50.00"
    assert percent({"a": NAN, "a_low": NAN, "a_high": NAN}, "a") == "—"
    assert [p_value(p) for p in (0.04321, 1e-9, 1.0, NAN)] == [".043", "< .0001", "1", "—"]


def test_no_two_lines_look_alike():
    arms = ["random", "mlmoc", *(f"mlmoc, setting {number}" for number in range(20))]
    style = styles(arms)
    assert len({style(name)[:2] for name in arms}) == len(arms)
    assert style("mlmoc") == style_of("mlmoc")
