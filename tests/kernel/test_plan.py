"""Plans never take more than they are given, and cover every column of the Jacobian once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel import plan as plan_module
from kernel.errors import KernelError
from kernel.linalg import cores
from kernel.model import Directions, Model
from kernel.options import Request
from kernel.param_groups import Block, ParamGroup
from kernel.plan import CHUNK, GIB, Plan, Problem, Progress, chunk_sizes, plan_problem, threads_of
from kernel.taps import AffineRule, Window

RANDOM = settings(max_examples=100, deadline=None)


def dense(inputs: int, outputs: int, positions: int = 1, name: str = "w") -> ParamGroup:
    rule = AffineRule(name, "b", inputs, outputs)
    return ParamGroup((name,), (0,), (inputs + 1) * outputs, rule, positions)


def conv(inputs: int, outputs: int, kernel: int, side: int, groups: int = 1) -> ParamGroup:
    """Square, of stride 1 and without padding."""
    window = Window((kernel, kernel), (1, 1), ((0, 0), (0, 0)), (1, 1), groups)
    rule = AffineRule("k", None, inputs, outputs, window)
    positions = (side - kernel + 1) ** 2
    return ParamGroup(("k",), (1,), rule.features * outputs, rule, positions)


def other(columns: int) -> ParamGroup:
    return ParamGroup(("n",), (3,), columns)


def problem(
    units, examples: int, anchors: int | None = None, projections: int = 1, square: bool = False
) -> Problem:
    directions = Directions(np.eye(projections), 1.0, square)
    own = examples if anchors is None else anchors
    return Problem(tuple(units), examples, own, directions, "float32", (50, 50))


def plan(own: Problem, memory: float, chunk: int) -> Plan:
    return plan_problem(own, Request(chunk=chunk, memory_gib=memory), "dense")


small = st.integers(1, 12)
# which unit and its sizes, in plain numbers
described = st.one_of(
    st.tuples(st.just(dense), small, small, st.integers(1, 30)),
    st.tuples(st.just(conv), small, small, st.integers(1, 3), st.integers(3, 9)),
    st.tuples(st.just(other), st.integers(1, 60)),
)
problems = st.tuples(
    st.lists(described, min_size=1, max_size=4),
    st.integers(1, 40),  # images
    st.floats(0.01, 1),  # share of them that are anchors
    st.integers(1, 6),  # projections
    st.booleans(),
)


def made_of(case) -> Problem:
    layers, examples, share, projections, square = case
    units = [make(*sizes) for make, *sizes in layers]
    return problem(units, examples, max(1, int(share * examples)), projections, square)


def most_bytes(own: Problem, chunk: int) -> int:
    """With so much everything is rows in one pass."""
    width = len(own.directions.projections)
    parts = tuple(Block(unit, "rows", unit.outputs) for unit in own.groups)
    return own.pass_bytes(parts, width, chunk)


def suggested(error: KernelError) -> float:
    found = re.search(r"give ([\d.e+-]+) GiB", str(error))
    assert found, error
    return float(found[1])


@RANDOM
@given(problems, st.one_of(st.floats(-1, 0), st.floats(0, 0.1), st.floats(0, 1)), st.integers(1, 5))
def test_a_plan_fits_in_its_budget_or_says_what_would(case, share, chunk):
    own = made_of(case)
    chunk = min(chunk, own.examples)
    width = len(own.directions.projections) if own.directions.square else 1
    least = own.result_bytes + own.chunk_bytes(chunk, width)
    memory = max(0.0, least + share * (most_bytes(own, chunk) - least)) / GIB
    try:
        made = plan(own, memory, chunk)
    except KernelError as error:
        refused, memory = memory, suggested(error)
        assert memory > refused
        made = plan(own, memory, chunk)
    assert made.kernel_bytes <= memory * GIB
    for one in made.passes:
        assert own.pass_bytes(one.blocks, one.width, chunk) <= made.kernel_bytes
    covers(own, made.passes)


def covers(own: Problem, passes) -> None:
    """Every slice of every unit belongs to one part for each projection of the logits."""
    total = len(own.directions.projections)
    for number in range(total):
        parts = [p for one in passes if number in range(*one.projections) for p in one.blocks]
        for unit in own.groups:
            mine = [part for part in parts if part.group is unit]
            if mine[0].form != "rows":
                assert len(mine) == 1
                assert mine[0].outputs == unit.outputs
                continue
            taken = [
                slot
                for part in mine
                for slot in range(part.piece * part.outputs, (part.piece + 1) * part.outputs)
                if slot < unit.outputs
            ]
            assert sorted(taken) == list(range(unit.outputs))
            assert all(part.piece * part.outputs < unit.outputs for part in mine)  # none is empty
        if own.directions.square:
            assert all(one.projections == (0, total) for one in passes)


@RANDOM
@given(problems, st.integers(1, 5))
def test_with_plenty_of_memory_there_is_one_pass_in_the_cheapest_forms(case, chunk):
    own = made_of(case)
    made = plan(own, 64.0, chunk)
    (one,) = made.passes
    width, square = one.width, own.directions.square
    assert [part.group for part in one.blocks] == list(own.groups)
    for part in one.blocks:
        work = {
            form: own.examples * part.group.forming(form, width)
            + own.pairs * part.group.contracting(form, width, square)
            for form in part.group.forms
        }
        assert work[part.form] == min(work.values())
    assert made.work == made.forward_work + made.forming_work + made.contracting_work


def form_of(unit: ParamGroup, images: int) -> str:
    (one,) = plan(problem([unit], images), 1000.0, 1).passes
    (part,) = one.blocks
    return part.form


def test_few_positions_and_many_parameters_are_factored():
    assert form_of(dense(512, 512), 1000) == "factors"
    assert form_of(conv(64, 64, 3, 4), 1000) == "factors"


def test_many_positions_and_few_parameters_are_not():
    assert form_of(conv(3, 4, 3, 34), 1000) == "rows"
    assert form_of(dense(4, 4, positions=200), 1000) == "rows"
    assert form_of(conv(8, 8, 3, 6, groups=8), 1000) == "rows"  # a product has no other form


def test_more_images_shift_the_balance_to_rows():
    """Gradients are formed once an image, and factors are dearer to contract."""
    unit = dense(16, 16, positions=6)
    rows, patches = (unit.contracting(form, 1, False) for form in ("rows", "factors"))
    assert patches > rows
    even = 2 * unit.forming("rows", 1) / (patches - rows)
    assert form_of(unit, int(even / 2)) == "factors"
    assert form_of(unit, int(even * 2)) == "rows"


def test_work_is_counted_as_it_is_defined(monkeypatch):
    """By hand: a dense layer of 3 inputs, 2 outputs and a bias at 5 places; 4 images."""
    unit = dense(3, 2, positions=5)
    own = problem([unit], 4)
    assert unit.contracting("rows", 1, False) == 8
    assert unit.forming("rows", 1) == 40
    assert unit.kept("factors", 3) == 5 * 3 + 5 * 2 * 3
    monkeypatch.setattr(plan_module, "cores", lambda: 1)
    made = plan(own, 1.0, 2)
    assert own.pairs == 8  # of 16 ordered pairs
    assert made.forward_work == 40 * 4 * 3  # once forth, twice back
    assert made.forming_work == 40 * 4
    assert made.contracting_work == 8 * 8
    # the kernel in float64; rows of 8 in float32, of the images and of two chunks; 50 activations
    # forth and back; the 8 parameters twice
    assert made.kernel_bytes == 4 * 4 * 8 + (4 + 4) * 8 * 4 + 2 * 50 * 2 * 4 + 2 * 8 * 4


def test_less_memory_means_more_passes_and_never_less_work():
    own = problem([dense(40, 30), conv(4, 8, 3, 9), other(50)], 30, projections=6)
    budgets = np.geomspace(0.05, 1, 12) * most_bytes(own, 4) / GIB
    plans = [plan(own, memory, 4) for memory in budgets if fits(own, memory)]
    assert len(plans) > 4
    backward = [sum(1 + one.width for one in made.passes) for made in plans]
    assert backward == sorted(backward, reverse=True)
    assert backward[0] > backward[-1] == 7


def fits(own: Problem, memory: float) -> bool:
    try:
        plan(own, memory, 4)
    except KernelError:
        return False
    return True


@RANDOM
@given(problems, st.floats(0.3, 1.5))
def test_progress_ends_at_its_total(case, share):
    own = made_of(case)
    memory = share * most_bytes(own, 1) / GIB
    if not fits(own, memory):
        memory = 1.0
    made = plan(own, memory, 1)
    told = []
    progress = Progress(made, lambda done, total: told.append((done, total)))
    for one in made.passes:
        progress.formed(one, own.anchors)
        progress.contracted(one, own.anchors / 2)
        progress.formed(one, own.examples - own.anchors)
        progress.contracted(one, float(own.examples - own.anchors))
    done, totals = np.array(told).T
    assert len(set(totals)) == 1
    assert (np.diff(done) >= 0).all()
    assert done[-1] == pytest.approx(totals[-1])


def test_a_refusal_names_what_would_help():
    own = problem([dense(100, 100)], 20_000)
    with pytest.raises(KernelError) as refused:
        plan(own, 0.5, 32)
    said = str(refused.value)
    for words in ("20,000 images", "0.5 GiB are given", "for the kernel itself", "sketch"):
        assert words in said
    found = re.search(r"score about ([\d,]+) images", said)
    assert found
    fewer = int(found[1].replace(",", ""))
    assert plan(problem([dense(100, 100)], int(0.95 * fewer)), 0.5, 32)


def test_activations_of_a_chain_by_hand():
    """3 → 50 → 2: both products are allocated; what is fused is not."""

    def chain(params, frozen, images):
        hidden = jax.nn.relu(images @ params["one"])
        return jnp.tanh(hidden + 1.0) @ params["two"]

    own = Model(chain, {"one": jnp.ones((3, 50)), "two": jnp.ones((50, 2))}, {})
    image = jax.ShapeDtypeStruct((3,), "float64")
    groups = plan_module.problem_of(own, image, 4, 4, Request()).groups
    # without taps the gradients themselves, of 150 and 100 numbers, are made on the way back
    assert plan_module.activations(own, groups, image) == (3 + 2 * 52, 2 * 52 + 2 * 250)


def test_a_sketch_with_more_parameters_than_activations_takes_more_images_at_a_time():
    small, large = problem([dense(4, 4)], 5000), problem([dense(100, 100)], 5000)
    usual = CHUNK * cores()
    assert chunk_sizes(small, Request(sketch=10)) == chunk_sizes(large, Request()) == (usual,)
    assert chunk_sizes(large, Request(sketch=10, chunk=5)) == (5,)
    assert plan(large, 4.0, 5).chunk == 5
    plenty = plan_problem(large, Request(sketch=10), "features")
    tight = Request(sketch=10, memory_gib=(plenty.kernel_bytes - 1) / GIB)
    assert plenty.chunk == 4 * usual
    assert plan_problem(large, tight, "features").chunk == usual


def test_each_core_has_a_share_of_a_chunk(monkeypatch):
    monkeypatch.setattr(plan_module, "cores", lambda: 4)
    shares = [threads_of(chunk) for chunk in (1, 3, 4, 9, 32)]
    assert shares == [(1, 1), (3, 1), (4, 1), (4, 3), (4, 8)]
    monkeypatch.setattr(plan_module, "on_host", lambda: False)
    assert threads_of(24) == (1, 24)
    assert chunk_sizes(problem([dense(4, 4)], 5000), Request()) == (plan_module.GPU_CHUNK,)
