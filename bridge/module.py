"""A PyTorch module's checks, its copy on the CPU, its arrays, and the dtype that it runs in."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from jax import Array
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bridge.errors import BridgeError
from bridge.weights import Weights, save
from kernel import x64  # noqa: F401


class ModuleArrays(NamedTuple):
    """The arrays of a module; none shares memory with it.

    Attributes:
        params: trainable parameters by canonical name: a tied one has the first of its names.
        frozen: buffers and parameters without gradient.
        constants: names in `frozen` that are in no state dict.
    """

    params: dict[str, Array]
    frozen: dict[str, Array]
    constants: frozenset[str]


def module_arrays(module: nn.Module) -> ModuleArrays:
    """Copies of a module's parameters and buffers, as a mirror keeps them."""
    params, frozen = {}, {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        array = jnp.array(to_numpy(tensor), copy=True)
        (params if tensor.requires_grad else frozen)[name] = array
    return ModuleArrays(params, frozen, frozenset(frozen).difference(module.state_dict()))


def canonical_names(module: nn.Module) -> dict[str, str]:
    """For each name of a parameter or buffer, the first name of the same tensor."""
    names: dict[int, str] = {}
    every = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {name: names.setdefault(id(tensor), name) for name, tensor in every}


def check_eval(module: nn.Module) -> None:
    """Refuse a module of which any part is in train mode."""
    if module.training:
        raise BridgeError("the network is in train mode; call .eval() before mirroring it")
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise BridgeError(
            f"these layers are in train mode: {', '.join(training)}; call .eval() on the network "
            "before mirroring it"
        )


def copy_to_cpu(
    module: nn.Module, example: np.ndarray | torch.Tensor
) -> tuple[nn.Module, torch.Tensor]:
    """A copy of the module, and the images in its dtype, both on the CPU."""
    images = torch.tensor(example) if isinstance(example, np.ndarray) else example.detach().cpu()
    if images.ndim < 2 or images.shape[0] < 2:
        raise BridgeError(
            f"the example has shape {tuple(images.shape)}; it must be a batch of at least two "
            "images (batch, channels, height, width), or the batch size could not be left free"
        )
    network = copy_module(module)
    dtypes = [p.dtype for p in network.parameters() if p.is_floating_point()]
    return network, images.to(dtypes[0] if dtypes else torch.get_default_dtype())


def copy_module(module: nn.Module, device: torch.device | str | None = "cpu") -> nn.Module:
    """A copy that shares nothing with the module and runs as plain Python.

    Unlike `copy.deepcopy`, it copies tensors that hooks computed, gives forwards and hooks that
    were patched onto an instance the copied layers in place of the original ones, and takes away
    torch.compile and DataParallel.

    Args:
        module: in any mode.
        device: of the copy; where the module is if None.

    Raises:
        BridgeError: the module holds something that cannot be copied.
    """
    held = [leaf for part in module.modules() for leaf in tree_leaves(vars(part))]
    computed = [t for t in held if isinstance(t, torch.Tensor) and not t.is_leaf]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    try:
        copied = copy.deepcopy(module, memo)
        if device is not None:
            copied = copied.to(device)
        for part in copied.modules():
            _rebind(part, memo)
    except (RuntimeError, TypeError) as error:
        raise BridgeError(
            f"the network cannot be copied ({error}); hold nothing in it but modules, tensors and "
            "plain values"
        ) from error
    return copied


def _rebind(part: nn.Module, memo: dict[int, Any]) -> None:
    """Let what is patched onto a copied module refer to copies, and let it run uncompiled."""
    state = vars(part)
    for name, value in list(state.items()):
        if isinstance(value, FunctionType):
            state[name] = _rebound(value, memo)
        elif name.endswith("_hooks") and isinstance(value, dict):
            value.update({key: _rebound(hook, memo) for key, hook in value.items()})
    plain = getattr(part.forward, "_torchdynamo_orig_callable", None)  # of torch.compile
    if state["_modules"].get("_orig_mod") is not None:
        state["forward"] = state["_modules"]["_orig_mod"].__call__
    elif plain is not None:
        bound = isinstance(plain, MethodType)
        state["forward"] = copy.deepcopy(plain, memo) if bound else MethodType(plain, part)
    if part._compiled_call_impl is not None:  # module.compile()
        part._compiled_call_impl = None
    if isinstance(part, nn.DataParallel):
        part.device_ids = []


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """A function, or a method of a module, that refers to the copies of modules and tensors.

    Args:
        value: anything; a closure is rebuilt, since `copy.deepcopy` keeps functions as they are.
        memo: of the deep copy that these were made by.
    """
    if isinstance(value, FunctionType) and value.__closure__:
        if id(value) not in memo:
            cells = tuple(CellType() for _ in value.__closure__)
            memo[id(value)] = FunctionType(
                value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
            )
            memo[id(value)].__kwdefaults__ = value.__kwdefaults__
            vars(memo[id(value)]).update(vars(value))
            for cell, old in zip(cells, value.__closure__, strict=True):
                with contextlib.suppress(ValueError):  # an empty cell
                    cell.cell_contents = _rebound(old.cell_contents, memo)
        return memo[id(value)]
    refers = isinstance(value, (nn.Module, torch.Tensor, MethodType, functools.partial))
    return copy.deepcopy(value, memo) if refers else value


def check_output(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits (batch, classes) of the images.

    Raises:
        BridgeError: the network cannot be run, or what it returns is something else.
    """
    return _checked(_output(network, images), images)


def logits_in(output: Any) -> Any:
    """The tensor `logits` of an object or dictionary, as Hugging Face's models return them.

    Anything else is returned as it is. As in `trainer.predict`, which the bridge does not import.
    """
    if isinstance(output, torch.Tensor | tuple | list):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else None
    found = getattr(output, "logits", None) if found is None else found
    return found if isinstance(found, torch.Tensor) else output


def returning_logits(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copied network that returns its logits alone, where it returns an object that holds them.

    Raises:
        BridgeError: as `check_output`.
    """
    output = _output(network, images)
    _checked(output, images)
    if not isinstance(output, torch.Tensor):
        forward = network.forward
        network.forward = lambda images: logits_in(forward(images))
    return network


def _output(network: nn.Module, images: torch.Tensor) -> Any:
    try:
        with torch.no_grad():
            return network(images)
    except Exception as error:
        raise BridgeError(
            f"the network cannot be run on images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _checked(output: Any, images: torch.Tensor) -> torch.Tensor:
    logits = logits_in(output)
    if isinstance(logits, (dict, tuple, list)):
        keys = f"({', '.join(map(str, logits))})"
        parts = keys if isinstance(logits, dict) else f"of {len(logits)}"
        raise BridgeError(
            f"the network returns a {type(logits).__name__} {parts}; it must return the logits "
            "alone: wrap it in a module that picks one entry"
        )
    if not isinstance(logits, torch.Tensor):
        raise BridgeError(
            f"the network returns a {type(logits).__name__}; it must return a tensor of logits"
        )
    if logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        raise BridgeError(
            f"the network returns shape {tuple(logits.shape)} for {images.shape[0]} images; it "
            f"must return ({images.shape[0]}, classes)"
        )
    if not logits.is_floating_point():
        raise BridgeError(
            f"the network returns {logits.dtype}; it must return real logits, before any argmax"
        )
    return logits


def check_stateless(module: nn.Module, example: np.ndarray | torch.Tensor) -> None:
    """Refuse a network whose logits depend on the images it has seen before.

    Two copies are given the same images, one of them after others, so that counters and caches
    show. Call it after the checks of randomness and batch statistics, whose messages say more.

    Raises:
        BridgeError: the logits of the two differ by more than rounding.
    """
    fresh, images = copy_to_cpu(module, example)
    used, _ = copy_to_cpu(module, example)
    check_output(used, images)
    values = torch.cos(torch.arange(images.numel(), dtype=torch.float64))
    others = values.reshape(images.shape).to(images.dtype)
    first, second = check_output(fresh, others).double(), check_output(used, others).double()
    # The certificate refuses logits that are not finite.
    scale = float(first.nan_to_num(0, 0, 0).abs().max().clamp(min=torch.finfo(images.dtype).tiny))
    allowed = scale * torch.finfo(images.dtype).eps ** 0.5
    if torch.allclose(first, second, rtol=0, atol=allowed, equal_nan=True):
        return
    difference = float((first - second).abs().max())
    raise BridgeError(
        f"the network gives other logits for the same images once it has seen different ones (by "
        f"{difference:.3g}, among values up to {scale:.3g}): they depend on something that forward "
        "keeps in Python, such as a counter or a cache, or on random numbers; make forward a "
        "function of its images and parameters alone"
    )


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A C-contiguous copy that shares no memory with the tensor; bfloat16 stays bfloat16."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return np.array(tensor.numpy(), order="C", copy=True)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def weights_of(module: nn.Module, provenance: Mapping[str, str] | None = None) -> Weights:
    """Copies of the arrays in a module's state dict, tied ones once."""
    persistent = module.state_dict().keys()
    return Weights(
        params={name: to_numpy(p) for name, p in module.named_parameters()},
        buffers={name: to_numpy(b) for name, b in module.named_buffers() if name in persistent},
        provenance=dict(provenance or {}),
    )


def save_module(module: nn.Module, path: Path, provenance: Mapping[str, str] | None = None) -> None:
    """Write a module's weights to one safetensors file, which `bridge.weights.read` reads.

    Args:
        module: what to save.
        path: where; a file that is there is replaced at once, or stays.
        provenance: strings about the origin of the weights.

    Raises:
        BridgeError: the file cannot be written (a full disk, a folder that is not there).
    """
    save(weights_of(module, provenance), path)


def restore(module: nn.Module, weights: Weights) -> None:
    """Write weights into a torch module, on its own device.

    Raises:
        BridgeError: a name is missing or unknown, or a shape or dtype differs; all are listed,
            and the module is left as it was.
    """
    persistent = module.state_dict().keys()
    targets: dict[str, torch.Tensor] = dict(module.named_parameters())
    targets |= {name: b for name, b in module.named_buffers() if name in persistent}
    given = {name: to_torch(array) for name, array in {**weights.params, **weights.buffers}.items()}
    faults = [f"{name} is missing" for name in targets if name not in given]
    faults += [f"{name} is not in the network" for name in given if name not in targets]
    for name in targets.keys() & given.keys():
        old, new = targets[name], given[name]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            faults.append(
                f"{name} is {new.dtype} {tuple(new.shape)}, the network's is "
                f"{old.dtype} {tuple(old.shape)}"
            )
    if faults:
        raise BridgeError("these weights do not fit the network: " + "; ".join(sorted(faults)))
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(given[name])


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CASTS = tuple(getattr(torch.Tensor, name) for name in ("half", "bfloat16", "float", "double"))
_TENSOR_TYPE = type(torch.FloatTensor)


@contextlib.contextmanager
def one_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give every floating tensor that torch code makes or reads one dtype, and ignore autocast.

    A cast (`.float()`, an argument `dtype`) and autocast choose a precision, not another function.
    Without them a network can be traced and compared in float64, where a difference from its mirror
    is a fault and not rounding. Tensors that are written in place keep their dtype.
    """
    own = {name: getattr(torch.autocast, name) for name in ("__enter__", "__exit__")}
    enabled = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    try:
        for name in own:  # torch.export records autocast when it is entered, enabled or not
            setattr(torch.autocast, name, _ignored)
        with _OneDtype(dtype):
            yield
    finally:
        for name, method in own.items():
            setattr(torch.autocast, name, method)
        torch.set_autocast_enabled("cpu", enabled)


def _ignored(_: torch.autocast, *_exception: object) -> None:
    """Do nothing, in place of entering or leaving autocast."""


class _OneDtype(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return self._cast(args[0], force=True)
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            return func(args[0], *tree_map(self._cast, args[1:]), **tree_map(self._cast, kwargs))
        args, kwargs = tree_map(self._cast, (tuple(args), kwargs))
        return tree_map(self._cast, func(*args, **kwargs))

    def _cast(self, value: Any, force: bool = False) -> Any:
        if isinstance(value, torch.Tensor):
            other = force or value.dtype in _FLOATS
            return value.to(self.dtype) if other and value.dtype is not self.dtype else value
        if isinstance(value, _TENSOR_TYPE):
            value = value.dtype
        return self.dtype if isinstance(value, torch.dtype) and value in _FLOATS else value


class CoarsestDtype(TorchDispatchMode):
    """Records the floating dtype of lowest precision among the results of torch's operators.

    Attributes:
        dtype: the coarsest so far.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """Start with the dtype that the network's own arrays have."""
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and look at its results."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                if torch.finfo(leaf.dtype).eps > torch.finfo(self.dtype).eps:
                    self.dtype = leaf.dtype
        return output
