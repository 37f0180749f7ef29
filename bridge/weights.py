"""The arrays of a network to and from one safetensors file that says what is in it.

The file holds every parameter and buffer by the names of torch's state dict (tied ones once), and
in its metadata a manifest: kind, shape, dtype and SHA-256 of each, where they come from, and the
version of this format. Nothing is ever unpickled, a file is replaced whole or not at all, and
nothing of torch is needed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from bridge.atomic import replace
from bridge.errors import BridgeError

FORMAT = "ntk-lookahead weights"
VERSION = 1
_DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Weights:
    """The arrays of a network.

    Attributes:
        params: parameters, trainable or not, by the names of torch's state dict.
        buffers: what else the state dict holds, such as running statistics.
        provenance: where they come from, in the caller's words.
    """

    params: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    provenance: dict[str, str] = field(default_factory=dict)


def save(weights: Weights, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; a file that is there is replaced at once, or stays.

    Args:
        weights: what to save.
        path: where.
        provenance: strings that say where the weights come from, beside those they have.

    Raises:
        BridgeError: the file cannot be written (a full disk, a folder that is not there).
    """
    manifest, arrays = {}, {}
    for kind, group in (("parameter", weights.params), ("buffer", weights.buffers)):
        for name, given in group.items():
            # ascontiguousarray makes a scalar a vector; safetensors scrambles anything else.
            array = np.ascontiguousarray(given).reshape(given.shape)
            arrays[name] = array
            manifest[name] = {
                "kind": kind,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "sha256": _digest(array),
            }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": json.dumps(manifest),
        "provenance": json.dumps({**weights.provenance, **(provenance or {})}),
    }
    try:
        replace(Path(path), safetensors.numpy.save(arrays, metadata))
    except OSError as error:
        raise BridgeError(
            f"cannot write the weights to {path}: {error.strerror}; what was there before is "
            "untouched"
        ) from error


def read(path: Path) -> Weights:
    """The weights in a file that `save` wrote.

    Raises:
        BridgeError: the file is missing, truncated, not of this format or version, or its
            arrays are not those of its manifest.
    """
    try:
        data = Path(path).read_bytes()
        entries = safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except OSError as error:
        raise BridgeError(f"cannot read the weights {path}: {error.strerror}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise BridgeError(
            f"{path} is not a whole safetensors file ({error}); it was cut short or is something "
            "else: save the weights again"
        ) from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise BridgeError(
            f"{path} holds tensors without this project's manifest; load it into the torch module "
            "yourself and save that with bridge.export.save"
        )
    if metadata.get("version") != str(VERSION):
        raise BridgeError(
            f"{path} has format version {metadata.get('version')}; this program reads {VERSION}"
        )
    try:
        manifest = json.loads(metadata["manifest"])
        provenance = json.loads(metadata["provenance"])
        arrays = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
        _check_manifest(path, manifest, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BridgeError):
            raise
        raise BridgeError(f"{path} has a damaged manifest ({error!r}); save it again") from error
    kinds = {name: entry["kind"] for name, entry in manifest.items()}
    return Weights(
        params={name: arrays[name].copy() for name in kinds if kinds[name] == "parameter"},
        buffers={name: arrays[name].copy() for name in kinds if kinds[name] == "buffer"},
        provenance=provenance,
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _check_manifest(path: Path, manifest: dict, arrays: dict[str, np.ndarray]) -> None:
    if manifest.keys() != arrays.keys():
        odd = sorted(manifest.keys() ^ arrays.keys())
        raise BridgeError(f"{path}: manifest and contents differ in {', '.join(odd)}")
    for name, entry in manifest.items():
        found = (list(arrays[name].shape), arrays[name].dtype.name)
        if found != (entry["shape"], entry["dtype"]):
            raise BridgeError(
                f"{path}: {name} is {found[1]} {tuple(found[0])}, its manifest says "
                f"{entry['dtype']} {tuple(entry['shape'])}; the file was changed"
            )
        if _digest(arrays[name]) != entry["sha256"]:
            raise BridgeError(f"{path}: the values of {name} were changed after it was saved")
