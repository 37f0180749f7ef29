"""The empirical Neural Tangent Kernel of a network, as a plan says.

Θ(x,x') = J(x)J(x')ᵀ between all pairs of images, whole or reduced to a scalar-valued one; between
anchors and all images; or as sketched gradients whose inner products are the kernel
(docs/mathematics.md, 2). NumPy's products compute it on one CPU, a mesh on any other devices.
"""

import copy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64

from kernel.contract import Sketches, contract, sketches
from kernel.covariance import AnyKernel, Cross, Features, Kernel
from kernel.errors import KernelError
from kernel.linalg import Matrix, add_gram, on_host, row_blocks
from kernel.model import Images, Model, dtype_of, matmul_precision, selection
from kernel.options import Precision, Request
from kernel.plan import Plan, Progress, Report, Sizes, cast, plan_kernel, plan_query
from kernel.scratch import Scratch, key_of
from kernel.sharded import contract_sharded, mesh, sketches_sharded
from kernel.taps import LinearHead, check_gradients

# Multiplications from which finished chunks are worth the disk: some ten seconds on two cores.
LONG = 1e12
# Images between which the error of TF32 is measured, at most.
TF32_IMAGES = 64
_ROWS = 4096  # of a linear layer, read at a time


def empirical_ntk(
    model: Model,
    images: Images,
    request: Request | None = None,
    *,
    rng: np.random.Generator | None = None,
    progress: Report | None = None,
    scratch: Scratch | None = None,
) -> Kernel:
    """The kernel of a network between all pairs of images.

    `single` is ∇f¹·∇f¹ of the first logit ([L]), `sum` that of Σ_c f_c/√C ([P]'s pNTK), `trace`
    the mean over classes of Θ_cc, `rademacher` the mean over random ±1 projections r of the logits
    of rᵀΘr/C, unbiased for `trace`, and `full` every entry of Θ.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the examples, as the network takes them, without augmentation.
        request: how it is computed; the defaults if None.
        rng: where projections and the signs of a sketch come from.
        progress: called with the work done and all work, in one unit.
        scratch: where finished chunks are kept, and taken up from.

    Raises:
        KernelError: unknown kind; a precision that is not to be had here; no images; more devices
            than there are; not even one parameter, or not the sketch, fits in the memory given; a
            sketch of no or too many dimensions; no generator where one is needed; gradients that
            are not finite, with the layer and the images.
    """
    request = request or Request()
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(request.precision))
    plan = plan_kernel(model, image, len(images), request, rng)
    return _whole(model, images, plan, rng, progress, scratch)


def query_kernel(
    model: Model,
    images: Images,
    labelled: int,
    request: Request,
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    streamed: bool = False,
    rng: np.random.Generator | None = None,
    progress: Report | None = None,
    folder: Path | None = None,
) -> tuple[AnyKernel, Plan]:
    """Plan the kernel of a query, and compute it.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the labelled images, then the candidates.
        labelled: how many are labelled.
        request: how the kernel is computed.
        sample: candidates over which changes are summed; all if None.
        streamed: S may be computed when it is read (`Sizes`).
        rng: where random projections and the signs of a sketch come from.
        progress: as for `compute_kernel`.
        folder: as for `compute_kernel`.

    Raises:
        KernelError: as `plan_query` and `compute_kernel`.
    """
    sampled = None if sample is None else len(sample)
    sizes = Sizes(labelled, len(images) - labelled, sampled, streamed)
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(request.precision))
    plan = plan_query(model, image, sizes, request, rng)
    kernel = compute_kernel(
        model, images, plan, sample=sample, rng=rng, progress=progress, folder=folder
    )
    return kernel, plan


def compute_kernel(
    model: Model,
    images: Images,
    plan: Plan,
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    rng: np.random.Generator | None = None,
    progress: Report | None = None,
    folder: Path | None = None,
) -> AnyKernel:
    """The kernel that a posterior is made of, as it was planned.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the labelled images, then the candidates.
        plan: of the query, `kernel.plan.plan_query`.
        sample: candidates over which changes are summed; all if None.
        rng: where the signs of a sketch come from.
        progress: called with the work done and all work, in one unit.
        folder: where finished chunks of a kernel that takes long (`LONG`) are kept, so that an
            interrupted query goes on where it stood; its contents belong to this function.

    Raises:
        KernelError: gradients that are not finite; devices or a precision that are not to be had
            here; no generator where one is needed.
    """
    scratch = None
    if folder is not None and plan.work > LONG:
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        program = str(jax.make_jaxpr(model.function)(model.params, model.frozen, one))
        state = rng and rng.bit_generator.state
        how = (plan.request, plan.form, plan.problem.anchors, plan.passes, plan.chunk)
        key = (*how, jax.devices(), state, program)
        arrays = (*model[1:], images, sample, plan.problem.directions.projections)
        scratch = Scratch(folder, key_of(arrays, key))
    if plan.head is not None:
        return Features(_of_head(model, images, plan, plan.head), plan.request.precision)
    if plan.form == "features":
        found = _sketched(model, images, plan, rng, progress, scratch)
        features = found.features.reshape(len(images), -1)
        return Features(features, plan.request.precision, found.logits)
    if plan.form == "cross":
        assert sample is not None
        return _cross(model, images, plan, sample, progress, scratch)
    return _whole(model, images, plan, rng, progress, scratch)


