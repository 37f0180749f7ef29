"""Whoever imports JAX first: modules that use it have float64 and full-precision products."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JAX_FREE = ("kernel.files", "kernel.errors", "kernel.options", "kernel.simplex")
MODULES = sorted(
    {f"kernel.{path.stem}" for path in (ROOT / "kernel").glob("*.py")}
    - {*JAX_FREE, "kernel.__init__"}
)
CHECK = """
    import jax, jax.numpy as jnp
    if jnp.zeros(1).dtype != "float64" or jax.config.jax_default_matmul_precision != "highest":
        sys.exit(f"{module} leaves JAX as it was")
"""
# Every module is imported anew, beside a JAX that somebody else has imported and set otherwise.
FIRST = f"""
import importlib, jax, sys
for module in {MODULES}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kernel"]:
        del sys.modules[name]
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_default_matmul_precision", "default")
    importlib.import_module(module)
{CHECK}
"""
# Those that others import import JAX themselves, before anybody else does.
LATER = f"""
import importlib, sys
for module in ["kernel.infinite", "kernel.model"]:
    importlib.import_module(module)
{CHECK}
"""


@pytest.mark.parametrize("code", [FIRST, LATER], ids=["first", "later"])
def test_jax_has_float64_and_full_products(code):
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_options_import_no_jax():
    code = f"import sys, {', '.join(JAX_FREE)}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
