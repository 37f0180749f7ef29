import atexit
import ctypes
import functools
import gc
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

# what runs of the tests keep for the user is kept apart from the user's own, and let go with it
_CACHE = tempfile.TemporaryDirectory(prefix="ntk-lookahead-cache-")
atexit.register(_CACHE.cleanup)
_DAYS = 30
_JAXLIB = version("jaxlib")


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


def _compile_quickly() -> None:
    """Arrays of the tests are small: compiling for speed takes ten times as long as running them.

    `make test-all` compiles as a user does, by `JAX_DISABLE_MOST_OPTIMIZATIONS=false`.
    """
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    # XLA ends the process at a flag that it does not know: only for versions that have these
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true" and _JAXLIB.startswith("0.10."):
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()


_keep_compiled()  # both before JAX reads its environment
_compile_quickly()
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(scope="session", autouse=True)
def _list_operators_once() -> None:
    """torch.export lists the dispatcher's operators 50 times a network, a quarter of its time."""
    import torch._export.utils as utils

    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)


@pytest.fixture(scope="session", autouse=True)
def _compiled_is_written_whole() -> None:
    """JAX writes an entry of its cache in place, and never again once the file is there.

    A process beside reads half of it, and one that is killed leaves half of it for good: each is a
    warning, and so an error here.
    """
    from jax._src.lru_cache import _CACHE_SUFFIX, LRUCache

    def put(self: LRUCache, key: str, value: bytes) -> None:
        path = Path(str(self.path)) / f"{key}{_CACHE_SUFFIX}"
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_bytes(value)
        beside.replace(path)

    LRUCache.put = put


@pytest.fixture(scope="module", autouse=True)
def _free_compiled() -> Iterator[None]:
    """What XLA compiled for one module of tests is not kept in memory for the next."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def unchecked_types():
    """Without the types that tests check when they run: wrong names reach our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
