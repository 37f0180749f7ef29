"""The walk of docs/own-model.md, block by block, as a person would follow it."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridge import check
from bridge.ops import OPERATORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: file=(\S+))?\n(.*?)```", PAGE, re.DOTALL)


# Which weights are trained is no part of what the page shows.
QUICK = ["--train.epochs", "5", "--train.min-steps", "50", "--train.extensions", "0"]


def paint(folder: Path) -> None:
    """Thirty images of three kinds, of different sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 3)):
        for kind, name in enumerate(("dots", "dusk", "stripes")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                side = int(rng.integers(16, 30))
                pixels = rng.integers(0, 90, size=(side, side, 3))
                pixels[:: kind + 2] += 60 * (kind + 1)
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / part / name / f"{number}.png")


def execute(code: str) -> None:
    exec(compile(code, "own-model.md", "exec"), {"__name__": "__main__"})


def execute_apart(code: str, folder: Path) -> str:
    """In a process of its own, which has imported nothing yet."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m module arguments`, in this process."""
    _, option, module, *arguments = words
    assert option == "-m"
    if module == "pipelines.images":
        arguments += QUICK
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        if module == "bridge.check":  # whose settings are a type that other modules check
            check.main()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, words  # noqa: PT017 - a command ends so when it ends well, too


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A person's folder: modules in it are imported, operators that they register go again."""
    paint(tmp_path / "my_images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    rows = dict(OPERATORS)
    yield tmp_path
    OPERATORS.clear()
    OPERATORS.update(rows)
    for name in ("my_nets", "my_twin"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_block_runs_in_order(folder: Path, monkeypatch, capsys) -> None:
    apart = []
    for language, file, text in BLOCKS:
        if file:
            (folder / file).write_text(text, encoding="utf-8")
        elif "modules" in text:  # what it prints is of what has been imported
            apart.append(execute_apart(text, folder))
        elif language == "python":
            execute(text)
        else:
            for line in text.strip().splitlines():
                command(shlex.split(line), monkeypatch)
    whole = capsys.readouterr().out + "".join(apart)
    assert whole.count("Certified: this network can be used in every pipeline.") == 3
    assert "label these next: [" in whole
    assert "] twin" in whole
    assert "(12, 12) False" in whole
    assert (folder / "runs" / "mine" / "rounds.jsonl").read_text().count("\n") == 2
    assert (folder / "report" / "report.html").is_file()


def test_the_page_has_its_blocks() -> None:
    assert [file for _, file, _ in BLOCKS if file] == ["my_nets.py", "my_twin.py"]
    assert len(BLOCKS) == 10
