"""A small sequential run and a random state of a session that the tests share."""

import dataclasses
from pathlib import Path

import numpy as np

from bridge.weights import Weights
from kernel.options import Options
from pipelines.sequential.config import SequentialConfig, defaults
from pipelines.sequential.learner import Linearisation, SequentialState
from tests.kernel_cases import all_forms, full_kernel, one_hot, random_features
from trainer.fit import TrainConfig

QUICK = TrainConfig(epochs=5, min_steps=40, extensions=0)


def config(folder: Path, **changes) -> SequentialConfig:
    """Digits, a network of eight hidden units, two trainings and one in the end."""
    small = dataclasses.replace(
        defaults("digits"),
        run=folder,
        initial=20,
        budget=12,
        subset=40,
        test_subset=30,
        retrain_every=7,
        final_training=True,
        network="tests.own_network:make",
        network_args=("hidden=8",),
        train=QUICK,
    )
    return dataclasses.replace(small, **changes)


def comparable(lines) -> list[dict]:
    """Lines of a record without what depends on the hour."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "peak_memory_mib")} for line in lines
    ]


LABELLED, CANDIDATES, TESTS, CLASSES = 6, 40, 9, 3


def linearisation(form: str, rng, ridge=0.0, candidates=CANDIDATES) -> Linearisation:
    """A random problem; of a kernel between anchors there is nothing between test images."""
    count = LABELLED + candidates + TESTS
    sample = np.arange(candidates)
    if form == "full":
        kernel, keep = full_kernel(count, CLASSES, rng), True
    else:
        features = random_features(count, 2 * count, rng)
        kernel, keep = all_forms(features, LABELLED, sample)[form]
    return Linearisation(
        kernel=kernel,
        targets=one_hot(rng.integers(CLASSES, size=LABELLED), CLASSES),
        labelled_logits=rng.normal(size=(LABELLED, CLASSES)),
        logits=rng.normal(size=(candidates + TESTS, CLASSES)),
        sample=sample,
        candidates=candidates,
        keep=keep,
        ridge=ridge,
    )


def state(
    strategy="mlmoc", form="cross", seed=0, loss="l2", tests=TESTS, **changes
) -> SequentialState:
    rng = np.random.default_rng(5)
    start = changes.pop("start", None) or linearisation(form, rng)
    indices = 100 + np.arange(start.candidates) * 3
    return SequentialState(
        linearisation=start,
        candidates=indices,
        labelled={index: int(row.argmax()) for index, row in enumerate(start.targets)},
        test_labels=rng.integers(CLASSES, size=tests),
        classes=CLASSES,
        norm=2.0,
        strategy=strategy,
        options=Options(reference="linearised"),
        loss="l2",
        seed=seed,
        round_number=0,
        diagnostics={"kind": "single"},
        weights=Weights({"w": np.ones(3, np.float32)}, {}, {}),
    )
