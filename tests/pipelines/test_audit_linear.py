"""A linear network trained to the end by full batches does exactly what its NTK predicts."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from kernel.covariance import Kernel
from kernel.criteria import mlmoc
from kernel.options import REFERENCES
from kernel.posterior import absorb, posterior
from pipelines.audit.config import AuditConfig
from pipelines.audit.retraining import predict_moves
from pipelines.audit.run import measure
from trainer.fit import TrainConfig

# one batch of everything, no decay, and steps enough for the smallest eigenvalue
FULL_BATCH = TrainConfig(
    learning_rate=0.1, weight_decay=0.0, smallest_batch=1000, epochs=1, min_steps=300, extensions=0
)


def linear(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), classes))


CONFIG = AuditConfig(
    network="tests.pipelines.test_audit_linear:linear",
    initial=12,
    subset=20,
    candidates=8,
    repeats=1,
    controls=2,
    kinds=("trace", "full"),
    precision="float64",
    train=FULL_BATCH,
)


def test_the_longer_it_is_trained_the_more_exact_is_the_prediction(tmp_path):
    config = dataclasses.replace(CONFIG, run=tmp_path, train_steps=(30, 300))
    rows = [row for row in measure(config).rows if row.kind != "no kernel"]
    assert len(rows) == 2 * 2 * 2
    for kind in CONFIG.kinds:
        for reference in REFERENCES:
            own = [row for row in rows if (row.kind, row.reference) == (kind, reference)]
            assert [row.steps for row in own] == [30, 300]
            errors = [row.error for row in own]
            assert errors == sorted(errors, reverse=True)
            assert errors[-1] < 1e-4
            assert own[-1].cosine > 1 - 1e-8
            assert own[-1].size == pytest.approx(1, abs=1e-4)
            assert own[-1].spearman.value > 0.99


def test_stopped_early_there_is_drift_and_the_prediction_holds_it(tmp_path):
    """First training stops at once: what retraining changes is then drift above all."""
    config = dataclasses.replace(CONFIG, run=tmp_path, kinds=("single",))
    first = measure(dataclasses.replace(config, train=dataclasses.replace(FULL_BATCH, min_steps=3)))
    (short,) = first.networks
    assert short.notes["residual_rms"] > 0.1
    weights = next(tmp_path.glob("trainings/*/weights.safetensors"))
    given = dataclasses.replace(config, trained=weights, run=tmp_path / "given")
    exact = {r.reference: r for r in measure(given).rows if r.kind == "single"}
    assert exact["network"].error < 1e-3
    assert exact["linearised"].error < 1e-3
    # trained on for 3 steps more the labels are not fitted, and the error says so
    early = {r.reference: r for r in first.rows if r.kind == "single"}
    assert early["network"].error > 0.1


@pytest.mark.parametrize("classes_coupled", [False, True])
def test_moves_are_what_absorbing_a_pseudo_label_adds(classes_coupled, rng):
    labelled, points, classes = 4, 6, 3
    rows = (labelled + points) * (classes if classes_coupled else 1)
    factor = rng.normal(size=(rows, 2 * rows))
    values = factor @ factor.T
    if classes_coupled:
        values = values.reshape(labelled + points, classes, labelled + points, classes)
    targets = np.eye(classes)[rng.integers(classes, size=labelled)]
    logits = rng.normal(size=(labelled + points, classes))
    arguments = (targets, logits[:labelled], logits[labelled:])
    given = posterior(Kernel(values, "float64"), *arguments, ridge=0.1)
    places = np.array([4, 0, 5])
    added = predict_moves(given, places)
    for number, place in enumerate(places):
        fresh = posterior(Kernel(values, "float64"), *arguments, ridge=0.1)
        label = np.eye(classes)[logits[labelled + place].argmax()]
        after = absorb(fresh, place, label).predictions
        np.testing.assert_allclose(added[number], after - given.predictions, atol=1e-10)
    for reference in REFERENCES:
        field = added + (given.drift if reference == "network" else 0)
        expected = mlmoc(given, reference)[places]
        np.testing.assert_allclose(np.linalg.norm(field, axis=2).sum(axis=1), expected)


def test_a_determined_candidate_moves_nothing(rng):
    rows = rng.normal(size=(5, 8))
    rows = np.concatenate([rows, rows[:1]])  # the last point is the first labelled image again
    kernel = Kernel(rows @ rows.T, "float64")
    logits = rng.normal(size=(6, 3))
    given = posterior(kernel, np.eye(3)[[0, 1]], logits[:2], logits[2:])
    assert not predict_moves(given, np.array([3])).any()
    assert predict_moves(given, np.array([0])).any()
