"""The portable file: a whole network that runs without torch, and a refusal of any other file."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge import module, portable, weights
from bridge.errors import BridgeError
from bridge.mirror import Mirror
from bridge.portable import decode, decode_value, encode, encode_value
from bridge.program import DType, Node, Program, Ref, Site, Weight
from bridge.trace import mirror
from kernel.ntk import empirical_ntk
from kernel.options import Request
from tests.kernel_cases import per_example_gradients
from tests.small_networks import NETWORKS, SHAPE, build

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "torch2jax"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from bridge import portable, weights
from tests.kernel_cases import per_example_gradients
from kernel.ntk import empirical_ntk
from kernel.options import Request

folder = Path(sys.argv[1])
x, v = np.load(folder / "x.npy"), np.load(folder / "v.npy")
mirror = portable.load(folder / "mirror")
same = mirror.with_weights(weights.read(folder / "mirror"))
np.savez(
    folder / "out.npz",
    logits=same.apply(same.params, x),
    gradients=per_example_gradients(mirror.model(), x, v),
    kernel=empirical_ntk(mirror.model(), x, Request("trace", precision="float64")).values,
)
assert not [name for name in sys.modules if name.startswith("torch.")]
"""


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "mirror"
    portable.save(mirror(build("handwritten"), images(2)), path, {"round": "3"})
    return path


