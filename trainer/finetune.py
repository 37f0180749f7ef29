"""Fit the head of a network alone, full batch, to convergence.

What is minimised over the weights W and biases b of the layer that makes the logits is

    Σ_i ℓ(W h_i + b, y_i) + ½ μ s (‖W‖² + ‖b‖²),

h_i the layer's input for labelled image i, s their mean squared distance from their mean, and ℓ the
cross-entropy (logistic regression with C = 1/(μ s)) or half of the squared error to the one-hot
label (ridge regression). Both are convex, so start and rate do not matter: the head begins at zero
and L-BFGS (Liu & Nocedal 1989) goes on until it converges. (Where a ReLU follows the head, as in
SqueezeNet, biases begin at one, where it has a gradient, and are free.) The inputs are computed
once. Nothing is random.

With l2 the logits are kernel regression from zero with ridge λ = μ s and k(h, h') = h·h' + 1, the
NTK of a linear head: f(x) = k_xL (K_LL + λI)⁻¹ Y, the prediction of `kernel.ridge` λ for a head of
zeros. The residual is Y − f_L = λ (K_LL + λI)⁻¹ Y. Look-ahead, which supposes that it is small,
regresses it once more; `residual_rms` says how large it is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from torch import nn
from torch.func import functional_call

from trainer.config import Loss
from trainer.errors import FitError, NetworkError
from trainer.predict import answers, ends, find_head, hooks, pooled, submodule

MAX_ITERATIONS = 2000
_FEW = 8  # images that the head is found by
_TOLERANCE = 1e-6  # largest entry of the gradient of the mean


class HeadFit(NamedTuple):
    """How fitting a head ended; its weights are in the network.

    Attributes:
        history: the mean of what is minimised after each iteration.
        converged: whether the gradient vanished before the limit of iterations.
        penalised: weights and biases that were penalised; the network's own parameters.
        decay: half of it times their squares was added to the mean loss.
        rest: whether parameters outside the head are trainable.
    """

    history: tuple[float, ...]
    converged: bool
    penalised: tuple[nn.Parameter, ...]
    decay: float
    rest: bool


def fit_head(
    network: nn.Module,
    images: np.ndarray,
    mean_loss: Callable[[torch.Tensor], torch.Tensor],
    loss: Loss,
    penalty: float,
) -> HeadFit:
    """Zero the trainable parameters of the head and fit them, in place.

    Args:
        network: in eval mode.
        images: the labelled ones, (labelled, …), as the network takes them.
        mean_loss: logits (labelled, classes) → `trainer.fit.mean_loss` of the labels.
        loss: which it is.
        penalty: μ above.

    Raises:
        FitError: no layer of the network makes its logits.
        NetworkError: as `trainer.predict.logits`.
    """
    try:
        head = find_head(network, images[:_FEW])
    except NetworkError as error:
        raise FitError(
            f"the recipe finetune fits the head first: {error} Or give --train.recipe scratch."
        ) from error
    if head.output:
        raise FitError(
            f"the recipe finetune fits the layer that makes the logits, and the network names "
            f"{head.name!r} as its features and not that layer: give --train.recipe scratch"
        )
    layer = submodule(network, head.name, "the head")
    own = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    inside = {id(p) for p in own.values()}
    rest = any(p.requires_grad and id(p) not in inside for p in network.parameters())
    if not own:
        return HeadFit((), True, (), 0.0, rest)
    weighted = any(p.ndim > 1 for p in own.values())
    inputs, ending, classes, rectified = _inputs(network, layer, images)
    with torch.no_grad():
        for parameter in own.values():
            parameter.zero_()
    fixed = {n: p.detach().double() for n, p in layer.named_parameters() if n not in own}
    fixed |= {name: buffer.double() for name, buffer in layer.named_buffers()}
    sizes = [p.numel() for p in own.values()]
    features = pooled(layer, inputs, output=False)
    spread = float((features - features.mean(0)).square().sum(1).mean()) if weighted else 0.0
    unit = math.sqrt(spread) or 1.0
    inputs = inputs / unit  # and what is penalised in that unit: then tolerances have none
    decay = penalty / len(images)
    if loss == "l2":
        decay *= 2 / classes  # it is a mean over classes, and not half of their sum

    penalised = [n for n, p in own.items() if p.ndim > 1 or not rectified]
    scales = {n: unit if p.ndim == 1 and n in penalised else 1.0 for n, p in own.items()}

    def named(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = flat.split(sizes)
        return {
            n: part.view(p.shape) / scales[n]
            for (n, p), part in zip(own.items(), parts, strict=True)
        }

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        flat = torch.tensor(point, device=inputs.device, requires_grad=True)
        with torch.enable_grad():
            arrays = named(flat)
            logits = ending(functional_call(layer, arrays | fixed, (inputs,)))
            squares = [(scales[n] * arrays[n]).square().sum() for n in penalised]
            total = mean_loss(logits) + decay / 2 * sum(squares)
            (gradient,) = torch.autograd.grad(total, flat)
        return total.item(), gradient.cpu().numpy()

    history: list[float] = []
    found = scipy.optimize.minimize(
        value_and_gradient,
        np.concatenate(
            [np.full(p.numel(), float(rectified and p.ndim == 1)) for p in own.values()]
        ),
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: history.append(float(intermediate_result.fun)),
        options={
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "maxcor": 30,
            "gtol": _TOLERANCE,
            "ftol": 1e-14,
        },
    )
    with torch.no_grad():
        for name, fitted in named(torch.tensor(found.x, device=inputs.device)).items():
            own[name].copy_(fitted / unit if fitted.ndim > 1 else fitted)
    kept = tuple(own[n] for n in penalised)
    return HeadFit(tuple(history), bool(found.success), kept, decay * unit**2, rest)


def zero_head(network: nn.Module, images: np.ndarray) -> None:
    """Set the weights and biases of the layer that makes the logits to zero.

    Args:
        network: in eval mode.
        images: a few, by which the layer is found.

    Raises:
        NetworkError: there is none.
    """
    head = find_head(network, images)
    if head.output:
        raise NetworkError(
            f"the head cannot be zeroed: the network names {head.name!r} as its features, and not "
            "the layer that makes the logits; give --train.init initial"
        )
    with torch.no_grad():
        for parameter in submodule(network, head.name, "the head").parameters():
            parameter.zero_()


def _inputs(
    network: nn.Module, layer: nn.Module, images: np.ndarray
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor], int, bool]:
    """Inputs of a layer for each image, in float64; logits of its output, their number, ReLU.

    Raises:
        FitError: it is called more than once an image, or of the logits nothing is found.
    """
    seen: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def note(_: object, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(given[0].detach().clone())
        made.append(output.detach().clone())

    passes: list[int] = []
    with hooks(network, [layer.register_forward_hook(note)]):
        logits = answers(network, images, after=lambda: passes.append(len(seen)))
    inputs, outputs = torch.cat(seen[-len(passes) :]), torch.cat(made[-len(passes) :])
    if len(inputs) != len(images) or len(seen) > len(passes) + 1:
        raise FitError(
            "the recipe finetune needs a head that is called once an image; give --train.recipe "
            "scratch"
        )
    wanted = torch.from_numpy(logits).to(outputs)
    scale = float(wanted.abs().max())
    errors = [float((end - wanted).abs().max()) for end in ends(layer, outputs)]
    which = int(np.argmin(errors))
    if errors[which] > 1e-3 * scale:
        raise FitError(
            "the recipe finetune found no function from the head to the logits; give "
            "--train.recipe scratch"
        )
    rectified = isinstance(layer, nn.Conv2d) and which == 1
    last = lambda output: [*ends(layer, output)][which]
    return inputs.double(), last, logits.shape[1], rectified
