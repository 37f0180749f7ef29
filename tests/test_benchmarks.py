"""The benchmarks of the kernel engine: each runs at a tiny size; their statistics by hand."""

import json
import math
import os
import sys

import jax
import numpy as np
import pytest
import torch

from benchmarks import contention, dynamics, herding, kernel, kernel_tables, pool, query, sequential
from benchmarks.kernel_memory import Taken
from benchmarks.measuring import Compiling, Ratio, Times, apart, read, watched, write
from benchmarks.pool_tables import STAGES, Run, Stage, exponent, summary
from pipelines.core import record
from pipelines.core.errors import PipelineError
from tests.report_cases import answer, line, store_answers

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield 1
    torch.set_num_threads(before)


def here(work, *arguments):
    """In place of a process of its own."""
    return work(*arguments)


@linux
def test_ways_of_measuring_candidates_agree_and_are_timed(tmp_path, capsys):
    settings = dynamics.Settings(("cnn",), images=6, repeats=1, side=8, json=tmp_path / "d.json")
    first, *others = (work() for work in dynamics.works(settings, "cnn").values())
    for other in others:
        for one, same in zip(first, other, strict=True):
            np.testing.assert_allclose(one, same, rtol=0, atol=1e-4 * np.abs(one).max())
    dynamics.main(settings)
    assert "cnn, predicted beforehand" in capsys.readouterr().out
    figures = json.loads((tmp_path / "d.json").read_text("utf-8"))["figures"]
    assert len(figures["cnn"]) == 3


def test_herding_makes_the_same_batch_in_both_ways_and_times_it(tmp_path, capsys):
    settings = herding.Settings(
        pool=120,
        labelled=10,
        classes=3,
        dimensions=32,
        latent=4,
        sample=60,
        batch=8,
        repeats=2,
        json=tmp_path / "h.json",
    )
    seen = herding.start(settings)
    batch = herding.picked(seen, 8, True)
    assert len(set(batch)) == 8
    assert batch == herding.picked(seen, 8, False)
    herding.main(settings)
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].startswith("| 8 |")
    assert "U = 120" in shown
    figures = read(tmp_path / "h.json")
    assert len(figures["followed"]["seconds"]) == len(figures["anew"]["seconds"]) == 2


@linux
def test_work_is_timed_alone_and_beside_busy_processes(tmp_path, capsys, monkeypatch, one_thread):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored afterwards
    monkeypatch.setattr("benchmarks.contention.apart", here)
    monkeypatch.setattr("benchmarks.contention.THREADS", {"the rule": {}, "every core": {}})
    works = ("fit-demo", "margin")
    path = tmp_path / "c.json"
    contention.main(contention.Settings(1, 50, 2, steps=2, repeats=1, works=works, json=path))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {w}" for w in works for _ in "12"]
    assert all(len(times["beside"]["processor"]) == 1 for times in read(path).values())


@linux
@pytest.mark.filterwarnings("ignore:size requires:DeprecationWarning")  # neural-tangents
def test_kernel_prints_its_tables_and_adds_to_its_file(tmp_path, capsys, monkeypatch, one_thread):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"figures": {"of before": 1}}), "utf-8")
    monkeypatch.setattr("benchmarks.kernel_memory.apart", here)
    kernel.main(
        kernel.Settings(
            networks=("cnn",),
            images=(6,),
            peer_images=(4,),
            repeats=1,
            sketch=64,
            budgets=(0.5,),
            side=8,
            threads=one_thread,
            json=path,
        )
    )
    shown = capsys.readouterr().out
    for words in ("exact, N = 6", "neural-tangents, N = 4", "torch.func, N = 6", "GiB given"):
        assert words in shown
    figures = json.loads(path.read_text("utf-8"))["figures"]
    assert set(figures) == {"of before", "cnn"}
    assert len(figures["cnn"]["rows"]) == 7
    assert [row["passes"] for row in figures["cnn"]["memory"]] == [1, 1]


def test_kernel_refuses_numbers_of_images_that_fit_no_networks():
    with pytest.raises(ValueError, match="images must be one number"):
        kernel.Settings(networks=("cnn", "resnet18"), images=(1, 2, 3))


