"""What training minimises and what it is judged by: from logits and labels to a number.

Both papers' losses (docs/mathematics.md, 5) and the accuracy and residual that a record states.
"""

import numpy as np
import scipy.special
import torch
from jaxtyping import Float, Int64, Integer
from torch.nn import functional

from trainer.train_config import Loss


def mean_loss(
    answers: Float[torch.Tensor, "batch classes"],
    targets: Int64[torch.Tensor, " batch"],
    loss: Loss,
) -> Float[torch.Tensor, ""]:
    """Squared error to one-hot labels, mean over batch and classes ([L]), or cross-entropy ([D]).

    Args:
        answers: logits.
        targets: class of each image.
        loss: which of the two.
    """
    if loss == "cross_entropy":
        return functional.cross_entropy(answers, targets)
    return functional.mse_loss(answers, functional.one_hot(targets, answers.shape[1]).to(answers))


def losses(
    answers: Float[torch.Tensor, "batch classes"],
    targets: Int64[torch.Tensor, " batch"],
    loss: Loss,
) -> Float[torch.Tensor, " batch"]:
    """The loss of each image, whose mean is `mean_loss`.

    Args:
        answers: logits.
        targets: class of each image.
        loss: which of the two.
    """
    if loss == "cross_entropy":
        return functional.cross_entropy(answers, targets, reduction="none")
    wanted = functional.one_hot(targets, answers.shape[1]).to(answers)
    return (answers - wanted).square().mean(dim=1)


def accuracy(
    answers: Float[np.ndarray, "labelled classes"], labels: Integer[np.ndarray, " labelled"]
) -> float:
    """Share of images whose largest logit is their label's."""
    return float(np.mean(answers.argmax(axis=1) == labels))


def residual_rms(
    answers: Float[np.ndarray, "labelled classes"],
    labels: Integer[np.ndarray, " labelled"],
    loss: Loss,
) -> float:
    """Root mean square of one-hot minus logits (l2), or minus their softmax (cross_entropy)."""
    given = scipy.special.softmax(answers, axis=1) if loss == "cross_entropy" else answers
    return float(np.sqrt(np.mean((np.eye(answers.shape[1])[labels] - given) ** 2)))
