"""One query for people with their own loop: which images of mine should be labelled next?

From a trained network, all images and the labels so far to data-set indices, with every score.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge import trace
from bridge.export import weights_of
from bridge.mirror import Mirror
from bridge.parity import certify
from pipelines.errors import PipelineError
from pipelines.given import check_classes, checked_images, checked_labels
from pipelines.seeds import generator
from pipelines.stages import Stages
from pipelines.strategies import STRATEGIES, needs_of
from pipelines.strategies.albl_config import ALBLConfig
from pipelines.strategies.bald_config import BaldConfig
from pipelines.strategies.baseline_config import BaselineConfig
from pipelines.strategies.dynamics_config import DynamicsConfig
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.lookahead_config import LookAheadConfig
from pipelines.strategies.requirements import require
from pipelines.strategies.situating import situate
from pipelines.strategies.situation import PROBE, Query, Situation
from trainer.networks.loss_prediction import LossPrediction
from trainer.tables import lookup
from trainer.train_config import Loss, TrainConfig


def query(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    labelled: Mapping[int, int],
    batch_size: int,
    strategy: str = "mlmoc",
    *,
    subset: int | None = None,
    loss: Loss = "l2",
    kernel: KernelConfig | None = None,
    lookahead: LookAheadConfig | None = None,
    baseline: BaselineConfig | None = None,
    dynamics: DynamicsConfig | None = None,
    bald: BaldConfig | None = None,
    albl: ALBLConfig | None = None,
    history: Sequence[Query | Mapping[str, Any]] = (),
    companion: LossPrediction | None = None,
    oracle: Callable[[np.ndarray], np.ndarray] | None = None,
    mirror: Mirror | None = None,
    seed: int = 0,
    stages: Stages | None = None,
) -> Query:
    """Choose the next images to label.

    Args:
        model: your trained network in eval mode: (batch, channels, height, width) → (batch,
            classes) logits.
        images: float (examples, channels, height, width), all of them, labelled or not, exactly
            as the network takes them (normalised, not augmented).
        labelled: the labels so far, {index into images: class from 0}.
        batch_size: how many to choose.
        strategy: random, entropy, margin, least_confident, badge, coreset, bald, ll4al, albl;
            by look-ahead
            mlmoc, emoc, eer, flip, ev_gp, loss_change, max_det, max_herding, uherding, ntkcpl; by
            its baselines naive, ntk_no_blocks, one_step, infinite_ntk or gp; by training dynamics
            dynamical.
        subset: score only so many unlabelled images, drawn at random; None scores all.
        loss: what the network was trained with, `l2` on one-hot labels or `cross_entropy`; it
            decides how logits become probabilities. Look-ahead assumes `l2`.
        kernel: how a look-ahead kernel is computed.
        lookahead: how candidates are looked ahead from, and how a batch is made of the scores.
        baseline: how the look-ahead baselines are computed.
        dynamics: how dynamicAL (`dynamical`) scores candidates, and how it makes a batch.
        bald: how BALD samples what the network might answer.
        albl: which strategies ALBL chooses between, and how it learns.
        history: what your earlier queries returned, first to last, or lines of a run's record;
            ALBL learns from them, with the labels that they have now.
        companion: for ll4al, the loss prediction module that was trained together with the model
            (`trainer.networks.loss_prediction`).
        oracle: indices into `images` → their true classes, int64; asked while the batch is chosen,
            in the batch mode `hybrid` only. The answers are in the diagnostics.
        mirror: your own mirror of the model, by `bridge.twin` or kept from an earlier query; it is
            given the model's present weights. None makes one.
        seed: of the subset, of random choice and of ties.
        stages: where time and memory are noted and progress is shown.

    Returns:
        The chosen indices into `images`, best first, with their scores, every candidate's score
        and diagnostics.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: images, labels, loss or sizes that cannot be used.
        NetworkError: the network is in train mode or does not return one row of logits an image.
        DataError: labelled indices that are out of range.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    row = lookup(STRATEGIES, strategy, "strategy")
    situation = situation_of(
        model,
        images,
        labelled,
        batch_size,
        needs=needs_of(strategy, (albl or ALBLConfig()).arms),
        subset=subset,
        loss=loss,
        kernel=kernel,
        lookahead=lookahead,
        baseline=baseline,
        dynamics=dynamics,
        bald=bald,
        albl=albl,
        history=history,
        companion=companion,
        oracle=oracle,
        mirror=mirror,
        seed=seed,
        stages=stages,
    )
    return row(situation, batch_size, generator(seed, strategy))


def situation_of(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    labelled: Mapping[int, int],
    batch_size: int,
    *,
    needs: Set[str],
    subset: int | None = None,
    loss: Loss = "l2",
    kernel: KernelConfig | None = None,
    lookahead: LookAheadConfig | None = None,
    baseline: BaselineConfig | None = None,
    dynamics: DynamicsConfig | None = None,
    bald: BaldConfig | None = None,
    albl: ALBLConfig | None = None,
    history: Sequence[Query | Mapping[str, Any]] = (),
    companion: LossPrediction | None = None,
    oracle: Callable[[np.ndarray], np.ndarray] | None = None,
    mirror: Mirror | None = None,
    seed: int = 0,
    stages: Stages | None = None,
    shared: int | None = None,
) -> Situation:
    """What a strategy looks at, of a person's own network, images and labels.

    Arguments and what is raised are those of `query`, and two more: `needs`, of the strategies
    that will be asked, and `shared`, the seed of what several strategies read, None if one is
    asked alone.
    """
    lookup(dict.fromkeys(("l2", "cross_entropy")), loss, "loss")
    array = checked_images(images)
    pool, labels = checked_labels(labelled, len(array))
    if batch_size > len(pool.unlabelled):
        raise PipelineError(
            f"a query of {batch_size} images was asked for and {len(pool.unlabelled)} are not "
            "labelled yet; lower batch_size."
        )
    if subset is not None and subset < batch_size:
        raise PipelineError(
            f"subset is {subset} and batch_size is {batch_size}: a batch cannot be larger than "
            "the candidates it is chosen from."
        )
    candidates = pool.candidates(subset, generator(seed, "subset"))
    require(needs, model, array[candidates[:PROBE]])

    def mirrored(probe: np.ndarray):
        twin = mirror.with_weights(weights_of(model)) if mirror else trace.mirror(model, probe)
        return twin, certify(model, twin, probe).summary()

    situation = situate(
        model,
        lambda indices: array[indices],
        pool,
        labels,
        candidates,
        train=TrainConfig(loss=loss),
        mirror=mirrored,
        kernel=kernel or KernelConfig(),
        stages=stages or Stages(),
        needs=needs,
        ask=oracle,
        lookahead=lookahead,
        baseline=baseline,
        dynamics=dynamics,
        bald=bald,
        albl=albl,
        history=[line._asdict() if isinstance(line, Query) else line for line in history],
        companion=companion,
        shared=shared,
    )
    check_classes(situation)
    return situation
