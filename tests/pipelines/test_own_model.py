"""The walk of docs/own-model.md, block by block, as a person would follow it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: file=(\S+))?\n(.*?)```", PAGE, re.DOTALL)


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


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.slow
def test_every_block_runs_in_order(tmp_path: Path) -> None:
    paint(tmp_path / "my_images")
    printed = []
    for language, file, text in BLOCKS:
        if file:
            (tmp_path / file).write_text(text, encoding="utf-8")
        elif language == "python":
            printed.append(run([sys.executable, "-c", text], tmp_path))
        else:
            for line in text.strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "python"
                printed.append(run([sys.executable, *arguments], tmp_path))
    whole = "".join(printed)
    assert whole.count("Certified: this network can be used in every pipeline.") == 3
    assert "label these next: [" in whole
    assert "] twin" in whole
    assert "(12, 12) False" in whole
    assert (tmp_path / "runs" / "mine" / "rounds.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_page_has_its_blocks() -> None:
    assert [file for _, file, _ in BLOCKS if file] == ["my_nets.py", "my_twin.py"]
    assert len(BLOCKS) == 10
