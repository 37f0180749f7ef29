"""From a trained network to what questions stand on: kernel, logits and candidates.

The certified mirror's empirical kernel between the labelled images, the candidates and the test
images; no entries between test images are needed, and without a sketch none are computed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from torch import nn

from bridge.export import weights_of
from bridge.mirror import Mirror
from kernel.errors import KernelError
from kernel.kinds import dtype_of
from kernel.lookahead import Options
from kernel.pool import Decision, Sizes, decide, query_kernel
from pipelines.errors import PipelineError
from pipelines.numbered import numbered
from pipelines.sequential.grounds import Grounds
from pipelines.sequential.linearised import Linearisation
from pipelines.stages import Stages
from pipelines.strategies.kernel_config import KernelConfig
from pipelines.strategies.lookahead import reference_sample
from trainer.predict import logits


class Scene(NamedTuple):
    """What there is to ask about.

    Attributes:
        images: data-set indices → images as the network takes them.
        labelled: {data-set index: class} that the network was trained on.
        candidates: data-set indices that may be asked for.
        test_images: as the network takes them; None without any.
        test_labels: their classes.
        classes: how many there are.
    """

    images: Callable[[np.ndarray], np.ndarray]
    labelled: Mapping[int, int]
    candidates: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray
    classes: int


def grounds(
    network: nn.Module,
    mirror: Mirror,
    certificate: dict[str, Any],
    scene: Scene,
    strategy: str,
    options: Options,
    settings: KernelConfig,
    *,
    loss: str,
    seed: int,
    rng: np.random.Generator,
    stages: Stages,
    folder: Path | None = None,
) -> Grounds:
    """What questions stand on.

    Args:
        network: in eval mode.
        mirror: of it, certified.
        certificate: for the record.
        scene: what there is to ask about.
        strategy: how the next image is chosen.
        options: of look-ahead criteria.
        settings: of the kernel.
        loss: of the training.
        seed: of the random strategy and of ties.
        rng: of random projections and of the sample.
        stages: where time, memory and progress are noted.
        folder: where a kernel keeps its finished chunks; None keeps none.

    Raises:
        PipelineError, KernelError: as `fits`.
        NetworkError: logits that are not finite.
    """
    kernel_rng, sample_rng = rng.spawn(2)
    labelled = np.fromiter(scene.labelled, np.int64, len(scene.labelled))
    classes = np.array([scene.labelled[int(index)] for index in labelled], np.int64)
    candidates = scene.candidates
    others = scene.images(candidates)
    if scene.test_images is not None:
        others = np.concatenate([others, scene.test_images])
    tests = len(scene.test_labels)
    fits(mirror, others[0], len(labelled), len(candidates), tests, settings)
    sample = reference_sample(len(candidates), settings.sample, sample_rng)
    sample = np.arange(len(candidates)) if sample is None else sample
    with stages("predict"):
        own = scene.images(labelled)
        with numbered(labelled):
            labelled_logits = logits(network, own)
        with numbered(candidates, range(tests)):
            other_logits = logits(network, others)
    both = np.concatenate([labelled, candidates])
    with stages("kernel") as advance, numbered(both, range(tests)):
        kernel, held = query_kernel(
            mirror.model(),
            np.concatenate([own, others]),
            len(labelled),
            settings.request,
            sample=sample,
            sketch=settings.sketch,
            rng=kernel_rng,
            progress=advance,
            folder=folder,
        )
    linearisation = Linearisation(
        kernel=kernel,
        targets=np.eye(scene.classes)[classes],
        labelled_logits=labelled_logits.astype(np.float64),
        logits=other_logits.astype(np.float64),
        sample=sample,
        candidates=len(candidates),
        keep=held.keep,
        ridge=settings.ridge,
    )
    squares = [float(np.sum(np.asarray(p, np.float64) ** 2)) for p in mirror.params.values()]
    residual = linearisation.targets - linearisation.labelled_logits
    return Grounds(
        linearisation=linearisation,
        candidates=candidates,
        labelled=scene.labelled,
        test_labels=scene.test_labels,
        classes=scene.classes,
        norm=float(np.sqrt(sum(squares))),
        strategy=strategy,
        options=options,
        loss=loss,
        seed=seed,
        diagnostics={
            "kind": settings.kind,
            "sketch": settings.sketch,
            "sample": settings.sample,
            "held": held.form if held.keep else f"{held.form}, streamed",
            "predicted_gib": round(held.peak_gib, 3),
            "ridge": settings.ridge,
            "residual_rms": float(np.sqrt(np.mean(residual**2))),
            "certificate": certificate,
        },
        weights=weights_of(network),
    )


def fits(
    mirror: Mirror,
    image: np.ndarray,
    labelled: int,
    candidates: int,
    tests: int,
    settings: KernelConfig,
) -> Decision:
    """How the kernel is held, and that it can be: told before anything is trained.

    Raises:
        PipelineError: a sample of the candidates without a sketch.
        KernelError: it does not fit in the memory; the message says what would.
    """
    if settings.sketch is None and (settings.sample or candidates) < candidates:
        raise PipelineError(
            f"kernel.sample is {settings.sample}: absorbing a label needs the kernel between that "
            f"image and all others, and so of all {candidates} candidates. Use a sketch with it "
            "(kernel.sketch), whose features give every entry, or a smaller subset."
        )
    sizes = Sizes(labelled, candidates + tests, settings.sample or candidates, settings.sketch)
    shape = jax.ShapeDtypeStruct(image.shape, dtype_of(settings.request.precision))
    try:
        return decide(mirror.model(), shape, sizes, settings.request)
    except KernelError as error:
        raise KernelError(
            f"{error} In the sequential mode the candidates are counted with {tests} test images "
            "(test_subset), and a reference sample is for sketches only."
        ) from error
