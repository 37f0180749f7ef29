"""The strategy dynamical, end to end: against torch, in queries, in runs and in a dry run."""

import dataclasses
import io
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from rich.console import Console
from scipy.special import softmax
from torch import nn

from bridge.trace import mirror
from kernel.dynamics import measure
from pipelines import digits, dry_run, run
from pipelines.config import RunConfig, identity
from pipelines.core.errors import PipelineError
from pipelines.query import compare, query
from pipelines.strategies import STRATEGIES, base, dynamical
from pipelines.strategies.options import DynamicsConfig, QueryOptions
from tests.dynamics_cases import by_hand
from trainer.config import TrainConfig
from trainer.errors import UnknownNameError
from trainer.predict import logits

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
    return query(
        model,
        images,
        LABELLED,
        4,
        "dynamical",
        options=QueryOptions(loss=loss, dynamics=settings),
        mirror=own,
    )


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


def test_candidates_go_through_the_mirror_alone(subject, monkeypatch):
    seen = []

    def watched(network, images):
        seen.append(len(images))
        return logits(network, images)

    monkeypatch.setattr(base, "logits", watched)
    alone = ask(subject)
    assert seen == [base.PROBE, len(LABELLED)]
    model, images, own = subject
    both = compare(
        model,
        images,
        LABELLED,
        4,
        ["dynamical", "margin"],
        options=QueryOptions(loss="cross_entropy", dynamics=DynamicsConfig(precision="float64")),
        mirror=own,
    )
    assert seen[3:] == [len(LABELLED), len(images) - len(LABELLED)]  # once for the two of them
    together = both["dynamical"]
    np.testing.assert_array_equal(together.indices, alone.indices)
    np.testing.assert_allclose(together.candidate_scores, alone.candidate_scores, rtol=1e-4)


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
    fitted = query(
        model, images, labels, 2, "dynamical", options=QueryOptions(loss="cross_entropy")
    )
    assert fitted.diagnostics["warning"] is None
    model, images, labels = trained(subject, 500.0)
    sharp = query(model, images, labels, 2, "dynamical", options=QueryOptions(loss="cross_entropy"))
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
    }
    first, second, last = result.rounds
    assert first["diagnostics"]["gamma"] == "inf"
    assert {"certificate", "gradients", "select"} <= set(first["seconds"])
    assert not set(first["indices"]) & set(second["indices"])
    assert last["indices"] == []


@pytest.mark.parametrize("batch", ["top", "dissimilar"])
def test_a_dry_run(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)
    told = io.StringIO()
    config = settings(tmp_path, dynamics=DynamicsConfig(batch=batch, sketch=16))
    dry_run.dry_run(config, Console(file=told, width=200))
    said = told.getvalue()
    passes = 3 if batch == "dissimilar" else 2
    for row in (
        "labelled, candidates .* 25, 30",
        f"dynamical .* {passes} passes, forward and back",
    ):
        assert re.search(row, said), said
    assert "No kernel is computed." in said
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
        ({"chunk": 0}, PipelineError, "dynamics.chunk must be 1 or more, or none, not 0"),
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
    json.dumps(identity(config), allow_nan=False)


def test_it_is_a_row_of_the_table():
    assert STRATEGIES["dynamical"].needs == {"classes", "images", "gradients"}
    assert RunConfig("digits", strategy="dynamical").dynamics.weight == 2.0
