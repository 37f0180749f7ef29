"""Look-ahead with the empirical kernel and without block computation ([L] Figure 1).

From a situation to the scores of `mlmoc`, by a system of linear equations for every candidate.

How long a slow query will take, told by its first minutes, and whether that is allowed.

Look-ahead by really retraining: a copy of the network for every candidate ([L] Figure 1).

From a situation to scores: each candidate with its pseudo-label joins the labelled set, a copy of
the network is trained on it for a few epochs, and the score is how far its outputs moved.

Look-ahead by one step of gradient descent on every candidate (Käding et al. 2016; [L] Fig. 1).

From a situation to scores: the weights take one step on the candidate's loss under its
pseudo-label, and the outputs are really computed again with the weights after it.
"""

import copy
import dataclasses
import time

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from kernel.contract import Scratch, key_of
from kernel.lookahead import mlmoc_augmented
from pipelines.errors import PipelineError
from pipelines.progress import Advance, numbered
from pipelines.strategies.base import Query, Situation, top
from pipelines.strategies.lookahead import kernel_of, reference_sample
from pipelines.strategies.options import BaselineConfig
from trainer.config import Loss, TrainConfig
from trainer.fit import fit, mean_loss
from trainer.predict import forward, logits, to_tensor

# Seconds after which the pace is believed.
_BELIEVED = 5.0


class Pace:
    """Passes progress on, and stops early what would take longer than it may."""

    def __init__(self, advance: Advance, hours: float, remedies: str):
        """The clock starts at the first report, which comes when everything is compiled.

        Args:
            advance: told done and total.
            hours: what all of it may take.
            remedies: what to do about it, for the message.
        """
        self._advance, self._hours, self._remedies = advance, hours, remedies
        self._began: tuple[float, float] | None = None
        self._judged = False

    def __call__(self, done: float, total: float) -> None:
        """So much is done.

        Raises:
            PipelineError: at this pace all of it would take longer than allowed.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        spent, since = now - self._began[0], done - self._began[1]
        if not self._judged and since > 0 and spent >= _BELIEVED:
            self._judged = True
            hours = spent / since * (total - self._began[1]) / 3600
            if hours > self._hours:
                raise PipelineError(
                    f"this query would take about {hours:.3g} hours here and baseline.hours is "
                    f"{self._hours:g}: {self._remedies}, or raise baseline.hours."
                )
        self._advance(done, total)


_NAIVE_REMEDIES = "score fewer candidates (baseline.candidates), sum over fewer (kernel.sample)"


def naive(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Most likely model output change, by SGD: Σ_x ‖f_{L+x'}(x) − f_ref(x)‖.

    Copies start from the trained weights and see the same order of images, so that candidates
    differ by themselves alone. The reference is the trained network, or with kernel.reference
    `linearised` a copy that was trained on as the others were, without any candidate.

    Raises:
        PipelineError: it would take longer than baseline.hours.
        FitError: a copy diverges at every learning rate.
    """
    settings, stages = situation.baseline, situation.stages
    sample_rng, scored_rng, fit_rng = rng.spawn(3)
    sample = reference_sample(len(situation.candidates), situation.kernel.sample, sample_rng)
    sample = np.arange(len(situation.candidates)) if sample is None else sample
    scored = scored_places(len(situation.candidates), settings.candidates, scored_rng)
    config, seed = retraining(situation.train, settings), int(fit_rng.integers(2**63))
    labelled = situation.images(situation.labelled)
    asked = situation.candidates[sample]
    points = situation.images(asked)
    pseudo = situation.candidate_logits.argmax(axis=1)
    state = [tensor.cpu().numpy() for tensor in situation.network.state_dict().values()]
    given = (*state, situation.labels, labelled, situation.candidates[scored], points)
    kept = Scratch()
    if situation.folder is not None:
        kept = Scratch(situation.folder, key_of(given, ("naive", config, seed)))
    scores = kept.array("scores", (len(scored),), np.float64)
    with stages("score") as advance:
        pace = Pace(advance, settings.hours, _NAIVE_REMEDIES)
        base = situation.candidate_logits[sample]
        if situation.kernel.reference == "linearised":
            alone = retrained(situation.network, labelled, situation.labels, config, seed)
            with numbered(asked):
                base = logits(alone, points)
        for number in range(kept.done("scores"), len(scored)):
            pace(number, len(scored))
            image = situation.images(situation.candidates[scored[number : number + 1]])
            images = np.concatenate([labelled, image])
            labels = np.append(situation.labels, pseudo[scored[number]])
            copied = retrained(situation.network, images, labels, config, seed)
            with numbered(asked):
                after = logits(copied, points).astype(np.float64)
            moved = np.linalg.norm(after - base, axis=1)
            scores[number] = moved.sum() * len(situation.candidates) / len(sample)
            kept.mark("scores", number + 1)
        pace(len(scored), len(scored))
    diagnostics = {
        "epochs": config.epochs,
        "learning_rate": config.peak_learning_rate,
        "reference": situation.kernel.reference,
        "sample": situation.kernel.sample,
        "scored": len(scored),
    }
    chosen = dataclasses.replace(situation, candidates=situation.candidates[scored])
    return top(chosen, np.array(scores), batch_size, rng, diagnostics)


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
    copied = copy.deepcopy(network)
    fit(copied, images, labels, config, np.random.default_rng(seed))
    return copied


