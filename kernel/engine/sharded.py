"""All passes of a plan over the images, on the devices of a mesh.

From a plan to the kernel between the anchors and all images. Images go through in waves, of which
each device has an equal slice; two waves are contracted while one of them is handed round in a
ring, so that no device ever holds the rows of all images. Every program has one shape however many
images there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from kernel.engine.devices import collected, everywhere, spread, together
from kernel.engine.plan import Pass, Plan, Problem
from kernel.engine.programs import alone_on, contract_on, form_on
from kernel.engine.progress import Progress
from kernel.engine.scratch import Scratch
from kernel.engine.waves import Wave, waves
from kernel.layers.diagnosis import not_finite
from kernel.layers.passes import Chunk, Part
from kernel.model import Model

# In the scratch, how many passes are finished.
_PASSES = "passes"


class _Formed(NamedTuple):
    """A wave whose rows and factors the devices hold."""

    wave: Wave
    chunk: Chunk


class _Sweep(NamedTuple):
    """What all passes have in common; `placed` is the model with its arrays on the devices."""

    model: Model
    placed: Model
    images: np.ndarray
    problem: Problem
    mesh: Mesh
    products: str


def sharded_sweep(
    model: Model,
    images: Float[np.ndarray, "examples ..."],
    problem: Problem,
    plan: Plan,
    progress: Progress,
    mesh: Mesh,
    products: str = "highest",
    scratch: Scratch | None = None,
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "_ each each"]]:
    """The kernel between the first `problem.anchors` images and all of them.

    Args:
        model: in the precision of the problem.
        images: the anchors first; all of them in every process.
        problem: what is computed.
        plan: how; its chunk is that of one device.
        progress: told of every wave and every product.
        mesh: the devices, along one axis.
        products: precision of the products between images, one of `jax.default_matmul_precision`.
        scratch: where the sum of finished passes is kept, and taken up from.

    Returns:
        float64 values, not yet scaled, and the blocks of every image that is no anchor with itself.

    Raises:
        KernelError: gradients that are not finite.
    """
    each, anchors, total = problem.rows_an_example, problem.anchors, problem.examples
    values = np.zeros((anchors * each, total * each))
    diagonal = np.zeros((total - anchors, each, each))
    placed = Model(model.function, *everywhere(tuple(model[1:]), mesh))
    sweep = _Sweep(model, placed, images, problem, mesh, products)
    scratch = scratch or Scratch()
    done = scratch.done(_PASSES)
    sums = (values, diagonal)
    if done:
        for array, kept in zip(sums, _kept(scratch, done, *sums), strict=True):
            array[:] = kept
    for number, one in enumerate(plan.passes):
        if number < done:
            progress.formed(one, total)
            progress.contracted(one, total - anchors / 2)
            continue
        _add_pass(sweep, one, plan.chunk, progress, values, diagonal)
        if scratch.keeps:
            for array, kept in zip(sums, _kept(scratch, number + 1, *sums), strict=True):
                kept[:] = array
            scratch.mark(_PASSES, number + 1)
    return values, diagonal


def _kept(
    scratch: Scratch, done: int, values: np.ndarray, diagonal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What so many passes add up to, in the scratch; that of one pass fewer is left as it is."""
    return (
        scratch.array(f"values-{done % 2}", values.shape, values.dtype),
        scratch.array(f"diagonal-{done % 2}", diagonal.shape, diagonal.dtype),
    )


def _add_pass(
    sweep: _Sweep,
    one: Pass,
    chunk: int,
    progress: Progress,
    values: np.ndarray,
    diagonal: np.ndarray,
) -> None:
    """Add one pass to the kernel and to the blocks of images that are no anchors."""
    problem, mesh = sweep.problem, sweep.mesh
    anchors, total = problem.anchors, problem.examples
    kept: list[_Formed] = []
    for wave in waves(0, anchors, chunk, mesh.size):
        kept.append(_formed(sweep, one, wave))
        progress.formed(one, wave.images)
    for number in range(len(kept)):
        _add_gram(sweep, one, values, kept[number:])
        done = (len(kept) - number) / (len(kept) * (len(kept) + 1))
        progress.contracted(one, done * anchors)
    for wave in waves(anchors, total, chunk, mesh.size):
        met = _formed(sweep, one, wave)
        _add_cross(sweep, one, values, kept, met)
        alone = alone_on(mesh, _shapes(one), met.chunk)
        start = wave.start - anchors
        diagonal[start : start + wave.images] += collected(alone)[: wave.images]
        progress.formed(one, wave.images)
        progress.contracted(one, float(wave.images))


