import dataclasses
import math

import numpy as np
import pytest

from experiments.report.results import ANSWERS, CURVES, MEASURES, TRIALS, results
from experiments.studies.study import Grid
from tests.experiments import study_cases as cases

MMD = """network,queries,chosen,mmd,bound,share
initial,5,random,0.1,2.0,0.05
initial,5,random,0.3,2.0,0.15
initial,5,dynamical,0.6,3.0,0.2
trained,5,random,0.4,,
"""
TAU = """network,queries,measure,draws,tau,tau_low,tau_high
initial,5,G_MSE,200,0.9,0.8,0.95
"""
RATIO = """epoch,train_accuracy,queries,chosen,draws,median,ratio_of_means
0,0.1,5,random,20,0.2,0.3
10,1.0,5,random,20,0.9,0.8
"""
ROWS = """state,width,parameters,measure,series,value
initial,8,100,frobenius error,sum,0.25
initial,8,100,condition number,sum,
trained,8,100,network accuracy,,0.9
"""
AUDIT = """kind,reference,sketch,width,steps,spearman,ceiling,gain
sum,network,,1,,0.5,0.9,0.1
sum,network,,2,,0.6,,
sum,linearised,4096,2,,0.4,,
"""


def test_every_round_of_every_run_is_a_row_and_every_trial_too(tmp_path):
    study = cases.study()
    rng = np.random.default_rng(0)
    accuracies = {}
    for trial in study.trials("small"):
        accuracies[trial.method, trial.seed] = rng.uniform(size=3).tolist()
        cases.store(trial, tmp_path / "somewhere", accuracies[trial.method, trial.seed])
    found = results(study, "small", tmp_path)
    assert set(CURVES) <= set(found.curves)
    assert set(found.trials["state"]) == {"done"}
    assert len(found.curves) == 3 * len(found.trials) == 18
    for who, own in found.curves.groupby(["method", "seed"]):
        assert own["test_accuracy"].tolist() == accuracies[who]
        assert own["labelled"].tolist() == [10, 15, 20]
        # stages of a query are 1.0 and 0.5 seconds; the last round asks for nothing
        np.testing.assert_array_equal(own["query_seconds"], [1.5, 1.5, math.nan])
    assert set(found.curves["fit_seconds"]) == {9.0}
    assert set(found.curves["host"]) == {"Linux, 2 CPUs"}
    assert found.answers.empty
    assert list(found.answers) == list(ANSWERS)


def test_what_is_missing_begun_or_failed_is_told(tmp_path):
    study = cases.study()
    trials = {(trial.method, trial.seed): trial for trial in study.trials("small")}
    cases.store(trials["random", 0], tmp_path, [0.1, 0.2, 0.3])
    cases.store(trials["margin", 0], tmp_path, [0.1])
    cases.note(trials["margin", 1], tmp_path / trials["margin", 1].folder, "failed", "no memory")
    broken = cases.store(trials["margin", 2], tmp_path, [0.1, 0.2, 0.3])
    (broken / "rounds.jsonl").write_text("{}\n")
    found = results(study, "small", tmp_path).trials
    assert list(found) == list(TRIALS)
    rows = {(row["method"], row["seed"]): row for row in found.to_dict("records")}
    assert {who: row["state"] for who, row in rows.items()} == {
        ("random", 0): "done",
        ("margin", 0): "begun",
        ("random", 1): "absent",
        ("margin", 1): "failed",
        ("random", 2): "absent",
        ("margin", 2): "failed",
    }
    assert rows["margin", 0]["rounds"] == 1
    assert rows["margin", 1]["message"] == "no memory"
    assert "rounds.jsonl" in rows["margin", 2]["message"]


def test_a_record_answers_for_every_trial_with_its_settings(tmp_path):
    grids = [Grid({name: cases.RUN}, {"random": {"strategy": "random"}}, (0,)) for name in "ab"]
    study = cases.study(*grids)
    cases.store(study.trials("small")[0], tmp_path, [0.1, 0.2, 0.3])
    found = results(study, "small", tmp_path)
    assert found.curves["task"].tolist() == ["a"] * 3 + ["b"] * 3


def test_a_sequential_run_has_its_trainings_and_its_answers(tmp_path):
    grid = Grid({"one": cases.one_by_one(2)}, {"asked": {"strategy": "random"}}, (0,))
    study = cases.study(grid)
    cases.store_sequential(study.trials("small")[0], tmp_path, [0.5, 0.6, 0.7])
    found = results(study, "small", tmp_path)
    assert found.trials["state"].tolist() == ["done"]
    assert found.curves["test_accuracy"].tolist() == [0.5]
    assert found.curves["queried"].tolist() == [2]
    assert found.answers["labelled"].tolist() == [11, 12]
    assert found.answers["test_accuracy"].tolist() == [0.6, 0.7]


def test_numbers_of_measurements_are_named_rows(tmp_path):
    study = cases.study(
        Grid({"theory": cases.THEORY}, {"network": {}}, (0,)),
        Grid({"audit": cases.AUDIT}, {"network": {}}, (0,)),
        Grid({"kinds": cases.KINDS}, {"network": {}}, (0,)),
    )
    theory, audit, kinds = study.trials("small")
    cases.measured(kinds, tmp_path, {"rows.csv": ROWS})
    tables = {"mmd.csv": MMD, "tau.csv": TAU, "ratio.csv": RATIO}
    cases.measured(theory, tmp_path, tables)
    others = "".join(f",{name}" for name in ("agreeing", "error", "cosine", "size", "point_error"))
    header, *rows = AUDIT.splitlines()
    table = "\n".join([header + others, *(row + ",,,1.0,," for row in rows)])
    cases.measured(audit, tmp_path, {"table.csv": table})
    found = results(study, "small", tmp_path).measures
    assert list(found) == list(MEASURES)
    assert np.isfinite(found["value"]).all()
    names = found[["quantity", "x", "state"]].itertuples(index=False, name=None)
    values = dict(zip(names, found["value"], strict=True))
    assert values["MMD, random", 5, "initial"] == pytest.approx(0.2)  # mean over what was redrawn
    assert values["MMD over bound, dynamical", 5, "initial"] == 0.2
    assert ("bound, random", 5, "trained") not in values
    assert values["tau, G_MSE", 5, "initial"] == 0.9
    assert values["ratio, random, 5", 10, ""] == 0.8
    assert values["training accuracy", 10, ""] == 1.0
    assert values["spearman, sum, network", 2, "trained"] == 0.6
    assert values["spearman, sum, linearised, sketch 4096", 2, "trained"] == 0.4
    assert ("ceiling, sum, network", 2, "trained") not in values
    assert values["frobenius error, sum", 8, "initial"] == 0.25
    assert values["network accuracy", 8, "trained"] == 0.9
    assert set(found["axis"]) == {"width", "query size", "epoch"}
    of_one = dataclasses.replace(study, shows=("tau", "ratio"))
    assert set(results(of_one, "small", tmp_path).measures["measure"]) == {"tau", "ratio"}


def test_a_measurement_without_its_columns_is_a_failed_trial(tmp_path):
    study = cases.study(Grid({"theory": cases.THEORY}, {"network": {}}, (0,)))
    cases.measured(study.trials("small")[0], tmp_path, {"mmd.csv": "network,queries\n1,2\n"})
    found = results(study, "small", tmp_path).trials
    assert found["state"].tolist() == ["failed"]
    assert "chosen" in found["message"][0]
