import dataclasses
import errno
import io
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from bridge.parity import DETAILS, Certificate
from pipelines.config import RunConfig, identity
from pipelines.core.errors import PipelineError
from pipelines.core.record import find_runs
from pipelines.report import build, figures
from pipelines.report.__main__ import main
from pipelines.report.build import print_report, report
from pipelines.report.curves import QUERY_STAGES, TRAINING_STAGES
from pipelines.report.drawing import style_of
from pipelines.report.page import duration, seed_ranges, timings
from pipelines.strategies import STRATEGIES
from tests.report_cases import line, run, store

VOID = {"meta", "img"}


class Strict(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def stored(root):
    rng = np.random.default_rng(0)
    for strategy in ("random", "margin"):
        for seed in (0, 1):
            accuracies = sorted(rng.uniform(0.5, 0.9, size=3).tolist())
            store(run(strategy, seed, accuracies), root)
    return root


@pytest.fixture
def runs(tmp_path):
    return stored(tmp_path / "runs")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return report([stored(folder / "runs")], folder / "deep" / "out")


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DOTS", 40)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(build, "figures", lambda group, rounds: [])


def test_a_report_has_figures_tables_and_a_page_that_needs_nothing(made):
    assert {path.name for path in made.out.iterdir()} == {
        *(f"digits-cnn-{name}.png" for name in ("accuracy", "difference", "time", "training")),
        *("rounds.csv", "table.csv", "report.html"),
    }
    for path in made.figures:
        with Image.open(path) as image:
            assert image.size[0] == 1400
    rounds = pd.read_csv(made.rounds)
    assert len(rounds) == 12
    assert set(rounds["strategy"]) == {"random", "margin"}
    assert pd.read_csv(made.table)["n"].tolist() == [2, 2]
    text = made.page.read_text("utf-8")
    parser = Strict()
    parser.feed(text)
    assert not parser.open
    assert parser.tags.count("img") == 4
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "http" not in text
    assert "torch 2.13.0" in text
    assert made.page.stat().st_mode & stat.S_IRUSR


def test_figures_of_the_same_records_are_the_same_bytes(made, runs, tmp_path):
    again = report([runs], tmp_path / "out")
    assert [path.read_bytes() for path in made.figures] == [
        path.read_bytes() for path in again.figures
    ]


def test_what_a_person_typed_is_escaped(tmp_path, coarse):
    evil = "<script>alert('$x$')</script>"
    made = run(evil, 0, [0.1, 0.2], path="a&b[red]", dataset="../<b>$^$", my_setting="<i>")
    store(made, tmp_path / "runs")
    out = report([tmp_path / "runs"], tmp_path / "out")
    text = out.page.read_text("utf-8")
    parser = Strict()
    parser.feed(text)
    assert not {"script", "b", "i"} & set(parser.tags)
    assert "a&amp;b[red]" in text
    assert all(re.fullmatch(r"b-cnn-\w+\.png", path.name) for path in out.figures)
    printed = io.StringIO()
    print_report(out, Console(file=printed, width=120))
    assert evil[:8] in printed.getvalue()


def test_every_number_of_strategies_and_seeds_can_be_drawn(tmp_path, coarse):
    for count, seeds in ((1, 1), (11, 2)):
        root = tmp_path / f"{count}"
        names = ["random", *(f"strategy_with_a_name_longer_than_usual_{i}" for i in range(count))]
        for number, name in enumerate(names):
            for seed in range(seeds):
                store(run(name, seed, [0.5, 0.6 + 0.01 * number]), root)
        assert len(report([root], tmp_path / "out").figures) == 4


def test_no_two_strategies_look_alike():
    seen = [style_of(name)[:2] for name in STRATEGIES]
    assert len(set(seen)) == len(seen)
    assert style_of("of another version") == style_of("of another version")


def test_the_table_of_times_leaves_out_short_stages_rather_than_fold(tmp_path, no_figures):
    stages = {f"stage_{number}": 1.0 + number for number in range(9)}
    lines = {0: {"seconds": {"fit": 9.0, **stages}}}
    store(run("a_strategy_by_name", 0, [0.5, 0.6], lines=lines), tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    wide, narrow = io.StringIO(), io.StringIO()
    print_report(made, Console(file=wide, width=200))
    print_report(made, Console(file=narrow, width=70))
    assert "stage_0" in wide.getvalue()
    assert "stage_0" not in narrow.getvalue()
    assert "stage_8" in narrow.getvalue()
    assert narrow.getvalue().count("a_strategy_by_name") == wide.getvalue().count(
        "a_strategy_by_name"
    )


def test_a_single_round_of_a_single_run_is_reported(tmp_path, coarse):
    store(run("margin", 0, [0.5], cycles=4), tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    assert [path.stem for path in made.figures] == ["digits-cnn-" + n for n in NO_RANDOM]
    text = made.page.read_text("utf-8")
    assert "margin seed 0 has 1 of 5 rounds" in text
    assert "no difference from it is shown" in text


NO_RANDOM = ("accuracy", "time", "training")


def test_a_run_that_only_evaluated_has_no_query_time(tmp_path, coarse):
    store(run("margin", 0, [0.5]), tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    assert [path.stem for path in made.figures] == ["digits-cnn-accuracy", "digits-cnn-training"]


def test_groups_have_files_of_their_own(runs, tmp_path, coarse):
    store(run("margin", 0, [0.1, 0.2], path="other", subset=7), runs)
    made = report([runs], tmp_path / "out")
    assert len({path.name for path in made.figures}) == len(made.figures) == 7
    assert [section.title for section in made.sections] == [
        "digits · cnn · subset = 50",
        "digits · cnn · subset = 7",
    ]


def test_empty_runs_beside_others_are_left_out_and_said(runs, tmp_path, no_figures):
    store(run("margin", 7, [], cycles=2), runs)
    made = report([runs], tmp_path / "out")
    assert "No completed round yet, left out" in made.warnings[0]
    assert "margin-7" in made.page.read_text("utf-8")
    assert made.sections[0].summary["n"].tolist() == [2, 2]


def test_runs_are_found_at_any_depth_and_once(runs):
    assert len(find_runs([runs.parent, runs, runs / "margin-0"])) == 4
    assert find_runs([runs / "margin-0"]) == [runs / "margin-0"]


def test_an_earlier_report_among_the_runs_is_passed_over(runs, no_figures):
    report([runs], runs / "report")
    assert len(find_runs(sorted(runs.iterdir()))) == 4


def test_missing_memory_and_unknown_stages_are_no_obstacle(tmp_path, no_figures):
    changes = {"peak_memory_mib": {}, "seconds": {"fit": 1.0, "thinking": 2.0}}
    store(run("margin", 0, [0.5, 0.6], lines={0: changes, 1: changes}), tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    assert "thinking" in made.page.read_text("utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "rounds.jsonl").write_text("{}\nx\n"), "line 2 is not valid"),
        (lambda folder: (folder / "rounds.jsonl").write_text(""), "no completed round yet in .*-0"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"format": 99})),
            "format 99, and this version reads and resumes format 3 only",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no run found in .*margin-0"),
    ],
)
def test_broken_runs_are_named(tmp_path, damage, message):
    folder = store(run("margin", 0, [0.5]), tmp_path)
    damage(folder)
    with pytest.raises(PipelineError, match=message):
        report([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paths_that_are_no_runs_are_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for paths, message in (
        ([], "no run given"),
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([file], "is a file, not a run directory"),
        ([tmp_path], "no run found in .*: neither it nor a folder below it has a config.json"),
    ):
        with pytest.raises(PipelineError, match=message):
            report(paths, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path, no_figures):
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot be written into .*file.*--out"):
        report([runs], tmp_path / "file" / "out")


def test_a_report_that_fails_halfway_leaves_the_earlier_one(
    runs, tmp_path, no_figures, monkeypatch
):
    out = tmp_path / "out"
    report([runs], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    real, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PipelineError, match="No space left"):
        report([runs / "margin-0"], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_report_follows_no_planted_link(runs, tmp_path, no_figures):
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.write_text("precious")
    out.mkdir()
    for name in ("table.csv", ".table.csv.new", "report.html"):
        (out / name).symlink_to(theirs)
    report([runs], out)
    assert theirs.read_text() == "precious"
    assert (out / "table.csv").read_text().startswith("strategy")


def test_the_terminal_leaves_out_stages_that_take_no_time(tmp_path, no_figures):
    seconds = {"fit": 1.0, "predict": 0.001, "kernel": 50.0, "select": 0.0}
    lines = {0: {"seconds": seconds, "diagnostics": {"kind": "any"}}}
    store(run("mlmoc", 0, [0.5, 0.6], lines=lines), tmp_path / "runs")
    made = report([tmp_path / "runs"], tmp_path / "out")
    all_stages, _ = timings(made.sections[0].summary)
    shown, rows = timings(made.sections[0].summary, 0.01)
    assert all_stages == ["strategy", "fit", "query", "predict", "kernel", "select", "memory"]
    assert shown == ["strategy", "fit", "query", "kernel", "memory"]
    assert rows == [["mlmoc", "5 s", "50 s", "50 s", "2.0 GiB"]]


def test_the_command_prints_the_table_and_where_the_page_is(runs, tmp_path, capsys, no_figures):
    main((runs,), out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "digits · cnn" in printed
    assert "margin" in printed
    assert "report.html" in printed


def test_the_command_ends_in_one_line_on_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main((tmp_path / "nowhere",), out=tmp_path / "out")
    assert re.fullmatch("error: .*nowhere does not exist.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.00123, "1.2 ms"),
        (0.0421, "42 ms"),
        (0.25, "0.25 s"),
        (2.345, "2.3 s"),
        (54.4, "54 s"),
        (90 * 60, "90.0 min"),
        (2 * 3600, "2.0 h"),
        (float("nan"), "—"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_seeds_are_told_as_ranges():
    assert seed_ranges("0 1 2 5") == "0–2, 5"
    assert seed_ranges("3") == "3"


def test_every_field_of_a_record_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "records.md").read_text("utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    config = {"format", "data", *identity(RunConfig("digits"))}
    assert config <= named, config - named
    example = line(0, 0.5, last=False)
    fields = {"initial", *example, *example["fit"]}
    assert fields <= named, fields - named
    certificate = {field.name for field in dataclasses.fields(Certificate)}
    certificate = {name for name in certificate if not name.startswith("tolerance_")} - {*DETAILS}
    assert certificate <= named, certificate - named
    assert {*TRAINING_STAGES, *QUERY_STAGES} <= named


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "records.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    store(run("random", 0, [0.5, 0.6], path="runs/digits-random-seed0"), tmp_path)
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(code, values)
    assert values["complete"]
    assert values["accuracies"] == {10: 0.5, 15: 0.6}
    assert values["bought"] == [1, 2, 3, 4, 5]
