"""A mirror as one file, for kernels on machines without torch.

The file is that of `bridge.weights` with the program in its metadata, as JSON with one spelling for
each program. Nothing in it is executed or unpickled; every fault is found before anything runs.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.ops import OPERATORS
from bridge.program import IMAGES, DType, Node, Program, Ref, Site, Weight, references
from bridge.weights import Contents, digest, pack, unpack

_NAMED = {"ref": Ref, "weight": Weight, "dtype": DType}


def encode(program: Program) -> str:
    """The program as JSON.

    Raises:
        BridgeError: an argument of a node is of a type that the file cannot hold.
    """
    nodes = []
    for node in program.nodes:
        try:
            args = [encode_value(value) for value in node.args]
            kwargs = {key: encode_value(value) for key, value in node.kwargs.items()}
        except BridgeError as error:
            raise BridgeError(f"{_describe(node)}: {error}") from error
        nodes.append({**vars(node), "args": args, "kwargs": kwargs})
    contents = {
        "images": program.images,
        "output": program.output.node,
        "nodes": nodes,
        "sites": [vars(site) for site in program.sites],
        "one_by_one": program.one_by_one,
    }
    return json.dumps(contents, allow_nan=False)


def decode(text: str) -> Program:
    """The program that `encode` wrote; check it by `faults`.

    Raises:
        BridgeError: the text is not of that form.
    """
    try:
        contents = json.loads(text, parse_constant=_no_constant)
        if not isinstance(contents["one_by_one"], bool):
            raise TypeError(f"{contents['one_by_one']!r} is not true or false")
        return Program(
            images=_text(contents["images"]),
            nodes=tuple(_node(**node) for node in contents["nodes"]),
            output=Ref(_text(contents["output"])),
            sites=tuple(_site(**site) for site in contents["sites"]),
            one_by_one=contents["one_by_one"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BridgeError(f"this is not the JSON of a program ({error!r})") from error


def _node(args: list, kwargs: dict, **texts: Any) -> Node:
    return Node(
        args=tuple(decode_value(value) for value in args),
        kwargs={key: decode_value(value) for key, value in kwargs.items()},
        **{key: _text(value) for key, value in texts.items()},
    )


def _site(parameters: list, buffers: list, **texts: Any) -> Site:
    return Site(
        parameters=tuple(map(_text, parameters)),
        buffers=tuple(map(_text, buffers)),
        **{key: _text(value) for key, value in texts.items()},
    )


def encode_value(value: Any) -> Any:
    """An argument of a node as a value of JSON."""
    for key, kind in _NAMED.items():
        if isinstance(value, kind):
            return {key: value[0]}
    if isinstance(value, tuple):
        return [encode_value(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BridgeError(
        f"an argument is of type {type(value).__name__}; a file can hold numbers, strings, None, "
        "tuples, references, weights and dtypes"
    )


def decode_value(value: Any) -> Any:
    """The inverse of `encode_value`."""
    if isinstance(value, list):
        return tuple(decode_value(part) for part in value)
    if not isinstance(value, dict):
        return value
    ((key, content),) = value.items()
    if key == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    return _NAMED[key](_text(content))


def faults(program: Program, trainable: Collection[str], frozen: Collection[str]) -> Iterator[str]:
    """Faults that keep a program from running with arrays of these names, one line each."""
    known = {program.images}
    for node in program.nodes:
        if node.op not in OPERATORS:
            yield f"{node.op} in {_describe(node)} has no row in bridge.ops"
        for ref in references(node, Ref):
            if ref.node not in known:
                yield f"{_describe(node)} refers to {ref.node!r}, which no node before it is called"
        for weight in references(node, Weight):
            if weight.name not in trainable and weight.name not in frozen:
                yield f"{_describe(node)} uses the array {weight.name!r}, which is not there"
        for dtype in references(node, DType):
            if dtype.name != IMAGES and not _is_dtype(dtype.name):
                yield f"{_describe(node)} uses the dtype {dtype.name!r}, which JAX does not have"
        if node.name in known:
            yield f"{_describe(node)} has the name of another"
        known.add(node.name)
    if program.output.node not in known:
        yield f"the output {program.output.node!r} is not a node"
    yield from _site_faults(program, trainable)


def _site_faults(program: Program, trainable: Collection[str]) -> Iterator[str]:
    """A fault if the sites are not the nodes that consume an array, in order."""
    consumers = {
        node.name: (
            tuple(w.name for w in references(node, Weight) if w.name in trainable),
            tuple(w.name for w in references(node, Weight) if w.name not in trainable),
        )
        for node in program.nodes
        if next(references(node, Weight), None)
    }
    sites = {site.node: (site.parameters, site.buffers) for site in program.sites}
    names = {site.name for site in program.sites}
    if list(sites.items()) != list(consumers.items()) or len(names) != len(program.sites):
        yield "its sites are not the nodes that consume an array"


def _describe(node: Node) -> str:
    layer = f"layer {node.module!r}" if node.module else "the network's own forward"
    return f"node {node.name!r} of {layer}" + (f" ({node.source})" if node.source else "")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _is_dtype(name: str) -> bool:
    try:
        jnp.dtype(name)
    except TypeError:
        return False
    return True


VERSION = 1


def save(mirror: Mirror, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write a mirror, network and arrays, to one safetensors file.

    A file that is there is replaced at once, or stays. The same mirror makes the same bytes.

    Args:
        mirror: of the route `torch.export`.
        path: where.
        provenance: strings about the origin of the weights.

    Raises:
        BridgeError: the mirror is not a list of operators, or the file cannot be written.
    """
    if mirror.program is None:
        raise BridgeError(
            f"a mirror of the route {mirror.route} is Python code, which no file of this project "
            "holds; only one that torch.export made can be saved. Save the weights "
            "(bridge.weights.save), and where they are needed make the mirror again and give it "
            "the weights with with_weights"
        )
    text = encode(mirror.program)
    arrays: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "buffer": {}, "constant": {}}
    for name, array in mirror.params.items():
        arrays["parameter"][name] = np.asarray(array)
    for name, array in mirror.frozen.items():
        arrays["constant" if name in mirror.constants else "buffer"][name] = np.asarray(array)
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