@linux
def test_pool_prints_its_table_draws_and_writes(tmp_path, capsys, monkeypatch):
    path, figure = tmp_path / "pool.json", tmp_path / "pool.png"
    monkeypatch.setattr(pool, "apart", here)
    pool.main(
        pool.Settings(
            dataset="digits",
            candidates=(20, 30),
            full_sum=(30,),
            labelled=8,
            sketch=32,
            sample=10,
            json=path,
            figure=figure,
        )
    )
    shown = capsys.readouterr().out
    assert "| gradients |" in shown
    assert "U = 30" in shown
    assert figure.stat().st_size > 0
    figures = json.loads(path.read_text("utf-8"))["figures"]
    assert [run[0] if isinstance(run, list) else run["candidates"] for run in figures["runs"]] == [
        20,
        30,
    ]
    assert figures["runs"][0]["spearman"] is None
    assert -1 <= figures["runs"][1]["spearman"] <= 1
    assert len(figures["exponents"]["score"]) == 2


def test_query_prints_its_tables_and_writes(tmp_path, capsys, one_thread):
    path = tmp_path / "query.json"
    query.main(
        query.Settings(
            dataset="digits",
            widen=1,
            labelled=12,
            candidates=30,
            batch=3,
            sketches=(64,),
            min_steps=4,
            repeats=2,
            threads=one_thread,
            json=path,
        )
    )
    shown = capsys.readouterr().out
    for words in ("entropy", "BADGE", "coreset", "MLMOC, exact", "MLMOC, sketch 64"):
        assert f"| {words} |" in shown
    figures = json.loads(path.read_text("utf-8"))["figures"]
    assert figures["ratios"]["entropy"] == [1, 1, 1]
    assert all(len(times["processor"]) == 2 for times in figures["seconds"].values())
    assert "kernel" in figures["stages"]["MLMOC, exact"][0]


def test_ratios_are_taken_turn_by_turn():
    ratio = Times((1.0, 6.0, 9.0)).over(Times((2.0, 3.0, 3.0)))
    assert ratio == Ratio(2.0, 0.5, 3.0)
    assert str(ratio) == "2.00 (0.50–3.00)"
    with_processor = Times((1.0,), (6.0,))
    assert with_processor.processor_over(Times((5.0,), (2.0,))) == Ratio(3.0, 3.0, 3.0)
    assert with_processor.processor_over(Times((5.0,))) is None


def test_targets_are_judged_by_the_median():
    ratio = Ratio(4.0, 1.0, 9.0)
    assert kernel_tables.at_most(ratio, 4.0) == ("≤ 4", True)
    assert kernel_tables.at_most(ratio, 3.9) == ("≤ 3.9", False)
    assert kernel_tables.at_least(ratio, 8.0) == ("≥ 8", False)
    assert kernel_tables.within(Ratio(1.4, 0.1, 9.0), 0.5) == ("0.5 to 1.5", True)
    assert not kernel_tables.within(Ratio(0.4, 0.1, 9.0), 0.5)[1]


@pytest.mark.parametrize(
    ("predicted", "again", "foreseen", "fits"),
    [(1.2, 1.0, True, True), (1.3, 1.0, False, True), (1.9, 2.1, True, False)],
)
def test_memory_is_judged_without_what_compiling_takes(predicted, again, foreseen, fits):
    row = kernel_tables.MemoryRow("cnn", "exact", Taken(2.0, 1, predicted, 9.0, again))
    assert (row.foreseen, row.within) == (foreseen, fits)


def test_an_exponent_by_hand():
    # ln U = 0, 1, 2 and ln t = 0, 1, 3: slope 3/2, residuals 1/6, −1/3, 1/6
    slope, error = exponent([1, math.e, math.e**2], [1, math.e, math.e**3])  # pyright: ignore[reportArgumentType]
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx(math.sqrt(1 / 12))


def test_a_power_has_its_exponent_and_two_points_no_error():
    slope, error = exponent([10, 100, 1000], [3 * u**2.5 for u in (10, 100, 1000)])
    assert slope == pytest.approx(2.5)
    assert error == pytest.approx(0, abs=1e-6)
    assert math.isnan(exponent([10, 100], [1, 2])[1])


def test_exponents_leave_out_pools_below_the_sample():
    def run(candidates: int, seconds: float) -> Run:
        stages: dict[str, Stage] = dict.fromkeys(STAGES, Stage(1.0, 1.0, 2.0))
        stages |= dict.fromkeys(("score", "score, full sum"), Stage(seconds**2, seconds, 1.0))
        return Run(candidates, stages, 0.25, 1.0, "kept", 0.5, "load")

    rows, exponents = summary([run(10, 1.0), run(100, 1.0), run(1000, 10.0)], sample=100)
    assert exponents["score"][0][0] == pytest.approx(1.0)
    assert exponents["score"][1][0] == pytest.approx(2.0)
    assert exponents["score, full sum"][0][0] == pytest.approx(0.5)
    found = {row[0]: row[1:] for row in rows}
    assert found["score"][2] == "10 (100)"
    assert found["peak of the process, GiB"][:3] == ["2.00"] * 3
    assert found["predicted and there before, GiB"][0] == "1.25"