def edit(path: Path, **changes: str) -> None:
    """The same file with other metadata."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = safetensors.numpy.load(data)
    path.write_bytes(safetensors.numpy.save(arrays, header["__metadata__"] | changes))


def program_of(path: Path) -> dict[str, Any]:
    return json.loads(weights.unpack(path).extra["program"])


def edit_program(path: Path, program: dict[str, Any]) -> None:
    """The same file with another network, as if it had been saved so."""
    text = json.dumps(program)
    edit(path, program=text, program_sha256=weights.digest(text.encode()))


@pytest.mark.parametrize("name", ["wide_resnet", "handwritten", "tied"])
def test_a_process_without_torch_computes_the_same(tmp_path: Path, name: str) -> None:
    network = build(name).double()
    twin = mirror(network, images(2))
    x, v = images(3), np.linspace(-1, 1, 5)
    portable.save(twin, tmp_path / "mirror")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "v.npy", v)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    out = np.load(tmp_path / "out.npz")
    gradients = per_example_gradients(twin.model(), jnp.asarray(x), jnp.asarray(v))
    kernel = empirical_ntk(twin.model(), x, Request("trace", precision="float64")).values
    theirs = network(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(out["logits"], theirs, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(out["gradients"], gradients, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(out["kernel"], kernel, rtol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_survives(tmp_path: Path, name: str) -> None:
    twin = mirror(build(name), images(2))
    portable.save(twin, tmp_path / "a", {"seed": "1"})
    back = portable.load(tmp_path / "a")
    assert twin.program is not None
    assert back.program is not None
    assert back.program.nodes == twin.program.nodes
    assert back.program.sites == twin.program.sites
    assert (back.program.images, back.program.output) == (twin.program.images, twin.program.output)
    assert (back.constants, back.route) == (twin.constants, twin.route)
    for ours, theirs in ((back.params, twin.params), (back.frozen, twin.frozen)):
        assert set(ours) == set(theirs)
        for key, array in ours.items():
            assert array.dtype == theirs[key].dtype
            np.testing.assert_array_equal(array, theirs[key])
    x = jnp.asarray(images(3), jnp.float32)
    np.testing.assert_array_equal(back.apply(back.params, x), twin.apply(twin.params, x))
    portable.save(back, tmp_path / "b", {"seed": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bfloat16_weights_come_back_as_bfloat16(tmp_path: Path) -> None:
    twin = mirror(build("vgg").bfloat16(), images(2))
    portable.save(twin, tmp_path / "m")
    back = portable.load(tmp_path / "m")
    assert back.params["0.weight"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(back.params["0.weight"], twin.params["0.weight"])


def test_the_weights_of_a_later_round_fit(saved: Path) -> None:
    later = build("handwritten", seed=1)
    back = portable.load(saved).with_weights(module.weights_of(later))
    x = images(2).astype("float32")
    theirs = later(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(back.apply(back.params, jnp.asarray(x)), theirs, atol=1e-6)


def test_it_is_a_weight_file_too(saved: Path) -> None:
    network, other = build("handwritten"), build("handwritten", seed=1)
    held = weights.read(saved)
    assert held.provenance == {"round": "3"}
    assert {*held.params, *held.buffers} == set(network.state_dict())
    module.restore(other, held)
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


ARRAYS: dict[str, np.ndarray] = {
    "0-d": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "bool": np.array([True, False]),
    "uint8": np.arange(3, dtype=np.uint8),
    "int64": np.array(2**62),
    "bfloat16": np.array([1.5, -0.0], ml_dtypes.bfloat16),
    "float16": np.array([[np.inf, 1e-7]], np.float16),
    "float64": np.array([np.nan, -np.inf, 5e-324]),
    "not contiguous": np.arange(6.0).reshape(2, 3).T,
}


def by_hand(
    args: tuple[Any, ...] = (Ref("x"), Weight("w")), arrays: dict[str, np.ndarray] | None = None
) -> Mirror:
    """The images times one parameter, with any arrays beside it."""
    node = Node("y", "aten.mul.Tensor", args, {}, "", "net.py:3: x * w")
    site = Site("mul", node.op, ("w",), (), "y", node.source)
    return Mirror(
        function=Program("x", (node,), Ref("y"), (site,)),
        params={"w": jnp.ones(2)},
        frozen={name: jnp.array(array) for name, array in (arrays or {}).items()},
        constants=frozenset(arrays or {}),
    )


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    portable.save(by_hand(arrays=ARRAYS), tmp_path / "m")
    back = portable.load(tmp_path / "m")
    for name, array in ARRAYS.items():
        ours = np.asarray(back.frozen[name])
        assert ours.dtype == array.dtype
        assert ours.tobytes() == np.ascontiguousarray(array).tobytes()
        assert ours.shape == array.shape
    assert not weights.read(tmp_path / "m").buffers


def test_an_array_that_no_weight_file_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="c is complex128, which a weight file cannot hold"):
        portable.save(by_hand(arrays={"c": np.array(1j)}), tmp_path / "m")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
named = st.builds(Ref, st.text()) | st.builds(Weight, st.text()) | st.builds(DType, st.text())
values = st.recursive(scalars | named, lambda part: st.lists(part).map(tuple))


def alike(a: Any, b: Any) -> bool:
    """Equal, of the same types, NaN equal to NaN and 0 not to -0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(alike(*pair) for pair in zip(a, b, strict=True))
    if isinstance(a, float):
        return math.isnan(a) and math.isnan(b) or (a == b and str(a) == str(b))
    return a == b


@given(values)
def test_arguments_survive(value: Any) -> None:
    text = json.dumps(encode_value(value), allow_nan=False)
    assert alike(decode_value(json.loads(text)), value)


