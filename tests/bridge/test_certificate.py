"""The certificate as a file, in a record and as tables, of true mirrors and of false ones."""

import dataclasses
import json
from io import StringIO
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from bridge import report
from bridge.errors import BridgeError, ParityError
from bridge.mirror import Mirror
from bridge.ops import OPERATORS
from bridge.parity import DETAILS, FLOAT64, GRADIENTS, Certificate, certify, compare
from bridge.program import Node
from bridge.trace import mirror
from kernel.estimate import estimate_cost
from kernel.options import Request
from kernel.plan import plan_kernel
from tests.small_networks import CLASSES, SHAPE, build


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE)).astype("float32")


def sabotaged() -> tuple[nn.Module, Mirror]:
    """A mirror whose second norm has an epsilon of 1e-3 in place of 1e-5."""
    network = build("wide_resnet")
    twin = mirror(network, images())

    def change(node: Node) -> Node:
        hit = node.module == "block.norm2"
        return (
            dataclasses.replace(node, args=(*node.args[:7], 1e-3, *node.args[8:])) if hit else node
        )

    program = twin.program
    assert program is not None
    nodes = tuple(change(node) for node in program.nodes)
    return network, dataclasses.replace(twin, function=dataclasses.replace(program, nodes=nodes))


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    network = build("wide_resnet")
    return certify(network, mirror(network, images()), images())


def printed(*renderables: object) -> str:
    text = StringIO()
    console = Console(width=160, file=text)
    for renderable in renderables:
        console.print(renderable)
    return text.getvalue()


def test_every_layer_and_every_parameter_has_its_error(certificate: Certificate) -> None:
    assert certificate.passed
    assert [layer.name for layer in certificate.layers][:2] == ["stem", "block.norm1"]
    assert certificate.activations == max(layer.error or 0 for layer in certificate.layers)
    assert certificate.gradients == max(certificate.gradient_errors.values())
    assert (
        certificate.gradient_errors.keys() == dict(build("wide_resnet").named_parameters()).keys()
    )
    norm = certificate.layers[1]
    assert norm.op == "aten.batch_norm.default"
    assert set(norm.weights) == {
        f"block.norm1.{n}" for n in ("weight", "bias", "running_mean", "running_var")
    }


def test_the_file_holds_everything_and_the_summary_all_but_the_layers(
    certificate: Certificate, tmp_path: Path
) -> None:
    certificate.save(tmp_path / "certificate.json")
    stored = json.loads((tmp_path / "certificate.json").read_text("utf-8"))
    assert stored == certificate.as_dict()
    assert stored["format"] == "ntk-lookahead certificate"
    assert len(stored["layers"]) == certificate.sites
    summary = certificate.summary()
    assert summary.keys() == {f.name for f in dataclasses.fields(Certificate)} - {*DETAILS}
    assert summary == {key: stored[key] for key in summary}


def test_numbers_that_are_not_finite_are_null_in_the_file(
    certificate: Certificate, tmp_path: Path
) -> None:
    broken = dataclasses.replace(certificate, logits_float32=float("inf"))
    broken.save(tmp_path / "certificate.json")
    assert json.loads((tmp_path / "certificate.json").read_text())["logits_float32"] is None


def test_a_folder_that_is_not_there_is_named(certificate: Certificate, tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="cannot write the certificate"):
        certificate.save(tmp_path / "no" / "certificate.json")


def test_a_false_mirror_has_a_certificate_too_that_does_not_pass() -> None:
    network, false = sabotaged()
    outcome = compare(network, false, images())
    assert not outcome.passed
    errors = {layer.name: layer.error or 0 for layer in outcome.layers}
    order = list(errors)
    at = order.index("block.norm2")
    assert max(errors[name] for name in order[:at]) < FLOAT64 < errors["block.norm2"]
    with pytest.raises(ParityError) as refusal:
        outcome.check()
    assert str(refusal.value) == outcome.disagreements[0]
    assert "'block.norm2'" in outcome.disagreements[0]
    assert any("in the logits (float64)" in line for line in outcome.disagreements)
    assert any("in the per-example gradients" in line for line in outcome.disagreements)


