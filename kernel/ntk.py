"""The empirical Neural Tangent Kernel of a network between all images of a set.

From a model and images to Θ(x,x') = J(x)J(x')ᵀ, whole or reduced to a scalar-valued kernel
(docs/mathematics.md, 2). A plan made beforehand (`kernel.plan`) says in which passes; each
entry of the Jacobian is formed once and contracted in whichever form is cheaper.

Which engine computes: NumPy's products on one CPU, or the devices of a mesh.

From the same request to the same numbers either way, so that callers name only how many devices.

The kernel of one query, in the form that fits: whole, between anchors and all, or as features.

From a network, the labelled images and the candidates to what a posterior is made of, and before
that to a decision: which form, whether S is held or streamed, and what it takes in memory.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int64

from kernel.contract import (
    Scratch,
    Sketches,
    key_of,
    planned,
    sketch_bytes,
    sketch_chunk,
    sketch_work,
    sketches,
    sweep,
)
from kernel.covariance import Cross, Features, Given, Kernel
from kernel.errors import KernelError
from kernel.footprint import posterior_bytes
from kernel.model import Model, add_gram, classes_of, directions, dtype_of
from kernel.options import PROBES, Precision, Request
from kernel.plan import (
    GIB,
    Plan,
    Problem,
    Progress,
    Report,
    cast,
    enough,
    mesh_unless_host,
    problem_of,
)
from kernel.sharded import arithmetic, sharded_sketches, sharded_sweep


def swept(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
    devices: int | None = None,
    scratch: Scratch | None = None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """`kernel.contract.sweep` on so many devices; all if None.

    In the scratch devices of a mesh keep finished passes, and several processes nothing.

    Raises:
        KernelError: more devices than there are; a precision that is not to be had here; gradients
            that are not finite.
    """
    products = arithmetic(problem.precision).products
    mesh = mesh_unless_host(devices)
    if mesh is None:
        return sweep(model, images, problem, plan, progress, scratch)
    return sharded_sweep(model, images, problem, plan, progress, mesh, products, _own(scratch))


def sketched(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    buckets: int,
    chunk: int,
    rng: np.random.Generator | None,
    report: Report | None = None,
    devices: int | None = None,
    scratch: Scratch | None = None,
) -> Sketches:
    """`kernel.contract.sketches` on so many devices; all if None.

    Several processes keep nothing in the scratch.

    Raises:
        KernelError: more devices than there are; TF32, of whose products a sketch has none; a
            sketch of no or too many dimensions; no generator; gradients that are not finite.
    """
    if problem.precision == "tf32":
        raise KernelError(
            "TF32 is for products between whole gradients, and a sketch has none: use float32 "
            "with a sketch."
        )
    mesh = mesh_unless_host(devices)
    if mesh is None:
        return sketches(model, images, problem, buckets, chunk, rng, report, scratch)
    return sharded_sketches(
        model, images, problem, buckets, chunk, rng, report, mesh, _own(scratch)
    )


def _own(scratch: Scratch | None) -> Scratch | None:
    """None where processes would write over each other, or differ in what they take up."""
    return scratch if jax.process_count() == 1 else None


def empirical_ntk(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    kind: str = "single",
    *,
    probes: int = PROBES,
    sketch: int | None = None,
    rng: np.random.Generator | None = None,
    precision: Precision = "float32",
    chunk: int | None = None,
    memory_gib: float = 4.0,
    devices: int | None = None,
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
        kind: which kernel, one of `KINDS`.
        probes: m, how many projections `rademacher` takes.
        sketch: k, the number of dimensions that gradients are folded to before they are
            contracted; None keeps them whole.
        rng: where projections and the signs of a sketch come from.
        precision: of gradients and contraction, one of `PRECISIONS`; the result is stored in
            float64 whichever it is. `tf32` is for NVIDIA GPUs, and for whole gradients.
        chunk: how many examples are differentiated at a time; None chooses for the machine.
        memory_gib: GiB that all of it may take beyond what is in memory before; it decides the
            number of passes.
        devices: how many of the machine's, or of all processes', it is spread over; None for all.
        progress: called with the work done and all work, in one unit.
        scratch: where finished chunks are kept, and taken up from.

    Raises:
        KernelError: unknown kind; a precision that is not to be had here; no images; more devices
            than there are; not even one parameter, or not the sketch, fits in the memory given; a
            sketch of no or too many dimensions; no generator where one is needed; gradients that
            are not finite, with the layer and the images.
    """
    request = Request(kind, probes, precision, chunk, memory_gib, devices)  # pyright: ignore[reportArgumentType]
    model = cast(model, precision)
    images = np.asarray(images, dtype_of(precision))
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    problem = problem_of(model, image, len(images), len(images), request, rng)
    if sketch is None:
        made = planned(problem, request)
        told = Progress(problem, made, progress)
        values, _ = swept(model, images, problem, made, told, devices, scratch)
        values *= problem.directions.scale
    else:
        values = _sketched(model, images, problem, sketch, request, rng, progress, scratch)
    if problem.directions.square:
        classes = problem.rows_an_example
        values = values.reshape(len(images), classes, len(images), classes)
    return Kernel(values, precision)


