"""Baselines of look-ahead ([L] Figure 1): retraining, one gradient step, one system a candidate.

`naive` trains a copy of the network for every candidate with its pseudo-label; `one_step` takes a
single step of gradient descent on it (Käding et al. 2016); `ntk_no_blocks` computes `mlmoc` with
the empirical kernel, without block computation.
"""

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from bridge.module import copy_module
from kernel.lookahead import mlmoc_augmented
from kernel.scratch import Scratch, key_of
from pipelines.core.progress import TimeLimit, named_images
from pipelines.strategies.base import Query, QueryContext, reference_sample, top
from pipelines.strategies.lookahead import empirical_kernel
from pipelines.strategies.options import BaselineConfig
from trainer.config import Loss, TrainConfig
from trainer.fit import fit, mean_loss
from trainer.predict import forward, logits, to_tensor

_REMEDIES = "score fewer candidates (baseline.candidates), sum over fewer (kernel.sample)"
_BATCH = 512


def naive(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Most likely model output change, by SGD: Σ_x ‖f_{L+x'}(x) − f_ref(x)‖.

    Copies start from the trained weights and see the same order of images, so that candidates
    differ by themselves alone. The reference is the trained network, or with kernel.reference
    `linearised` a copy that was trained on as the others were, without any candidate.

    Raises:
        PipelineError: it would take longer than baseline.hours.
        FitError: a copy diverges at every learning rate.
    """
    settings = context.options.baseline
    sample_rng, scored_rng, fit_rng = rng.spawn(3)
    sample = reference_sample(len(context.candidates), context.options.kernel.sample, sample_rng)
    sample = np.arange(len(context.candidates)) if sample is None else sample
    scored = scored_positions(len(context.candidates), settings.candidates, scored_rng)
    config, seed = retraining(context.train, settings), int(fit_rng.integers(2**63))
    labelled = context.images(context.labelled)
    asked = context.candidates[sample]
    points = context.images(asked)
    pseudo = context.candidate_logits.argmax(axis=1)
    state = [tensor.cpu().numpy() for tensor in context.network.state_dict().values()]
    given = (*state, context.labels, labelled, context.candidates[scored], points)
    kept = None
    if context.resources.folder is not None:
        kept = Scratch(context.resources.folder, key_of(given, ("naive", config, seed)))
    scores = np.zeros(len(scored))
    with context.progress("score") as advance:
        limit = TimeLimit(advance, settings.hours, _REMEDIES)
        base = context.candidate_logits[sample]
        if context.options.kernel.reference == "linearised":
            alone = retrained(context.network, labelled, context.labels, config, seed)
            with named_images(asked):
                base = logits(alone, points)
        for number in range(len(scored)):
            own = scores[number : number + 1]
            if kept is not None and kept.load(f"score-{number}", own):
                continue
            limit(number, len(scored))
            image = context.images(context.candidates[scored[number : number + 1]])
            images = np.concatenate([labelled, image])
            labels = np.append(context.labels, pseudo[scored[number]])
            copied = retrained(context.network, images, labels, config, seed)
            with named_images(asked):
                after = logits(copied, points).astype(np.float64)
            moved = np.linalg.norm(after - base, axis=1)
            own[0] = moved.sum() * len(context.candidates) / len(sample)
            if kept is not None:
                kept.save(f"score-{number}", own)
        limit(len(scored), len(scored))
    finetuned = config.recipe == "finetune"  # which reads neither
    diagnostics = {
        "epochs": None if finetuned else config.epochs,
        "learning_rate": None if finetuned else config.peak_learning_rate,
        "reference": context.options.kernel.reference,
        "sample": context.options.kernel.sample,
        "scored": len(scored),
    }
    chosen = dataclasses.replace(context, candidates=context.candidates[scored])
    return top(chosen, scores, batch_size, rng, diagnostics)


def retraining(train: TrainConfig, settings: BaselineConfig) -> TrainConfig:
    """How a copy is trained: as the network was, one short schedule without a floor on steps."""
    return dataclasses.replace(
        train,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate or train.learning_rate,
        min_steps=0,
        extensions=0,
        stop="schedule",
    )


def retrained(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, config: TrainConfig, seed: int
) -> nn.Module:
    """A copy of the network, trained on from its weights; the network stays as it is."""
    copied = copy_module(network, device=None)
    fit(copied, images, labels, config, np.random.default_rng(seed))
    return copied


def scored_positions(candidates: int, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Positions of the candidates that are scored, in order; all without a limit."""
    if limit is None or limit >= candidates:
        return np.arange(candidates)
    return np.sort(rng.choice(candidates, limit, replace=False))


def one_step(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """Model output change after one step: Σ_x ‖f(x; θ − ηg) − f(x; θ)‖, η = baseline.step.

    g is the gradient of the training loss of the candidate alone with its most likely label, in
    eval mode; for `l2` that loss is a mean over classes. The step is plain gradient descent,
    without momentum and weight decay.

    Raises:
        PipelineError: it would take longer than baseline.hours, or a step diverges.
    """
    settings = context.options.baseline
    sample_rng, scored_rng = rng.spawn(2)
    sample = reference_sample(len(context.candidates), context.options.kernel.sample, sample_rng)
    sample = np.arange(len(context.candidates)) if sample is None else sample
    scored = scored_positions(len(context.candidates), settings.candidates, scored_rng)
    network, loss = context.network, context.train.loss
    pseudo = context.candidate_logits.argmax(axis=1)
    own = dataclasses.replace(context, candidates=context.candidates[scored])
    scores = np.zeros(len(scored))
    with context.progress("score") as advance:
        limit = TimeLimit(advance, settings.hours, _REMEDIES)
        points = to_tensor(context.images(context.candidates[sample]), network)
        base = answers(network, {}, points)
        for number, position in enumerate(scored):
            limit(number, len(scored))
            image = to_tensor(context.images(own.candidates[number : number + 1]), network)
            after = stepped(network, image, int(pseudo[position]), settings.step, loss)
            moved = torch.linalg.norm(answers(network, after, points) - base, dim=1).sum()
            scores[number] = float(moved) * len(context.candidates) / len(sample)
        limit(len(scored), len(scored))
    diagnostics = {
        "step": settings.step,
        "sample": context.options.kernel.sample,
        "scored": len(scored),
    }
    return top(own, scores, batch_size, rng, diagnostics)


def stepped(
    network: nn.Module, image: torch.Tensor, label: int, rate: float, loss: Loss
) -> dict[str, torch.Tensor]:
    """The trainable parameters after one step on one image; the network stays as it is.

    Args:
        network: in eval mode.
        image: (1, channels, height, width).
        label: its class.
        rate: η.
        loss: that the network is trained with.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        target = torch.tensor([label], device=image.device)
        value = mean_loss(forward(network, image), target, loss)
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    # (39) θ − ηg
    return {
        name: p.detach() if gradient is None else p.detach() - rate * gradient
        for (name, p), gradient in zip(trained.items(), gradients, strict=True)
    }


def answers(
    network: nn.Module, parameters: dict[str, torch.Tensor], points: torch.Tensor
) -> torch.Tensor:
    """Logits, in float64, of images (points, channels, height, width) with other parameters."""
    with torch.no_grad():
        rows = [functional_call(network, parameters, (batch,)) for batch in points.split(_BATCH)]
    return torch.cat(rows).double()


def ntk_no_blocks(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """The scores of `mlmoc`, to rounding, with one more label's system solved for each candidate.

    Raises:
        PipelineError: it would take longer than baseline.hours.
        KernelError: the kernel cannot be computed in the memory given, is singular or is `full`.
    """
    settings = context.options.kernel
    remedies = "score fewer candidates (baseline.candidates), or use mlmoc, with the same scores"
    *rngs, scored_rng = rng.spawn(4)
    given = empirical_kernel(context, rngs)
    candidates = len(context.candidates)
    scored = scored_positions(candidates, context.options.baseline.candidates, scored_rng)
    with context.progress("score") as advance:
        scores = mlmoc_augmented(
            given.kernel,
            np.eye(context.labelled_logits.shape[1])[context.labels],
            np.concatenate([context.labelled_logits, context.candidate_logits]).astype(np.float64),
            sample=given.sample,
            scored=scored,
            ridge=settings.ridge,
            reference=settings.reference,
            identifiers=context.labelled.tolist(),
            progress=TimeLimit(advance, context.options.baseline.hours, remedies),
        )
    diagnostics = given.diagnostics | {"scored": len(scored)}
    chosen = dataclasses.replace(context, candidates=context.candidates[scored])
    return top(chosen, scores, batch_size, rng, diagnostics)
