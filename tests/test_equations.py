"""Every numbered equation of docs/mathematics.md stands once beside the line that computes it."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("trainer", "bridge", "kernel", "pipelines", "experiments")


def on_the_page() -> Counter[int]:
    text = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
    return Counter(int(number) for number in re.findall(r"\((\d{1,2})\)", text))


def in_the_code() -> dict[int, list[str]]:
    """Number → the lines that follow its comments, by file."""
    found: dict[int, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            for line, following in zip(lines, [*lines[1:], ""], strict=True):
                for number in re.findall(r"^\s*# \((\d{1,2})\) ", line):
                    found.setdefault(int(number), []).append(f"{path}: {following.strip()}")
    return found


def test_numbers_of_the_page_run_from_one_and_occur_once():
    page = on_the_page()
    assert sorted(page.elements()) == list(range(1, len(page) + 1))


def test_each_stands_once_beside_the_line_that_computes_it():
    code = in_the_code()
    assert code.keys() == on_the_page().keys()
    assert {number: lines for number, lines in code.items() if len(lines) > 1} == {}
    for number, (line,) in code.items():
        computing = line.partition(": ")[2]
        assert computing, number
        assert not computing.startswith("#"), number
