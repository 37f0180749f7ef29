"""Data flows one way: data → trainer → bridge → kernel → strategies → pipelines → report."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "trainer": {"jax", "neural_tangents", "bridge", "kernel", "pipelines", "experiments"},
    "bridge": {"trainer", "pipelines", "experiments", "neural_tangents"},
    "kernel": {"torch", "torchvision", "trainer", "bridge", "pipelines", "experiments"},
    "pipelines": {"neural_tangents", "torchvision", "experiments", "tests", "benchmarks"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def modules(path: Path) -> set[str]:
    """Names that may be modules: `from a import b` counts as a and as a.b."""
    found = imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_arrow_points_back(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[package]}
        if path == ROOT / "kernel" / "infinite.py":
            wrong -= {"neural_tangents"}
        if path == ROOT / "bridge" / "check.py":
            # a command line, which builds the network that it checks
            wrong -= {"trainer", "trainer.config", "trainer.errors", "trainer.networks"}
            wrong -= {"trainer.trainable"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_strategies_do_not_know_the_loop():
    for path in (ROOT / "pipelines" / "strategies").glob("*.py"):
        wrong = imports(path) & {f"pipelines.{m}" for m in ("run", "round", "config", "record")}
        assert not wrong, f"{path.name} imports {sorted(wrong)}"


def test_whatever_computes_with_jax_sets_it_to_64_bits():
    """Of kernel and bridge: `kernel.x64` is among what a module imports, directly or in turn."""
    paths = {}
    for package in ("kernel", "bridge"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts).removesuffix(".__init__")] = path
    reached = {name: modules(path) for name, path in paths.items()}
    computing = {n for n, names in reached.items() if any(m.split(".")[0] == "jax" for m in names)}
    for _ in paths:
        reached = {
            name: names.union(*(reached[other] for other in names & paths.keys()))
            for name, names in reached.items()
        }
    assert not {n for n in computing if "kernel.x64" not in reached[n] | {n}}


def test_only_kernels_of_infinite_width_touch_neural_tangents():
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "kernel" / "infinite.py":
                assert not any(name.startswith("neural_tangents") for name in imports(path)), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("trainer.fit", "jax"),
        ("kernel.lookahead", "torch"),
        ("kernel.infinite", "torch"),
        ("bridge.mirror", "torch"),
        ("bridge.weights", "torch"),
        ("bridge.portable", "torch"),
    ],
)
def test_what_is_loaded(module, absent):
    """The arrows hold for what is imported in turn, too."""
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# Each takes a second or more, and none is needed to print a help text or to refuse a setting.
SLOW = {"torchvision", "sklearn", "torch._dynamo", "pandas", "matplotlib.figure", "statsmodels"}


@pytest.mark.parametrize("module", ["pipelines.mnist", "pipelines.query", "bridge.check"])
def test_a_command_begins_soon(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({sorted(SLOW)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert not done.stdout.split()
