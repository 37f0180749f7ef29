"""A module that is trained together with a network: what `trainer.fit.fit` asks of it.

In every step it sees what the network computes for a batch and the loss of each image, and adds
something to the batch's loss. It is trained by the network's optimiser, in a group of parameters
of its own, and goes back to its start when the network does.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Companion(Protocol):
    """What is trained along; any `nn.Module` with `rate`, `watch` and `added` is one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained, in a group of its own."""
        ...

    def rate(self, network_rate: float) -> float:
        """The highest learning rate of its group, where that of the network's is given."""
        ...

    def watch(self, network: nn.Module) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """While it is entered, one forward pass of the network fills the sequence."""
        ...

    def added(
        self, seen: Sequence[torch.Tensor], losses: torch.Tensor, done: float
    ) -> torch.Tensor:
        """What is added to the loss of a batch: a scalar.

        Args:
            seen: what `watch` gave for this batch.
            losses: (batch,), the loss of each image, detached.
            done: the part of the planned schedule that is over, from 0; 1 in extensions.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is restored after a schedule that diverged."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Restore it."""
        ...

    def train(self) -> object:
        """A step follows."""
        ...

    def eval(self) -> object:
        """No step follows for now."""
        ...
