"""What a strategy needs of a network, looked for before the network is trained.

From the needs of a strategy, a network and a few images to nothing, or to a refusal in plain words.
"""

from collections.abc import Set

import numpy as np
from torch import nn

from pipelines.strategies.bald import require_dropout
from pipelines.strategies.infinite import architecture_of
from trainer.penultimate import find_head


def require(needs: Set[str], network: nn.Module, images: np.ndarray) -> None:
    """Refuse a network that a strategy cannot be asked with.

    Args:
        needs: of the strategy, names of `method.NEEDS`.
        network: in eval mode, trained or not.
        images: a few, as the network takes them.

    Raises:
        NetworkError: no layer makes the logits, and penultimate features are needed.
        PipelineError: it has no dropout, or no counterpart of infinite width, and it is needed.
    """
    if "features" in needs:
        find_head(network, images)
    if "dropout" in needs:
        require_dropout(network)
    if "infinite" in needs:
        architecture_of(network)
