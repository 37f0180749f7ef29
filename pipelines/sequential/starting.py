"""From one's own trained network and images to an object that asks for labels one at a time."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from bridge import trace
from bridge.export import weights_of
from bridge.mirror import Mirror
from bridge.parity import certify
from pipelines.errors import PipelineError
from pipelines.given import checked_images, checked_labels
from pipelines.seeds import generator
from pipelines.sequential.asker import Asker
from pipelines.sequential.making import Scene, grounds
from pipelines.sequential.views import NAMES, options_of
from pipelines.stages import Stages
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.lookahead_config import LookAheadConfig
from pipelines.strategies.situation import PROBE
from trainer.predict import logits
from trainer.tables import lookup
from trainer.train_config import Loss

LINEARISED = KernelConfig(reference="linearised")


def start(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    labelled: Mapping[int, int],
    strategy: str = "mlmoc",
    *,
    tests: tuple[np.ndarray | torch.Tensor, np.ndarray] | None = None,
    subset: int | None = None,
    loss: Loss = "l2",
    lookahead: LookAheadConfig | None = None,
    kernel: KernelConfig | None = None,
    mirror: Mirror | None = None,
    seed: int = 0,
    stages: Stages | None = None,
) -> Asker:
    """Linearise a trained network, to ask for labels one at a time.

    Args:
        model: your trained network in eval mode: (batch, channels, height, width) → (batch,
            classes) logits.
        images: float (examples, channels, height, width), all of them, labelled or not, exactly
            as the network takes them (normalised, not augmented).
        labelled: what the network was trained on, {index into images: class from 0}.
        strategy: a look-ahead criterion, or random, entropy, margin or least_confident of the
            linearised network.
        tests: images and their classes, on which the linearised network's accuracy is told.
        subset: ask only about so many unlabelled images, drawn at random; None asks about all.
        loss: what the network was trained with; look-ahead assumes `l2`.
        lookahead: of look-ahead criteria; what it says of batches is without effect.
        kernel: how the kernel is computed; by default changes refer to the linearised network.
        mirror: your own mirror of the model; None makes one.
        seed: of the subset, of random choice, projections and ties.
        stages: where time and memory are noted and progress is shown.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: images, labels or sizes that cannot be used.
        NetworkError, DataError: as `pipelines.query.query`.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    lookup(dict.fromkeys(NAMES), strategy, "sequential strategy")
    array = checked_images(images)
    pool, labels = checked_labels(labelled, len(array))
    test_images, test_labels = (None, np.empty(0, np.int64)) if tests is None else _checked(*tests)
    candidates = pool.candidates(subset, generator(seed, "subset"))
    if not len(candidates):
        raise PipelineError("every image is labelled already: there is nothing to ask.")
    twin = mirror.with_weights(weights_of(model)) if mirror else trace.mirror(model, array[:PROBE])
    classes = logits(model, array[:1]).shape[1]
    for which, given in (("labelled", labels), ("test", test_labels)):
        if len(given) and not 0 <= given.min() <= given.max() < classes:
            raise PipelineError(
                f"the {which} images have classes {given.min()} to {given.max()} and the network "
                f"has {classes} logits: classes go from 0 to {classes - 1}."
            )
    scene = Scene(
        images=lambda indices: array[indices],
        labelled=dict(zip(pool.labelled.tolist(), labels.tolist(), strict=True)),
        candidates=candidates,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
    )
    settings = kernel or LINEARISED
    options = options_of(strategy, lookahead or LookAheadConfig(), settings, seed)
    made = grounds(
        model,
        twin,
        certify(model, twin, array[:PROBE]).summary(),
        scene,
        strategy,
        options,
        settings,
        loss=loss,
        seed=seed,
        rng=generator(seed, "kernel"),
        stages=stages or Stages(),
    )
    return Asker(made)


def _checked(
    images: np.ndarray | torch.Tensor, labels: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    array, classes = checked_images(images), np.asarray(labels)
    if classes.shape != (len(array),) or not np.issubdtype(classes.dtype, np.integer):
        raise PipelineError(
            f"tests are {len(array)} images and labels of shape {classes.shape} and dtype "
            f"{classes.dtype}: one whole number an image is needed."
        )
    return (array if len(array) else None), classes.astype(np.int64)
