"""Where a kernel keeps what is finished, so that an interrupted one goes on where it stood.

From a folder and a key, which says of what network, images and settings the work is, to arrays that
outlive the process and counts of what is done in them. Without a folder they are plain memory.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

_STATE = "state.json"


class Scratch:
    """Arrays by name, each with a count of what is finished in it."""

    def __init__(self, folder: Path | None = None, key: str = ""):
        """Take up what lies in the folder if it was written under the same key, else empty it.

        Args:
            folder: made if it is not there; its contents belong to this object alone. None keeps
                nothing.
            key: of the work.
        """
        self._folder = folder
        self._key = key
        self._done: dict[str, int] = {}
        if folder is None:
            return
        if (folder / _STATE).is_file():
            state = json.loads((folder / _STATE).read_text("utf-8"))
            if state["key"] == key:
                self._done = state["done"]
                return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._write()

    @property
    def keeps(self) -> bool:
        """Whether anything outlives the process."""
        return self._folder is not None

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """The array of a name as it was left, or a new one whose entries are zeros."""
        if self._folder is None:
            return np.zeros(shape, dtype)
        path = self._folder / f"{name}.npy"
        fresh = not path.exists()
        if fresh:
            self._done.pop(name, None)
        mode = "w+" if fresh else "r+"
        return np.lib.format.open_memmap(path, mode=mode, dtype=np.dtype(dtype), shape=shape)

    def done(self, name: str) -> int:
        """How much of an array is finished."""
        return self._done.get(name, 0)

    def mark(self, name: str, count: int) -> None:
        """So much of an array is finished; what was written to it before is kept with it."""
        if self._folder is not None:
            self._done[name] = count
            self._write()

    def replaced(self, name: str, old: Iterable[str]) -> None:
        """An array is finished that takes the place of others: theirs are deleted."""
        if self._folder is None:
            return
        self.mark(name, 1)
        for stale in old:
            (self._folder / f"{stale}.npy").unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._folder is not None
        beside = self._folder / f"{_STATE}.new"
        beside.write_text(json.dumps({"key": self._key, "done": self._done}), "utf-8")
        beside.replace(self._folder / _STATE)


def key_of(arrays: Iterable[Any], settings: Any) -> str:
    """A key that changes with any entry of the arrays and with the settings' words."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        for leaf in jax.tree.leaves(array):
            own = np.ascontiguousarray(leaf)
            digest.update(f"{own.shape}{own.dtype}".encode())
            digest.update(own.data)
    return digest.hexdigest()
