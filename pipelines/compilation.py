"""Compiled programs are kept from run to run, so that only the first one waits for the compiler."""

import os
from pathlib import Path

import jax

_SECONDS = 0.5  # what compiles faster is not worth a file


def keep_compiled() -> Path | None:
    """Switch on JAX's persistent compilation cache, unless the user has set or disabled it.

    `JAX_COMPILATION_CACHE_DIR` names another folder; `JAX_ENABLE_COMPILATION_CACHE=false` does
    without. By default it lies in the user's cache folder.

    Returns:
        The folder; None without a cache.
    """
    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return None
    if settings["jax_compilation_cache_dir"] is not None:
        return Path(settings["jax_compilation_cache_dir"])
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "ntk-lookahead" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: everything works, only compiled anew
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    return folder
