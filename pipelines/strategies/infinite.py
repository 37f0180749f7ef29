"""Look-ahead with the kernel of infinite width ([L] Figure 1): for the network, and for a GP.

From a situation to scores: the network's architecture without its widths and BatchNorm, the
analytic NTK between the labelled images and the candidates, and with it either how the network
would change (after Borsos et al. 2021), or how the Gaussian process that has no network would
(after Käding et al. 2018).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve

from kernel.covariance import Given
from kernel.criteria import mlmoc
from kernel.infinite import ARCHITECTURES, Architecture, infinite_kernel, infinite_rows
from kernel.posterior import Posterior, posterior
from pipelines.errors import PipelineError
from pipelines.strategies.base import Query, Situation, top
from pipelines.strategies.baselines import Pace
from pipelines.strategies.lookahead import reference_sample
from trainer.networks.architecture import depths_of

_REMEDIES = (
    "make the images smaller (baseline.image_size), score fewer candidates (subset), sum the "
    "change over fewer (kernel.sample)"
)


class Analytic(NamedTuple):
    """The kernel of infinite width of a query.

    Attributes:
        architecture: of the network.
        kernel: between the labelled images and the candidates.
        sample: places of the candidates over which changes are summed; None for all.
    """

    architecture: Architecture
    kernel: Given
    sample: np.ndarray | None


def infinite_ntk(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """MLMOC of the trained network with the kernel of infinite width for the empirical one.

    Raises:
        PipelineError: the network has no counterpart of infinite width; it would take longer than
            baseline.hours.
        KernelError: it does not fit in the memory, or is singular.
    """
    given = analytic(situation, rng.spawn(1)[0])
    with situation.stages("posterior"):
        result = _conditioned(
            situation,
            given,
            situation.labelled_logits.astype(np.float64),
            situation.candidate_logits.astype(np.float64),
        )
    with situation.stages("score"):
        scores = mlmoc(result, situation.kernel.reference)
    diagnostics = _diagnostics(situation, given, result)
    diagnostics["reference"] = situation.kernel.reference
    return top(situation, scores, batch_size, rng, diagnostics)


def gp(situation: Situation, batch_size: int, rng: np.random.Generator) -> Query:
    """MLMOC of the posterior mean of a GP with that kernel: no network takes part in it.

    Its predictions are K_UL(K_LL + λI)⁻¹Y with one-hot Y and a prior mean of 0, its pseudo-labels
    the largest of them, and the change is that of the posterior mean.

    Raises:
        PipelineError, KernelError: as `infinite_ntk`.
    """
    kernel_rng, test_rng = rng.spawn(2)
    given = analytic(situation, kernel_rng)
    classes = situation.labelled_logits.shape[1]
    with situation.stages("posterior"):
        nothing = np.zeros((len(situation.candidates), classes))
        result = _conditioned(
            situation, given, np.zeros((len(situation.labelled), classes)), nothing
        )
        # the GP's own mean is both what pseudo-labels come from and what changes are changes from
        result = result._replace(logits=result.predictions, drift=nothing)
    with situation.stages("score"):
        scores = mlmoc(result, "linearised")
    diagnostics = _diagnostics(situation, given, result)
    if situation.test is not None and situation.baseline.test > 0:
        diagnostics |= _tested(situation, given.architecture, result.ridge, test_rng)
    return top(situation, scores, batch_size, rng, diagnostics)


def analytic(situation: Situation, rng: np.random.Generator) -> Analytic:
    """The kernel between the labelled images and the candidates; `rng` draws the sample.

    Strategies that are asked together (`Situation.shared`) have one, from a seed of its own.
    """
    if situation.shared is None:
        return _analytic(situation, rng)
    common = np.random.default_rng(situation.shared)
    return situation.once("infinite", lambda: _analytic(situation, common))


def _analytic(situation: Situation, rng: np.random.Generator) -> Analytic:
    settings = situation.kernel
    architecture = architecture_of(situation.network)
    sample = reference_sample(len(situation.candidates), settings.sample, rng)
    images = situation.images(np.concatenate([situation.labelled, situation.candidates]))
    with situation.stages("kernel") as advance:
        kernel = infinite_kernel(
            architecture,
            shrunk(images, situation.baseline.image_size),
            len(situation.labelled),
            sample=sample,
            memory_gib=settings.memory_gib,
            progress=Pace(advance, situation.baseline.hours, _REMEDIES),
            folder=situation.folder,
        )
    return Analytic(architecture, kernel, sample)


def architecture_of(network: torch.nn.Module) -> Architecture:
    """What of a network is left at infinite width.

    Raises:
        PipelineError: nothing is.
    """
    depths = depths_of(network)
    if depths is None:
        raise PipelineError(
            f"the network, a {type(network).__name__}, has no counterpart of infinite width here; "
            f"those that have one are {', '.join(ARCHITECTURES)}, as --network makes them."
        )
    return Architecture(*depths)


def shrunk(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images averaged over areas to (size, size) pixels; as they are without a size.

    Raises:
        PipelineError: they are smaller than that.
    """
    if size is None:
        return images
    if size > min(images.shape[2:]):
        raise PipelineError(
            f"baseline.image_size is {size} and the images have {images.shape[2]}×"
            f"{images.shape[3]} pixels: give at most the smaller of these."
        )
    given = torch.from_numpy(np.ascontiguousarray(images))
    return torch.nn.functional.adaptive_avg_pool2d(given, size).numpy()


def _conditioned(
    situation: Situation, given: Analytic, labelled: np.ndarray, candidates: np.ndarray
) -> Posterior:
    return posterior(
        given.kernel,
        np.eye(labelled.shape[1])[situation.labels],
        labelled,
        candidates,
        sample=given.sample,
        consume=given.sample is None and situation.folder is None and situation.shared is None,
        ridge=situation.kernel.ridge,
        identifiers=situation.labelled.tolist(),
    )


def _tested(
    situation: Situation, architecture: Architecture, ridge: float, rng: np.random.Generator
) -> dict[str, float | int]:
    """The accuracy of the GP itself on test images that nothing else was asked of."""
    assert situation.test is not None
    images, labels = situation.test
    chosen = reference_sample(len(labels), situation.baseline.test, rng)
    chosen = np.arange(len(labels)) if chosen is None else chosen
    labelled = situation.images(situation.labelled)
    with situation.stages("test") as advance:
        rows = infinite_rows(
            architecture,
            shrunk(np.concatenate([labelled, images(chosen)]), situation.baseline.image_size),
            len(labelled),
            memory_gib=situation.kernel.memory_gib,
            progress=advance,
        )
        block, across = rows[:, : len(labelled)], rows[:, len(labelled) :]
        targets = np.eye(situation.labelled_logits.shape[1])[situation.labels]
        factor = cho_factor(block + ridge * np.eye(len(block)), lower=True)
        found = (across.T @ cho_solve(factor, targets)).argmax(axis=1)
    return {"test_accuracy": float(np.mean(found == labels[chosen])), "tested": len(chosen)}


def _diagnostics(situation: Situation, given: Analytic, result: Posterior) -> dict[str, object]:
    return {
        "kernel": "infinite",
        "architecture": given.architecture.name,
        "depths": dict(given.architecture.depths),
        "image_size": situation.baseline.image_size,
        "sample": situation.kernel.sample,
        "ridge": situation.kernel.ridge,
        "jitter": result.jitter,
        "determined": int(result.determined.sum()),
    }
