"""BADGE and coreset, written compactly: what a whole query is compared with.

From the inputs of a network's last layer, and its probabilities, to the places of a batch.
"""

import numpy as np
import torch
from torch import nn

from trainer.predict import logits


def features(network: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the last linear layer, (images, width), and the logits, in one forward pass."""
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[torch.Tensor] = []
    handle = heads[-1].register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    try:
        answers = logits(network, images)
    finally:
        handle.remove()
    return torch.cat(seen).numpy(), answers


def badge(
    penultimate: np.ndarray, probabilities: np.ndarray, batch: int, rng: np.random.Generator
) -> np.ndarray:
    """k-means++ on the gradients of the last layer, (p − onehot ŷ) ⊗ h, never formed.

    Ash et al. 2020: the first centre has the largest norm, each other is drawn in proportion to its
    squared distance from the nearest one.
    """
    error = probabilities.copy()
    error[np.arange(len(error)), probabilities.argmax(1)] -= 1
    squares = (error**2).sum(1) * (penultimate**2).sum(1, dtype=np.float64)
    chosen = [int(squares.argmax())]
    nearest = np.full(len(squares), np.inf)
    for _ in range(batch - 1):
        last = chosen[-1]
        products = (error @ error[last]) * (penultimate @ penultimate[last])
        nearest = np.minimum(nearest, np.maximum(squares + squares[last] - 2 * products, 0))
        nearest[chosen] = 0
        total = nearest.sum()
        if total > 0:
            chosen.append(int(rng.choice(len(nearest), p=nearest / total)))
        else:  # nothing differs from what is chosen
            left = np.setdiff1d(np.arange(len(nearest)), chosen)
            chosen.append(int(rng.choice(left)))
    return np.array(chosen)


def coreset(labelled: np.ndarray, candidates: np.ndarray, batch: int) -> np.ndarray:
    """Greedy k-centre (Sener & Savarese 2018): the candidate farthest from all centres, repeatedly.

    Args:
        labelled: (labelled, width), centres from the start.
        candidates: (candidates, width).
        batch: how many.
    """
    squares = (candidates**2).sum(1)
    distances = (squares[:, None] + (labelled**2).sum(1)[None] - 2 * candidates @ labelled.T).min(1)
    chosen = []
    for _ in range(batch):
        last = int(distances.argmax())
        chosen.append(last)
        to_last = squares + squares[last] - 2 * candidates @ candidates[last]
        distances = np.minimum(distances, to_last)
        distances[chosen] = -np.inf
    return np.array(chosen)
