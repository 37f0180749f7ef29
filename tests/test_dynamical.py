"""dynamicAL: Δ against the training dynamics of augmented sets, and the strategy end to end."""

import dataclasses
import io
import json
import math
import re
from typing import Any

import jax
import numpy as np
import pytest
import torch
import tyro
from rich.console import Console
from scipy.special import softmax
from torch import nn

from bridge.trace import mirror
from kernel.dynamics.cost import peak_bytes
from kernel.dynamics.criterion import Measured, cotangents, joined, measure
from kernel.dynamics.dissimilar import dissimilar
from kernel.dynamics.gradients import squared_length, total
from kernel.errors import KernelError
from pipelines import digits, dry_run, run
from pipelines.config import ADDED, RunConfig
from pipelines.errors import PipelineError
from pipelines.query import query
from pipelines.strategies import STRATEGIES, dynamical
from pipelines.strategies.dynamics_config import DynamicsConfig
from tests.kernel_cases import mlp
from trainer.errors import UnknownNameError
from trainer.train_config import TrainConfig

L, U, C, FEATURES = 6, 9, 3, 5


@pytest.fixture
def problem(rng):
    """A network, labelled images and labels, candidates."""
    own = mlp(FEATURES, 7, C, rng)
    x = rng.normal(size=(L + U, FEATURES))
    return own, x[:L], rng.integers(C, size=L), x[L:]


def logits(model, x):
    return np.asarray(model.function(model.params, model.frozen, x))


def summed_loss(params, model, x, labels, loss):
    f = model.function(params, model.frozen, x)
    y = np.eye(C)[labels]
    if loss == "cross_entropy":
        return -(y * jax.nn.log_softmax(f)).sum()
    return ((f - y) ** 2).sum() / 2


def literal(model, x, labels, loss):
    """G(S) of [D], Eq. 8: the squared gradient of the summed loss, by jax alone."""
    gradient = jax.grad(summed_loss)(model.params, model, x, labels, loss)
    return sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient))


def measured(problem, loss):
    model, x, labels, candidates = problem
    direction = total(model, x, cotangents(logits(model, x), labels, loss))
    return measure(model, candidates, logits(model, candidates), direction, loss), direction


# the criterion


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_the_dynamics_are_the_rate_at_which_the_loss_falls(problem, loss):
    """Along the gradient flow dθ/dt = −∇ℓ, by a finite difference."""
    model, x, labels, _ = problem
    direction = total(model, x, cotangents(logits(model, x), labels, loss))
    dynamics, step = squared_length(direction), 1e-5

    def after(time):
        moved = jax.tree.map(lambda p, g: p - time * g, model.params, direction)
        return float(summed_loss(moved, model, x, labels, loss))

    rate = (after(-step) - after(step)) / (2 * step)
    assert rate == pytest.approx(dynamics, rel=1e-7)
    assert dynamics == pytest.approx(literal(model, x, labels, loss), rel=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_delta_is_what_a_candidate_adds_to_the_dynamics(problem, loss):
    model, x, labels, candidates = problem
    found, _ = measured(problem, loss)
    pseudo = logits(model, candidates).argmax(axis=1)
    before = literal(model, x, labels, loss)
    expected = [
        literal(model, np.vstack([x, u[None]]), np.append(labels, y), loss) - before
        for u, y in zip(candidates, pseudo, strict=True)
    ]
    np.testing.assert_allclose(found.delta(), expected, rtol=1e-10, atol=1e-10 * before)
    np.testing.assert_array_equal(found.pseudo, pseudo)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_every_gamma_and_every_label_from_one_jvp(problem, loss):
    model, x, labels, candidates = problem
    found, _ = measured(problem, loss)

    def gradient(x, labels):
        tree = jax.grad(summed_loss)(model.params, model, x, labels, loss)
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])

    own = gradient(x, labels)
    for c in range(C):
        inner = [gradient(u[None], np.array([c])) @ own for u in candidates]
        np.testing.assert_allclose(found.products[:, c], inner, atol=1e-10 * np.abs(inner).max())
    each = [gradient(u[None], y[None]) for u, y in zip(candidates, found.pseudo, strict=True)]
    norms = np.array([g @ g for g in each])
    inner = np.array([g @ own for g in each])
    for gamma in (0, 1, 2, 0.3):
        np.testing.assert_allclose(found.delta(gamma), norms + gamma * inner, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.delta(math.inf), inner, rtol=1e-9, atol=1e-9)


