"""The study of kernel kinds: its short cuts against the library, its statistics by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kinds import Case, Settings, main, measure, training
from benchmarks.kinds_figures import draw
from benchmarks.kinds_kernels import (
    CHUNK,
    contract,
    highest,
    jacobians,
    likeness,
    overlap,
    per_example_gradients,
    projections,
    rank_correlation,
    sketched,
    spread,
)
from benchmarks.kinds_tables import holm, mean_interval, read, tables, write
from bridge.trace import mirror
from kernel.jacobian import fold, random_signs
from kernel.ntk import empirical_ntk
from kernel.options import Request
from trainer.networks import build, parameter_count

EXAMPLES, CLASSES, SKETCH = CHUNK + 3, 4, 64


@pytest.fixture(scope="module")
def network():
    return build("wide_resnet", (1, 8, 8), CLASSES, np.random.default_rng(1), {"widen": 1})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).normal(size=(EXAMPLES, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model(network, images):
    return mirror(network, images[:2]).astype("float32").model()


@pytest.fixture(scope="module")
def found(model, images):
    return jacobians(model, images, CLASSES, SKETCH, np.random.default_rng(3), 1.0)


def near(values, wanted):
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_full_is_of_all_gradients(model, images, found):
    rows = np.stack(
        [
            per_example_gradients(*model, jnp.asarray(images), jnp.asarray(vector))
            for vector in np.eye(CLASSES, dtype=np.float32)
        ],
        axis=1,
    )
    near(found.full, np.einsum("ncp,mdp->ncmd", rows, rows))


@pytest.mark.parametrize("kind", ["single", "sum", "trace"])
def test_kinds_contracted_are_the_librarys(model, images, found, kind):
    values = contract(found.full, projections(CLASSES, np.random.default_rng(4)))[kind]
    near(values, empirical_ntk(model, images, Request(kind)).values)


@pytest.mark.parametrize("probes", [1, 8])
def test_random_projections_are_the_librarys(model, images, found, probes):
    kinds = projections(CLASSES, np.random.default_rng(4))
    assert kinds[f"rademacher({probes})"].shape == (probes, CLASSES)
    rng = np.random.default_rng(4)
    kernel = empirical_ntk(model, images, Request("rademacher", probes=probes), rng=rng)
    near(contract(found.full, kinds)[f"rademacher({probes})"], kernel.values)


@pytest.mark.parametrize("kind", ["sum", "trace", "rademacher(2)"])
def test_sketches_are_of_projected_gradients(model, images, found, kind):
    vectors = projections(CLASSES, np.random.default_rng(4))[kind]
    columns = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    for size, values in sketched(found.folded, vectors, (SKETCH // 4, SKETCH)).items():
        # the signs do not depend on the number of dimensions
        signs = jnp.asarray(random_signs(columns, size, np.random.default_rng(3)))
        wanted = np.zeros((EXAMPLES, EXAMPLES))
        for vector in vectors.astype(np.float32):
            gradients = per_example_gradients(*model, jnp.asarray(images), jnp.asarray(vector))
            rows = np.asarray(fold(gradients, signs, size), np.float64)
            wanted += rows @ rows.T
        near(values, wanted)


def test_rank_correlation_by_hand():
    # d² of the ranks (1, 2, 3, 4, 5) and (2, 1, 3, 5, 4) is 4: 1 − 6·4/(5·24)
    scores, reference = np.array([1.0, 2.0, 3.0, 40.0, 50.0]), np.array([2.0, 1.0, 3.0, 9.0, 4.0])
    assert rank_correlation(scores, reference) == pytest.approx(0.8)
    assert rank_correlation(scores, -scores) == pytest.approx(-1.0)
    assert rank_correlation(scores, np.ones(5)) == 0.0


def test_overlap_by_hand():
    scores, reference = np.array([5.0, 1.0, 4.0, 3.0, 2.0]), np.array([5.0, 4.0, 1.0, 3.0, 0.0])
    assert highest(scores, 3).tolist() == [0, 2, 3]
    assert highest(np.zeros(4), 2).tolist() == [0, 1]
    assert overlap(scores, reference, 3) == pytest.approx(2 / 3)
    assert overlap(scores, reference, 5) == 1.0


def test_overlap_by_chance(rng):
    drawn = [overlap(rng.normal(size=40), rng.normal(size=40), 10) for _ in range(2000)]
    # a draw's deviation is about 0.12, so the mean's is 0.003
    assert np.mean(drawn) == pytest.approx(10 / 40, abs=0.015)


def test_spread_by_hand():
    assert spread(np.array([2, 2, 2]), 4) == 0.0
    assert spread(np.array([0, 1, 2, 3]), 4) == pytest.approx(np.log(4))
    assert spread(np.array([0, 0, 1, 2]), 4) == pytest.approx(1.5 * np.log(2))


def test_likeness_names_what_it_compares():
    scores = np.arange(6.0)
    found = likeness(scores, {"full": -scores, "own": scores}, (2,))
    assert found == pytest.approx(
        {"full spearman": -1.0, "full top 2": 0.0, "own spearman": 1.0, "own top 2": 1.0}
    )


def test_interval_and_correction_by_hand():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.30265 / np.sqrt(3)), rel=1e-5)
    assert np.isnan(mean_interval([1.0])[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_training_is_that_of_the_pipeline():
    assert training(Settings(), "mnist").augmentation == "crop"
    given = training(Settings(min_steps=7, optimiser="adam"), "cifar10")
    assert (given.min_steps, given.optimiser, given.augmentation) == (7, "adam", "flip_crop")


def test_a_small_study(tmp_path, capsys):
    settings = Settings(
        networks=("wide_resnet,widen=1",),
        datasets=("digits",),
        seeds=1,
        labelled=10,
        candidates=20,
        min_steps=10,
        sketches=(16, 64, 10**6),
        top=(10, 50),
        json=tmp_path / "kinds.json",
        figure=tmp_path / "kinds",
    )
    case = Case("wide_resnet,widen=1", "digits", 0)
    run = measure(settings, case)
    rows = run["rows"]
    network = build("wide_resnet", (1, 8, 8), 10, np.random.default_rng(0), {"widen": 1})
    assert run["parameters"] == parameter_count(network)
    itself = [row for row in rows if row["kind"] == "full"]
    assert len(itself) == 4
    assert all(row["full spearman"] == row["full top 2"] == 1.0 for row in itself)
    assert {row["sketch"] for row in rows} == {None, 16, 64}
    trace = [row for row in rows if row["kind"] == "trace" and row["state"] == "trained"]
    rank = {row["sketch"]: row["own spearman"] for row in trace if row["sketch"]}
    assert rank[64] > 0.3

    write(settings.json, [run])
    assert read(settings.json) == [run]
    main(settings)  # nothing is left to measure
    printed = capsys.readouterr().out
    assert printed.strip() == tables([run]).strip()
    assert "wide_resnet-1, digits 8×8" in printed
    assert "0.50" in next(line for line in printed.splitlines() if line.startswith("| by chance"))
    draw([run], tmp_path / "again")
    for name in ("", "-sketches"):
        picture = (tmp_path / f"kinds{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert picture == (tmp_path / f"again{name}.png").read_bytes()


def test_without_a_file_nothing_is_read_or_printed_of_results():
    assert read(None) == []
    assert tables([]) == "nothing was measured"
