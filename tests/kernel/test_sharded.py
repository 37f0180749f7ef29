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
from kernel import ntk
from kernel.contract import contract, sketches
from kernel.errors import KernelError
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.plan import Pass, Progress
from kernel.scratch import Scratch
from kernel.sharded import (
    check_processes,
    contract_sharded,
    device_batches,
    mesh,
    sketches_sharded,
)
from tests.kernel.sharded_worker import CASES, plan_for
from tests.kernel_cases import mlp

ROOT = Path(__file__).parents[2]


def save_network(folder: Path) -> None:
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
    save_network(tmp_path)
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
    made = plan_for(model, images, Request(kind, precision="float64", chunk=3), anchors)
    own = (model, images, made, Progress(made, None))
    found = contract_sharded(*own, mesh(), None)
    for one, other in zip(found, contract(*own, None), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_sketches_of_a_mesh_of_one_device(rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(7, 3))
    request = Request("trace", precision="float64", sketch=5, chunk=3)
    own = (model, images, plan_for(model, images, request, 7))
    seen = []
    signs = (np.random.default_rng(3), lambda *report: seen.append(report))
    found = sketches_sharded(*own, *signs, mesh(), None)
    expected = sketches(*own, np.random.default_rng(3), None, None)
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
def test_passes_go_on_after_the_last_finished_pass(anchors, reports, tmp_path, rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(9, 3))
    made = plan_for(model, images, Request("sum", precision="float64", chunk=9), anchors)
    parts = made.passes[0].blocks
    assert len(parts) == 4
    made = made._replace(passes=tuple(Pass((part,), (0, 1)) for part in parts))
    own = (model, images, made)
    expected = contract_sharded(*own, Progress(made, None), mesh(), None)
    # a pass that is taken up has two reports: the third is interrupted, then the fourth
    for before in (2 * reports, 2 * 2 + reports):
        progress = Progress(made, interrupt_after(before + 1))
        with pytest.raises(Interrupted):
            contract_sharded(*own, progress, mesh(), Scratch(tmp_path, "key"))
    seen = []
    progress = Progress(made, lambda *report: seen.append(report))
    found = contract_sharded(*own, progress, mesh(), Scratch(tmp_path, "key"))
    assert len(seen) == 3 * 2 + reports
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sketches_go_on_after_the_last_finished_batch(tmp_path, rng):
    model, images = mlp(3, 4, 2, rng), rng.normal(size=(7, 3))
    request = Request("sum", precision="float64", sketch=5, chunk=3)
    own = (model, images, plan_for(model, images, request, 7))

    def run(report, scratch=None):
        seed = np.random.default_rng(3)
        return sketches_sharded(*own, seed, report, mesh(1), scratch)

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
        empirical_ntk(mlp(3, 4, 2, rng), rng.normal(size=(4, 3)), Request(devices=devices))


def test_every_process_has_a_device():
    check_processes([0, 0, 1, 1], 2)
    with pytest.raises(KernelError, match=r"2 devices were .* the processes \[1, 2\] of 3"):
        check_processes([0, 0], 3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU is never left to NumPy")
def test_one_cpu_is_left_to_numpy(rng, monkeypatch):
    monkeypatch.setattr(ntk, "mesh", lambda devices: pytest.fail("a mesh of one CPU"))
    empirical_ntk(mlp(3, 4, 2, rng), rng.normal(size=(4, 3)), Request(devices=1))


@pytest.mark.parametrize(
    ("images", "chunk", "devices"), [(1, 4, 8), (7, 2, 3), (64, 8, 8), (65, 8, 8), (500, 16, 4)]
)
def test_device_batches_hold_every_image_once(images, chunk, devices):
    found = device_batches(3, 3 + images, chunk, devices)
    rows = [
        row
        for batch in found
        for device in range(devices)
        for row in range(*batch.share(device, 2).indices(10_000))
    ]
    assert rows == list(range(6, 6 + 2 * images))
    (size,) = {len(batch.idx) for batch in found}  # one shape is compiled
    assert size % devices == 0
    assert size <= devices * chunk
    assert len(found) == -(-images // (devices * chunk))
    for batch in found:
        assert batch.idx[: batch.images].tolist() == list(range(batch.start, batch.stop))
        assert (batch.idx[batch.images :] == 2 + images).all()


def test_few_images_more_are_no_new_shape():
    sizes = {len(device_batches(0, images, 64, 8)[0].idx) for images in range(100, 500, 10)}
    assert len(sizes) <= 8


def test_no_images_are_no_batches():
    assert device_batches(5, 5, 4, 2) == []
