"""How many images are differentiated at a time: the plan of a kernel, or the chunk of a sketch.

From a problem and what is asked for to the chunk that does it in the least time and fits. A core's
cache holds few images; but XLA lays the parameters out anew for every chunk, forth and back, which
costs large networks on small images more than the cache gives them.
"""

from kernel.engine.devices import mesh_unless_host
from kernel.engine.plan import GIB, Plan, Problem, plan
from kernel.engine.problem import CHUNK, Request, chunk_of
from kernel.engine.sketches import sketch_bytes
from kernel.errors import KernelError
from kernel.products import cores

# Images on a core for a network that has more parameters than an image has numbers in it, the best
# first (`benchmarks/chunks.py`): rows of whole gradients are the better kept the fewer they are.
_EXACT, _SKETCHED = (2 * CHUNK,), (4 * CHUNK, 2 * CHUNK)
_CHUNKS = 4  # of them there must be at least, for the last one is filled up


def planned(problem: Problem, request: Request) -> Plan:
    """The plan with the best chunk of those that do with as few passes as the smallest.

    Raises:
        KernelError: not even the smallest piece fits with the smallest chunk.
    """
    projections = len(problem.directions.projections)
    smallest, *others = _chunks(problem, request, projections, _EXACT)
    found = plan(problem, request.memory_gib, smallest)
    for chunk in others:
        try:
            made = plan(problem, request.memory_gib, chunk)
        except KernelError:
            continue
        if len(made.passes) <= len(found.passes):
            return made
    return found


def sketch_chunk(problem: Problem, request: Request, buckets: int, beside: int = 0) -> int:
    """The best chunk with which a sketch fits; the smallest if none does.

    Args:
        problem: what is computed.
        request: how.
        buckets: k.
        beside: bytes of what is made of the sketch while all of it is there.
    """
    smallest, *others = _chunks(problem, request, 1, _SKETCHED)
    room = request.memory_gib * GIB - beside
    fitting = (chunk for chunk in others if sketch_bytes(problem, buckets, chunk) <= room)
    return next(fitting, smallest)


def passing_chunk(problem: Problem, request: Request) -> int:
    """The best chunk for gradients that are let go, of one shape however few images there are."""
    _, *others = _chunks(problem, request, 1, _EXACT)
    return next(iter(others), chunk_of(request))


def _chunks(
    problem: Problem, request: Request, projections: int, sizes: tuple[int, ...]
) -> list[int]:
    """The smallest chunk, and then those that may take less time, the best first."""
    usual = min(chunk_of(request), problem.examples)
    host = mesh_unless_host(request.devices) is None
    parameters = sum(unit.columns for unit in problem.units)
    if request.chunk is not None or not host or parameters < problem.activations.of(projections):
        return [usual]
    larger = (size * cores() for size in sizes)
    # by thresholds and not by what a chunk leaves over: one shape is compiled for most cycles
    return [usual, *(chunk for chunk in larger if chunk * _CHUNKS <= problem.examples)]
