"""A person's own JAX function as the mirror: certified like any other, every misfit named."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bridge.errors import BridgeError, ParityError
from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from bridge.trace import mirror
from bridge.twin import At, Targets, Twin, twin
from kernel.ntk import empirical_ntk
from kernel.options import Request

CLASSES, SHAPE = 5, (3, 8, 6)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *SHAPE)).astype("float32")


class Net(nn.Module):
    """A convolution, BatchNorm, a flatten, tied layers and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.dense = nn.Linear(4 * 4 * 3, 7)
        self.again = nn.Linear(7, 7, bias=False)
        self.twice = nn.Linear(7, 7, bias=False)
        self.twice.weight = self.again.weight
        self.head = nn.Linear(7, CLASSES)
        self.head.bias.requires_grad_(False)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(F.relu(self.norm(self.conv(x))).flatten(1)) * self.scale
        return self.head(torch.tanh(self.twice(torch.tanh(self.again(x)))))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net().eval()
        net.norm.running_mean = torch.randn(4) / 4
        net.norm.running_var = torch.rand(4) + 0.5
    return net


def normalise(x: jax.Array, scale: Any, bias: Any, mean: Any, var: Any) -> jax.Array:
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def function(tree: Any, x: jax.Array) -> jax.Array:
    """NHWC, kernels as flax has them, the tied weight in two leaves."""
    p, stats = tree["params"], tree["stats"]
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, p["conv"]["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims
    )
    x = normalise(x + p["conv"]["bias"], p["norm"][0], p["norm"][1], *stats)
    x = jax.nn.relu(x).reshape(len(x), -1) @ p["dense"]["kernel"] + p["dense"]["bias"]
    x = jnp.tanh(jnp.tanh(x * tree["half"] @ p["first"]) @ p["second"])
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


LIKE: dict[str, Any] = {
    "params": {
        "conv": {"kernel": array(3, 3, 3, 4), "bias": array(4)},
        "norm": [array(4), array(4)],
        "dense": {"kernel": array(48, 7), "bias": array(7)},
        "first": array(7, 7),
        "second": array(7, 7),
        "head": {"kernel": array(7, CLASSES), "bias": array(CLASSES)},
    },
    "stats": (array(4), array(4)),
    "half": 0.5,
}
NAMES: dict[str, Targets] = {
    "conv.weight": At("params/conv/kernel", axes=(2, 3, 1, 0)),
    "conv.bias": "params/conv/bias",
    "norm.weight": "params/norm/0",
    "norm.bias": "params/norm/1",
    "norm.running_mean": "stats/0",
    "norm.running_var": "stats/1",
    "norm.num_batches_tracked": None,
    "dense.weight": At("params/dense/kernel", axes=(2, 3, 1, 0), split=(7, 4, 4, 3)),
    "dense.bias": "params/dense/bias",
    "again.weight": (At("params/first", axes=(1, 0)), At("params/second", axes=(1, 0))),
    "head.weight": At("params/head/kernel", axes=(1, 0)),
    "head.bias": "params/head/bias",
}


def make(net: nn.Module, names: dict[str, Targets] | None = None, like: Any = None) -> Mirror:
    names, like = names or NAMES, like or LIKE
    return twin(net, images(2), function, like, names, layout="NHWC")


def test_a_twin_is_certified_and_its_kernel_is_that_of_the_mirror() -> None:
    net = network()
    own, plain = make(net), mirror(net, images(2))
    assert own.route == "twin"
    assert set(own.params) == set(plain.params)
    assert set(own.frozen) == set(plain.frozen)
    assert own.constants == plain.constants == {"scale"}
    assert own.params["conv.weight"].shape == (4, 3, 3, 3)
    certificate = certify(net, own, images(4))
    assert certificate.logits_float64 < 1e-13
    assert certificate.gradients < 1e-12
    kernels = [
        empirical_ntk(m.model(), images(3), Request(precision="float64")) for m in (own, plain)
    ]
    np.testing.assert_allclose(kernels[0].values, kernels[1].values, rtol=1e-10)


def test_the_function_outlives_the_weights_and_compiles_once() -> None:
    own, other = make(network()), network(seed=1)
    traces = []

    def traced(function, params, frozen, x):
        traces.append(1)
        return function(params, frozen, x)

    run = jax.jit(traced, static_argnums=0)
    run(*own.model(), images(2))
    later = own.with_weights(weights_of(other))
    theirs = other(torch.tensor(images(2))).detach().numpy()
    np.testing.assert_allclose(run(*later.model(), images(2)), theirs, atol=1e-6)
    assert later.function is own.function
    assert len(traces) == 1
    certify(other, later, images(2))


