import dataclasses
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kernel.errors import KernelError
from pipelines import run as runs
from pipelines.audit import report
from pipelines.audit import run as audit_run
from pipelines.audit.comparison import NO_KERNEL
from pipelines.audit.config import AuditConfig, of_length
from pipelines.audit.retraining import trained
from pipelines.audit.run import measure, plan
from pipelines.config import RunConfig
from pipelines.core import json_io, terminal
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator
from trainer.errors import TrainerError
from trainer.fit import TrainConfig, fit
from trainer.predict import logits

ROOT = Path(__file__).parents[2]
SHORT = TrainConfig(epochs=4, min_steps=60, extensions=0)
SMALL = AuditConfig(
    initial=20,
    subset=30,
    candidates=8,
    controls=2,
    kinds=("single",),
    network="tests.own_network:make",
    network_args=("hidden=8",),
    train=SHORT,
)
ARGUMENTS = ["--initial", "20", "--subset", "30", "--candidates", "8", "--controls", "2"]
ARGUMENTS += ["--kinds", "single", "--network", "tests.own_network:make"]
ARGUMENTS += ["--network-args", "hidden=8", "--train.epochs", "4", "--train.min-steps", "60"]
ARGUMENTS += ["--train.extensions", "0"]


def small(folder: Path, **changes) -> AuditConfig:
    return dataclasses.replace(SMALL, run=folder, **changes)


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pipelines.audit", *map(str, arguments)])
    runpy.run_module("pipelines.audit", run_name="__main__")


