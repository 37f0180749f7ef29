"""Run torch code in one floating dtype, whatever dtypes it asks for, and find the coarsest it uses.

A cast (`.float()`, `.to(torch.bfloat16)`, an argument `dtype`) and autocast choose a precision, not
another function. Without them a network can be traced and compared in float64, where a difference
from its mirror is a fault and not rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CASTS = (Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double)
_TENSOR_TYPE = type(torch.FloatTensor)


@contextmanager
def one_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give every floating tensor that torch code makes or reads one dtype, and ignore autocast.

    Tensors that are written in place keep theirs.
    """
    autocast = torch.autocast
    enter, leave = autocast.__enter__, autocast.__exit__
    enabled = torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("cpu", False)
    # torch.export records autocast when it is entered, whether or not it is enabled.
    autocast.__enter__, autocast.__exit__ = lambda self: self, lambda *_: None
    try:
        with _OneDtype(dtype):
            yield
    finally:
        autocast.__enter__, autocast.__exit__ = enter, leave
        torch.set_autocast_enabled("cpu", enabled)


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
        if isinstance(value, Tensor):
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
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                if torch.finfo(leaf.dtype).eps > torch.finfo(self.dtype).eps:
                    self.dtype = leaf.dtype
        return output
