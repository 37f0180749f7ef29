"""Which parts of a mirror stand for which parts of its network.

From the arrays of both to a refusal where they differ, and from the sites of one and the calls of
the other to pairs that must agree.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from bridge.errors import ParityError
from bridge.export import to_numpy
from bridge.mirror import Mirror
from bridge.nodes import Site
from bridge.reference import Call


def weights_of_site(site: Site) -> tuple[str, ...]:
    """Every array of the network that a site consumes, by name."""
    return site.parameters + site.buffers


def pairs(sites: list[Site], calls: Sequence[Call]) -> list[tuple[Site, Call]]:
    """Sites with the torch calls they stand for: the k-th to consume the same weight."""
    partners: dict[int, int] = {}
    for weight in {name for call in calls for name in call.weights}:
        ours = [i for i, site in enumerate(sites) if weight in weights_of_site(site)]
        theirs = [j for j, call in enumerate(calls) if weight in call.weights]
        if len(ours) == len(theirs):
            partners |= dict(zip(ours, theirs, strict=True))
    return [(sites[i], calls[j]) for i, j in sorted(partners.items())]


def check_weights(module: nn.Module, mirror: Mirror) -> None:
    """The arrays of a mirror must be those of its network, bit for bit."""
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    if trainable != set(mirror.params):
        odd = ", ".join(sorted(trainable ^ set(mirror.params)))
        raise ParityError(
            f"the network and the mirror differ in their trainable parameters: {odd}; mirror the "
            "network again after it was changed"
        )
    held = {**mirror.params, **mirror.frozen}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        theirs = to_numpy(tensor)
        ours = np.asarray(held[name]) if name in held else None
        if ours is None or ours.shape != theirs.shape:
            raise ParityError(
                f"{name} is not in the mirror in the network's shape; mirror it again"
            )
        if not np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=True):
            raise ParityError(
                f"the mirror's {name} is not the network's: it was trained or loaded since, or two "
                "arrays were swapped; give the mirror its weights again with with_weights"
            )