def numbers(found) -> str:
    return report.frame(found).to_csv(index=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return measure(small(tmp_path_factory.mktemp("whole")))


def test_the_command_leaves_a_table_a_picture_a_sentence_and_a_record(
    whole, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "audit"
    arguments = [*ARGUMENTS, "--kinds", "single", "rademacher", "--probes", "1", "2"]
    command(monkeypatch, *arguments, "--sketches", "None", "16", "--run", folder)
    shown = " ".join(capsys.readouterr().out.split())
    assert "rademacher(2)" in shown
    record = json.loads((folder / report.RECORD).read_text())
    assert record["sentence"] in shown
    assert "MLMOC (single, reference network)" in record["sentence"]
    table = pd.read_csv(folder / report.TABLE)
    assert len(table) == 2 * (3 * 2 + 1)
    assert set(table["kind"]) == {"single", "rademacher(1)", "rademacher(2)", NO_KERNEL}
    kernels = table[table["kind"] != NO_KERNEL]
    assert np.isfinite(kernels[["spearman", "error", "cosine", "size", "point_error"]]).all(
        axis=None
    )
    assert (folder / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    (network,) = record["networks"]
    assert len(network["candidates"]) == 8
    assert set(network["candidates"]) <= set(network["points"])
    rows = network["rows"]
    assert rows[0]["spearman"]["value"] == table["spearman"][0]
    assert np.shape(rows[0]["point_errors"]) == (30,)
    assert np.shape(network["real"]["linearised"]["mlmoc_by_repeat"]) == (2, 8)
    # the fixture had one kernel only: the trainings do not depend on what is predicted
    assert rows[0]["scores"] == whole.rows[0].scores.tolist()


def test_the_real_change_is_of_really_retraining(whole):
    """By hand: the same copy, the same labels and the candidate, the same seed."""
    (network,) = whole.networks
    task, real = network.task, network.real
    own, _ = trained(task, Stages())
    points = task.images_of(task.points)
    before = logits(own, points)
    np.testing.assert_array_equal(before, network.before)
    pseudo = before[task.positions].argmax(axis=1)
    # one that the network misclassifies: its true label must not be used
    chosen = np.flatnonzero(pseudo != task.dataset.train_labels[task.candidates])[0]
    index, position = task.candidates[chosen], task.positions[chosen]
    assert task.points[position] == index
    fit(
        own,
        task.images_of(np.append(task.labelled, index)),
        np.append(task.labels, before[position].argmax()),
        SHORT,
        generator(0, f"audit candidate {index}", 1),
    )
    after = logits(own, points)
    np.testing.assert_array_equal(after, real.retrained[1, chosen])
    change = np.linalg.norm(after - before.astype(np.float64), axis=1).sum()
    assert network.changes["network"].by_repeat[1, chosen] == pytest.approx(change)
    free = np.linalg.norm(after - real.controls[1], axis=1).sum()
    assert network.changes["linearised"].by_repeat[1, chosen] == pytest.approx(free)
    mean = real.retrained[:, chosen].mean(axis=0) - real.controls.mean(axis=0)
    scores = network.changes["linearised"].scores
    assert scores[chosen] == pytest.approx(np.linalg.norm(mean, axis=1).sum())


def test_the_network_is_that_of_the_first_round_of_a_run(whole, tmp_path):
    config = RunConfig(
        dataset="digits",
        strategy="random",
        initial=20,
        query=1,
        cycles=1,
        network=SMALL.network,
        network_args=SMALL.network_args,
        train=SHORT,
        run=tmp_path,
    )
    first = runs.run(config).rounds[0]
    (network,) = whole.networks
    assert first["initial"]["indices"] == network.task.labelled.tolist()
    assert first["fit"]["residual_rms"] == network.notes["residual_rms"]


def test_stopped_and_given_again_it_ends_with_the_same_numbers(whole, tmp_path, monkeypatch):
    real, written = json_io.put, []

    def stop(folder, name, value):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(name)
        return real(folder, name, value)

    monkeypatch.setattr(json_io, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(small(tmp_path))
    monkeypatch.setattr(json_io, "put", lambda f, n, v: (written.append(n), real(f, n, v))[1])
    assert numbers(measure(small(tmp_path))) == numbers(whole)
    assert len(written) == len(set(written)) == 1 + 2 + 2 * 8


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_and_given_again_it_ends_with_the_same_numbers(whole, tmp_path):
    folder = tmp_path / "audit"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.audit", *ARGUMENTS, "--run", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 120
    while len(list(folder.glob("trainings/*/c*.json"))) < 3 and time.monotonic() < limit:
        assert process.poll() is None, "it ended before its moment came"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(folder.glob("trainings/*/c*.json"))
    assert 3 <= len(left) < 18
    assert not (folder / report.RECORD).exists()
    again = measure(small(folder))
    assert numbers(again) == numbers(whole)


def test_more_candidates_keep_the_trainings_that_are_there(whole, tmp_path, monkeypatch):
    folder = whole.config.run_folder
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trainings/*/*")}
    more = measure(small(folder, candidates=9))
    after = {path: path.stat().st_mtime_ns for path in folder.glob("trainings/*/*")}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    np.testing.assert_array_equal(
        more.networks[0].task.candidates[:8], whole.networks[0].task.candidates
    )


def test_widths_and_lengths_are_axes(tmp_path, capsys):
    config = small(tmp_path, widths=(4, 8), width_argument="hidden", train_steps=(2, 60), repeats=1)
    console = Console(width=160)
    left = plan(config, console)
    said = " ".join(capsys.readouterr().out.split())
    assert left == 4 * (1 + 2 + 8)
    assert "hidden 8, 2 steps" in said
    assert "in all 44 trainings" in said
    assert not list(tmp_path.iterdir())
    assert config.networks == ((4, 2), (4, 60), (8, 2), (8, 60))
    config = dataclasses.replace(config, widths=(4,))
    found = measure(config)
    assert [(n.task.width, n.task.steps) for n in found.networks] == [(4, 2), (4, 60)]
    assert [n.notes["steps"] for n in found.networks] == [2, 60]
    assert plan(config, console) == 0
    report.show(found, console)
    said = report.conclusion(found)
    assert "hidden 4, 2 steps" in said
    assert "NOT fitted its labels" in said
    assert "without repeats the most that is possible is not known" in said
    assert report.picture(found).startswith(b"\x89PNG")


def test_a_loss_that_look_ahead_is_not_for_is_named(tmp_path):
    train = dataclasses.replace(SHORT, loss="cross_entropy", optimiser="adam")
    found = measure(small(tmp_path, train=train, repeats=1, reference="linearised"))
    said = report.conclusion(found)
    assert "trained with cross_entropy" in said
    assert "reference linearised" in said


def test_a_kernel_that_does_not_fit_is_left_out_and_named(whole, monkeypatch, capsys):
    real = audit_run.plan_query

    def small_machine(model, image, sizes, request, rng):
        gib = 1e-9 if request.kind == "full" else 1.0
        return real(model, image, sizes, dataclasses.replace(request, memory_gib=gib), rng)

    monkeypatch.setattr(audit_run, "plan_query", small_machine)
    found = measure(dataclasses.replace(whole.config, kinds=("single", "full"), repeats=1))
    assert {row.kind for row in found.rows} == {"single", NO_KERNEL}
    report.show(found, Console(width=200))
    assert "left out: full: " in capsys.readouterr().out
    with pytest.raises(KernelError, match="full: "):
        measure(dataclasses.replace(whole.config, kinds=("full",)))


def test_weights_of_a_file_and_of_a_run(whole, tmp_path):
    (network,) = whole.networks
    weights = next(whole.config.run_folder.glob("trainings/*/weights.safetensors"))
    given = measure(small(tmp_path / "file", trained=weights, repeats=1))
    np.testing.assert_array_equal(given.networks[0].before, network.before)
    assert given.networks[0].notes["residual_rms"] == network.notes["residual_rms"]

    config = RunConfig(
        dataset="digits",
        strategy="random",
        initial=15,
        query=5,
        cycles=1,
        network=SMALL.network,
        network_args=SMALL.network_args,
        train=SHORT,
        run=tmp_path / "run",
    )
    run = runs.run(config)
    asked = AuditConfig(
        trained=tmp_path / "run", subset=30, candidates=8, repeats=1, controls=2, kinds=("single",)
    )
    asked = dataclasses.replace(asked, run=tmp_path / "of-run")
    (of_run,) = measure(asked).networks
    bought = run.rounds[0]["initial"]["indices"] + run.rounds[0]["indices"]
    assert of_run.task.labelled.tolist() == bought
    assert of_run.notes["residual_rms"] == pytest.approx(run.rounds[1]["fit"]["residual_rms"])
    assert of_run.task.run.train == config.train
    with pytest.raises(PipelineError, match="dataset is 'digits' in .* and 'mnist' here"):
        measure(dataclasses.replace(asked, dataset="mnist"))

    indices = tmp_path / "labelled.txt"
    indices.write_text("\n".join(map(str, bought)) + "\n")
    own = small(tmp_path / "own", labelled=indices, repeats=1, trained=run.weights(1))
    (same,) = measure(own).networks
    np.testing.assert_array_equal(same.before, of_run.before)
    indices.write_text("1\n2x\n")
    with pytest.raises(PipelineError, match="line 2: '2x' is not the index"):
        measure(own)


def test_a_file_that_something_else_changed_is_named(whole, tmp_path):
    shutil.copytree(whole.config.run_folder, tmp_path, dirs_exist_ok=True)
    damaged = next(tmp_path.glob("trainings/*/control-0.json"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(PipelineError, match="control-0.json is not valid JSON"):
        measure(small(tmp_path, repeats=1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"candidates": 7}, PipelineError, "candidates must be 8 or more, not 7"),
        ({"subset": 7}, PipelineError, "subset is 7 and candidates is 8"),
        ({"controls": 1}, PipelineError, "controls must be 2 or more, not 1"),
        ({"repeats": 3}, PipelineError, "controls must be 3 or more, not 2"),
        ({"kinds": ("singel",)}, TrainerError, "unknown kernel kind 'singel': did you mean"),
        ({"kinds": ()}, PipelineError, "kinds is empty"),
        ({"kinds": ("sum", "sum")}, PipelineError, "kinds names something twice"),
        ({"train_steps": (0,)}, PipelineError, "train_steps must be 1 or more"),
        ({"trained": Path("w"), "widths": (1,)}, PipelineError, "leave out widths"),
        ({"subset": 1790}, PipelineError, "1790 reference points were asked for"),
        ({"widths": (2,)}, TrainerError, "has no argument 'widen'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        measure(small(tmp_path / "audit", **changes))
    assert not (tmp_path / "audit").exists()


def test_too_few_candidates_are_said_in_plain_words(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "--candidates", "3")
    assert stop.value.code == terminal.FAILED
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert "candidates must be 8 or more, not 3" in said


@pytest.mark.parametrize("steps", [1, 7, 100, 1001])
def test_a_length_keeps_the_batches_and_takes_so_many_steps(steps):
    whole = TrainConfig()
    batches, _ = whole.plan(100)
    short = of_length(whole, steps, 100)
    own, epochs = short.plan(100)
    assert own <= batches
    assert steps <= own * epochs < steps + batches
    assert short.extensions == 0