def test_blocks_are_joined(problem):
    model, _, _, candidates = problem
    whole, direction = measured(problem, "l2")
    f = logits(model, candidates)
    told = []
    pieces = [
        measure(
            model,
            candidates[part],
            f[part],
            direction,
            "l2",
            chunk=2,
            progress=lambda *now: told.append(now),
        )
        for part in (slice(0, 4), slice(4, None))
    ]
    assert (8, 8) in told  # four images, twice
    assert told[-1] == (10, 10)
    for one, other in zip(joined(pieces), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_cotangents_by_hand():
    f, labels = np.array([[0.0, np.log(3.0)]]), np.array([1])
    np.testing.assert_allclose(cotangents(f, labels, "cross_entropy"), [[0.25, -0.25]])
    np.testing.assert_allclose(cotangents(f, labels, "l2"), [[0.0, np.log(3.0) - 1]])


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        ([0, 1], "hinge", "unknown loss 'hinge'"),
        ([0], "l2", r"2 rows of logits and labels of \(1,\)"),
        ([0, 3], "l2", "label 3 of image 1 .* is not a class: the network has 3"),
    ],
)
def test_cotangents_that_cannot_be(labels, loss, message):
    with pytest.raises(KernelError, match=message):
        cotangents(np.zeros((2, 3)), np.array(labels), loss)


@pytest.mark.parametrize("gamma", [-1.0, math.nan])
def test_a_gamma_that_is_none(gamma):
    with pytest.raises(KernelError, match="gamma must be 0 or more"):
        Measured(np.ones(1), np.ones((1, 2)), np.zeros(1, np.int64)).delta(gamma)


# the dissimilar batch


def by_hand(scores, rows, batch_size, order):
    """One pick after another, every cosine anew."""
    picks, values = [], []
    for _ in range(batch_size):
        best = -np.inf, -1
        for u in range(len(scores)):
            if u in picks:
                continue
            share = max(
                (
                    (rows[u] @ rows[q]) ** 2 / (rows[u] @ rows[u]) / (rows[q] @ rows[q])
                    for q in picks
                ),
                default=0.0,
            )
            now = scores[u] - abs(scores[u]) * share
            if best[1] < 0 or (now, -order[u]) > (best[0], -order[best[1]]):
                best = now, u
        picks.append(best[1])
        values.append(best[0])
    return picks, values


def test_dissimilar_picks_by_hand(rng):
    scores, rows, order = rng.normal(size=12), rng.normal(size=(12, 3)), rng.permutation(12)
    chosen = dissimilar(scores, rows, 12, order)
    picks, values = by_hand(scores, rows, 12, order)
    assert chosen.places.tolist() == picks
    np.testing.assert_allclose(chosen.scores[chosen.places], values, rtol=1e-12)


def test_a_duplicate_has_nothing_left_and_is_not_picked():
    rows = np.array([[1.0, 0], [2.0, 0], [-1.0, 0], [0, 1.0], [0, 0]])
    scores = np.array([3.0, 4.0, 3.5, 1.0, 0.0])
    chosen = dissimilar(scores, rows, 2, np.arange(5))
    assert chosen.places.tolist() == [1, 3]
    np.testing.assert_allclose(chosen.scores, [0, 4, 0, 1, 0], atol=1e-15)


# the strategy


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).flatten(1))


LABELLED = {4: 0, 17: 1, 2: 2, 21: 1}


