import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from experiments.report import build
from experiments.report.__main__ import main
from experiments.report.build import print_report, print_summary, several_reports, study_report
from experiments.report.figures import seeds, settings
from experiments.report.measures import dots, measured, single
from experiments.report.results import paired
from experiments.statistics.claims import better, not_better
from experiments.studies.study import Grid, methods
from pipelines.audit.config import AuditConfig
from tests.experiments import study_cases as cases
from tests.pipelines.test_report import Strict

THREE = Grid({cases.TASK: cases.RUN}, methods(["random", "margin", "entropy"]), (0, 1, 2))
CLAIMS = (
    better("margin", "random", text="Margin is better than random."),
    not_better("entropy", "random", margin=1.0, text="Entropy is no better than random."),
)
LEVELS = {"random": 0.5, "margin": 0.7, "entropy": 0.5, "gp": 0.6}


@pytest.fixture
def no_figures(monkeypatch):
    """Reports of numbers alone: figures are most of the time that a report takes."""
    monkeypatch.setattr(build, "figures", lambda found, made: [])


def accuracies(trial):
    rng = np.random.default_rng(trial.seed)
    return [0.4, *(LEVELS[trial.method] + rng.uniform(0, 0.02, size=2)).tolist()]


def carried_out(study, root):
    for trial in study.trials("small"):
        cases.store(trial, root, accuracies(trial))
    return root