def _sketched(model, images, problem: Problem, sketch, request: Request, rng, progress, scratch):
    """The kernel of sketched gradients, whole."""
    chunk = sketch_chunk(problem, request, sketch, problem.result_bytes)
    least = problem.result_bytes + sketch_bytes(problem, sketch, chunk)
    if least / GIB > request.memory_gib:
        needed = enough(float(least))
        raise KernelError(
            f"the sketched kernel of {len(images):,} images needs {needed} GiB and "
            f"{request.memory_gib:g} GiB are given: give {needed} GiB, or lower the sketch, "
            "the chunk or the number of images."
        )
    own = (model, images, problem, sketch, chunk, rng, progress, request.devices, scratch)
    return gram(sketched(*own).features.reshape(len(images) * problem.rows_an_example, -1))


def gram(rows: Float[jax.Array | np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows rows"]:
    """J Jᵀ in float64, contracted in J's own dtype, on the device that there is."""
    if jax.default_backend() == "cpu":
        values = np.zeros((len(rows), len(rows)))
        add_gram(values, np.asarray(rows))
        return values
    there = jnp.asarray(rows)  # rows that NumPy holds would be multiplied by the host
    return np.asarray(jnp.matmul(there, there.T, precision="highest"), np.float64)


# Multiplications from which finished chunks are worth the disk: some ten seconds on two cores.
LONG = 1e12


class Sizes(NamedTuple):
    """Of a query.

    Attributes:
        labelled: L.
        candidates: U.
        sample: M, over how many of the candidates the change is summed; None for all.
        sketch: k, the dimensions that gradients are folded to; None keeps them whole.
        streamed: S is made whenever it is read, for a criterion that reads the kernel beside it or
            only columns of it (`kernel.options.STREAMED`).
    """

    labelled: int
    candidates: int
    sample: int | None = None
    sketch: int | None = None
    streamed: bool = False


class Decision(NamedTuple):
    """How a query's kernel is held.

    Attributes:
        form: `dense`, `full`, `features` or `cross`, as `kernel.covariance` has them.
        keep: S is held; else its rows are computed from features, or the kernel, whenever they
            are read.
        kernel_gib: what the kernel takes at its highest while it is computed.
        posterior_gib: what kernel and posterior take at their highest.
        work: multiplications that the kernel takes.
    """

    form: str
    keep: bool
    kernel_gib: float
    posterior_gib: float
    work: float

    @property
    def peak_gib(self) -> float:
        """The most that the query takes, beyond what is in memory before."""
        return max(self.kernel_gib, self.posterior_gib)


def decide(
    model: Model, image: jax.ShapeDtypeStruct, sizes: Sizes, request: Request | None = None
) -> Decision:
    """Choose the form of a query's kernel, and predict its memory.

    Args:
        model: the network.
        image: shape and dtype of one image, without a batch axis.
        sizes: of the query.
        request: how the kernel is computed; the defaults if None.

    Raises:
        KernelError: it does not fit in the memory; the message says what would.
    """
    request = request or Request()
    _check(sizes)
    form, problem = _problem(model, image, sizes, request)
    if sizes.sketch is None:
        made = planned(problem, request)
        kernel, work = made.peak_bytes, made.work
    else:
        beside = problem.result_bytes if form == "full" else 0
        chunk = sketch_chunk(problem, request, sizes.sketch, beside)
        kernel, work = sketch_bytes(problem, sizes.sketch, chunk) + beside, sketch_work(problem)
    projections = 1 if problem.directions.square else len(problem.directions.projections)
    footprints = [
        (
            keep,
            posterior_bytes(
                form,
                sizes.labelled,
                sizes.candidates,
                classes=classes_of(model, image),
                sample=None if sizes.sample is None else min(sizes.sample, sizes.candidates),
                dimensions=None if sizes.sketch is None else sizes.sketch * projections,
                precision=request.precision,
                keep=keep,
                consume=True,
                beside=sizes.streamed,
            ).peak,
        )
        for keep in _ways(form, sizes)
    ]
    room = request.memory_gib * GIB
    fitting = [(keep, peak) for keep, peak in footprints if max(kernel, peak) <= room]
    if not fitting:
        raise KernelError(_refusal(sizes, form, max(kernel, footprints[-1][1]), request))
    keep, peak = fitting[0]
    return Decision(form, keep, kernel / GIB, peak / GIB, work)


def query_kernel(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    labelled: int,
    request: Request | None = None,
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    sketch: int | None = None,
    streamed: bool = False,
    rng: np.random.Generator | None = None,
    progress: Report | None = None,
    folder: Path | None = None,
) -> tuple[Given, Decision]:
    """The kernel that a posterior is made of.

    Args:
        model: the network, evaluated with frozen statistics.
        images: the labelled images, then the candidates.
        labelled: how many are labelled.
        request: how the kernel is computed; the defaults if None.
        sample: places of the candidates over which changes are summed; all if None.
        sketch: k; None keeps gradients whole.
        streamed: as `Sizes.streamed`.
        rng: where random projections and signs come from.
        progress: called with the work done and all work, in one unit.
        folder: where finished chunks of a kernel that takes long (`LONG`) are kept, so that an
            interrupted query goes on where it stood; its contents belong to this function.

    Raises:
        KernelError: as `decide`, and gradients that are not finite.
    """
    request = request or Request()
    count = None if sample is None else len(sample)
    sizes = Sizes(labelled, len(images) - labelled, count, sketch, streamed)
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(request.precision))
    decision = decide(model, image, sizes, request)
    kept = Scratch()
    if folder is not None and decision.work > LONG:
        one = jax.ShapeDtypeStruct((1, *image.shape), images.dtype)
        program = str(jax.make_jaxpr(model.function)(model.params, model.frozen, one))
        key = (request, sizes, labelled, rng and rng.bit_generator.state, program)
        kept = Scratch(folder, key_of((*model[1:], images, sample), key))
    if decision.form == "features":
        assert sketch is not None
        return _features(model, images, sizes, request, rng, progress, kept), decision
    if decision.form == "cross":
        assert sample is not None
        return _cross(model, images, labelled, sample, request, rng, progress, kept), decision
    kernel = empirical_ntk(
        model,
        images,
        request.kind,
        probes=request.probes,
        sketch=sketch,
        rng=rng,
        precision=request.precision,
        chunk=request.chunk,
        memory_gib=request.memory_gib,
        devices=request.devices,
        progress=progress,
        scratch=kept,
    )
    return kernel, decision


def _features(model, images, sizes: Sizes, request: Request, rng, progress, kept) -> Features:
    """Sketched gradients of all images, the projections side by side."""
    problem, model = _ready(model, images, len(images), request, rng)
    assert sizes.sketch is not None
    chunk = sketch_chunk(problem, request, sizes.sketch)
    found = sketched(
        model, images, problem, sizes.sketch, chunk, rng, progress, request.devices, kept
    )
    return Features(found.features.reshape(len(images), -1), request.precision, found.logits)


def _cross(model, images, labelled: int, sample, request: Request, rng, progress, kept) -> Cross:
    """The exact kernel between labelled images and the sample, and all images."""
    anchors = np.concatenate([np.arange(labelled), labelled + sample])
    order = np.concatenate([anchors, np.setdiff1d(np.arange(len(images)), anchors)])
    problem, model = _ready(model, images, len(anchors), request, rng)
    made = planned(problem, request)
    dtype = dtype_of(request.precision)
    ordered = np.asarray(images, dtype)[order]
    progressed = Progress(problem, made, progress)
    values, others = swept(model, ordered, problem, made, progressed, request.devices, kept)
    diagonal = np.concatenate([values.diagonal(), others[:, 0, 0]]) * problem.directions.scale
    back = np.argsort(order)
    values = (values[:, back] * problem.directions.scale).astype(dtype)
    return Cross(values, diagonal[back], request.precision)


def _ready(model, images, anchors: int, request: Request, rng):
    """The problem and the model in the precision asked for."""
    model = cast(model, request.precision)
    image = jax.ShapeDtypeStruct(images.shape[1:], dtype_of(request.precision))
    problem = problem_of(model, image, len(images), anchors, request, rng)
    return problem, model


def _problem(model: Model, image: jax.ShapeDtypeStruct, sizes: Sizes, request: Request):
    """The form of the kernel and what computing it is."""
    examples = sizes.labelled + sizes.candidates
    # which projections has no part in sizes
    square = directions(request.kind, 2, PROBES, np.random.default_rng(0)).square
    form = "full" if square else "dense"
    if sizes.sketch is not None and not square:
        form = "features"
    elif sizes.sample is not None and not square:
        form = "cross"
    anchors = sizes.labelled + (sizes.sample or 0) if form == "cross" else examples
    rng = np.random.default_rng(0)
    problem = problem_of(cast(model, request.precision), image, examples, anchors, request, rng)
    return form, problem


def _ways(form: str, sizes: Sizes) -> tuple[bool, ...]:
    """Whether S can be held, and whether it can do without, in the order of preference."""
    if form == "full":
        return (True,)
    if sizes.streamed:
        return (False,)
    return (True, False) if form == "features" else (True,)


def _check(sizes: Sizes) -> None:
    if sizes.labelled < 1:
        raise KernelError("the labelled set is empty; look-ahead needs at least one label.")
    if sizes.candidates < 1:
        raise KernelError("there are no candidates to look ahead from.")
    if sizes.sample is not None and not 1 <= sizes.sample <= sizes.candidates:
        raise KernelError(
            f"a reference sample of {sizes.sample} candidates was asked for and there are "
            f"{sizes.candidates}: give a number from 1 to that, or none for all."
        )


def _refusal(sizes: Sizes, form: str, least: int, request: Request) -> str:
    needed = enough(float(least))
    ways = [f"give {needed} GiB"]
    if sizes.sample is None and form != "full":
        ways.append("sum the change over a reference sample of some thousand candidates")
    if sizes.sketch is None:
        ways.append("use a sketch")
    else:
        ways.append("lower the sketch")
    ways.append("score fewer candidates")
    return (
        f"looking ahead from {sizes.candidates:,} candidates with {sizes.labelled:,} labels needs "
        f"{needed} GiB and {request.memory_gib:g} GiB are given: {', or '.join(ways)}."
    )
