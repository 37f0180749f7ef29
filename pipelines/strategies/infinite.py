"""Look-ahead with the kernel of infinite width ([L] Figure 1): for the network, and for a GP.

The analytic NTK of the network's architecture, without its widths and BatchNorm, says how the
network would change (after Borsos et al. 2021), or how a Gaussian process with that kernel would
(after Käding et al. 2018).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve

from kernel.covariance import AnyKernel
from kernel.criteria import mlmoc
from kernel.infinite import ARCHITECTURES, Architecture, infinite_kernel, infinite_rows
from kernel.posterior import Posterior, posterior
from pipelines.core.errors import PipelineError
from pipelines.core.progress import TimeLimit
from pipelines.strategies.base import Oracle, Query, QueryContext, reference_sample, top
from pipelines.strategies.options import StrategyOptions
from trainer.networks.architecture import depths_of
from trainer.predict import Piecewise

_REMEDIES = (
    "make the images smaller (baseline.image_size), score fewer candidates (subset), sum the "
    "change over fewer (kernel.sample)"
)


class AnalyticKernel(NamedTuple):
    """The kernel of infinite width of a query.

    Attributes:
        architecture: of the network.
        kernel: between the labelled images and the candidates.
        sample: positions of candidates over which changes are summed; None for all.
    """

    architecture: Architecture
    kernel: AnyKernel
    sample: np.ndarray | None


def infinite_ntk(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """MLMOC of the trained network with the kernel of infinite width for the empirical one.

    Raises:
        PipelineError: the network has no counterpart of infinite width; it would take longer than
            baseline.hours.
        KernelError: it does not fit in the memory, or is singular.
    """
    given = analytic_kernel(context, rng.spawn(1)[0])
    result = _conditioned(context, given, *context.logits())
    reference = context.options.kernel.reference
    with context.progress("score"):
        scores = mlmoc(result, reference)
    diagnostics = _diagnostics(context, given, result) | {"reference": reference}
    return top(context, scores, batch_size, rng, diagnostics)


def gp(context: QueryContext, batch_size: int, rng: np.random.Generator) -> Query:
    """MLMOC of the posterior mean of a GP with that kernel: no network takes part in it.

    Its predictions are K_UL(K_LL + λI)⁻¹Y with one-hot Y and a prior mean of 0, its pseudo-labels
    the largest of them, and the change is that of the posterior mean.

    Raises:
        PipelineError, KernelError: as `infinite_ntk`.
    """
    kernel_rng, test_rng = rng.spawn(2)
    given = analytic_kernel(context, kernel_rng)
    mean = [np.zeros_like(logits) for logits in context.logits()]
    result = _conditioned(context, given, *mean)
    with context.progress("score"):
        # the GP's own mean is both what pseudo-labels come from and what changes are changes from
        drift = np.zeros_like(result.predictions)
        scores = mlmoc(result._replace(logits=result.predictions, drift=drift), "linearised")
    diagnostics = _diagnostics(context, given, result)
    if context.resources.test_set is not None and context.options.baseline.test > 0:
        diagnostics |= _test_accuracy(context, given.architecture, result.ridge, test_rng)
    return top(context, scores, batch_size, rng, diagnostics)


def analytic_kernel(context: QueryContext, rng: np.random.Generator) -> AnalyticKernel:
    """The kernel between the labelled images and the candidates; `rng` draws the sample.

    Strategies asked together share one, drawn from `Resources.shared_seed`.
    """
    if context.resources.shared_seed is None:
        return _analytic_kernel(context, rng)
    common = np.random.default_rng(context.resources.shared_seed)
    return context.get_or_compute("infinite", lambda: _analytic_kernel(context, common))


def _analytic_kernel(context: QueryContext, rng: np.random.Generator) -> AnalyticKernel:
    settings = context.options.kernel
    architecture = architecture_of(context.network)
    sample = reference_sample(len(context.candidates), settings.sample, rng)
    both = np.concatenate([context.labelled, context.candidates])
    size = context.options.baseline.image_size
    images = Piecewise(lambda some: shrink(context.images(some), size), both)
    with context.progress("kernel") as advance:
        kernel = infinite_kernel(
            architecture,
            images,
            len(context.labelled),
            sample=sample,
            memory_gib=settings.memory_gib,
            progress=TimeLimit(advance, context.options.baseline.hours, _REMEDIES),
            folder=context.resources.folder,
        )
    return AnalyticKernel(architecture, kernel, sample)


def require(
    network: torch.nn.Module, probe: np.ndarray, options: StrategyOptions, oracle: Oracle | None
) -> None:
    """Refuse a network that has no counterpart of infinite width.

    Raises:
        PipelineError: it has none.
    """
    architecture_of(network)


def architecture_of(network: torch.nn.Module) -> Architecture:
    """The counterpart of a network at infinite width.

    Raises:
        PipelineError: there is none.
    """
    depths = depths_of(network)
    if depths is None:
        raise PipelineError(
            f"the network, a {type(network).__name__}, has no counterpart of infinite width here; "
            f"those that have one are {', '.join(ARCHITECTURES)}, as --network makes them."
        )
    return Architecture(*depths)


def shrink(images: np.ndarray, size: int | None) -> np.ndarray:
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
    context: QueryContext, given: AnalyticKernel, labelled: np.ndarray, candidates: np.ndarray
) -> Posterior:
    """The posterior of a prior mean given on the labelled images and the candidates."""
    alone = context.resources.folder is None and context.resources.shared_seed is None
    with context.progress("posterior"):
        return posterior(
            given.kernel,
            np.eye(labelled.shape[1])[context.labels],
            labelled.astype(np.float64),
            candidates.astype(np.float64),
            sample=given.sample,
            consume=given.sample is None and alone,
            ridge=context.options.kernel.ridge,
            identifiers=context.labelled.tolist(),
        )


def _test_accuracy(
    context: QueryContext, architecture: Architecture, ridge: float, rng: np.random.Generator
) -> dict[str, float | int]:
    """The accuracy of the GP itself on test images."""
    assert context.resources.test_set is not None
    images, labels = context.resources.test_set
    chosen = reference_sample(len(labels), context.options.baseline.test, rng)
    chosen = np.arange(len(labels)) if chosen is None else chosen
    labelled = context.images(context.labelled)
    with context.progress("test") as advance:
        rows = infinite_rows(
            architecture,
            shrink(np.concatenate([labelled, images(chosen)]), context.options.baseline.image_size),
            len(labelled),
            memory_gib=context.options.kernel.memory_gib,
            progress=advance,
        )
        block, across = rows[:, : len(labelled)], rows[:, len(labelled) :]
        targets = np.eye(context.labelled_logits.shape[1])[context.labels]
        factor = cho_factor(block + ridge * np.eye(len(block)), lower=True)
        found = (across.T @ cho_solve(factor, targets)).argmax(axis=1)
    return {"test_accuracy": float(np.mean(found == labels[chosen])), "tested": len(chosen)}


def _diagnostics(
    context: QueryContext, given: AnalyticKernel, result: Posterior
) -> dict[str, object]:
    return {
        "kernel": "infinite",
        "architecture": given.architecture.name,
        "depths": dict(given.architecture.depths),
        "image_size": context.options.baseline.image_size,
        "sample": context.options.kernel.sample,
        "ridge": context.options.kernel.ridge,
        "jitter": result.jitter,
        "determined": int(result.determined.sum()),
    }
