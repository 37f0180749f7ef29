"""From a network, images and what is labelled of them to what a strategy looks at."""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bridge.mirror import Mirror
from pipelines.stages import Stages
from pipelines.strategies.albl_config import ALBLConfig
from pipelines.strategies.bald_config import BaldConfig
from pipelines.strategies.baseline_config import BaselineConfig
from pipelines.strategies.dynamics_config import DynamicsConfig
from pipelines.strategies.held import predicted, probe_of
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.lookahead_config import LookAheadConfig
from pipelines.strategies.situation import Situation
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.predict import refuse_training
from trainer.train_config import TrainConfig


def situate(
    network: nn.Module,
    images: Callable[[np.ndarray], np.ndarray],
    pool: Pool,
    labels: np.ndarray,
    candidates: np.ndarray,
    *,
    train: TrainConfig,
    mirror: Callable[[np.ndarray], tuple[Mirror, dict[str, Any]]],
    kernel: KernelConfig,
    stages: Stages,
    needs: Set[str] = frozenset(),
    folder: Path | None = None,
    ask: Callable[[np.ndarray], np.ndarray] | None = None,
    lookahead: LookAheadConfig | None = None,
    baseline: BaselineConfig | None = None,
    dynamics: DynamicsConfig | None = None,
    bald: BaldConfig | None = None,
    albl: ALBLConfig | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    companion: LossPrediction | None = None,
    test: tuple[Callable[[np.ndarray], np.ndarray], np.ndarray] | None = None,
    shared: int | None = None,
) -> Situation:
    """Put together what a strategy looks at.

    Args:
        network: in eval mode.
        images: data-set indices → images as the network takes them.
        pool: what is labelled.
        labels: int64 (labelled,), the class of each of `pool.labelled`.
        candidates: data-set indices, in any order; the situation has them ascending, so that what
            is drawn for one of them does not depend on the order.
        train: how the network was trained; its loss decides how logits become probabilities.
        mirror: a probe batch → the mirror and its certificate; called only to look ahead.
        kernel: how they compute their kernel.
        stages: where time, memory and progress are noted.
        needs: of the strategies that will be asked, so that what can be had of one forward pass
            is; what is not named here and needed all the same is computed when it is.
        folder: where a kernel keeps its finished chunks; None keeps none.
        ask: data-set indices → their true labels, if they can be had while a batch is chosen.
        lookahead: how candidates are looked ahead from; the defaults if None.
        baseline: how the look-ahead baselines are computed; the defaults if None.
        dynamics: how dynamicAL scores candidates; the defaults if None.
        bald: how BALD samples; the defaults if None.
        albl: what ALBL chooses between; the defaults if None.
        history: the earlier rounds, for strategies that learn from them.
        companion: what was trained along with the network, if anything was.
        test: test images by their places, and their labels, if there are any.
        shared: the seed of what several strategies read; None if one is asked alone.

    Raises:
        NetworkError: the network is in train mode; features are needed and no layer makes its
            logits.
    """
    features, candidates = None, np.sort(candidates)
    refuse_training(network)
    answered = None
    if "features" in needs:
        with stages("predict"):
            answered, features = predicted(network, images, pool.labelled, candidates)
    probe = probe_of(pool.labelled, candidates)
    situation = Situation(
        labelled=pool.labelled,
        labels=labels,
        candidates=candidates,
        images=images,
        mirror=functools.cache(lambda: mirror(images(probe))),
        kernel=kernel,
        stages=stages,
        network=network,
        train=train,
        folder=folder,
        ask=ask,
        lookahead=lookahead or LookAheadConfig(),
        baseline=baseline or BaselineConfig(),
        dynamics=dynamics or DynamicsConfig(),
        bald=bald or BaldConfig(),
        albl=albl or ALBLConfig(),
        history=tuple(history),
        companion=companion,
        test=test,
        shared=shared,
        answered=answered,
    )
    if features is not None:
        situation.once("features", lambda: features)
    return situation
