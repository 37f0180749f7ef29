import os
import tempfile
import time
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

# what runs of the tests keep for the user is kept apart from the user's own, and let go with it
_CACHE = tempfile.TemporaryDirectory(prefix="ntk-lookahead-cache-")
_DAYS = 30


def _keep_compiled() -> None:
    """Most of the suite's time is XLA's: what it compiled for one run of the tests serves the next.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=false` does
    without. Subprocesses of the tests take it from the environment.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "ntk-lookahead" / "tests"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if "PYTEST_XDIST_WORKER" not in os.environ and folder.is_dir():
        for file in folder.iterdir():  # of versions that nobody has any more
            if file.stat().st_mtime < time.time() - _DAYS * 86_400:
                file.unlink(missing_ok=True)


_keep_compiled()  # before JAX reads its environment
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def unchecked_types():
    """Without the types that tests check when they run: wrong names reach our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