def test_the_tables_show_the_worst_layers_or_all(certificate: Certificate) -> None:
    text = printed(report.verdict_table(certificate), report.layer_table(certificate, 3))
    assert "logits, float32" in text
    assert "The 3 worst tap sites" in text
    assert sum(layer.name in text for layer in certificate.layers) >= 3
    everything = printed(report.layer_table(certificate, None))
    assert "Tap sites" in everything
    assert all(layer.name in everything for layer in certificate.layers)
    assert "small_networks.py:" in everything


def test_sizes_and_costs_are_told() -> None:
    network = build("handwritten")
    twin = mirror(network, images())
    text = report.size_words(twin)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert f"{trainable:,} trainable parameters in {len(twin.params)} arrays" in text
    assert "4 tap sites (2 × conv2d.default" in text
    image = jax.ShapeDtypeStruct(SHAPE, "float32")
    whole = plan_kernel(twin.model(), image, 1000, Request())
    memory = 0.97 * whole.peak_gib
    plan = plan_kernel(twin.model(), image, 1000, Request(memory_gib=memory))
    cost = estimate_cost(twin.model(), images(), plan)
    assert plan.problem.columns == trainable
    assert len(whole.passes) == 1 < len(plan.passes)
    assert plan.peak_gib <= memory
    assert cost.gradient_seconds > 0 < cost.product_seconds
    assert f"in {len(plan.passes)} passes" in report.cost_words(cost, plan)
    plain = dataclasses.replace(twin, function=lambda p, f, x: x, route="twin")
    assert "no taps on the route twin" in report.size_words(plain)


def test_a_mirror_without_taps_is_certified_by_what_can_be_seen() -> None:
    network = build("wide_resnet")
    twin = mirror(network, images())
    plain = dataclasses.replace(
        twin, function=lambda p, f, x: 1 * twin.function(p, f, x), route="twin"
    )
    outcome = certify(network, plain, images())
    assert (outcome.route, outcome.sites, outcome.compared, outcome.layers) == ("twin", 0, 0, ())
    assert outcome.gradients < 1e-12
    assert outcome.gradient_errors.keys() == twin.params.keys()
    doubled = dataclasses.replace(twin, function=lambda p, f, x: 2 * twin.function(p, f, x))
    with pytest.raises(ParityError, match=r"in the logits \(float64\)"):
        certify(network, doubled, images())


class Casting(nn.Module):
    """Goes to float32 by itself, as many attention layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(192, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x.flatten(1))
        return self.head(torch.softmax(x, -1, dtype=torch.float32).type_as(x))


def hard() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.Hardsigmoid()).eval()


def test_a_network_that_casts_by_itself_is_compared_without_its_casts() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Casting().eval()
    outcome = certify(network, mirror(network, images()), images())
    assert outcome.tolerance_float64 == FLOAT64
    assert max(outcome.logits_float64, outcome.gradients) < 1e-12


def test_an_operator_whose_derivative_torch_rounds_is_named() -> None:
    network = hard()
    outcome = certify(network, mirror(network, images()), images())
    assert outcome.tolerance_gradients > GRADIENTS
    assert outcome.tolerance_float64 == FLOAT64
    assert any("aten.hardsigmoid.default" in reason for reason in outcome.exceptions)
    ordinary = build("wide_resnet")
    assert certify(ordinary, mirror(ordinary, images()), images()).exceptions == ()


class Sliced(nn.Module):
    """One indexing of torch's that is two steps in the mirror; counts of users are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.mix[:, :, None, None]).mean((2, 3)))


def test_a_layer_that_only_looks_like_a_pair_is_not_held_against_a_true_mirror() -> None:
    network = Sliced().eval()
    outcome = certify(network, mirror(network, images()), images())
    errors = {layer.weights: layer.error for layer in outcome.layers}
    assert errors["mix",] is None
    assert errors["head.weight", "head.bias"] is not None
    assert outcome.compared == outcome.sites - 1


def test_a_wrong_row_is_found_whatever_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("normalised")
    twin = mirror(network, images())
    monkeypatch.setitem(OPERATORS, "aten.hardtanh.default", lambda x, *_: jnp.clip(x, -1.01, 1))
    outcome = compare(network, twin, images())
    assert not outcome.passed
    assert "at layer '5' (aten.layer_norm.default" in outcome.disagreements[0]
