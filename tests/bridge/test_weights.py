"""Weight files: bit-exact round trips, and a refusal for everything that is not whole."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from bridge import module
from bridge.errors import BridgeError
from bridge.weights import Weights, read, save
from tests.small_networks import build


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    module.save_module(build("wide_resnet"), path, {"round": "3"})
    return path


def rewrite(path: Path, **changes: str) -> None:
    """The same file with other metadata."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = safetensors.numpy.load(data)
    path.write_bytes(safetensors.numpy.save(arrays, header["__metadata__"] | changes))


def manifest_of(path: Path) -> dict:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["manifest"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_round_trip_is_bit_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    network = build("wide_resnet").to(dtype)
    network.get_buffer("norm.num_batches_tracked").add_(7)
    path = tmp_path / "w.safetensors"
    module.save_module(network, path, {"seed": "0"})
    weights = read(path)
    assert weights.provenance == {"seed": "0"}
    assert weights.buffers["norm.num_batches_tracked"].shape == ()
    other = build("wide_resnet", seed=1).to(dtype)
    module.restore(other, weights)
    theirs = other.state_dict()
    for name, tensor in network.state_dict().items():
        assert tensor.dtype is theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def test_arrays_that_are_not_contiguous_keep_their_values(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    weights = Weights({"a": array, "b": array[::2, :, ::-1]}, {"s": np.array(3)})
    save(weights, tmp_path / "w")
    back = read(tmp_path / "w")
    np.testing.assert_array_equal(back.params["a"], array)
    np.testing.assert_array_equal(back.params["b"], array[::2, :, ::-1])
    assert back.buffers["s"].shape == ()


def test_memory_is_copied_both_ways() -> None:
    layer = nn.Linear(2, 2)
    weights = module.weights_of(layer)
    kept = weights.params["weight"].copy()
    with torch.no_grad():
        layer.weight += 1
    np.testing.assert_array_equal(weights.params["weight"], kept)
    module.restore(layer, weights)
    weights.params["weight"][:] = 9
    np.testing.assert_array_equal(layer.weight.detach().numpy(), kept)


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    network = build("tied")
    module.save_module(network, tmp_path / "w", {})
    weights = read(tmp_path / "w")
    assert "first.weight" in weights.params
    assert "second.weight" not in weights.params
    other = build("tied", seed=1)
    module.restore(other, weights)
    assert torch.equal(other.state_dict()["second.weight"], network.state_dict()["first.weight"])


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(BridgeError, match="not a whole safetensors file"):
        read(saved)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(BridgeError, match="not a whole safetensors file"):
        read(path)
    safetensors.numpy.save_file({"a": np.ones(2)}, path)
    with pytest.raises(BridgeError, match="without this project's manifest"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match=r"gone\.safetensors: No such file"):
        read(tmp_path / "gone.safetensors")


def test_another_version_is_refused(saved: Path) -> None:
    rewrite(saved, version="99")
    with pytest.raises(BridgeError, match="format version 99; this program reads 1"):
        read(saved)


def test_a_changed_shape_is_refused(saved: Path) -> None:
    manifest = manifest_of(saved)
    manifest["head.weight"]["shape"] = [8, 5]
    rewrite(saved, manifest=json.dumps(manifest))
    with pytest.raises(BridgeError, match=r"head.weight is float32 \(5, 8\), its manifest says"):
        read(saved)


def test_a_missing_entry_is_refused(saved: Path) -> None:
    manifest = manifest_of(saved)
    del manifest["head.bias"]
    rewrite(saved, manifest=json.dumps(manifest))
    with pytest.raises(BridgeError, match="manifest and contents differ in head.bias"):
        read(saved)


@pytest.mark.parametrize("manifest", ["{", "[]", '{"head.bias": 3}', "null"])
def test_a_damaged_manifest_is_refused(saved: Path, manifest: str) -> None:
    rewrite(saved, manifest=manifest)
    with pytest.raises(BridgeError, match="manifest"):
        read(saved)


def test_changed_values_are_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(BridgeError, match="were changed after it was saved"):
        read(saved)


def test_restore_lists_every_fault_and_changes_nothing() -> None:
    network = build("wide_resnet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = module.weights_of(build("wide_resnet", seed=1))
    del weights.params["stem.bias"]
    weights.params["head.weight"] = weights.params["head.weight"].T
    weights.params["head.bias"] = weights.params["head.bias"].astype("float64")
    weights.params["extra"] = np.ones(1)
    with pytest.raises(BridgeError) as caught:
        module.restore(network, weights)
    message = str(caught.value)
    assert "stem.bias is missing" in message
    assert "extra is not in the network" in message
    assert "head.weight is torch.float32 (8, 5), the network's is torch.float32 (5, 8)" in message
    assert "head.bias is torch.float64" in message
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_full_disk_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BridgeError, match="No space left on device; what was there before is"):
        module.save_module(build("wide_resnet", seed=1), saved, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="cannot write the weights to .*No such file"):
        module.save_module(build("tied"), tmp_path / "no" / "w", {})
