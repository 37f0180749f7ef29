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
            object after `with_weights` and `astype`, so that what JAX compiled for it is kept.
        params: trainable parameters by the names of torch's state dict, tied ones once.
        frozen: buffers, parameters without gradient and constants; never differentiated.
        constants: names in `frozen` that are in no state dict, so that no weight file has them.
        route: how the function came about: `torch.export`, `torch2jax` or `twin`. Only the first
            is a `Program`, whose layers can be observed and tapped.
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
        """The nodes that directly consume a trainable parameter, in order; none without taps."""
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
        given = {**weights.params, **weights.buffers}
        held = {**self.params, **{k: v for k, v in self.frozen.items() if k not in self.constants}}
        faults = [f"{name} is missing" for name in held if name not in given]
        faults += [f"{name} is not in the mirror" for name in given if name not in held]
        faults += [
            f"{name} has shape {given[name].shape}, the mirror's has {held[name].shape}"
            for name in held
            if name in given and given[name].shape != held[name].shape
        ]
        if faults:
            raise BridgeError(
                "these weights are not of the mirrored network: "
                + "; ".join(faults)
                + ". Mirror the network that they were saved from."
            )
        new = {name: jnp.array(given[name], copy=True) for name in held}
        return replace(
            self,
            params={name: new[name] for name in self.params},
            frozen={name: new.get(name, array) for name, array in self.frozen.items()},
        )

    def model(self) -> Model:
        """The mirror as the kernels take it."""
        return Model(self.function, self.params, self.frozen)
