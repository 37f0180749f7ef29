"""One query, file by file: what is entered first, and what is imported at all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALK = [
    "pipelines/query.py",
    "pipelines/strategies/base.py",
    "pipelines/strategies/lookahead.py",
    "bridge/trace.py",
    "bridge/parity.py",
    "kernel/ntk.py",
    "kernel/posterior.py",
    "kernel/criteria.py",
]
# Prints our files in the order in which a function of theirs is first called by a query; modules
# are imported before, so that functions that their bodies call do not count.
QUERY = """
import sys, threading
from pathlib import Path
import numpy as np
import bridge.parity, bridge.trace, pipelines.strategies.lookahead
import torch
from pipelines.query import query
from torch import nn

root, entered = Path.cwd(), {}
packages = tuple(str(root / name) for name in ("trainer", "bridge", "kernel", "pipelines"))

def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(packages):
        if code.co_flags & 2:  # a function; the body of a class is none
            entered.setdefault(code.co_filename, None)

images = np.random.default_rng(0).normal(size=(50, 1, 8, 8)).astype(np.float32)
torch.manual_seed(0)
head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head).eval()
threading.setprofile(profile)
sys.setprofile(profile)
query(network, images, {0: 0, 1: 1, 2: 2}, 4)
sys.setprofile(None)
print(*(Path(name).relative_to(root).as_posix() for name in entered), sep="\\n")
"""
MARGIN = """
import sys
import numpy as np
from pipelines.query import query
from trainer.networks import build
images = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
network = build("cnn", (1, 8, 8), 3, np.random.default_rng(1))
query(network, images, {0: 0, 1: 1, 2: 2}, 4, "margin")
print(*sys.modules, sep="\\n")
"""


def lines(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_query_is_read_in_eight_files():
    entered = lines(QUERY)
    assert [name for name in entered if name in WALK] == WALK
    assert entered[0] == WALK[0]
    assert len(entered) <= 34, entered
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = [page.index(f". `{name}`: ") for name in WALK]
    assert places == sorted(places)


def test_margin_imports_no_jax_and_no_other_strategy():
    modules = lines(MARGIN)
    assert not {"jax", "bridge", "kernel.model"} & set(modules)
    ours = {name for name in modules if name.startswith("pipelines.strategies.")}
    assert ours == {f"pipelines.strategies.{name}" for name in ("base", "options", "uncertainty")}


@pytest.mark.parametrize(
    "code",
    [
        "from pipelines import query, compare, start; from pipelines.query import query as own",
        "from pipelines.query import query as own; from pipelines import compare, query, start",
        "import pipelines.query; from pipelines import query; own = pipelines.query.query",
    ],
)
def test_query_is_a_function_and_a_module(code):
    found = lines(f"""
{code}
import inspect, pipelines.query as module
assert module.query is own and module is query
assert inspect.signature(query) == inspect.signature(own)
module.query = lambda *arguments: arguments  # by name, as pytest's monkeypatch replaces it
print(query(1, 2))
""")
    assert found == ["(1, 2)"]


def test_the_package_loads_neither_torch_nor_jax():
    code = "import sys; from pipelines import QueryOptions; print(*sys.modules, sep='\\n')"
    assert not {"torch", "jax"} & set(lines(code))
