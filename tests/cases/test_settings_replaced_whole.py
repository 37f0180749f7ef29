"""Studies, benchmarks and measurements vary a data set's settings; none is lost on the way."""

import dataclasses

import pytest

from benchmarks import baselines
from experiments.dynamics.config import TheoryConfig
from experiments.studies import STUDIES
from experiments.studies.study import SIZES, vary
from pipelines import cli
from pipelines.audit.config import AuditConfig
from pipelines.config import RunConfig, defaults_of
from pipelines.core.errors import PipelineError
from pipelines.sequential.config import SequentialConfig
from trainer.config import TrainConfig
from trainer.data import DATASETS

# [D] augments nothing, and takes Adam and cross-entropy for every data set.
OF_D = {"loss": "cross_entropy", "optimiser": "adam", "augmentation": "none"}
# What studies vary on purpose: how long and how fast is trained, and arithmetic.
VARIED = {
    "min_steps",
    "epochs",
    "extensions",
    "learning_rate",
    "weight_decay",
    "precision",
    "optimiser",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_trains_as_its_data_set_does(name, size):
    for trial in STUDIES[name].trials(size):
        train = trial.config.train
        jpeg = trial.config.dataset == "images"  # of CIFAR-10, trained as that is
        own = defaults_of("cifar10" if jpeg else trial.config.dataset).train
        if train.loss == "cross_entropy":
            assert OF_D.items() <= dataclasses.asdict(train).items(), trial.task
            continue
        changed = {
            field.name
            for field in dataclasses.fields(TrainConfig)
            if getattr(train, field.name) != getattr(own, field.name)
        }
        assert changed <= VARIED, f"{trial.task}: {changed - VARIED}"


def test_a_section_cannot_be_replaced_whole():
    script = defaults_of("mnist")
    with pytest.raises(PipelineError, match=r"sets 'train' whole.*name the settings that change"):
        vary(script, {"train": TrainConfig(min_steps=600)})
    assert vary(script, {"train.min_steps": 600}).train == dataclasses.replace(
        script.train, min_steps=600
    )


@pytest.mark.parametrize("settings", [RunConfig, SequentialConfig, AuditConfig])
@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_a_training_of_ones_own_keeps_the_augmentation(dataset, settings):
    made = settings(dataset=dataset, train=TrainConfig(min_steps=600))
    assert made.train.min_steps == 600
    assert made.train.augmentation == defaults_of(dataset).train.augmentation != "auto"
    plain = settings(dataset=dataset, train=TrainConfig(augmentation="none"))
    assert plain.train.augmentation == "none"


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_a_benchmark_trains_as_its_data_set_does(dataset):
    settings = baselines.Settings(dataset=dataset)
    made, own = baselines.configuration(settings, "random", 0), defaults_of(dataset)
    assert made.train == dataclasses.replace(own.train, min_steps=settings.min_steps)
    assert made.dataset == dataset


@pytest.mark.parametrize(
    "words", [["--dataset", "mnist"], ["--dataset=mnist", "--train.min-steps", "7"]]
)
def test_an_audit_trains_as_the_data_sets_runs_do(words, monkeypatch):
    seen = []
    monkeypatch.setattr("sys.argv", ["audit", *words, "--dry-run"])
    monkeypatch.setattr(
        cli,
        "import_module",
        lambda name: type("stub", (), {"plan": lambda config, console: seen.append(config)}),
    )
    cli.measurement(AuditConfig, "pipelines.audit", "")
    steps = 7 if "7" in words else TrainConfig().min_steps
    assert seen[0].train == dataclasses.replace(defaults_of("mnist").train, min_steps=steps)


def test_the_theory_of_dynamical_has_its_papers_training_for_every_data_set():
    trained = TheoryConfig.of_dataset("mnist").train
    assert (trained.loss, trained.optimiser, trained.augmentation) == tuple(OF_D.values())
