"""Weights on disk: one safetensors file with a manifest, read without torch.

Every parameter and buffer has the name of torch's state dict (tied ones once). The manifest in the
metadata holds kind, shape, dtype and SHA-256 of each, provenance and format version. Nothing is
unpickled, files are replaced atomically, and equal contents give equal bytes. `bridge.portable`
writes the same file with the program in it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from bridge.errors import BridgeError
from kernel.files import write_file

FORMAT = "ntk-lookahead weights"
VERSION = 1
# `constant` arrays belong to a network in the file and are in no state dict.
KINDS = ("parameter", "buffer", "constant")
_DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
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
        buffers: what else the state dict holds, such as running statistics; from a file of
            `bridge.portable`, parameters without gradient too.
        provenance: where they come from, in the caller's words.
    """

    params: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    provenance: dict[str, str] = field(default_factory=dict)


class Contents(NamedTuple):
    """Contents of a weights file.

    Attributes:
        groups: arrays by name, for each of `KINDS`.
        provenance: where they come from.
        extra: further strings beside them.
    """

    groups: dict[str, dict[str, np.ndarray]]
    provenance: dict[str, str]
    extra: dict[str, str]


def save(weights: Weights, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; a file that is there is replaced at once, or stays.

    Args:
        weights: what to save.
        path: where.
        provenance: strings about the origin of the weights, beside those they have.

    Raises:
        BridgeError: the file cannot be written (a full disk, a folder that is not there).
    """
    groups = {"parameter": weights.params, "buffer": weights.buffers}
    pack(Contents(groups, {**weights.provenance, **(provenance or {})}, {}), path)


def read(path: Path) -> Weights:
    """The weights in a file that `save` or `bridge.portable.save` wrote.

    Raises:
        BridgeError: the file is missing, truncated, not of this format or version, or its
            arrays are not those of its manifest.
    """
    groups, provenance, _ = unpack(path)
    return Weights(groups["parameter"], groups["buffer"], provenance)


def pack(contents: Contents, path: Path) -> None:
    """Write arrays and strings to one safetensors file.

    Raises:
        BridgeError: the file cannot be written, or an array has a dtype that it cannot hold.
    """
    manifest, arrays = {}, {}
    for kind, group in contents.groups.items():
        for name, given in group.items():
            if given.dtype not in _DTYPES.values():
                raise BridgeError(
                    f"{name} is {given.dtype}, which a weight file cannot hold; it can hold "
                    + ", ".join(dtype.name for dtype in _DTYPES.values())
                )
            # ascontiguousarray makes a scalar a vector; safetensors scrambles anything else.
            array = np.ascontiguousarray(given).reshape(given.shape)
            arrays[name] = array
            manifest[name] = {
                "kind": kind,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "sha256": digest(array.tobytes()),
            }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": json.dumps(manifest),
        "provenance": json.dumps(contents.provenance),
        **contents.extra,
    }
    try:
        write_file(Path(path), _sorted(safetensors.numpy.save(arrays, metadata)))
    except OSError as error:
        raise BridgeError(
            f"cannot write the weights to {path}: {error.strerror}; what was there before is "
            "untouched"
        ) from error


def unpack(path: Path) -> Contents:
    """Everything in a file, each array checked against the manifest; all arrays are copies.

    Raises:
        BridgeError: the file is missing, truncated, not of this format or version, or its
            arrays are not those of its manifest.
    """
    try:
        data = Path(path).read_bytes()
        entries = safetensors.deserialize(data)
        metadata = _header(data).get("__metadata__") or {}
    except OSError as error:
        raise BridgeError(f"cannot read the weights {path}: {error.strerror}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise BridgeError(
            f"{path} is not a whole safetensors file ({error}); it was cut short or is something "
            "else: save the weights again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise BridgeError(
            f"{path} holds tensors without this project's manifest; load it into the torch module "
            "yourself and save that with bridge.weights.save"
        )
    if metadata.get("version") != str(VERSION):
        raise BridgeError(
            f"{path} has format version {metadata.get('version')}; this program reads {VERSION}"
        )
    try:
        manifest = json.loads(metadata.pop("manifest"))
        provenance = json.loads(metadata.pop("provenance"))
        arrays = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
        _check_manifest(path, manifest, arrays)
        groups: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
        for name, entry in manifest.items():
            groups[entry["kind"]][name] = arrays[name].copy()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BridgeError):
            raise
        raise BridgeError(f"{path} has a damaged manifest ({error!r}); save it again") from error
    extra = {key: metadata[key] for key in metadata if key not in ("format", "version")}
    return Contents(groups, provenance, extra)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _header(data: bytes) -> dict:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _sorted(data: bytes) -> bytes:
    """The same file with its metadata in order: safetensors writes them in a random one."""
    header = _header(data)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + body


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
        if digest(arrays[name].tobytes()) != entry["sha256"]:
            raise BridgeError(f"{path}: the values of {name} were changed after it was saved")
