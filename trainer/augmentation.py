"""Random crops and flips of a batch, for training only; images that are scored never pass here.

An equivalent of torchvision's RandomCrop and RandomHorizontalFlip that works on a whole batch and
draws from the passed generator alone.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional


def crop(
    images: Float[torch.Tensor, "batch channels height width"], rng: np.random.Generator
) -> Float[torch.Tensor, "batch channels height width"]:
    """Shift each image by up to an eighth of its size: 4 pixels at 28×28 and 32×32 ([L]).

    What comes in at an edge repeats the edge, which is black on digits; zero would be the mean
    colour of normalised images.

    Args:
        images: normalised.
        rng: draws two shifts an image.
    """
    count, _, height, width = images.shape
    top, left = _padding(height), _padding(width)
    padded = functional.pad(images, (left, left, top, top), mode="replicate")
    rows = _positions(rng.integers(0, 2 * top + 1, count), height)
    columns = _positions(rng.integers(0, 2 * left + 1, count), width)
    # One gather for the whole batch; the channel axis goes last while indexing and comes back.
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(count, device=images.device)[:, None, None],
        rows.to(images.device)[:, :, None],
        columns.to(images.device)[:, None, :],
    ]
    return picked.permute(0, 3, 1, 2)


def flip(
    images: Float[torch.Tensor, "batch channels height width"], rng: np.random.Generator
) -> Float[torch.Tensor, "batch channels height width"]:
    """Mirror each image left to right with probability one half.

    Args:
        images: normalised.
        rng: draws one number an image.
    """
    mirrored = torch.tensor(rng.random(len(images)) < 0.5, device=images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _padding(size: int) -> int:
    return max(1, round(size / 8))


def _positions(shifts: np.ndarray, size: int) -> torch.Tensor:
    return torch.tensor(shifts[:, None] + np.arange(size))
