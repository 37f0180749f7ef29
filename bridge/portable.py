"""A mirror to and from one file, so that kernels are computed where torch is not installed.

The file is that of `bridge.weights`, with the program in its metadata as JSON: whatever reads
weights reads it too. Nothing in it is ever executed or unpickled, and all of it is checked when it
is loaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridge.encoding import decode, encode, faults
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.weights import Contents, digest, pack, unpack

VERSION = 1


def save(mirror: Mirror, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write a mirror, network and arrays, to one safetensors file.

    A file that is there is replaced at once, or stays. The same mirror makes the same bytes.

    Args:
        mirror: of the route `torch.export`.
        path: where.
        provenance: strings that say where the weights come from.

    Raises:
        BridgeError: the mirror is not a list of operators, or the file cannot be written.
    """
    if mirror.program is None:
        raise BridgeError(
            f"a mirror of the route {mirror.route} is Python code, which no file of this project "
            "holds; only one that torch.export made can be saved. Save the weights "
            "(bridge.export.save), and where they are needed make the mirror again and give it "
            "the weights with with_weights"
        )
    text = encode(mirror.program)
    kept = {name: array for name, array in mirror.frozen.items() if name not in mirror.constants}
    groups: dict[str, Mapping[str, Any]] = {
        "parameter": mirror.params,
        "buffer": kept,
        "constant": {n: a for n, a in mirror.frozen.items() if n in mirror.constants},
    }
    arrays = {
        kind: {name: np.asarray(array) for name, array in group.items()}
        for kind, group in groups.items()
    }
    extra = {
        "program": text,
        "program_version": str(VERSION),
        "program_sha256": digest(text.encode()),
    }
    pack(Contents(arrays, dict(provenance or {}), extra), path)


def load(path: Path) -> Mirror:
    """The mirror in a file that `save` wrote, ready to run.

    Raises:
        BridgeError: the file is truncated, was changed, is not of this format or of a newer
            version, holds weights only, or needs operators that have no row here; all of these
            are listed.
    """
    groups, _, extra = unpack(path)
    if "program" not in extra:
        raise BridgeError(
            f"{path} holds weights and no network: give them to a mirror with with_weights, or "
            "save one with bridge.portable.save"
        )
    version = extra.get("program_version")
    if version != str(VERSION):
        raise BridgeError(
            f"{path} holds a network in version {version} of its format; this program reads "
            f"version {VERSION}: load it with the version of ntk-lookahead that saved it"
        )
    text = extra["program"]
    if digest(text.encode()) != extra.get("program_sha256"):
        raise BridgeError(f"{path}: the network was changed after it was saved; save it again")
    try:
        program = decode(text)
    except BridgeError as error:
        raise BridgeError(f"{path}: {error}") from error
    params, constants = groups["parameter"], groups["constant"]
    frozen = {**groups["buffer"], **constants}
    found = list(faults(program, params, frozen))
    if found:
        raise BridgeError(
            f"{path} holds a network that this program cannot run:\n  "
            + "\n  ".join(found)
            + "\nadd an operator without a row as a JAX function decorated with bridge.ops.register"
        )
    return Mirror(
        function=program,
        params={name: jnp.array(array) for name, array in params.items()},
        frozen={name: jnp.array(array) for name, array in frozen.items()},
        constants=frozenset(constants),
    )
