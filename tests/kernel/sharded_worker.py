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
    from kernel import sharded
    from kernel.contract import contract, sketches
    from kernel.criteria import mlmoc
    from kernel.errors import KernelError
    from kernel.model import Model
    from kernel.ntk import empirical_ntk
    from kernel.options import Request
    from kernel.param_groups import Block
    from kernel.plan import Pass, Plan, Progress, plan_problem, problem_of
    from kernel.posterior import posterior
    from kernel.sharded import contract_sharded, mesh, sketches_sharded
    from tests.kernel_cases import mlp, random_problem

# name: network, kind, form (None for those planned), images, anchors, chunk, devices
CASES: dict[str, tuple[str, str, str | None, int, int, int, int]] = {
    "one batch": ("mlp", "single", None, 11, 11, 3, 8),
    "fewer images than devices": ("mlp", "sum", None, 7, 7, 4, 8),
    "several batches, anchors": ("mlp", "trace", None, 22, 10, 1, 8),
    "factors, anchors": ("conv", "rademacher", "factors", 13, 3, 2, 8),
    "full, an odd ring": ("mlp", "full", None, 7, 4, 1, 3),
    "full, factors, two devices": ("conv", "full", "factors", 7, 7, 2, 2),
    "pieces": ("conv", "sum", "pieces", 9, 9, 2, 4),
}


def seeded() -> np.random.Generator:
    return np.random.default_rng(7)


def network(name: str, folder: Path) -> tuple[Model, tuple[int, ...]]:
    """A model in float64 and the shape of its images."""
    if name == "mlp":
        return mlp(5, 4, 3, seeded()), (5,)
    own = portable.load(folder / f"{name}.safetensors").astype("float64")
    return Model(own.function, own.params, own.frozen), (2, 6, 6)


def plan_for(
    model: Model, images: np.ndarray, request: Request, anchors: int, form: str | None = None
) -> Plan:
    image = jax.ShapeDtypeStruct(images.shape[1:], "float64")
    problem = problem_of(model, image, len(images), anchors, request, seeded())
    made = plan_problem(problem, request, "features" if request.sketch else "dense")
    if form == "pieces":
        parts = [
            Block(unit, "rows", -(-unit.outputs // 2), piece)
            for unit in problem.groups
            for piece in range(2)
        ]
        passes = tuple(Pass((part,), (0, 1)) for part in parts)
        made = made._replace(passes=passes)
    elif form is not None:
        parts = tuple(
            Block.whole(group, form if form in group.forms else "rows") for group in problem.groups
        )
        made = made._replace(passes=(Pass(parts, (0, len(problem.directions.projections))),))
    return made


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a fraction of the largest value."""
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), 1e-300))


def compared(folder: Path, case: tuple[str, Any, str | None, int, int, int, int]) -> Any:
    name, kind, form, examples, anchors, chunk, devices = case
    model, shape = network(name, folder)
    images = np.abs(seeded().normal(size=(examples, *shape))) * 2
    request = Request(kind, probes=2, precision="float64", chunk=chunk)
    made = plan_for(model, images, request, anchors, form)
    told: list[tuple[float, float]] = []
    progress = Progress(made, lambda *report: told.append(report))
    own = (model, images, made)
    values, diagonal = contract_sharded(*own, progress, mesh(devices), None)
    expected = contract(*own, Progress(made, None), None)
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
        kernel = empirical_ntk(
            model, images, Request("trace", precision="float64", devices=devices)
        )
        scores = mlmoc(posterior(kernel, *given))
        found.append(np.argsort(-scores)[:6].tolist())
    return found


def sketch_apart(folder: Path) -> float:
    model, shape = network("conv", folder)
    images = seeded().normal(size=(11, *shape))
    request = Request("rademacher", probes=2, precision="float64", sketch=16, chunk=1)
    own = (model, images, plan_for(model, images, request, 11))
    many = sketches_sharded(*own, seeded(), None, mesh(8), None)
    one = sketches(*own, seeded(), None, None)
    return max(apart(*pair) for pair in zip(many, one, strict=True))


def refusals(folder: Path) -> Any:
    """What both engines say of an image that is not finite, and of too many devices."""
    model, shape = network("conv", folder)
    model.params["0.weight"] = model.params["0.weight"] * 1e300
    images = np.zeros((9, *shape))
    images[6] = 1e10
    said = []
    for devices in (8, 1, 9):
        try:
            empirical_ntk(model, images, Request(precision="float64", devices=devices))
        except KernelError as error:
            said.append(str(error))
    return said


def together(folder: Path) -> Any:
    """The gradients of all images at once, as a GPU forms them."""
    sharded.on_host = lambda: False
    return compared(folder, ("conv", "trace", "rows", 11, 6, 1, 8))


def one_of_two(address: str, number: int) -> Any:
    """Kernel, sketch and refusal of one of two processes, and of an engine by itself."""
    jax.distributed.initialize(address, 2, number)
    model, images = mlp(5, 4, 3, seeded()), seeded().normal(size=(11, 5))
    made = plan_for(model, images, Request("trace", precision="float64", chunk=1), 7)
    quiet = Progress(made, None)
    values, diagonal = contract_sharded(model, images, made, quiet, mesh(), None)
    expected = contract(model, images, made, quiet, None)
    request = Request("trace", precision="float64", sketch=9)
    kernel = empirical_ntk(model, images, request, rng=seeded())
    made = plan_for(model, images, request, 11)
    features = sketches(model, images, made, seeded(), None, None)
    flat = features.features.reshape(11, -1)
    images[4] = np.nan
    said = []
    for devices in (None, 2):
        try:
            empirical_ntk(model, images, Request(devices=devices))
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
