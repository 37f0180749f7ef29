"""One query for people with their own loop: which images of mine should be labelled next?

From a trained network, all images and the labels so far to data-set indices, with every score.

What people give for a query of their own, checked: images, labels, and whether they fit.

Several strategies on one situation: what would each of them ask for?

From a trained network, all images and the labels so far to a query by each strategy, where what
several of them need (logits, features, the mirror, the kernel) is computed once.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge import trace
from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from pipelines.errors import PipelineError
from pipelines.progress import Stages, generator, numbered
from pipelines.strategies import STRATEGIES, needs_of, require
from pipelines.strategies.base import PROBE, Query, Situation, situate
from pipelines.strategies.options import (
    ALBLConfig,
    BaldConfig,
    BaselineConfig,
    DynamicsConfig,
    KernelConfig,
    LookAheadConfig,
)
from trainer.config import Loss, TrainConfig
from trainer.errors import lookup
from trainer.networks.loss_prediction import LossPrediction
from trainer.pool import Pool
from trainer.predict import logits


def checked_images(images: np.ndarray | torch.Tensor) -> np.ndarray:
    """Images as float32.

    Raises:
        PipelineError: they are no array of finite, normalised images.
    """
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    if not isinstance(array, np.ndarray) or array.ndim != 4:
        found = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(images).__name__
        raise PipelineError(
            f"images are {found}; they must be an array or tensor of shape (examples, channels, "
            "height, width)."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise PipelineError(
            f"images have dtype {array.dtype}; give them as the network takes them: floating "
            "point and normalised."
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))
    if len(bad):
        raise PipelineError(f"images {bad[:5].tolist()} hold NaN or infinite values.")
    return array.astype(np.float32, copy=False)


def checked_labels(labelled: Mapping[int, int], examples: int) -> tuple[Pool, np.ndarray]:
    """The pool, and int64 labels of its labelled images in their order.

    Raises:
        PipelineError: no labels, or some that are no whole numbers from 0.
        DataError: indices that are repeated or out of range.
    """
    if not isinstance(labelled, Mapping):
        raise PipelineError(
            f"labelled is a {type(labelled).__name__}; it must be the labels so far as a mapping "
            "{index into images: class}."
        )
    if not labelled:
        raise PipelineError("the labelled set is empty: label a few images at random first.")
    wrong = [(i, c) for i, c in labelled.items() if int(c) != c or c < 0]
    if wrong:
        raise PipelineError(
            f"image {wrong[0][0]} is labelled {wrong[0][1]!r}; labels are whole numbers from 0."
        )
    pool = Pool.of(examples, np.fromiter(labelled, np.int64, len(labelled)))
    return pool, np.array([labelled[int(i)] for i in pool.labelled], np.int64)


def check_classes(situation: Situation) -> None:
    """Refuse labels that are no class of the network.

    Raises:
        PipelineError: there is one.
    """
    if situation.answered is None:  # whoever needs all of them asks when it does
        some = situation.candidates[:1]
        with numbered(some):
            one = logits(situation.network, situation.images(some))
    else:
        one = situation.candidate_logits
    classes = one.shape[1]
    outside = np.flatnonzero(situation.labels >= classes)
    if len(outside):
        index, label = situation.labelled[outside[0]], situation.labels[outside[0]]
        raise PipelineError(
            f"image {index} is labelled {label} and the network has {classes} logits: labels go "
            f"from 0 to {classes - 1}. Either the label is wrong or the network has the wrong "
            "number of classes."
        )


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
