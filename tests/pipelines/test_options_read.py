"""Options that a strategy reads change its result; others are refused, in a run noted."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from bridge.trace import mirror
from pipelines.config import RunConfig
from pipelines.core.errors import PipelineError
from pipelines.query import compare, query
from pipelines.sequential import start
from pipelines.sequential.config import SequentialConfig, SequentialOptions
from pipelines.strategies import READERS, SECTIONS, STRATEGIES, needs_mirror
from pipelines.strategies.base import Query
from pipelines.strategies.options import QueryOptions
from trainer.config import TrainConfig
from trainer.fit import fit
from trainer.networks import build
from trainer.networks.loss_prediction import LossPrediction

SHAPE, IMAGES, CLASSES = (1, 6, 6), 24, 3
LABELLED = {10: 0, 3: 1, 7: 2, 0: 0, 20: 1, 15: 2}
# another value of each option; with what it is read where that is not the default
OTHER: dict[str, Any] = {
    "kernel.kind": "trace",
    "kernel.probes": 2,
    "kernel.precision": "float64",
    "kernel.sketch": 32,
    "kernel.sample": 5,
    "kernel.reference": "linearised",
    "kernel.ridge": 0.5,
    "lookahead.batch": "conditioned",
    "lookahead.interval": 2,
    "lookahead.labels": "one_hot",
    "lookahead.beta": 2.0,
    "lookahead.uncertainty": "entropy",
    "lookahead.temperature": 5.0,
    "lookahead.radius": 0.3,
    "lookahead.clusters": 4,
    "baseline.epochs": 2,
    "baseline.learning_rate": 0.03,
    "baseline.step": 0.2,
    "baseline.candidates": 4,
    "baseline.image_size": 2,
    "baseline.test": 7,
    "dynamics.gamma": 0.0,
    "dynamics.batch": "dissimilar",
    "dynamics.sketch": 8,
    "dynamics.precision": "float64",
    "bald.samples": 3,
    "ll4al.taps": ("features",),
    "ll4al.width": 4,
    "ll4al.margin": 0.5,
    "ll4al.weight": 0.5,
    "ll4al.detach": 0.5,
    "ll4al.learning_rate": 0.02,
    "ll4al.grad_scale": 0.5,
    "albl.arms": ("margin", "random"),
    "albl.delta": 0.5,
    "albl.budget": 30,
}
WITH: dict[str, dict[str, Any]] = {
    "kernel.probes": {"kernel.kind": "rademacher"},
    "lookahead.interval": {"lookahead.batch": "hybrid"},
    "lookahead.beta": {"lookahead.labels": "softmax", "lookahead.temperature": None},
    "dynamics.sketch": {"dynamics.batch": "dissimilar"},
}


def test_every_option_has_another_value():
    names = {
        f"{section}.{option.name}"
        for section in SECTIONS
        for option in dataclasses.fields(getattr(QueryOptions(), section))
        if option.metadata.get("identity", True)
    }
    assert set(OTHER) == names


def options(values: dict[str, Any], like: Any = None) -> Any:
    like = like or QueryOptions()
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, option = name.partition(".")
        sections.setdefault(section, {})[option] = value
    return dataclasses.replace(
        like,
        **{name: dataclasses.replace(getattr(like, name), **own) for name, own in sections.items()},
    )


@functools.cache
def subject():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(IMAGES, *SHAPE)).astype(np.float32)
    network = build("cnn", SHAPE, CLASSES, rng, {"dropout": 0.3})
    module = LossPrediction.of(network, images[:2], rng)
    train = TrainConfig(epochs=2, min_steps=4, extensions=0, learning_rate=0.05)
    labels = np.fromiter(LABELLED.values(), np.int64)
    fit(network, images[list(LABELLED)], labels, train, rng, auxiliary_module=module)
    return network, images, module, mirror(network, images[:2])


def ask(name: str, values: dict[str, Any]) -> Query:
    network, images, module, twin = subject()
    extra: dict[str, Any] = {"mirror": twin} if needs_mirror(STRATEGIES[name].needs) else {}
    return query(
        network,
        images,
        LABELLED,
        4,
        name,
        options(values),
        auxiliary_module=module,
        oracle=lambda indices: indices % CLASSES,
        **extra,
    )


def readers(option: str) -> frozenset[str]:
    return READERS.get(option, READERS[option.partition(".")[0]])


CHEAP = {"naive": {"baseline.epochs": 1}, "gp": {"baseline.image_size": 3}}
CHEAP["infinite_ntk"] = CHEAP["gp"]
# they change a training, a run's own test, or what is learned from one round to the next
LATER = {"baseline.test", "albl.delta", "albl.budget"}
# of look-ahead: kernel and batches are the same functions for all of them
FEW = {"mlmoc", "max_herding", "ntkcpl"}
READ = [
    (option, name)
    for option in OTHER
    for name in sorted(readers(option))
    if option not in LATER and not option.startswith("ll4al.")
    if name in FEW or STRATEGIES[name].module != "lookahead" or len(readers(option)) < 7
]
# read, and without an effect on scores: counts of images, and a coverage that no label changes
SAME = {
    ("kernel.precision", "ntkcpl"),
    ("lookahead.interval", "max_herding"),
}


@functools.cache
def asked(name: str, values: tuple[tuple[str, Any], ...]) -> Query:
    return ask(name, dict(values))


@pytest.mark.parametrize(("option", "name"), READ)
def test_an_option_that_is_read_changes_the_scores(option, name):
    values, other = dict(CHEAP.get(name, {})), OTHER[option]
    values |= {key: value for key, value in WITH.get(option, {}).items() if name in readers(key)}
    if (option, name) == ("lookahead.labels", "uherding"):
        values, other = {"lookahead.temperature": None}, "softmax"
    if (option, name) == ("lookahead.batch", "max_herding"):
        other = "top"  # its default is conditioned
    one, changed = asked(name, tuple(values.items())), ask(name, values | {option: other})
    same = one.candidates.tolist() == changed.candidates.tolist() and np.array_equal(
        one.candidate_scores, changed.candidate_scores
    )
    assert same == ((option, name) in SAME)


@pytest.mark.parametrize("name", STRATEGIES)
def test_options_that_are_not_read_are_refused(name):
    network, images, *_ = subject()
    for option in OTHER:
        if name in readers(option):
            continue
        values = {option: OTHER[option]} | WITH.get(option, {})
        with pytest.raises(PipelineError, match=rf"{name} would ignore"):
            query(network, images, LABELLED, 4, name, options(values))
        noted = options(values, RunConfig("digits", strategy="random")).ignored([name])
        assert any(sentence.startswith(f"{option} is ") for sentence in noted), option


@pytest.mark.parametrize(("option", "name"), [("ll4al.width", "ll4al"), ("baseline.test", "gp")])
def test_options_of_runs_are_refused_outside_of_them(option, name):
    network, images, *_ = subject()
    values = {option: OTHER[option]}
    with pytest.raises(PipelineError, match=f"{option} is .*, which only a run"):
        query(network, images, LABELLED, 4, name, options(values))
    assert not list(options(values, RunConfig("digits")).ignored([name]))


@pytest.mark.parametrize("option", WITH)
def test_an_option_without_the_one_that_it_goes_with_is_refused(option):
    name = "emoc" if option == "lookahead.beta" else min(readers(option))
    network, images, *_ = subject()
    where = next(iter(WITH[option]))
    with pytest.raises(PipelineError, match=rf"would ignore unless {where} is"):
        query(network, images, LABELLED, 4, name, options({option: OTHER[option]}))


def test_of_several_strategies_one_has_to_read_it():
    network, images, *_ = subject()
    given = options({"baseline.step": 0.2})
    found = compare(network, images, LABELLED, 2, ["margin", "one_step"], given)
    assert found["one_step"].diagnostics["step"] == 0.2
    with pytest.raises(PipelineError, match="margin, entropy would ignore"):
        compare(network, images, LABELLED, 2, ["margin", "entropy"], given)


def test_options_of_an_arm_are_those_of_albl():
    given = options({"albl.arms": ("margin", "emoc"), "lookahead.labels": "one_hot"})
    given.check_read(["albl"])
    with pytest.raises(PipelineError, match="lookahead.labels is one_hot, which albl would"):
        options({"lookahead.labels": "one_hot"}).check_read(["albl"])


def test_memory_devices_and_chunks_change_no_result():
    values = {"kernel.memory_gib": 1.0, "kernel.chunk": 3, "baseline.hours": 2.0}
    options(values).check_read(["margin"])


def test_one_label_at_a_time():
    """The linearised network reads the kernel, whatever the strategy."""
    network, images, *_ = subject()
    session = start(
        network, images, LABELLED, "margin", options({"kernel.ridge": 0.1}, SequentialOptions())
    )
    assert session.state.diagnostics["ridge"] == 0.1
    for values in ({"lookahead.radius": 1.0}, {"bald.samples": 3}, {"lookahead.clusters": 3}):
        with pytest.raises(PipelineError, match="margin would ignore"):
            start(network, images, LABELLED, "margin", options(values, SequentialOptions()))
        with pytest.raises(PipelineError, match="margin would ignore"):
            options(values, SequentialConfig(strategy="margin"))