@pytest.fixture(scope="module")
def subject():
    """A network, images and its mirror."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small().eval()
    images = np.random.default_rng(0).normal(size=(30, 1, 6, 6)).astype(np.float32)
    return model, images, mirror(model, images[:4])


def ask(subject, loss: Any = "cross_entropy", **options: Any):
    model, images, own = subject
    settings = DynamicsConfig(precision="float64", **options)
    return query(model, images, LABELLED, 4, "dynamical", loss=loss, dynamics=settings, mirror=own)


def torch_gradients(model, images, labels, loss):
    """One row an image, by torch alone, in float64."""
    own = Small().double()
    own.load_state_dict(model.state_dict())
    found = []
    for image, label in zip(images, labels, strict=True):
        f = own(torch.tensor(image[None], dtype=torch.float64))
        target = torch.tensor([label])
        if loss == "cross_entropy":
            value = nn.functional.cross_entropy(f, target)
        else:
            value = ((f - nn.functional.one_hot(target, 3)) ** 2).sum() / 2
        parts = torch.autograd.grad(value, list(own.parameters()))
        found.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(found)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
@pytest.mark.parametrize("gamma", [0, 1, 2, "inf", math.inf])
def test_scores_are_those_of_torch(subject, gamma, loss):
    model, images, _ = subject
    found = ask(subject, loss, gamma=gamma)
    with torch.no_grad():
        f = model(torch.tensor(images)).numpy()
    order = sorted(LABELLED)
    labelled = torch_gradients(model, images[order], [LABELLED[i] for i in order], loss).sum(0)
    rows = torch_gradients(model, images[found.candidates], f[found.candidates].argmax(1), loss)
    norms, inner = (rows**2).sum(1), rows @ labelled
    expected = inner if gamma in ("inf", math.inf) else norms + gamma * inner
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.candidate_scores, expected, atol=1e-5 * scale)
    best = np.argsort(-expected)[:4]
    np.testing.assert_array_equal(found.indices, found.candidates[best])
    told = found.diagnostics
    json.dumps(told, allow_nan=False)
    assert told["gamma"] == (gamma if gamma != math.inf else "inf")
    assert told["labelled_gradient"] == pytest.approx(np.linalg.norm(labelled), rel=1e-5)
    assert told["mean_norm"] == pytest.approx(norms.mean(), rel=1e-5)
    share = 0.0
    if gamma not in ("inf", math.inf):
        share = norms[best].sum() / (norms[best].sum() + gamma * np.abs(inner[best]).sum())
    assert told["norm_share"] == pytest.approx(share, rel=1e-5)
    y = np.eye(3)[[LABELLED[i] for i in order]]
    given = softmax(f[order], axis=1) if loss == "cross_entropy" else f[order]
    assert told["residual_rms"] == pytest.approx(np.sqrt(((given - y) ** 2).mean()), rel=1e-5)


def test_a_dissimilar_batch(subject):
    top, other = ask(subject), ask(subject, batch="dissimilar", sketch=10**6)
    assert other.indices[0] == top.indices[0]
    assert len(set(other.indices.tolist())) == 4
    assert other.diagnostics["batch"] == "dissimilar"
    model, images, _ = subject
    with torch.no_grad():
        pseudo = model(torch.tensor(images[top.candidates])).numpy().argmax(1)
    rows = torch_gradients(model, images[top.candidates], pseudo, "cross_entropy")
    picks, values = by_hand(top.candidate_scores, rows, 4, np.arange(len(rows)))
    np.testing.assert_array_equal(other.indices, top.candidates[picks])
    np.testing.assert_allclose(other.scores, values, rtol=1e-4)
    folded = ask(subject, batch="dissimilar", sketch=8)
    assert folded.diagnostics["sketch"] == 8
    assert not np.allclose(folded.candidate_scores, other.candidate_scores)


def test_blocks_and_chunks_do_not_matter(subject, monkeypatch):
    whole, seen = ask(subject, batch="dissimilar"), []

    def watched(model, images, *rest, **options):
        seen.append(len(images))
        return measure(model, images, *rest, **options)

    monkeypatch.setattr(dynamical, "measure", watched)
    monkeypatch.setattr(dynamical, "BLOCK", 7)
    cut = ask(subject, batch="dissimilar", chunk=3)
    assert seen == [7, 7, 7, 5]  # images in memory at a time
    np.testing.assert_array_equal(cut.indices, whole.indices)
    np.testing.assert_allclose(cut.candidate_scores, whole.candidate_scores, rtol=1e-9)


def trained(subject, scale):
    """The same network with a head that is so much larger, towards labels of its own."""
    model, images, _ = subject
    larger = Small().eval()
    larger.load_state_dict(model.state_dict())
    with torch.no_grad():
        larger.head.weight *= scale
        larger.head.bias *= scale
        labels = larger(torch.tensor(images)).numpy().argmax(1)
    return larger, images, {i: int(labels[i]) for i in LABELLED}


def test_warnings_of_what_is_not_fitted_and_what_is_fitted_too_well(subject):
    wrong = ask(subject).diagnostics["warning"]
    assert re.search(r"not fitted its labels \(accuracy 0\.\d+, target 0\.99\)", wrong)
    model, images, labels = trained(subject, 1.0)
    fitted = query(model, images, labels, 2, "dynamical", loss="cross_entropy")
    assert fitted.diagnostics["warning"] is None
    model, images, labels = trained(subject, 500.0)
    sharp = query(model, images, labels, 2, "dynamical", loss="cross_entropy")
    assert "nearly zero" in sharp.diagnostics["warning"]
    assert sharp.diagnostics["norm_share"] > 0.9


# in runs


def settings(tmp_path, **changes):
    return dataclasses.replace(
        digits.DEFAULTS,
        strategy="dynamical",
        initial=20,
        query=5,
        subset=30,
        cycles=2,
        network="tests.own_network:make",
        network_args=("hidden=4",),
        train=TrainConfig(loss="cross_entropy", optimiser="adam", epochs=2, min_steps=2),
        run=tmp_path / "run",
        **changes,
    )


def test_a_run(tmp_path):
    config = settings(tmp_path, dynamics=DynamicsConfig(gamma="inf", batch="dissimilar", sketch=16))
    result = run.run(config)
    assert result.complete
    assert result.config["dynamics"] == {
        "gamma": "inf",
        "batch": "dissimilar",
        "sketch": 16,
        "precision": "float32",
        "chunk": None,
    }
    first, second, last = result.rounds
    assert first["diagnostics"]["gamma"] == "inf"
    assert {"certificate", "gradients", "select"} <= set(first["seconds"])
    assert not set(first["indices"]) & set(second["indices"])
    assert last["indices"] == []


def test_runs_of_older_versions_go_on():
    assert ADDED["dynamics"] == dataclasses.asdict(DynamicsConfig())


@pytest.mark.parametrize("batch", ["top", "dissimilar"])
def test_a_dry_run(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)
    told = io.StringIO()
    config = settings(tmp_path, dynamics=DynamicsConfig(batch=batch, sketch=16))
    dry_run.dry_run(config, Console(file=told, width=200))
    said = told.getvalue()
    for row in (
        "labelled, candidates .* 25, 30",
        rf"criterion .* gamma 2, {batch}",
        "compiling .* s, once",
        r"gradient of the labelled set .* s",
        r"candidates .* \d+\.\d s",
        r"memory .* GiB",
    ):
        assert re.search(row, said), said
    assert ("16 dimensions" in said) == (batch == "dissimilar")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"gamma": -1.0}, PipelineError, "dynamics.gamma must be 0 or more, or inf, not -1"),
        ({"gamma": math.nan}, PipelineError, "dynamics.gamma must be 0 or more, or inf, not nan"),
        ({"gamma": "two"}, PipelineError, "dynamics.gamma must be 0 or more, or inf, not two"),
        ({"batch": "conditional"}, UnknownNameError, "unknown batch mode of dynamical"),
        ({"precision": "tf32"}, UnknownNameError, "unknown precision 'tf32'"),
        ({"sketch": 0}, PipelineError, "dynamics.sketch must be 1 or more, not 0"),
        ({"chunk": 0}, PipelineError, "dynamics.chunk must be 1 or more, not 0"),
    ],
)
def test_settings_that_are_refused(values: Any, error, message):
    with pytest.raises(error, match=message):
        DynamicsConfig(**values)


@pytest.mark.parametrize(("given", "weight"), [("inf", math.inf), ("0", 0.0), ("2.5", 2.5)])
def test_gamma_on_the_command_line(given, weight):
    config = tyro.cli(
        RunConfig, default=digits.DEFAULTS, args=["--dynamics.gamma", given, "--seed", "3"]
    )
    assert config.dynamics.weight == weight
    json.dumps(config.record(), allow_nan=False)


def test_memory_does_not_grow_with_candidates_times_parameters(problem):
    """A pool of 50,000: nothing but what is kept of each candidate comes on top."""
    image = jax.ShapeDtypeStruct((FEATURES,), "float64")

    def needed(candidates, sketch=None):
        return peak_bytes(problem[0], image, L, candidates, 1024, sketch, 16)

    kept = 16 * (C + 2) * (50_000 - 1024)
    assert needed(50_000) - needed(1024) == kept
    assert needed(50_000, 10) - needed(1024, 10) == kept + 2 * 8 * 10 * (50_000 - 1024)
    assert needed(1024) > needed(16)


def test_it_is_a_row_of_the_table():
    assert STRATEGIES["dynamical"].needs == {"logits", "images", "gradients"}
    assert RunConfig("digits", strategy="dynamical").dynamics.weight == 2.0