@linux
def test_memory_of_an_array_is_seen_after_it_is_gone():
    def work() -> int:
        return int(np.ones(8 << 20).sum())  # 64 MiB

    result, memory = watched(work)
    assert result == 8 << 20
    assert 60 / 1024 < memory.grown < 200 / 1024


def test_a_process_apart_is_another_one():
    assert apart(os.getpid) != os.getpid()


def test_the_compilers_seconds_are_counted():
    compiler = Compiling()
    jax.block_until_ready(jax.jit(lambda x: x * 3.25 + 17)(1.0))
    assert compiler.seconds > 0


def test_figures_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "figures.json"
    assert read(path) == {}
    assert read(None) == {}
    write(path, {}, {"cnn": [1, 2]})
    assert read(path) == {"cnn": [1, 2]}
    assert json.loads(path.read_text("utf-8"))["load"].startswith("load ")


def test_where_files_lie_is_not_written(tmp_path):
    path = tmp_path / "figures.json"
    write(path, {"repeats": 3, "json": path, "data_dir": None}, {"seconds": 1.5})
    assert str(tmp_path) not in path.read_text("utf-8")
    assert json.loads(path.read_text("utf-8"))["settings"] == {"repeats": 3, "data_dir": None}


def written(folder, mode, strategy, seed, accuracies, answers=()):
    """A run directory, as far as the comparison of sequential runs reads it."""
    folder.mkdir()
    config = {"format": record.FORMAT, "seed": seed, "strategy": strategy, "data": {}}
    config |= {"cycles": len(accuracies) - 1} | ({"mode": mode} if mode else {})
    (folder / "config.json").write_text(json.dumps(config))
    rounds = [
        line(number, accuracy, number == config["cycles"], subset_accuracy=accuracy + 0.01)
        for number, accuracy in enumerate(accuracies)
    ]
    (folder / "rounds.jsonl").write_bytes(record.json_lines(rounds))
    store_answers(folder, [answer(number, accuracy=a) for number, a in enumerate(answers)])
    return folder


def test_sequential_runs_are_paired_by_seed(tmp_path, capsys):
    runs = (
        written(tmp_path / "a", None, "random", 0, [0.5, 0.6, 0.7]),
        written(tmp_path / "b", None, "random", 1, [0.4, 0.5, 0.5]),
        written(tmp_path / "c", "sequential", "mlmoc", 0, [0.5, 0.7, 0.8], [0.5, 0, 0, 0, 0.6]),
        written(tmp_path / "d", "sequential", "mlmoc", 1, [0.4, 0.55, 0.65], [0.45, 0, 0, 0, 0.5]),
    )
    path, figure = tmp_path / "f.json", tmp_path / "f.png"
    sequential.main(sequential.Settings(runs, figure, path))
    shown = capsys.readouterr().out
    # averages after the start: random .65, .5; mlmoc .75, .6; t(.975, 1) = 12.7
    assert (
        "| sequential mlmoc | 2 | 45.0 ± 63.5 | 72.5 ± 95.3 | 67.5 ± 95.3 | 10.0 ± 0.0 |" in shown
    )
    assert "| batch random | 2 | 45.0 ± 63.5 | 60.0 ± 127.1 | 57.5 ± 95.3 |  |" in shown
    assert figure.stat().st_size > 1000
    # one stretch each: .60 − .51 and .71 − .60; .50 − .41 and .56 − .50
    assert "| sequential mlmoc | 2 | 9.0 ± 0.0 | 8.5 ± 31.8 |" in shown
    found = json.loads(path.read_text("utf-8"))["figures"]["sequential mlmoc"]["1"]
    assert found["sgd"] == {"10": 0.4, "15": 0.55, "20": 0.65}
    assert found["linearised"] == {"11": 0.45, "12": 0, "13": 0, "14": 0, "15": 0.5}


def test_a_run_that_is_not_complete_is_not_compared(tmp_path):
    folder = written(tmp_path / "a", None, "random", 0, [0.5, 0.6, 0.7])
    (folder / "rounds.jsonl").write_text("")
    with pytest.raises(PipelineError, match="a is not complete: give the command"):
        sequential.main(sequential.Settings((folder,)))
