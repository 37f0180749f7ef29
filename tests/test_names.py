"""Every dotted name, command and path in code, docstrings, messages and pages leads somewhere."""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.strategies.options import KernelConfig

ROOT = Path(__file__).parent.parent
PACKAGES = ("trainer", "bridge", "kernel", "pipelines", "experiments", "benchmarks")
_FIRST = "|".join(PACKAGES)
DOTTED = re.compile(rf"(?<![\w./-])(?:{_FIRST})(?:\.[A-Za-z_]\w*)+")
COMMAND = re.compile(rf"python -m ((?:{_FIRST})(?:\.[a-z_]+)*)(?![\w.{{])")
FILE = re.compile(rf"(?<![\w./-])((?:{_FIRST}|tests|docs)/[\w/-]+\.(?:py|md|png|csv|json))\b")
FILES = (".md", ".json", ".png", ".csv")  # how figures of benchmarks are named
MISSING = {"pipelines.nowhere", "pipelines/strategies/unfamiliar.py"}  # in examples


def pages() -> list[Path]:
    docs = [page for page in (ROOT / "docs").rglob("*.md") if "results" not in page.parts]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *docs]


def words(path: Path) -> Iterator[str]:
    """Strings, docstrings and comments of a module; the inline code and the blocks of a page."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        yield from re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
        return
    yield from re.findall(r"#[^\n]*", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def resolves(name: str) -> bool:
    """True for a module, an attribute of one, a field of a class, or a setting of a kernel."""
    parts = name.split(".")
    if parts[0] == "kernel" and parts[1] in KernelConfig.__dataclass_fields__:
        return True
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if part in getattr(found, "__annotations__", {}):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def names(path: Path) -> Iterator[str]:
    for text in words(path):
        if not text.startswith("```"):  # there `kernel.values` is of a variable
            yield from DOTTED.findall(text)


def test_every_name_is_of_something():
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    known: dict[str, bool] = {}
    faults = []
    for path in [*modules, *pages()]:
        for name in names(path):
            if name.endswith(FILES) or name in MISSING:
                continue
            if name not in known:
                known[name] = resolves(name)
            if not known[name]:
                faults.append(f"{path.relative_to(ROOT)}: {name}")
    assert len(known) > 50
    assert not faults, "\n".join(faults)


def test_every_command_and_every_path_is_there():
    sources = [path for path in sorted(ROOT.rglob("*.py")) if ".venv" not in path.parts]
    commands, faults = set(), []
    for path in [*sources, *pages()]:
        for text in words(path):
            for module in COMMAND.findall(text):
                commands.add(module)
                spec = importlib.util.find_spec(module)
                if spec is not None and spec.submodule_search_locations:
                    spec = importlib.util.find_spec(f"{module}.__main__")
                if spec is None:
                    faults.append(f"{path.relative_to(ROOT)}: python -m {module}")
            for file in FILE.findall(text):
                if file not in MISSING and not (ROOT / file).exists():
                    faults.append(f"{path.relative_to(ROOT)}: {file}")
    assert len(commands) > 10
    assert not faults, "\n".join(faults)


def test_a_name_that_is_wrong_is_noticed():
    assert resolves("bridge.weights.read")
    assert resolves("kernel.options.Request.chunk")
    assert not resolves("bridge.weights.reed")
    assert not resolves("bridge.wights")
    assert COMMAND.findall("`python -m pipelines.run`") == ["pipelines.run"]
