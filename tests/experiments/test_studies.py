"""The studies of the papers: they can be planned, and their claims are about what they have."""

import pytest

from experiments.report.results import results
from experiments.statistics.claims import UNDECIDED, judge
from experiments.studies import STUDIES, find
from experiments.studies.study import SIZES, kind_of
from experiments.sweep.plan import SweepConfig, job_of, locate
from tests.experiments.sweep_cases import STUDY

# of a trial that takes hours; and of an audit, whose claims are about eight networks
SEEDS = {"cifar10_rounds": 3, "audit": 1}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_claims_are_about_tasks_and_methods_that_are_there(name, size, tmp_path):
    study = STUDIES[name]
    claims = study.claims_of(size)
    assert claims
    judged = judge(claims, results(study, size, tmp_path))
    assert {one.verdict for one in judged} == {UNDECIDED}
    for one in judged:
        assert "has no trials of" not in one.sentence, one.sentence
        assert "trials are not done" in one.sentence


@pytest.mark.parametrize("name", STUDIES)
def test_both_sizes_ask_the_same_question(name):
    study = STUDIES[name]
    small, paper = (study.trials(size) for size in SIZES)
    assert {kind_of(trial.config) for trial in small} == {kind_of(trial.config) for trial in paper}
    assert {trial.method for trial in paper} <= {trial.method for trial in small}
    assert len({trial.seed for trial in small}) >= SEEDS.get(name, 5)


def test_studies_of_one_measurement_share_its_trials():
    shared = [STUDIES[name].trials("small") for name in ("bound", "correlation", "ratio")]
    assert shared[0] == shared[1] == shared[2]
    alike = {trial.key for trial in STUDIES["strategies"].trials("small")}
    both = alike & {trial.key for trial in STUDIES["criteria"].trials("small")}
    assert len(both) == 30  # random, mlmoc and flip of two data sets, five seeds


def test_small_studies_of_cifar10_read_it_as_jpeg(tmp_path):
    found = [
        trial
        for study in STUDIES.values()
        for trial in study.trials("small")
        if trial.task.startswith("CIFAR-10")
    ]
    assert {kind_of(trial.config) for trial in found} == {"run", "audit", "dynamics"}
    asked = SweepConfig("cifar10_strategies", data_dir=tmp_path, runs=tmp_path / "runs")
    for trial in found:
        (row,) = locate([trial], asked.runs)
        settings = job_of(row, asked).config
        assert settings.dataset == "images"
        assert settings.data_folder == tmp_path / "cifar10-jpeg"
        assert trial.config.image_size == 16
    large = find("cifar10_strategies").trials("paper")
    assert {trial.config.dataset for trial in large} == {"cifar10"}


def test_every_study_is_found_by_its_name():
    for name, study in STUDIES.items():
        assert find(name) is study
        assert study.name == name
    assert find("tests.experiments.sweep_cases:STUDY") is STUDY


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing-like-it", "unknown study 'nothing-like-it'"),
        (":STUDY", "not of the form module:STUDY"),
        ("tests.nowhere:STUDY", r"cannot import 'tests.nowhere' \(ModuleNotFoundError"),
        ("tests.experiments.sweep_cases:STUDIO", "has no attribute 'STUDIO'"),
        ("tests.experiments.sweep_cases:SMALL", "is a RunConfig, and must be a Study"),
    ],
)
def test_studies_that_are_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        find(name)