def numbers(out):
    """Of a report, all that does not depend on the moment it was made."""
    said = json.loads((out / "verdicts.json").read_text())
    del said["environment"]
    tables = {}
    for path in out.glob("*.csv"):
        table = pd.read_csv(path)
        times = [name for name in table if "seconds" in str(name)]
        tables[path.name] = table.drop(columns=[*times, "path", "host"], errors="ignore")
    return said, tables


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Reports of a whole study, of one that shares a few of its trials, and of two without any."""
    one = Grid({cases.TASK: cases.RUN}, methods(["random"]), (0,))
    elsewhere = Grid(
        {"elsewhere": dataclasses.replace(cases.RUN, initial=11)}, methods(["random"]), (0,)
    )
    studies = [
        cases.study(THREE, claims=CLAIMS),
        cases.study(one, claims=CLAIMS[1:], name="part"),
        cases.study(elsewhere, name="absent"),
        cases.study(elsewhere, name="gone"),
    ]
    root = carried_out(studies[0], tmp_path_factory.mktemp("runs"))
    out = tmp_path_factory.mktemp("out") / "deep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "DOTS", 40)  # pixels an inch; people look at 200
        return several_reports(studies, "small", root, out, places=False)


@pytest.fixture(scope="module")
def whole(several):
    return several.reports[0]


def test_a_report_has_verdicts_tables_figures_and_a_page_that_needs_nothing(whole):
    names = {path.name for path in whole.out.iterdir()}
    stems = ("differences", "ranks", *(f"digits-cnn-{x}" for x in ("accuracy", "difference")))
    stems += ("digits-cnn-time", "digits-cnn-cost")
    figures = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    tables = {f"{name}.csv" for name in ("trials", "rounds", "summary", "pairs", "saved", "costs")}
    assert names == {"report.html", "report.md", "verdicts.json"} | figures | tables
    text = whole.page.read_text()
    page = Strict()
    page.feed(text)
    assert not page.open
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == len(stems)
    for said in ("Is margin better than random?", "It says that it is.", "[L] Figure 2"):
        assert said in text
    assert whole.warnings == ()


def test_what_a_strategy_looks_ahead_with_stands_beside_the_network(
    tmp_path, no_figures, monkeypatch, capsys
):
    study = cases.study(Grid({"digits": cases.RUN}, methods(["random", "gp"]), (0, 1)))
    for trial in study.trials("small"):
        own = {"test_accuracy": 0.8 + 0.01 * trial.seed} if trial.method == "gp" else {}
        cases.store(trial, tmp_path / "runs", accuracies(trial), diagnostics=own)
    monkeypatch.setattr(cases, "GP", study, raising=False)
    out = tmp_path / "out"
    main(("tests.experiments.study_cases:GP",), out=out, runs=tmp_path / "runs")
    assert "0 figures" in capsys.readouterr().out
    assert "path" in pd.read_csv(out / "trials.csv").columns
    table = pd.read_csv(out / "models.csv")
    assert table["method"].tolist() == ["gp"] * 3
    assert table["own"].tolist() == pytest.approx([0.805] * 3)
    for page in ("report.md", "report.html"):
        text = (out / page).read_text()
        assert "its own model" in text
        assert "80.50" in text


def test_the_markdown_page_names_figures_that_are_there_and_its_tables_are_whole(whole):
    text = (whole.out / "report.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(shown) == len(set(shown)) == len(whole.figures)
    assert all((whole.out / name).is_file() for name in shown)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for said in ("✓ reproduced", "20.00", "python -m experiments.sweep", "Friedman's test"):
        assert said in text


def test_verdicts_stand_in_page_and_file_with_their_intervals(whole):
    first, second = whole.judgements
    assert (first.verdict, second.verdict) == ("reproduced", "reproduced")
    assert first.effect == pytest.approx(20, abs=1e-9)
    assert first.n == 3
    text = whole.page.read_text()
    assert "✓ reproduced" in text
    assert "20.00" in text
    said = json.loads((whole.out / "verdicts.json").read_text())
    assert said["verdicts"][0]["low"] == pytest.approx(first.low)
    assert said["trials"] == {"done": 9}
    assert said["settings"][cases.TASK]["network"] == "cnn"
    assert said["friedman"][0]["blocks"] == 3


def test_every_figure_says_n_seeds_and_settings(whole):
    for figure in json.loads((whole.out / "verdicts.json").read_text())["figures"]:
        assert "n = 3 (seeds 0–2)" in figure["caption"]
        assert "cnn, 10 initial labels, 5 a query, 50 candidates" in figure["caption"]
        with Image.open(whole.out / f"{figure['name']}.png") as image:
            assert image.width == 280
        assert ElementTree.parse(whole.out / f"{figure['name']}.svg").getroot().tag.endswith("svg")


def test_a_report_of_an_interrupted_and_resumed_sweep_is_that_of_one_that_was_not(
    whole, tmp_path, no_figures
):
    study, rng = cases.study(THREE, claims=CLAIMS), np.random.default_rng(1)
    root, whole_rounds = carried_out(study, tmp_path / "runs"), {}
    for trial in study.trials("small"):
        file = root / trial.folder / "rounds.jsonl"
        whole_rounds[file] = file.read_text().replace('"select": 0.5', '"select": 0.75')
        lines = whole_rounds[file].splitlines(keepends=True)
        file.write_text("".join(lines[: rng.integers(len(lines))]))
    failed = study.trials("small")[0]
    cases.note(failed, root / failed.folder, "failed", "no memory")
    partly = study_report(study, "small", root, tmp_path / "out")
    assert {one.verdict for one in partly.judgements} == {"not decided by this size"}
    assert any("failed" in warning for warning in partly.warnings)
    assert "no memory" in partly.page.read_text()
    for file, text in whole_rounds.items():
        file.write_text(text)
    cases.note(failed, root / failed.folder, "done")
    said, tables = numbers(study_report(study, "small", root, tmp_path / "out").out)
    expected, others = numbers(whole.out)
    assert said.pop("figures") == []
    del expected["figures"]
    assert said == expected
    assert set(tables) == set(others)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, others[name])


def test_a_part_of_a_study_is_reported_with_what_is_missing(tmp_path, capsys, no_figures):
    study = cases.study(THREE, claims=CLAIMS[:1])
    trials = study.trials("small")
    fit = {"steps": 3, "epochs": 3, "fitted": False, "stopped": "so", "residual_rms": 0.4}
    cases.store(trials[0], tmp_path / "runs", [0.1, 0.2, 0.3], fit=fit)
    made = study_report(study, "small", tmp_path / "runs", tmp_path / "out")
    missing = "8 of 9 trials are not begun: digits, CNN, seeds of margin (0–2), entropy (0–2)"
    assert any(warning.startswith(missing) for warning in made.warnings)
    assert "8 of 9 trials are not begun" in made.page.read_text()
    assert any("3 of 3 trainings did not reach their labels (random 3)" in w for w in made.warnings)
    print_report(made, Console(width=200))
    printed = capsys.readouterr().out
    assert "not decided by this size: Margin is better than random." in printed
    assert str(made.page) in printed


def test_sequential_runs_and_measurements_have_their_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "DOTS", 40)
    grids = (
        Grid({"one": cases.one_by_one(2)}, {"asked": {"strategy": "random"}}, (0, 1)),
        Grid({"theory": cases.THEORY}, {"network": {}}, (0, 1)),
    )
    study = cases.study(*grids)
    for trial in study.trials("small"):
        if trial.kind == "sequential":
            cases.store_sequential(trial, tmp_path / "runs", [0.5, 0.6, 0.7])
        else:
            tau = "network,queries,measure,tau\ninitial,5,G,0.9\ntrained,5,G,0.8\n"
            cases.measured(trial, tmp_path / "runs", {"tau.csv": tau})
    made = study_report(study, "small", tmp_path / "runs", tmp_path / "out")
    names = {path.name for path in made.figures}
    assert {"one-accuracy.png", "one-answers.png", "theory-tau.png"} <= names
    assert {"answers.csv", "measures.csv"} <= {path.name for path in made.out.iterdir()}
    assert "0.8" in made.page.read_text()


def test_a_method_is_compared_with_the_random_that_shares_its_settings():
    rows = [("s", "random"), ("s", "random, R = 4"), ("s", "margin, R = 4"), ("s", "margin, R = 2")]
    found = paired(pd.DataFrame(rows, columns=["task", "method"]))
    assert list(found.itertuples(index=False, name=None)) == [
        ("s", "random"),
        ("s, R = 4", "random"),
        ("s, R = 4", "margin"),
        ("s", "margin, R = 2"),
    ]


def test_captions_name_seeds_by_method_and_what_the_trials_share():
    table = pd.DataFrame(
        [("s", "a", 0), ("s", "a", 1), ("s", "b", 0), ("s", "b", 1), ("s", "c", 3)],
        columns=["task", "method", "seed"],
    )
    assert seeds(table) == "n = 2 (seeds 0–1) but c: n = 1 (seed 3)."
    varied = {"few": {"query": 5}, "many": {"query": 10}}
    told = settings(cases.study(Grid({"s": cases.RUN}, varied, (0,))).trials("small"))
    assert told.startswith("s: cnn, 10 initial labels, 50 candidates, 2 queries")


def test_an_audit_is_captioned_by_what_it_retrains():
    audit = AuditConfig(network_args=("widen=1",), train_steps=(300,))
    told = settings(cases.study(Grid({"s": audit}, {"audited": {}}, (0,))).trials("small"))
    assert told.startswith("s: wide_resnet widen 1, 50 initial labels, 200 reference points, 24 ")
    assert told.endswith("300 training steps.")
    assert "epochs" not in told


def test_what_is_measured_once_is_drawn_as_rows():
    rows = [
        ("audited", name, series, "training steps", 300.0, "trained", seed, value)
        for seed in (0, 1)
        for number, series in enumerate(["single, network", "sum, network", "no kernel, network"])
        for name, value in (("spearman", 0.2 * number + 0.1 * seed), ("ceiling", 0.9))
    ]
    columns = ["method", "measure", "series", "axis", "x", "state", "seed", "value"]
    table = measured(pd.DataFrame(rows, columns=columns))
    assert single(table)
    figure = dots(table, "What it is.")
    spearman, ceiling = figure.axes
    names = [text.get_text() for text in spearman.get_yticklabels()]
    assert names == ["single, network", "sum, network", "no kernel, network"]
    points = [line.get_xydata() for line in spearman.lines if line.get_marker() == "o"]
    drawn = {int(y): x for x, y in np.concatenate([np.asarray(one) for one in points])}
    assert drawn == pytest.approx({0: 0.05, 1: 0.25, 2: 0.45})
    assert np.ptp(ceiling.get_xlim()) >= 0.1  # equal values are not shown as if they differed
    later = pd.DataFrame(rows, columns=columns).assign(x=lambda t: 300.0 * (1 + t["seed"]))
    assert not single(measured(later))


def test_several_studies_have_a_report_each_and_one_table_of_verdicts(several, capsys):
    print_summary(several, Console())
    printed = capsys.readouterr().out
    assert "2 reproduced" in printed
    assert "1 not decided by this size" in printed
    assert "absent: no trial is on record" in printed
    assert several.absent == ("absent", "gone")
    page, rows = several.table.read_text(), pd.read_csv(several.table.with_suffix(".csv"))
    assert "3 claims of 2 studies" in page
    assert "Without trials on record: absent, gone." in page
    for report in several.reports:
        name = report.study.name
        assert f"[{name}]({name}/report.md)" in page
        assert all(claim.text in page for claim in report.study.claims)
        said = json.loads((report.out / "verdicts.json").read_text())
        own = rows[rows["study"] == name]
        assert own["verdict"].tolist() == [one["verdict"] for one in said["verdicts"]]
    assert not (several.table.parent / "absent").exists()


def test_a_report_for_others_names_no_folder_or_machine(several):
    text = {".csv", ".html", ".json", ".md"}
    files = [path for path in several.table.parent.rglob("*") if path.suffix in text]
    assert len(files) > 10
    for file in files:
        assert "digits-run-random-seed0" not in file.read_text(), file
    said = json.loads((several.reports[0].out / "verdicts.json").read_text())
    assert "command" not in said["environment"]


def test_what_cannot_be_reported_is_refused_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cases, "MINE", cases.study(), raising=False)
    mine, other = (f"tests.experiments.study_cases:{name}" for name in ("MINE", "OTHER"))
    monkeypatch.setattr(cases, "OTHER", cases.study(name="other"), raising=False)
    for what, size, message in (
        (mine, "small", "experiments.sweep tiny --size small"),
        (mine, "large", "large"),
        ("no_such_study", "small", "no_such_study"),
        ((mine, other), "small", "no trial of tiny, other"),
        ((mine, other, mine), "small", "tiny is named more than once"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(what if isinstance(what, tuple) else (what,), out=tmp_path / "out", size=size)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
