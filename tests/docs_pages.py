"""Pages of the documentation as blocks of code, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}\S.*\n(?:^ {4}.*\n)*)", re.MULTILINE)
_ASSIGNED = re.compile(r"[A-Z_]+=\S*")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: of its first line; `sh` of indented ones that hold commands.
        told: what else stands there: `run`, for commands that are cheap enough to be run by the
            tests, or `file=NAME`, for what a reader saves under that name.
        text: the code.
    """

    language: str
    told: str
    text: str

    @property
    def file(self) -> str:
        """The name to save it under; empty if there is none."""
        return self.told.removeprefix("file=") if self.told.startswith("file=") else ""


def blocks(page: Path) -> list[Block]:
    """In their order."""
    text = page.read_text(encoding="utf-8")
    found = [(match.start(), Block(*match.groups(default=""))) for match in _FENCED.finditer(text)]
    rest = _FENCED.sub(lambda match: "\n" * len(match.group()), text)
    for match in _INDENTED.finditer(rest):
        if re.search(r"^ {4}python -m ", match.group(), re.MULTILINE):
            found.append((match.start(), Block("sh", "", re.sub("(?m)^ {4}", "", match.group()))))
    return [block for _, block in sorted(found)]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block, of loops for their first value.

    Continued lines are joined, assignments before a command left out.
    """
    found, text = [], re.sub(r"\\\n\s*", "", block.text)
    for name, first in re.findall(r"\bfor (\w+) in ([^\s;]+)", text):
        text = re.sub(rf"\${name}\b", first, text)
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words and _ASSIGNED.fullmatch(words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def modules(page: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The module and arguments of each `python -m` of a page."""
    return [
        (words[2], tuple(words[3:]))
        for block in blocks(page)
        if block.language == "sh"
        for words in commands(block)
        if words[:2] == ["python", "-m"]
    ]