def _formed(sweep: _Sweep, one: Pass, wave: Wave) -> _Formed:
    """A wave of images in one pass, on the devices."""
    problem, mesh = sweep.problem, sweep.mesh
    projections = problem.directions.projections[slice(*one.projections)]
    starts = np.array([part.piece * part.outputs for part in one.parts])
    some = sweep.images[wave.places]
    chunk = form_on(
        mesh,
        sweep.model.function,
        _shapes(one),
        problem.directions.square,
        together(),
        *sweep.placed[1:],
        spread(some, mesh),
        *everywhere((projections.astype(some.dtype), starts), mesh),
    )
    check_wave(sweep.model, sweep.images, wave, chunk.finite, projections)
    return _Formed(wave, chunk)


def check_wave(
    model: Model, images: np.ndarray, wave: Wave, finite: jax.Array, projections: np.ndarray
) -> None:
    """Refuse gradients that are not finite, in every process alike.

    Args:
        model: the network.
        images: all of them.
        wave: the places that were differentiated.
        finite: whether the gradients are, by place.
        projections: one v a row.

    Raises:
        KernelError: they are not.
    """
    bad = wave.places[~collected(finite).reshape(-1)]
    if len(bad):
        raise not_finite(model, images, sorted(set(bad.tolist())), projections)


def _add_gram(sweep: _Sweep, one: Pass, values: np.ndarray, kept: list[_Formed]) -> None:
    """Add the part of the kernel of the first of these waves with each of them, both ways."""
    devices, first, each = sweep.mesh.size, kept[0], sweep.problem.rows_an_example
    # of the pairs of devices within a wave one order is enough
    found = [_contracted(sweep, one, first, first, devices // 2 + 1)]
    found += [_contracted(sweep, one, first, other, devices) for other in kept[1:]]
    for other, blocks in zip(kept, found, strict=True):
        for device, step, place, block in _placed(collected(blocks), first.wave, other.wave, each):
            within = other is first
            if within and 2 * step == devices and device >= step:
                continue
            values[place] += block
            if not within or step:
                values[place[::-1]] += block.T


def _add_cross(
    sweep: _Sweep, one: Pass, values: np.ndarray, kept: list[_Formed], met: _Formed
) -> None:
    """Add the part of the kernel between the anchors and a wave of other images."""
    each = sweep.problem.rows_an_example
    found = [_contracted(sweep, one, own, met, sweep.mesh.size) for own in kept]
    for own, blocks in zip(kept, found, strict=True):
        for _, _, place, block in _placed(collected(blocks), own.wave, met.wave, each):
            values[place] += block


def _contracted(sweep: _Sweep, one: Pass, own: _Formed, other: _Formed, steps: int) -> jax.Array:
    with jax.default_matmul_precision(sweep.products):
        return contract_on(sweep.mesh, _shapes(one), steps, own.chunk, other.chunk)


def _placed(
    blocks: np.ndarray, own: Wave, other: Wave, each: int
) -> Iterator[tuple[int, int, tuple[slice, slice], np.ndarray]]:
    """Device, step, place in the kernel and values of each block, without what is padding."""
    devices, steps, *_ = blocks.shape
    for device in range(devices):
        rows = own.share(device, each)
        for step in range(steps):
            columns = other.share((device + step) % devices, each)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            yield device, step, (rows, columns), blocks[device, step, :height, :width]


def _shapes(one: Pass) -> tuple[Part, ...]:
    """Parts that differ by their piece alone are compiled once."""
    return tuple(part._replace(piece=0) for part in one.parts)
