"""The JAX twin of a PyTorch network: one pure function and its arrays, without torch.

Trainable parameters by torch's own names; buffers, which are not parameters and are never
differentiated, and frozen parameters apart; and the sites at which parameters enter.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bridge.errors import BridgeError
from bridge.program import Program, Site
from bridge.weights import Weights
from kernel.model import Function, Model


@dataclass(frozen=True, eq=False)
class Mirror:
    """A network as a function of its parameters.

    Attributes:
        function: `function(params, frozen, x)` → logits (batch, classes); pure, and the same
            object after `with_weights` and `astype`, so that JAX does not compile it again.
        params: trainable parameters by the names of torch's state dict, tied ones once.
        frozen: buffers, parameters without gradient and constants; never differentiated.
        constants: names in `frozen` that are in no state dict, so that no weight file has them.
        route: `torch.export`, `torch2jax` or `twin`. Only the first gives a `Program`, whose layers
            can be observed and tapped.
    """

    function: Function
    params: dict[str, Array]
    frozen: dict[str, Array]
    constants: frozenset[str] = frozenset()
    route: str = "torch.export"

    @property
    def program(self) -> Program | None:
        """The function as a list of operators, if it is one."""
        return self.function if isinstance(self.function, Program) else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The nodes that directly consume a trainable parameter, in order; empty without taps."""
        return tuple(s for s in self.program.sites if s.parameters) if self.program else ()

    def apply(self, params: dict[str, Array], x: Array) -> Array:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        return self.function(params, self.frozen, x)

    def astype(self, dtype: DTypeLike) -> "Mirror":
        """The same mirror with every floating array in another dtype."""

        def cast(array: Array) -> Array:
            return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

        return replace(
            self,
            params={name: cast(array) for name, array in self.params.items()},
            frozen={name: cast(array) for name, array in self.frozen.items()},
        )

    def with_weights(self, weights: Weights) -> "Mirror":
        """The same function with the arrays of another round.

        Raises:
            BridgeError: a name is missing or unknown, or a shape differs; all are listed.
        """
        new = {**weights.params, **weights.buffers}
        old = {**self.params, **{k: v for k, v in self.frozen.items() if k not in self.constants}}
        faults = [f"{name} is missing" for name in old if name not in new]
        faults += [f"{name} is not in the mirror" for name in new if name not in old]
        faults += [
            f"{name} has shape {new[name].shape}, the mirror's has {old[name].shape}"
            for name in old
            if name in new and new[name].shape != old[name].shape
        ]
        if faults:
            raise BridgeError(
                "these weights are not of the mirrored network: "
                + "; ".join(faults)
                + ". Mirror the network that they were saved from."
            )
        arrays = {name: jnp.array(new[name], copy=True) for name in old}
        return replace(
            self,
            params={name: arrays[name] for name in self.params},
            frozen={name: arrays.get(name, array) for name, array in self.frozen.items()},
        )

    def model(self) -> Model:
        """The mirror as a `kernel.model.Model`."""
        return Model(self.function, self.params, self.frozen)
