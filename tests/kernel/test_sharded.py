"""Kernels on many devices and in two processes are those of one.

The devices are 8 forced ones of the CPU, which a process has from its start or not at all: one
process computes all cases (`tests.kernel.sharded_worker`).
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridge import portable
from bridge.trace import mirror
from kernel.contract import Scratch, sketches, sweep
from kernel.errors import KernelError
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import Pass, Progress, check_processes, mesh, mesh_unless_host, plan, problem_of
from kernel.sharded import sharded_sketches, sharded_sweep
from tests.kernel.sharded_worker import CASES
from tests.kernel_cases import mlp

ROOT = Path(__file__).parents[2]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 3, padding_idx=0), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(x.long())).mean(1))


def save_networks(folder: Path) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()
    portable.save(mirror(conv, np.zeros((2, 2, 6, 6), np.float32)), folder / "conv.safetensors")
    words = mirror(Words().eval(), np.zeros((2, 6), np.float32))
    portable.save(words, folder / "embedding.safetensors")


def start(devices: int, *arguments: str) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.kernel.sharded_worker", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_many_devices_give_what_one_gives(tmp_path):
    """One test, so that one process computes all cases also where tests are spread."""
    save_networks(tmp_path)
    finish(start(8, "devices", str(tmp_path), str(tmp_path / "found.json")))
    found = json.loads((tmp_path / "found.json").read_text())
    for case in [*CASES, "together"]:
        assert found[case]["values"] < 1e-12, case
        assert found[case]["diagonal"] < 1e-12, case
        assert found[case]["largest"] > 1e-3, case  # a kernel of zeros would agree
        assert found[case]["done"] == pytest.approx(1.0), case
    assert found["sketch"] < 1e-12
    many, one = found["selections"]
    assert many == one
    assert len(set(many)) == 6
    many, one, too_many = found["refusals"]
    assert many == one
    assert "the gradients of images [6]" in many
    assert "layer '1'" in many
    assert "9 devices were asked for and 8 exist (cpu)" in too_many


@pytest.mark.slow
def test_two_processes_give_the_kernel_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    outs = [tmp_path / f"{number}.json" for number in range(2)]
    both = [
        start(2, "processes", address, str(number), str(out)) for number, out in enumerate(outs)
    ]
    for process in both:
        finish(process)
    first, second = (json.loads(out.read_text()) for out in outs)
    assert first == second
    assert first["devices"] == [2, 4]
    assert first["values"] < 1e-12
    assert first["diagonal"] < 1e-12
    assert first["sketch"] < 1e-12
    assert "the gradients of images [4]" in first["said"][0]
    assert "the processes [1] of 2 have none of them" in first["said"][1]


@pytest.mark.parametrize("kind", ["trace", "full"])
@pytest.mark.parametrize("anchors", [4, 11])
def test_one_device_of_a_mesh_gives_the_kernel_of_the_host(kind, anchors, rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(11, 3))
    image = jax.ShapeDtypeStruct((3,), "float64")
    problem = problem_of(model, image, 11, anchors, Request(kind, precision="float64"))
    made = plan(problem, 1.0, 3)
    own = (model, images, problem, made, Progress(problem, made, None))
    for found, expected in zip(sharded_sweep(*own, mesh()), sweep(*own), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_sketches_of_a_mesh_of_one_device(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(7, 3))
    image = jax.ShapeDtypeStruct((3,), "float64")
    problem = problem_of(model, image, 7, 7, Request("trace", precision="float64"))
    own = (model, images, problem, 5, 3)
    seen = []
    signs = (np.random.default_rng(3), lambda *report: seen.append(report))
    found = sharded_sketches(*own, *signs, mesh())
    expected = sketches(*own, np.random.default_rng(3))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose(found.logits, model.function(*model[1:], images), rtol=1e-12)
    assert seen[-1] == (7.0, 7.0)


class Interrupted(Exception):
    pass


def interrupt_after(reports: int):
    """A report that interrupts."""
    seen = []

    def report(done: float, total: float) -> None:
        seen.append((done, total))
        if len(seen) == reports:
            raise Interrupted

    return report


@pytest.mark.parametrize(("anchors", "reports"), [(6, 4), (9, 2)])
def test_a_sweep_goes_on_after_the_last_finished_pass(anchors, reports, tmp_path, rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(9, 3))
    image = jax.ShapeDtypeStruct((3,), "float64")
    problem = problem_of(model, image, 9, anchors, Request("sum", precision="float64"))
    made = plan(problem, 1.0, 9)
    parts = made.passes[0].parts
    assert len(parts) == 4
    made = made._replace(passes=tuple(Pass((part,), (0, 1)) for part in parts))
    own = (model, images, problem, made)
    expected = sharded_sweep(*own, Progress(problem, made, None), mesh())
    # a pass that is taken up has two reports: the third is interrupted, then the fourth
    for before in (2 * reports, 2 * 2 + reports):
        progress = Progress(problem, made, interrupt_after(before + 1))
        with pytest.raises(Interrupted):
            sharded_sweep(*own, progress, mesh(), scratch=Scratch(tmp_path, "key"))
    seen = []
    progress = Progress(problem, made, lambda *report: seen.append(report))
    found = sharded_sweep(*own, progress, mesh(), scratch=Scratch(tmp_path, "key"))
    assert len(seen) == 3 * 2 + reports
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sketches_go_on_after_the_last_finished_wave(tmp_path, rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(7, 3))
    image = jax.ShapeDtypeStruct((3,), "float64")
    problem = problem_of(model, image, 7, 7, Request("sum", precision="float64"))
    own = (model, images, problem, 5, 3)

    def run(report, scratch=None):
        seed = np.random.default_rng(3)
        return sharded_sketches(*own, seed, report, mesh(1), scratch)

    expected = run(None)
    with pytest.raises(Interrupted):
        run(interrupt_after(2), Scratch(tmp_path, "key"))
    seen = []
    found = run(lambda *report: seen.append(report), Scratch(tmp_path, "key"))
    assert seen == [(7.0, 7.0)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("devices", [0, 1000])
def test_as_many_devices_as_exist(devices, rng):
    with pytest.raises(KernelError, match=rf"{devices} devices were asked for and \d+ exist"):
        mesh(devices)
    with pytest.raises(KernelError, match="exist"):
        empirical_ntk(mlp(3, 4, 2, rng), rng.normal(size=(4, 3)), devices=devices)


def test_every_process_has_a_device():
    check_processes([0, 0, 1, 1], 2)
    with pytest.raises(KernelError, match=r"2 devices were .* the processes \[1, 2\] of 3"):
        check_processes([0, 0], 3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU is never left to NumPy")
def test_one_cpu_is_left_to_numpy():
    assert mesh_unless_host(1) is None
