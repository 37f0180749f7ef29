"""A study's records in one file: what is in it, and that it stands for the records themselves."""

import io
import json
import zipfile

import pytest

from experiments.report import build
from experiments.report.build import archive, study_report
from experiments.studies.study import Grid
from experiments.sweep.records import find_records, state
from pipelines.core import record
from tests.experiments import study_cases as cases
from tests.experiments.test_study_report import numbers

STUDY = cases.study(cases.RUNS, Grid({"theory": cases.THEORY}, {"measured": {}}, (0,)))
HERE = "/home/somebody"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Runs of which one is begun and one has failed, and a measurement."""
    monkeypatch.setattr(build, "figures", lambda found, made: [])
    root = tmp_path / "runs"
    for trial in STUDY.trials("small"):
        if trial.kind == "run":
            folder = cases.store(
                trial, root, [0.4, 0.5, 0.5 + trial.seed / 10][: 3 - trial.seed // 2]
            )
            (folder / "weights-001.safetensors").write_bytes(bytes(100))
            (folder / ".lock").touch()
            starts = [{**cases.ENVIRONMENT, "command": [HERE], "platform": HERE}]
            (folder / record.ENVIRONMENT).write_text(json.dumps(starts))
        else:
            table = "step,measure,series,axis,value,state,x\n"
            cases.measured(trial, root, {"measures.csv": table})
    failed = next(t for t in STUDY.trials("small") if (t.method, t.seed) == ("margin", 2))
    cases.note(failed, root / failed.folder, "failed", "no memory")
    return root


def unpacked(content, folder):
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        packed.extractall(folder)
    return folder


def test_what_is_done_and_begun_is_there_and_weights_only_where_they_are_gone_on_from(root):
    trials = STUDY.trials("small")
    content = archive(STUDY, "small", root)
    other = unpacked(content, root.parent / "there" / "runs")
    for trial in trials:
        here, there = (find_records(place, [trial]).get(trial.key) for place in (root, other))
        standing = state(trial, here)
        assert state(trial, there) == ("absent" if standing == "failed" else standing)
        if there is not None:
            weights = [path.name for path in there.glob("*.safetensors")]
            assert weights == ([] if standing == "done" else ["weights-001.safetensors"])
            assert not (there / ".lock").exists()
    kinds = {state(trial, find_records(root, [trial]).get(trial.key)) for trial in trials}
    assert kinds == {"done", "begun", "failed"}
    assert archive(STUDY, "small", root) == content


def test_the_same_report_is_made_of_an_archive(root, tmp_path):
    study = cases.study(Grid({cases.TASK: cases.RUN}, {"random": {"strategy": "random"}}, (0, 1)))
    made = study_report(study, "small", root, tmp_path / "one", records=True)
    other = unpacked((made.out / "records.zip").read_bytes(), tmp_path / "there" / "runs")
    again = study_report(study, "small", other, tmp_path / "two")
    (said, tables), (said_again, tables_again) = numbers(made.out), numbers(again.out)
    assert said == said_again
    assert tables.keys() == tables_again.keys()
    for name in tables:
        assert tables[name].equals(tables_again[name]), name
    assert not (again.out / "records.zip").exists()


def test_an_archive_for_others_says_nothing_of_places(root):
    with zipfile.ZipFile(io.BytesIO(archive(STUDY, "small", root, places=False))) as packed:
        texts = {
            name: packed.read(name).decode() for name in packed.namelist() if "weights" not in name
        }
    assert any(name.endswith(record.ENVIRONMENT) for name in texts)
    assert HERE not in "".join(texts.values())
    with zipfile.ZipFile(io.BytesIO(archive(STUDY, "small", root))) as packed:
        assert any(HERE.encode() in packed.read(name) for name in packed.namelist())