@given(st.lists(values).map(tuple), st.dictionaries(st.text(), values))
def test_nodes_survive(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    node = Node("n", "aten.mul.Tensor", args, kwargs, "layer.0", "net.py:3: é")
    program = Program("x", (node,), Ref("n"), (Site("s", node.op, ("a", "b"), ("c",), "n", ""),))
    (back,) = decode(encode(program)).nodes
    assert alike(back.args, args)
    assert alike(tuple(back.kwargs.items()), tuple(kwargs.items()))
    assert encode(decode(encode(program))) == encode(program)
    assert decode(encode(program)).sites == program.sites


def test_an_argument_of_another_type_is_refused(tmp_path: Path) -> None:
    bad = by_hand((Ref("x"), Weight("w"), 1j))
    with pytest.raises(BridgeError, match=r"node 'y' .*net\.py:3.*: an argument is of type c"):
        portable.save(bad, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_mirror_without_a_program_is_refused(tmp_path: Path) -> None:
    twin = Mirror(lambda params, frozen, x: x, {}, {}, route="twin")
    with pytest.raises(BridgeError, match="a mirror of the route twin is Python code"):
        portable.save(twin, tmp_path / "m")


def test_a_file_of_weights_alone_is_refused(tmp_path: Path) -> None:
    module.save_module(build("tied"), tmp_path / "w")
    with pytest.raises(BridgeError, match="holds weights and no network: give them to a mirror"):
        portable.load(tmp_path / "w")


def test_a_truncated_file_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for kept in (0, 7, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:kept])
        with pytest.raises(BridgeError, match="not a whole safetensors file"):
            portable.load(saved)


def test_changed_weights_are_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(BridgeError, match="were changed after it was saved"):
        portable.load(saved)


def test_a_changed_network_is_refused(saved: Path) -> None:
    text = weights.unpack(saved).extra["program"]
    edit(saved, program=text.replace("aten.tanh.default", "aten.sigmoid.default"))
    with pytest.raises(BridgeError, match="the network was changed after it was saved"):
        portable.load(saved)


def test_a_newer_version_is_refused(saved: Path) -> None:
    edit(saved, program_version="2")
    with pytest.raises(BridgeError, match="in version 2 of its format; this program reads vers"):
        portable.load(saved)


def test_operators_without_a_row_are_all_listed(saved: Path) -> None:
    program = program_of(saved)
    program["nodes"][0]["op"] = "aten.first.default"
    program["nodes"][-1]["op"] = "aten.last.default"
    edit_program(saved, program)
    message = r"(?s)aten\.first\.default in node .*aten\.last\.default in .*small_networks\.py"
    with pytest.raises(BridgeError, match=message):
        portable.load(saved)


def test_references_that_lead_nowhere_are_all_listed(saved: Path) -> None:
    program = program_of(saved)
    first, second = program["nodes"][:2]
    first["args"][0], second["kwargs"] = {"ref": second["name"]}, {"b": {"dtype": "float33"}}
    program["nodes"][2]["args"][0] = {"weight": "gone"}
    program["nodes"][3]["name"] = first["name"]
    program["output"] = "nowhere"
    edit_program(saved, program)
    with pytest.raises(BridgeError) as caught:
        portable.load(saved)
    for part in (
        f"refers to {second['name']!r}, which no node before it is called",
        "uses the dtype 'float33', which JAX does not have",
        "uses the array 'gone', which is not there",
        "has the name of another",
        "the output 'nowhere' is not a node",
    ):
        assert part in str(caught.value)


def test_an_array_whose_kind_was_changed_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest = json.loads(header["__metadata__"]["manifest"])
    manifest["head.weight"]["kind"] = "buffer"
    edit(saved, manifest=json.dumps(manifest))
    with pytest.raises(BridgeError, match="its sites are not the nodes that consume an array"):
        portable.load(saved)


BROKEN = {
    "not JSON": lambda program: "{",
    "a list": lambda program: "[]",
    "NaN": lambda program: json.dumps(program | {"images": math.nan}),
    "no nodes": lambda program: json.dumps({**program, "nodes": None}),
    "a node without a name": lambda program: json.dumps({**program, "nodes": [{}]}),
    "an unknown argument": lambda program: json.dumps(program).replace('"ref"', '"file"'),
    "deep": lambda program: "[" * 100_000,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_not_a_program_is_refused(saved: Path, fault: str) -> None:
    text = BROKEN[fault](program_of(saved))
    edit(saved, program=text, program_sha256=weights.digest(text.encode()))
    with pytest.raises(BridgeError, match="this is not the JSON of a program"):
        portable.load(saved)


def test_a_full_disk_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BridgeError, match="No space left on device"):
        portable.save(mirror(build("tied"), images(2)), saved)
    assert saved.read_bytes() == before


def test_the_loaded_function_compiles_once(saved: Path) -> None:
    back = portable.load(saved)
    traces = []

    def traced(function, params, frozen, x):
        traces.append(1)
        return function(params, frozen, x)

    run = jax.jit(traced, static_argnums=0)
    run(*back.model(), jnp.zeros((2, *SHAPE)))
    run(*back.with_weights(weights.read(saved)).model(), jnp.ones((2, *SHAPE)))
    assert len(traces) == 1