def _whole(model, images, plan: Plan, rng, progress, scratch: Scratch | None) -> Kernel:
    """The kernel between all pairs of images."""
    problem, examples = plan.problem, len(images)
    if plan.head is not None:
        values = gram(_of_head(model, images, plan, plan.head))
    elif plan.request.sketch is None:
        values, _ = _contracted(model, images, plan, progress, scratch)
        values *= problem.directions.scale
    else:
        found = _sketched(model, images, plan, rng, progress, scratch)
        values = gram(found.features.reshape(examples * problem.rows_an_example, -1))
    if problem.directions.square:
        values = values.reshape((examples, problem.rows_an_example) * 2)
    return Kernel(values, plan.request.precision)


def _of_head(model: Model, images: Images, plan: Plan, head: LinearHead) -> Matrix:
    """Features of a network that is one linear layer, on the default device."""
    projections, scale, _ = plan.problem.directions
    dtype, norm = dtype_of(plan.request.precision), float(scale * (projections**2).sum()) ** 0.5
    features = np.empty((len(images), head.width), dtype)
    for start, stop in row_blocks(len(images), _ROWS):
        features[start:stop] = head.features(np.asarray(images[start:stop], dtype), norm)
    finite = np.asarray(np.isfinite(features).all(axis=1))
    check_gradients(model, images, np.arange(len(images)), finite, projections)
    return features if on_host() else jnp.asarray(features)


def _cross(model, images, plan: Plan, sample, progress, scratch: Scratch | None) -> Cross:
    """The exact kernel between labelled images and the sample, and all images."""
    labelled, scale = plan.problem.anchors - len(sample), plan.problem.directions.scale
    anchors = np.concatenate([np.arange(labelled), labelled + sample])
    order = np.concatenate([anchors, np.setdiff1d(np.arange(len(images)), anchors)])
    values, others = _contracted(model, images, plan, progress, scratch, order)
    diagonal = np.concatenate([values.diagonal(), others[:, 0, 0]]) * scale
    back = np.argsort(order)
    precision = plan.request.precision
    return Cross((values[:, back] * scale).astype(dtype_of(precision)), diagonal[back], precision)


def _contracted(
    model: Model,
    images: Images,
    plan: Plan,
    report: Report | None,
    scratch: Scratch | None,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All passes of the plan, on the devices asked for; the anchors come first in the order."""
    matmul_precision(plan.request.precision)  # refused before anything is computed
    model, typed = (
        cast(model, plan.request.precision),
        selection(images, order, dtype_of(plan.request.precision)),
    )
    progress, devices = Progress(plan, report), plan.request.devices
    if _one_cpu(devices):
        return contract(model, typed, plan, progress, scratch)
    return contract_sharded(model, typed, plan, progress, mesh(devices), _own(scratch))


def _sketched(
    model: Model,
    images: Images,
    plan: Plan,
    rng: np.random.Generator | None,
    report: Report | None,
    scratch: Scratch | None,
) -> Sketches:
    """Sketched gradients, on the devices asked for."""
    if plan.request.precision == "tf32":
        raise KernelError(
            "TF32 is for products between whole gradients, and a sketch has none: use float32 "
            "with a sketch."
        )
    model, typed = (
        cast(model, plan.request.precision),
        selection(images, None, dtype_of(plan.request.precision)),
    )
    devices = plan.request.devices
    if _one_cpu(devices):
        return sketches(model, typed, plan, rng, report, scratch)
    return sketches_sharded(model, typed, plan, rng, report, mesh(devices), _own(scratch))


def _one_cpu(devices: int | None) -> bool:
    """Whether one CPU computes, for which NumPy's products are the faster ones."""
    count = jax.device_count() if devices is None else devices
    return on_host() and count == 1 and jax.process_count() == 1


def _own(scratch: Scratch | None) -> Scratch | None:
    """Nothing is kept where processes would write over each other, or differ in what they have."""
    return scratch if jax.process_count() == 1 else None


def gram(rows: Float[jax.Array | np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows rows"]:
    """J Jᵀ in float64, contracted in J's own dtype, on the device that there is."""
    if jax.default_backend() == "cpu":
        values = np.zeros((len(rows), len(rows)))
        # (11) Θ = JJᵀ
        add_gram(values, np.asarray(rows))
        return values
    there = jnp.asarray(rows)  # rows that NumPy holds would be multiplied by the host
    return np.asarray(jnp.matmul(there, there.T, precision="highest"), np.float64)


def tf32_error(
    model: Model,
    images: Images,
    request: Request,
    rng: np.random.Generator | None = None,
    *,
    precisions: tuple[Precision, Precision] = ("tf32", "float32"),
) -> float:
    """‖Θ_tf32 − Θ_float32‖_F / ‖Θ_float32‖_F between the first `TF32_IMAGES` images.

    Args:
        model: the network.
        images: those of a query.
        request: of the kernel; its precision and sketch have no part in it.
        rng: where random projections come from, the same for both.
        precisions: the one that is judged, and the one that it is judged by.

    Raises:
        KernelError: as `empirical_ntk`.
    """
    own, exact = (
        empirical_ntk(
            model,
            images[:TF32_IMAGES],
            replace(request, precision=precision, sketch=None, devices=1),
            rng=copy.deepcopy(rng),
        ).values
        for precision in precisions
    )
    return float(np.linalg.norm(own - exact) / np.linalg.norm(exact))
