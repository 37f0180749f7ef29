"""Kernels on many devices against those on one, for tests that start a process for them.

`python -m tests.kernel.sharded_worker devices NETWORKS OUT` compares on the devices of one process;
`… processes ADDRESS NUMBER OUT` is one of two processes. Writes what it found as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import install_import_hook

with install_import_hook(["kernel"], "beartype.beartype"):
    from bridge import portable
    from kernel import criteria, sharded
    from kernel.contract import sketches, sweep
    from kernel.errors import KernelError
    from kernel.jacobian import Part
    from kernel.model import Model
    from kernel.ntk import empirical_ntk, sketched
    from kernel.options import Request
    from kernel.plan import Pass, Plan, Problem, Progress, mesh, plan, problem_of
    from kernel.posterior import posterior
    from tests.kernel_cases import mlp, random_problem

# name: network, kind, form (None for those planned), images, anchors, chunk, devices
CASES: dict[str, tuple[str, str, str | None, int, int, int, int]] = {
    "planned, one wave": ("conv", "single", None, 11, 11, 3, 8),
    "rows, fewer images than devices": ("conv", "sum", "rows", 7, 7, 4, 8),
    "rows, anchors": ("conv", "trace", "rows", 22, 10, 1, 8),
    "patches, anchors": ("conv", "rademacher", "patches", 13, 3, 2, 8),
    "pixels, two waves": ("conv", "trace", "pixels", 10, 10, 1, 8),
    "full, rows, an odd ring": ("conv", "full", "rows", 7, 4, 1, 3),
    "full, patches, two devices": ("conv", "full", "patches", 7, 7, 2, 2),
    "pieces": ("conv", "sum", "pieces", 9, 9, 2, 4),
    "one device": ("conv", "single", None, 9, 5, 4, 1),
    "embedding": ("embedding", "trace", "patches", 11, 6, 1, 8),
    "no taps": ("mlp", "full", None, 11, 6, 1, 8),
}


def seeded() -> np.random.Generator:
    return np.random.default_rng(7)


def network(name: str, folder: Path) -> tuple[Model, tuple[int, ...]]:
    """A model in float64 and the shape of its images."""
    if name == "mlp":
        return mlp(5, 4, 3, seeded()), (5,)
    own = portable.load(folder / f"{name}.safetensors").astype("float64")
    return Model(own.function, own.params, own.frozen), (6,) if name == "embedding" else (2, 6, 6)


def problem_for(
    model: Model, images: np.ndarray, kind: str, anchors: int, form: str | None, chunk: int
) -> tuple[Problem, Plan]:
    image = jax.ShapeDtypeStruct(images.shape[1:], "float64")
    request = Request(kind, probes=2, precision="float64", chunk=chunk)
    problem = problem_of(model, image, len(images), anchors, request, seeded())
    made = plan(problem, 1.0, chunk)
    if form == "pieces":
        parts = [
            Part(unit, "rows", -(-unit.outputs // 2), piece)
            for unit in problem.units
            for piece in range(2)
        ]
        passes = tuple(Pass((part,), (0, 1)) for part in parts)
        made = made._replace(passes=passes)
    elif form is not None:
        forms = [form if form in unit.forms else unit.forms[-1] for unit in problem.units]
        own = zip(problem.units, forms, strict=True)
        parts = tuple(Part(unit, form, unit.outputs) for unit, form in own)
        made = made._replace(passes=(Pass(parts, (0, len(problem.directions.projections))),))
    return problem, made


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a fraction of the largest value."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), 1e-300))


def compared(folder: Path, case: tuple[str, str, str | None, int, int, int, int]) -> Any:
    name, kind, form, examples, anchors, chunk, devices = case
    model, shape = network(name, folder)
    images = np.abs(seeded().normal(size=(examples, *shape))) * 2
    problem, made = problem_for(model, images, kind, anchors, form, chunk)
    told: list[tuple[float, float]] = []
    progress = Progress(problem, made, lambda *report: told.append(report))
    arguments = (model, images, problem, made)
    values, diagonal = sharded.sharded_sweep(*arguments, progress, mesh(devices))
    expected = sweep(*arguments, Progress(problem, made, None))
    return {
        "values": apart(values, expected[0]),
        "diagonal": apart(diagonal, expected[1]),
        "largest": float(np.abs(expected[0]).max()),
        "done": told[-1][0] / told[-1][1],
    }


def selections(folder: Path) -> Any:
    """Places of the best candidates, from a kernel of many devices and from that of one."""
    model, shape = network("conv", folder)
    images = seeded().normal(size=(21, *shape))
    given = random_problem(5, 16, 3, seeded())
    found = []
    for devices in (8, 1):
        kernel = empirical_ntk(model, images, "trace", precision="float64", devices=devices)
        scores = criteria.mlmoc(posterior(kernel, *given))
        found.append(np.argsort(-scores)[:6].tolist())
    return found


def sketch_apart(folder: Path) -> float:
    model, shape = network("conv", folder)
    images = seeded().normal(size=(11, *shape))
    problem, _ = problem_for(model, images, "rademacher", 11, None, 2)
    own = (model, images, problem, 16, 1)
    pairs = zip(sketched(*own, seeded(), devices=8), sketches(*own, seeded()), strict=True)
    return max(apart(one, other) for one, other in pairs)


def refusals(folder: Path) -> Any:
    """What both engines say of an image that is not finite, and of too many devices."""
    model, shape = network("conv", folder)
    model.params["0.weight"] = model.params["0.weight"] * 1e300
    images = np.zeros((9, *shape))
    images[6] = 1e10
    said = []
    for devices in (8, 1, 9):
        try:
            empirical_ntk(model, images, precision="float64", devices=devices)
        except KernelError as error:
            said.append(str(error))
    return said


def together(folder: Path) -> Any:
    """The gradients of all images at once, as a GPU forms them."""
    sharded.together = lambda: True
    return compared(folder, ("conv", "trace", "rows", 11, 6, 1, 8))


def one_of_two(address: str, number: int) -> Any:
    """Kernel, sketch and refusal of one of two processes, and of an engine by itself."""
    jax.distributed.initialize(address, 2, number)
    model, images = mlp(5, 4, 3, seeded()), seeded().normal(size=(11, 5))
    problem, made = problem_for(model, images, "trace", 7, None, 1)
    quiet = Progress(problem, made, None)
    values, diagonal = sharded.sharded_sweep(model, images, problem, made, quiet, mesh())
    expected = sweep(model, images, problem, made, quiet)
    kernel = empirical_ntk(model, images, "trace", precision="float64", sketch=9, rng=seeded())
    features = sketches(
        model, images, problem_for(model, images, "trace", 11, None, 1)[0], 9, 4, seeded()
    )
    flat = features.features.reshape(11, -1)
    images[4] = np.nan
    said = []
    for devices in (None, 2):
        try:
            empirical_ntk(model, images, devices=devices)
        except KernelError as error:
            said.append(str(error))
    return {
        "devices": [jax.local_device_count(), jax.device_count()],
        "kernel": values.tolist(),
        "values": apart(values, expected[0]),
        "diagonal": apart(diagonal, expected[1]),
        "sketch": apart(kernel.values, flat @ flat.T),
        "said": said,
    }


def main(mode: str, *rest: str) -> None:
    out = Path(rest[-1])
    if mode == "processes":
        found = one_of_two(rest[0], int(rest[1]))
    else:
        folder = Path(rest[0])
        found = {name: compared(folder, case) for name, case in CASES.items()}
        found |= {
            "selections": selections(folder),
            "sketch": sketch_apart(folder),
            "refusals": refusals(folder),
            "together": together(folder),
        }
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
