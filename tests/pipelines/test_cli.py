import errno
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pipelines.config import RunConfig
from pipelines.core import record, terminal
from trainer.data import DATASETS

ROOT = Path(__file__).parents[2]
OWN = ["--network", "tests.own_network:make", "--network-args", "hidden=4"]
SMALL = [*OWN, "--cycles", "1", "--subset", "20", "--train.epochs", "2", "--train.min-steps", "2"]


def command(monkeypatch, *arguments, script="digits"):
    monkeypatch.setattr("sys.argv", [f"pipelines.{script}", *map(str, arguments)])
    module = importlib.import_module(f"pipelines.{script}")
    module.main(module.DEFAULTS)


def failure(monkeypatch, capsys, *arguments, script="digits"):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments, script=script)
    assert stop.value.code == terminal.FAILED
    said = capsys.readouterr().err
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", said).split())


@pytest.mark.parametrize("script", DATASETS)
def test_every_data_set_has_a_script_of_values(script):
    defaults = importlib.import_module(f"pipelines.{script}").DEFAULTS
    assert isinstance(defaults, RunConfig)
    assert defaults.dataset == script
    assert defaults.run_folder == Path(f"runs/{script}-mlmoc-seed0")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("pipelines", 0, "pipelines.sequential"),
        ("pipelines.mnist --help", 0, "--kernel.memory-gib"),
        ("pipelines.mnist --strategy bogus", 2, "unknown strategy 'bogus'"),
        ("pipelines.digits --initial many", 2, "many"),
        ("pipelines.demo --help", 0, "--seeds"),
        ("pipelines.sequential --help", 0, "--budget"),
        ("pipelines.sequential --dataset bogus", 2, "unknown data set 'bogus'"),
        ("pipelines.audit --help", 0, "--kinds"),
        ("pipelines.report nowhere", 2, "nowhere"),
        ("bridge.check --help", 0, "--shape"),
    ],
)
def test_what_is_refused_or_asked_for_help_imports_neither_torch_nor_jax(command, status, said):
    name, *arguments = command.split()
    code = f"""
import runpy, sys
sys.argv = {[name, *arguments]!r}
try:
    runpy.run_module({name!r}, run_name="__main__")
except SystemExit as end:
    status = end.code or 0
else:
    status = 0
print("imported:", *sorted({{"torch", "jax"}} & set(sys.modules)))
sys.exit(status)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == status, ended.stderr
    assert said in ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "imported:"


def test_an_unknown_command_is_answered_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipelines", "mnits"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pipelines", run_name="__main__")
    assert stop.value.code == terminal.FAILED
    assert "did you mean 'mnist'?" in capsys.readouterr().err


def test_help_is_readable(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "--help", script="mnist")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--strategy", "--seed", "--train.min-steps", "--kernel.kind", "--data-dir"):
        assert option in shown
    assert "python -m pipelines.mnist" in shown


def test_a_run_from_the_command_line(monkeypatch, capsys, tmp_path):
    command(monkeypatch, *SMALL, "--run", tmp_path / "run", "--strategy", "margin", "--seed", "3")
    result = record.read(tmp_path / "run")
    assert result.complete
    assert (result.config["strategy"], result.config["seed"]) == ("margin", 3)
    assert result.config["network_args"] == {"hidden": 4}
    assert result.config["train"]["min_steps"] == 2
    assert "test acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "entorpy"], "unknown strategy 'entorpy': did you mean 'entropy'?"),
        (["--network", "vgg"], "unknown network 'vgg': did you mean 'vgg11_bn'?"),
        (["--subset", "5"], "subset is 5 and query is 10"),
        (["--initial", "99999"], "images and digits has"),
        (["--stratgy", "mlmoc"], "--strategy"),
        (["--kernel.kind", "sigle"], "'single', 'sum', 'trace', 'rademacher', 'full'"),
        (["--kernel.memory-gib", "0"], "kernel.memory_gib must be above 0"),
        (["--kernel.devices", "0"], "kernel.devices must be 1 or more, or none, not 0"),
        (["--kernel.devices", "9999"], "9999 devices were asked for and"),
        (["--kernel.precision", "tf32", "--kernel.sketch", "64"], "use float32, or no sketch"),
        (["--train.epochs", "0"], "epochs is 0; it must be a whole number from 1"),
        (["--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_failures_are_one_plain_message(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = failure(monkeypatch, capsys, *arguments, "--run", tmp_path / "run")
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="refused without a GPU only")
def test_tf32_without_a_gpu_is_refused_before_training(monkeypatch, capsys, tmp_path):
    arguments = ("--run", tmp_path / "run", "--kernel.precision", "tf32")
    said = failure(monkeypatch, capsys, *SMALL, *arguments)
    backend = jax.default_backend()
    assert said == (
        f"error: TF32 is arithmetic of NVIDIA GPUs and this process computes on {backend!r}; use "
        "float32."
    )
    assert not (tmp_path / "run").exists()
    # a strategy without a kernel has no use for it
    command(monkeypatch, *SMALL, *arguments, "--strategy", "margin")
    assert record.read(tmp_path / "run").complete
    assert "kernel.precision is tf32, which margin would ignore" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="TF32 is arithmetic of GPUs")
def test_a_run_in_tf32_records_its_error(monkeypatch, tmp_path):
    command(monkeypatch, *SMALL, "--run", tmp_path / "run", "--kernel.precision", "tf32")
    first, _ = record.read(tmp_path / "run").rounds
    assert 1e-7 < first["diagnostics"]["tf32_error"] < 2**-8


def test_a_data_directory_that_is_not_there(monkeypatch, capsys, tmp_path):
    gone = tmp_path / "gone"
    said = failure(monkeypatch, capsys, "--data-dir", gone, "--no-download", script="mnist")
    assert str(gone) in said


def test_the_environment_variable_names_the_data_directory(monkeypatch):
    defaults = importlib.import_module("pipelines.mnist").DEFAULTS
    monkeypatch.setenv("NTK_DATA_DIR", "/somewhere")
    assert defaults.data_folder == Path("/somewhere")
    monkeypatch.delenv("NTK_DATA_DIR")
    assert defaults.data_folder == Path("data")


def test_a_full_disk(monkeypatch, capsys, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = failure(monkeypatch, capsys, *SMALL, "--run", tmp_path / "run")
    assert "the disk is full" in said
    assert "give the same command again" in said


def test_ctrl_c(monkeypatch, capsys, tmp_path):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.run.one_round", interrupt)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *SMALL, "--run", tmp_path / "run")
    assert stop.value.code == terminal.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ((), {"stages": 1, "widen": 2}),
        (("--network", "tests.own_network:make"), {}),
        (("--network", "tests.own_network:make", "--network-args", "hidden=4"), {"hidden": 4}),
        (("--network_args", "widen=2", "--network", "wide_resnet"), {"widen": 2}),
    ],
)
def test_a_script_keeps_its_network_arguments_to_its_own_network(monkeypatch, arguments, kept):
    seen = []
    monkeypatch.setattr("pipelines.run.run", lambda config, console: seen.append(config))
    command(monkeypatch, *arguments, script="images")
    assert seen[0].network_arguments == kept


def test_a_twin_that_is_none_is_refused_before_training(monkeypatch, capsys, tmp_path):
    said = failure(
        monkeypatch, capsys, *SMALL, "--run", tmp_path / "a", "--twin", "tests.own_network:gone"
    )
    assert "twin 'tests.own_network:gone': tests.own_network has no attribute 'gone'" in said
    assert not (tmp_path / "a").exists()
    said = failure(monkeypatch, capsys, *SMALL, "--run", tmp_path / "b", "--twin", "builtins:print")
    assert "the twin is a NoneType; its function must return a mirror" in said
    assert not record.read(tmp_path / "b").rounds


def test_a_network_that_cannot_be_mirrored_is_not_trained_first(monkeypatch, capsys, tmp_path):
    options = ("--cycles", 1, "--subset", 20, "--run", tmp_path / "run")
    said = failure(monkeypatch, capsys, "--network", "tests.own_network:noisy", *options)
    assert "aten.rand_like.default draws random numbers in eval mode" in said
    assert not record.read(tmp_path / "run").rounds