def test_a_wrong_function_and_a_transposition_that_is_forgotten_are_caught() -> None:
    net = network()
    forgotten = make(net, NAMES | {"again.weight": ("params/first", "params/second")})
    with pytest.raises(ParityError, match="first disagree in the logits"):
        certify(net, forgotten, images(2))
    own = make(net)
    assert isinstance(own.function, Twin)
    wrong = dataclasses.replace(own.function, function=lambda t, x: function(t, x * 1.001))
    with pytest.raises(ParityError, match="first disagree in the logits"):
        certify(net, dataclasses.replace(own, function=wrong), images(2))


def test_a_tied_parameter_goes_by_any_of_its_names() -> None:
    net = network()
    names = {k: v for k, v in NAMES.items() if k != "again.weight"} | {
        "again.weight": At("params/first", axes=(1, 0)),
        "twice.weight": At("params/second", axes=(1, 0)),
    }
    certify(net, make(net, names), images(2))


def test_arrays_serve_as_a_template_and_stay_out_of_the_mirror() -> None:
    filled = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "float32"), LIKE["params"])
    net = network()
    own = make(net, like=LIKE | {"params": filled})
    assert isinstance(own.function, Twin)
    assert not [leaf for leaf in own.function.leaves if hasattr(leaf, "shape")]
    certify(net, own, images(2))


def test_axes_of_size_one_need_no_word() -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, (8, 6)), nn.Flatten()).eval()

    def own(tree: Any, x: jax.Array) -> jax.Array:
        rows = jnp.einsum("nchw,ochw->no", x, tree["kernel"])
        return (rows[..., None, None] + tree["bias"])[..., 0, 0]

    like = {"kernel": array(CLASSES, *SHAPE), "bias": array(CLASSES, 1, 1)}
    certify(
        net, twin(net, images(2), own, like, {"0.weight": "kernel", "0.bias": "bias"}), images(2)
    )


def faults(names: dict[str, Targets], like: Any = None) -> str:
    with pytest.raises(
        BridgeError, match="the names do not map the network onto the tree"
    ) as caught:
        make(network(), names, like)
    return str(caught.value)


def test_every_fault_is_listed_at_once() -> None:
    names = {k: v for k, v in NAMES.items() if k not in ("conv.bias", "norm.num_batches_tracked")}
    names |= {
        "head.wieght": "params/head/kernel",
        "head.weight": "params/head/kernel",
        "head.bias": None,
        "dense.bias": None,
        "norm.weight": "params/nrom/0",
        "norm.running_var": "stats/0",
    }
    message = faults(names)
    for line in (
        "the network has no 'head.wieght'; did you mean 'head.weight'?",
        "conv.bias, of shape (4,), has no leaf\n",
        "norm.num_batches_tracked, of shape (), has no leaf; give it None if the function does",
        "dense.bias is trainable, so it cannot be left out",
        "norm.weight: the tree has no leaf 'params/nrom/0'; did you mean 'params/norm/0'?",
        "norm.running_var: norm.running_mean fills stats/0 already",
        "head.weight has shape (5, 7), params/head/kernel has (7, 5); axes=(1, 0) would fit",
        "nothing fills params/conv/bias, which has shape (4,)",
        "nothing fills stats/1, which has shape (4,)",
        "nothing fills params/head/bias",
    ):
        assert line in message


