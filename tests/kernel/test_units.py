"""The parts that a network falls into, with the sizes by which they are planned."""

import jax
import jax.numpy as jnp
import pytest

from kernel.errors import KernelError
from kernel.model import Model
from kernel.param_groups import ParamGroup, param_groups
from kernel.taps import AffineRule
from tests.kernel.engine_networks import NETWORKS, SHAPE, model, plain

IMAGE = jax.ShapeDtypeStruct(SHAPE, "float64")


def by_site(name: str) -> dict[str, ParamGroup]:
    return {unit.sites[0]: unit for unit in param_groups(model(name), IMAGE)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tapped", [True, False])
def test_every_parameter_belongs_to_one_unit(name, tapped):
    own = model(name) if tapped else plain(name)
    found = param_groups(own, IMAGE)
    places = [place for unit in found for place in unit.leaf_idx]
    leaves = jax.tree.leaves(own.params)
    assert sorted(places) == list(range(len(leaves)))
    for unit in found:
        assert unit.columns == sum(leaves[place].size for place in unit.leaf_idx)
        assert unit.columns % unit.outputs == 0
        assert "rows" in unit.forms
        assert bool(unit.sites) == tapped


def test_convolutions_by_hand():
    found = by_site("Convolutions")
    same = found["same"]  # 5×5 pixels, 2×2 kernel, one line of padding on one side of each axis
    assert (same.positions, same.columns) == (25, 4 * 2 * 4 + 4)
    assert same.forms == ("rows", "factors")
    assert same.kept("factors", 3) == 25 * 8 + 25 * 4 * 3
    # inputs, cotangents, and 8 for each number that is touched alone
    assert same.contracting("factors", 3, False) == 25 * 25 * (8 + 4 * 3 + 8 * 2)
    assert same.contracting("factors", 3, True) == 25 * 25 * (8 + 4 * 9 + 8 * 10)
    assert same.contracting("rows", 3, True) == same.columns * 9
    assert same.forming("rows", 3) == same.columns * 25 * 3
    assert same.forming("factors", 3) == 0
    deep = found["deep"]  # groups have no factors, and are cut by the column
    assert (deep.forms, deep.outputs, deep.positions) == (("rows",), 8 * 9, 9)
    point, whole = found["point"], found["whole"]
    assert point.forms == ("rows", "factors")
    assert isinstance(point.rule, AffineRule)
    assert point.rule.bias is None
    assert (whole.positions, whole.outputs) == (1, 5)
    for name in ("norm", "slope", "groups"):
        assert (found[name].rule, found[name].forms) == (None, ("rows",))


def test_layers_with_a_weight_in_common_are_one_unit():
    found = param_groups(model("Sequences"), IMAGE)
    (tied,) = [unit for unit in found if len(unit.sites) > 1]
    assert set(tied.sites) == {"mix", "again"}
    assert (tied.columns, tied.rule) == (16 + 4 + 4, None)
    own = by_site("Sequences")
    last = own["last"]  # its weight is frozen, its bias is not
    assert (last.columns, last.rule) == (4, None)
    assert own["narrow"].positions == 6
    folded = own["folded"]  # three copies an image
    assert folded.positions == 9
    assert own["head"].positions == 1


def test_embeddings_have_no_rule():
    words = by_site("Words")["words"]
    assert (words.rule, words.forms, words.columns) == (None, ("rows",), 12)


def test_a_parameter_that_enters_nowhere_has_no_unit():
    own = model("Words")
    more = Model(own.function, {**own.params, "aside": jnp.ones(7)}, own.frozen)
    found = param_groups(more, IMAGE)
    assert 0 not in {place for unit in found for place in unit.leaf_idx}  # `aside` is the first
    assert sum(unit.columns for unit in found) == sum(v.size for v in own.params.values())


def test_nothing_to_train():
    own = model("Words")
    with pytest.raises(KernelError, match="no trainable parameter, so its kernel is zero"):
        param_groups(Model(own.function, {}, {**own.frozen, **own.params}), IMAGE)
