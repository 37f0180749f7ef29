"""Several strategies on one situation: what would each of them ask for?

From a trained network, all images and the labels so far to a query by each strategy, where what
several of them need (logits, features, the mirror, the kernel) is computed once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.errors import PipelineError
from pipelines.query import situation_of
from pipelines.seeds import generator
from pipelines.strategies import STRATEGIES, needs_of
from pipelines.strategies.albl_config import ALBLConfig
from pipelines.strategies.situation import Query
from trainer.tables import lookup


def compare(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    labelled: Mapping[int, int],
    batch_size: int,
    strategies: Sequence[str],
    *,
    seed: int = 0,
    **options: Any,
) -> dict[str, Query]:
    """Ask each strategy for the same next images.

    Each answers as `pipelines.query.query` would with the same seed, but for rounding (all read the
    network's own logits) and for random projections and samples of a kernel, which all of them
    share and which follow from the seed. A kernel that is shared is kept, so that its posterior
    takes memory beside it, beyond kernel.memory_gib.

    Args:
        model: your trained network in eval mode.
        images: float (examples, channels, height, width), all of them.
        labelled: the labels so far, {index into images: class from 0}.
        batch_size: how many each chooses.
        strategies: their names.
        seed: of the subset, of what is shared, of each strategy and of ties.
        options: any other of `query`: subset, loss, kernel, lookahead, baseline and the rest.

    Raises:
        PipelineError: no strategy, or one twice; what `query` raises.
    """
    if not strategies or len(set(strategies)) < len(strategies):
        raise PipelineError(
            f"strategies are {list(strategies)}; name at least one, and each of them once."
        )
    rows = {name: lookup(STRATEGIES, name, "strategy") for name in strategies}
    arms = (options.get("albl") or ALBLConfig()).arms
    situation = situation_of(
        model,
        images,
        labelled,
        batch_size,
        needs=frozenset().union(*(needs_of(name, arms) for name in strategies)),
        seed=seed,
        shared=int(generator(seed, "shared").integers(2**63)),
        **options,
    )
    return {name: row(situation, batch_size, generator(seed, name)) for name, row in rows.items()}