MISFITS: dict[str, tuple[str, Targets, str]] = {
    "the usual transposition": (
        "conv.weight",
        "params/conv/kernel",
        "(4, 3, 3, 3), params/conv/kernel has (3, 3, 3, 4); axes=(2, 3, 1, 0) would fit, and is",
    ),
    "wrong axes": (
        "conv.weight",
        At("params/conv/kernel", axes=(1, 0, 2, 3)),
        "(3, 4, 3, 3) as At(path='params/conv/kernel', axes=(1, 0, 2, 3), split=None), params/",
    ),
    "not a permutation": (
        "head.weight",
        At("params/head/kernel", axes=(1, 1)),
        "head.weight has shape (5, 7), which cannot be transposed by (1, 1)",
    ),
    "behind a flatten": (
        "dense.weight",
        At("params/dense/kernel"),
        "dense.weight has shape (7, 48), params/dense/kernel has (48, 7); axes=(1, 0) would fit",
    ),
    "a split of another size": (
        "dense.weight",
        At("params/dense/kernel", split=(7, 4, 4)),
        "dense.weight has shape (7, 48), which cannot be split as (7, 4, 4)",
    ),
    "not an array": ("conv.bias", "half", "conv.bias: half is a float, not an array"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_shapes_that_do_not_fit(misfit: str) -> None:
    name, target, message = MISFITS[misfit]
    assert message in faults(NAMES | {name: target})


def test_as_many_entries_in_another_shape_need_a_word() -> None:
    dense = {"kernel": array(4, 3, 4, 7), "bias": array(7)}
    message = faults(
        NAMES | {"dense.weight": "params/dense/kernel"},
        LIKE | {"params": LIKE["params"] | {"dense": dense}},
    )
    assert "(4, 3, 4, 7); they have as many entries: say with split= and axes= how" in message


def test_a_dtype_of_another_kind_is_a_fault() -> None:
    like = LIKE | {"stats": (array(4), jax.ShapeDtypeStruct((4,), jnp.int32))}
    assert "norm.running_var is float32, stats/1 is int32" in faults(NAMES, like)


def test_a_function_that_does_not_return_the_logits_is_refused() -> None:
    def call(own, **options):
        return twin(network(), images(2), own, LIKE, NAMES, **options)

    with pytest.raises(BridgeError, match=r"function cannot be run on .*\(2, 3, 8, 6\): .*Error"):
        call(function)  # NHWC, given NCHW
    with pytest.raises(BridgeError, match=r"returns tuple for images of shape .*network \(2, 5\)"):
        call(lambda tree, x: (x, x))
    with pytest.raises(BridgeError, match=r"returns \(2, 3, 8, 6\) for images"):
        call(lambda tree, x: x)
    with pytest.raises(BridgeError, match=r"unknown layout 'HWC'; known: NCHW, NHWC"):
        call(function, layout="HWC")
    with pytest.raises(BridgeError, match=r"in train mode; call \.eval\(\)"):
        twin(network().train(), images(2), function, LIKE, NAMES)


def test_flax() -> None:
    linen = pytest.importorskip("flax.linen")

    class Flax(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(4, (3, 3), strides=2, padding=1)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=True, epsilon=1e-5)(x))
            x = linen.Dense(7)(x.reshape(len(x), -1)) * 0.5
            again = linen.Dense(7, use_bias=False)
            return linen.Dense(CLASSES)(jnp.tanh(again(jnp.tanh(again(x)))))

    like = jax.eval_shape(Flax().init, jax.random.key(0), jnp.zeros((2, 8, 6, 3)))
    names: dict[str, Targets] = {
        "conv.weight": At("params/Conv_0/kernel", axes=(2, 3, 1, 0)),
        "conv.bias": "params/Conv_0/bias",
        "norm.weight": "params/BatchNorm_0/scale",
        "norm.bias": "params/BatchNorm_0/bias",
        "norm.running_mean": "batch_stats/BatchNorm_0/mean",
        "norm.running_var": "batch_stats/BatchNorm_0/var",
        "norm.num_batches_tracked": None,
        "dense.weight": At("params/Dense_0/kernel", axes=(2, 3, 1, 0), split=(7, 4, 4, 3)),
        "dense.bias": "params/Dense_0/bias",
        "again.weight": At("params/Dense_1/kernel", axes=(1, 0)),
        "head.weight": At("params/Dense_2/kernel", axes=(1, 0)),
        "head.bias": "params/Dense_2/bias",
    }
    net = network()
    own = twin(net, images(2), Flax().apply, like, names, layout="NHWC")
    assert certify(net, own, images(2)).gradients < 1e-12


def test_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, CLASSES)).eval()
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0)),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(96, CLASSES, key=jax.random.key(1)),
        ]
    )
    names: dict[str, Targets] = {
        "0.weight": "layers/0/weight",
        "0.bias": "layers/0/bias",
        "3.weight": "layers/3/weight",
        "3.bias": "layers/3/bias",
    }
    own = twin(net, images(2), lambda tree, x: jax.vmap(tree)(x), model, names)
    assert certify(net, own, images(2)).gradients < 1e-12
