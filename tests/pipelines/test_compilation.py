"""Where compiled programs are kept, and that a person's own choice is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pipelines.core.progress import keep_compiled

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def configuration(monkeypatch):
    """None of the test's settings outlives it, and none that was there counts."""
    before = {name: jax.config.values[name] for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_in_the_folder_for_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = keep_compiled()
    assert folder == tmp_path / "ntk-lookahead" / "compiled"
    assert (tmp_path / "ntk-lookahead" / "compiled").is_dir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
    assert keep_compiled() == folder  # a second run in the same process


def test_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keep_compiled() == tmp_path / ".cache" / "ntk-lookahead" / "compiled"


def test_a_folder_that_was_set_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "unused"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled() == tmp_path / "own"
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    assert not (tmp_path / "unused").exists()


def test_disabled_is_disabled(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_the_environment_has_the_last_word(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", "from pipelines.core.progress import *; print(keep_compiled())"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
            "XDG_CACHE_HOME": str(tmp_path),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"),
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / "own")
    assert not (tmp_path / "ntk-lookahead").exists()
