"""`python -m bridge.check`: what it prints, writes and returns, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bridge import check, module, portable
from bridge.ops import OPERATORS
from bridge.weights import read
from trainer import networks

ROOT = Path(__file__).parents[2]
OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, classes)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def make(classes, width=4):
    return Own(classes, width)

def unsupported(classes):
    class Odd(Own):
        def forward(self, x):
            return super().forward(torch.special.bessel_j0(x))
    return Odd(classes, 4)
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check", *arguments])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_blocks_are_listed_and_what_is_trained_of_them(monkeypatch, capsys) -> None:
    options = ("--shape", "3,8,8", "--classes", "3", "--images", "50", "--trainable", "last:1")
    assert run(monkeypatch, "my_nets:make", *options) == 0
    text = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["2", "conv", "112", "—"] in cells
    assert ["1", "head", "15", "15"] in cells
    assert "15 trainable parameters in 2 arrays" in text
    assert "Frozen prefix: 112 of 127 parameters" in text
    assert "a row has 4 numbers" in text
    assert "1 tap sites" in text
    assert run(monkeypatch, "my_nets:make", *options, "--save", "whole.safetensors") == 0
    assert "Frozen prefix" not in capsys.readouterr().out  # the file is of the whole network
    assert run(monkeypatch, "my_nets:make", *options[:-1], "last:3") == 2
    assert "the network has 2 block(s): conv, head" in capsys.readouterr().err


def test_weights_of_another_head_are_taken_with_a_note(monkeypatch, capsys, tmp_path) -> None:
    network = networks.build("my_nets:make", (3, 8, 8), 5, np.random.default_rng(1))
    module.save_module(network, tmp_path / "five.safetensors")
    options = ("--shape", "3,8,8", "--classes", "3", "--images", "50")
    assert run(monkeypatch, "my_nets:make", *options, "--weights", "five.safetensors") == 0
    assert "head.weight of 5 × 4" in capsys.readouterr().out


def test_a_network_is_certified_and_its_cost_told(monkeypatch, capsys) -> None:
    arguments = ("--classes", "3", "--network-args", "width=5", "--images", "300")
    assert run(monkeypatch, "my_nets:make", "--shape", "3,8,8", *arguments) == 0
    text = capsys.readouterr().out
    assert "per-example gradients of 4 arrays" in text
    assert "my_nets.py:" in text
    assert f"{3 * 5 * 9 + 5 + 5 * 3 + 3} trainable parameters in 4 arrays" in text
    assert "2 tap sites (1 × conv2d.default, 1 × linear.default)" in text
    assert "between 300 images" in text
    assert "Certified" in text


def test_certificate_and_mirror_are_written(monkeypatch, tmp_path: Path) -> None:
    network = networks.build("my_nets:make", (3, 8, 8), 10, np.random.default_rng(9))
    module.save_module(network, tmp_path / "weights.safetensors")
    written = ("--certificate", "certificate.json", "--save", "mirror.safetensors")
    options = ("--shape", "3,8,8", "--weights", "weights.safetensors", "--images", "50")
    assert run(monkeypatch, "my_nets:make", *options, *written) == 0
    certificate = json.loads((tmp_path / "certificate.json").read_text("utf-8"))
    assert [layer["name"] for layer in certificate["layers"]] == ["conv", "head"]
    loaded = portable.load(tmp_path / "mirror.safetensors")
    trained = network.get_parameter("conv.weight").detach().numpy()
    np.testing.assert_array_equal(loaded.params["conv.weight"], trained)
    provenance = read(tmp_path / "mirror.safetensors").provenance
    assert json.loads(provenance["certificate"])["route"] == "torch.export"


def test_a_mirror_that_disagrees_ends_with_1(monkeypatch, capsys) -> None:
    monkeypatch.setitem(OPERATORS, "aten.relu.default", lambda x: x * (x > -0.1))
    assert run(monkeypatch, "my_nets:make", "--shape", "3,8,8") == 1
    text = capsys.readouterr().out
    assert "Not certified: the mirror and the network first disagree at layer 'head'" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my_nets:make", "--shape", "3,8"), "must be channels,height,width, such as 3,32,32"),
        (("my_nets:make", "--shape", "3,8,x"), "must be channels,height,width"),
        (("my_nets:make", "--shape", "3,2,2"), "network failed on images of shape (2, 3, 2, 2)"),
        (("nowhere:make", "--shape", "3,8,8"), "cannot import 'nowhere'"),
        (("my_nets:mkae", "--shape", "3,8,8"), "my_nets has no attribute 'mkae'"),
        (("my_nets:OWN", "--shape", "3,8,8"), "my_nets has no attribute 'OWN'"),
        (("my_nets:Own", "--shape", "3,8,8"), "needs the argument 'width'"),
        (("wide_resnt", "--shape", "3,8,8"), "did you mean 'wide_resnet'?"),
        (("my_nets:make", "--shape", "3,8,8", "--network-args", "width"), "name=value"),
        (("my_nets:make", "--shape", "3,8,8", "--examples", "1"), "examples is 1; it must be 2"),
        (("my_nets:make", "--shape", "3,8,8", "--images", "0"), "images is 0"),
        (("my_nets:make", "--shape", "3,8,8", "--route", "onnx"), "unknown route 'onnx'"),
        (
            ("my_nets:make", "--shape", "3,8,8", "--weights", "missing.safetensors"),
            "cannot read the weights",
        ),
        (("my_nets:make", "--shape", "3,8,8", "--memory-gib", "1e-9"), "needs at least"),
        (("my_nets:unsupported", "--shape", "3,8,8"), "aten.special_bessel_j0.default"),
    ],
)
def test_failures_have_one_clear_message(monkeypatch, capsys, arguments, message) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_as_a_person_gives_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bridge.check", "my_nets:make", "--shape", "3,8,8", "--layers"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Certified: this network can be used in every pipeline." in ended.stdout
    assert ended.stderr == ""
