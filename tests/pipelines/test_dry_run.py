"""`--dry-run`: the plan of a run, printed before anything is trained or written."""

import io
import re

import pytest
from rich.console import Console

from kernel.errors import KernelError
from pipelines import cli, digits, dry_run
from pipelines.config import RunConfig
from pipelines.core import terminal
from pipelines.core.errors import PipelineError
from pipelines.strategies.options import KernelConfig
from trainer import data
from trainer.errors import TrainerError

OWN = ["--network", "tests.own_network:make", "--network-args", "hidden=4"]


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    """The process's compiler is left as it is."""
    monkeypatch.setattr(dry_run, "keep_compiled", lambda: None)


def shown(monkeypatch, tmp_path, *arguments) -> str:
    """What the command prints, wide enough that no line is broken."""
    folder = tmp_path / "run"
    printed = io.StringIO()
    monkeypatch.setattr(cli, "Console", lambda: Console(file=printed, width=200))
    monkeypatch.setattr("pipelines.run.run", lambda *_: pytest.fail("it was run"))
    words = ["pipelines.digits", *OWN, "--dry-run", "--run", folder, *arguments]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    cli.main(digits.DEFAULTS)
    assert not folder.exists()
    return printed.getvalue()


def row(said: str, name: str) -> str:
    found = re.search(rf"│ {re.escape(name)} +│ (.*?) *│", said)
    assert found, said
    return found[1]


def test_the_plan_of_look_ahead(monkeypatch, tmp_path):
    said = shown(monkeypatch, tmp_path, "--cycles", 3, "--initial", 50, "--query", 10)
    assert "3 cycles of mlmoc on digits: 50 labels to start with, 10 a query, 80 in the end" in said
    assert f"{64 * 4 + 4 + 4 * 10 + 10:,} parameters. Nothing was trained or recorded." in said
    # of the last query, which has the most labels; the test images are not candidates
    left = len(data.load("digits", None).train_images) - 70
    candidates = min(digits.DEFAULTS.subset or left, left)
    assert row(said, "labelled, candidates") == f"70, {candidates:,}"
    assert row(said, "kernel") == f"{digits.DEFAULTS.kernel.kind}, dense, float32"
    assert re.fullmatch(r"1, of 1 projection, \d+ images at a time", row(said, "passes"))
    assert re.fullmatch(r"\d+\.\d s, \d+\.\d s of it compiling", row(said, "about"))
    assert re.fullmatch(r"0\.\d\d GiB of 4 GiB", row(said, "memory"))
    assert "sketch" not in said
    assert "change summed over" not in said


@pytest.mark.parametrize(
    ("options", "form"),
    [
        (("--kernel.sample", 30), "cross"),
        (("--kernel.sketch", 40), "features"),
        (("--kernel.sketch", 40, "--kernel.sample", 10_000), "features"),
        (("--kernel.kind", "full"), "full"),
    ],
)
def test_every_form(options, form, monkeypatch, tmp_path):
    arguments = ("--cycles", 1, "--initial", 20, "--query", 5, "--subset", 60, *options)
    said = shown(monkeypatch, tmp_path, *arguments)
    assert f", {form}, float32" in row(said, "kernel")
    if "--kernel.sample" in options:  # never more than there are
        asked = int(options[options.index("--kernel.sample") + 1])
        assert row(said, "change summed over") == f"{min(asked, 60)} candidates"
    if "--kernel.sketch" in options:
        assert row(said, "sketch") == "40 dimensions"


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        (("--strategy", "uherding"), "conditioned, scored 5 times"),
        (("--strategy", "max_det", "--lookahead.batch", "top"), "top"),
        (
            ("--strategy", "flip", "--lookahead.batch", "hybrid", "--lookahead.interval", 2),
            "hybrid, scored 3 times",
        ),
    ],
)
def test_every_way_of_making_a_batch(options, batch, monkeypatch, tmp_path):
    arguments = ("--cycles", 1, "--initial", 20, "--query", 5, "--subset", 60, *options)
    said = shown(monkeypatch, tmp_path, *arguments)
    assert row(said, "batch") == batch
    assert f"1 cycles of {options[1]} on digits" in said


@pytest.mark.parametrize("arguments", [("--strategy", "margin"), ("--cycles", 0)])
def test_without_a_kernel(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(dry_run, "estimate_cost", lambda *_: pytest.fail("nothing is to be timed"))
    said = shown(monkeypatch, tmp_path, *arguments)
    assert "No kernel is computed." in said
    assert "the last query" not in said


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"initial": 99_999}, PipelineError, "need .* images and digits has"),
        ({"network": "vgg"}, TrainerError, "unknown network 'vgg'"),
    ],
)
def test_what_a_run_would_stop_at(changes, error, message, tmp_path):
    config = RunConfig(dataset="digits", run=tmp_path / "run", **changes)
    with pytest.raises(error, match=message):
        dry_run.dry_run(config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


def test_the_refusal_says_how_much(monkeypatch, tmp_path, capsys):
    """Given so much, there may be more to ask for, but not for ever."""
    codes = []
    memory, arguments = "0.001", ("--cycles", 1, "--initial", 20, "--query", 5)
    for _ in range(3):
        try:
            said = shown(monkeypatch, tmp_path, *arguments, "--kernel.memory-gib", memory)
        except SystemExit as stop:
            codes.append(stop.code)
            refused = capsys.readouterr().err
            found = re.search(r"give ([\d.e+-]+) GiB", refused)
            assert found, refused
            assert float(found[1]) > float(memory)
            memory = found[1]
        else:
            assert set(codes) == {terminal.FAILED}
            assert not (tmp_path / "run").exists()
            assert row(said, "memory").endswith(f"of {float(memory):g} GiB")
            return
    raise AssertionError(f"{memory} GiB are refused although they were asked for")


def test_the_kernel_refuses_before_anything_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(dry_run, "estimate_cost", lambda *_, **__: pytest.fail("it was timed"))
    config = RunConfig(
        dataset="digits",
        network="tests.own_network:make",
        initial=20,
        query=5,
        cycles=1,
        kernel=KernelConfig(memory_gib=0.001),
        run=tmp_path / "run",
    )
    with pytest.raises(KernelError, match=r"0.001 GiB are given"):
        dry_run.dry_run(config, Console(file=io.StringIO()))