def scored_places(candidates: int, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    """Places of the candidates that are scored, in order; all without a limit."""
    if limit is None or limit >= candidates:
        return np.arange(candidates)
    return np.sort(rng.choice(candidates, limit, replace=False))


_ONE_STEP_REMEDIES = (
    "sum the change over fewer candidates (kernel.sample), score fewer (baseline.candidates)"
)
_BATCH = 512


def one_step(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """Model output change after one step: Σ_x ‖f(x; θ − ηg) − f(x; θ)‖, η = baseline.step.

    g is the gradient of the training loss of the candidate alone with its most likely label, in
    eval mode; for `l2` that loss is a mean over classes. The step is plain gradient descent,
    without momentum and weight decay.

    Raises:
        PipelineError: it would take longer than baseline.hours, or a step diverges.
    """
    settings, stages = situation.baseline, situation.stages
    sample_rng, scored_rng = rng.spawn(2)
    sample = reference_sample(len(situation.candidates), situation.kernel.sample, sample_rng)
    sample = np.arange(len(situation.candidates)) if sample is None else sample
    scored = scored_places(len(situation.candidates), settings.candidates, scored_rng)
    network, loss = situation.network, situation.train.loss
    pseudo = situation.candidate_logits.argmax(axis=1)
    own = dataclasses.replace(situation, candidates=situation.candidates[scored])
    scores = np.zeros(len(scored))
    with stages("score") as advance:
        pace = Pace(advance, settings.hours, _ONE_STEP_REMEDIES)
        points = to_tensor(situation.images(situation.candidates[sample]), network)
        base = answers(network, {}, points)
        for number, place in enumerate(scored):
            pace(number, len(scored))
            image = to_tensor(situation.images(own.candidates[number : number + 1]), network)
            after = stepped(network, image, int(pseudo[place]), settings.step, loss)
            moved = torch.linalg.norm(answers(network, after, points) - base, dim=1).sum()
            scores[number] = float(moved) * len(situation.candidates) / len(sample)
        pace(len(scored), len(scored))
    diagnostics = {
        "step": settings.step,
        "sample": situation.kernel.sample,
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


_NO_BLOCKS_REMEDIES = (
    "score fewer candidates (baseline.candidates), or use mlmoc, whose scores are the same"
)


def ntk_no_blocks(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """The scores of `mlmoc`, to rounding, with one more label's system solved for each candidate.

    Raises:
        PipelineError: it would take longer than baseline.hours.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, is singular or is `full`.
    """
    settings = situation.kernel
    *rngs, scored_rng = rng.spawn(4)
    given = kernel_of(situation, rngs)
    candidates = len(situation.candidates)
    scored = scored_places(candidates, situation.baseline.candidates, scored_rng)
    with situation.stages("score") as advance:
        scores = mlmoc_augmented(
            given.kernel,
            np.eye(situation.labelled_logits.shape[1])[situation.labels],
            situation.labelled_logits.astype(np.float64),
            situation.candidate_logits.astype(np.float64),
            sample=given.sample,
            scored=scored,
            ridge=settings.ridge,
            reference=settings.reference,
            identifiers=situation.labelled.tolist(),
            progress=Pace(advance, situation.baseline.hours, _NO_BLOCKS_REMEDIES),
        )
    diagnostics = given.diagnostics | {"scored": len(scored)}
    chosen = dataclasses.replace(situation, candidates=situation.candidates[scored])
    return top(chosen, scores, batch_size, rng, diagnostics)
