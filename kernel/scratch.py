"""Finished parts of a long computation on disk, checked when they are read again.

A part is one file: a SHA-256 of the key of the work, its name, shapes, dtypes and data, then the
data. It is written by `kernel.files.write_file`, so that it is on the disk before it has its name.
One that is cut short, zeroed or of another key is never read: it is computed again, to the same
values. The space of all parts is reserved before the first.
"""

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kernel.errors import KernelError
from kernel.files import write_file
from kernel.linalg import row_blocks
from kernel.model import Piecewise

_RESERVE = "reserve"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE_BYTES = 2**26
_PIECE_IMAGES = 256
_DIGEST = 32


class Scratch:
    """Parts by name; their file names begin with the key."""

    def __init__(self, folder: Path, key: str, *, shared: bool = False):
        """Keep what lies in the folder under the same key, and delete everything else.

        Args:
            folder: made if it is not there; its contents belong to this object alone.
            key: of the work, `key_of`.
            shared: nothing is deleted, for other processes may be writing parts of the same work.
        """
        self._folder, self._key, self._prefix = folder, key, f"{key[:16]}-"
        self._warned = False
        folder.mkdir(parents=True, exist_ok=True)
        for path in () if shared else folder.iterdir():
            if path.is_file() and not path.name.startswith(self._prefix):
                path.unlink()

    def load(self, name: str, *arrays: np.ndarray) -> bool:
        """Fill arrays with a finished part; False, and they are untouched, where there is none.

        Warns:
            UserWarning: the part is damaged, once for all of them.
        """
        path = self._path(name)
        if not path.is_file():
            return False
        content = path.read_bytes()
        data = memoryview(content)[_DIGEST:]
        if content[:_DIGEST] != self._digest(name, arrays, [data]):
            path.unlink()
            if not self._warned:
                needed = _DIGEST + sum(array.nbytes for array in arrays)
                found = "other bytes than were written"
                if len(content) != needed:
                    found = f"{len(content):,} of {needed:,} bytes"
                warnings.warn(
                    f"{path} is damaged: it holds {found}, as after a power cut or where something "
                    "else changed it. It, and any other part that is damaged, is computed again, "
                    "to the same values.",
                    stacklevel=2,
                )
            self._warned = True
            return False
        start = 0
        for array in arrays:
            own = np.frombuffer(data[start : start + array.nbytes], array.dtype)
            array[...] = own.reshape(array.shape)
            start += array.nbytes
        return True

    def names(self, prefix: str) -> list[str]:
        """Names of the parts that begin so, sorted; whether they are sound shows when they load."""
        found = self._folder.glob(f"{self._prefix}{prefix}*")
        return sorted(path.name.removeprefix(self._prefix) for path in found if path.is_file())

    def map(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        """The last array of a part that was loaded or saved, read from its file when it is read."""
        offset = _DIGEST + sum(array.nbytes for array in arrays[:-1])
        last = arrays[-1]
        return np.memmap(self._path(name), last.dtype, "r", offset, last.shape)

    def save(self, name: str, *arrays: np.ndarray) -> None:
        """Keep a finished part.

        Raises:
            KernelError: the disk is full.
        """
        path = self._path(name)
        data = [np.ascontiguousarray(array).tobytes() for array in arrays]
        content = b"".join([self._digest(name, arrays, data), *data])
        self._release(len(content))
        try:
            write_file(path, content)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise self._full(len(content)) from error

    def delete(self, prefix: str) -> None:
        """Delete the parts whose names begin so."""
        for path in self._folder.glob(f"{self._prefix}{prefix}*"):
            path.unlink()

    @contextmanager
    def reserved(self, needed: int) -> Iterator[None]:
        """Hold the space of all parts on the disk while they are computed.

        Args:
            needed: bytes of all parts, those that are there included.

        Raises:
            KernelError: it is not free.
        """
        path = self._folder / _RESERVE
        needed -= sum(part.stat().st_size for part in self._folder.iterdir())
        if shutil.disk_usage(self._folder).free < needed:
            raise self._full(needed)
        try:
            if needed > 0 and hasattr(os, "posix_fallocate"):
                self._allocate(path, needed)
            yield
        finally:
            path.unlink(missing_ok=True)

    def _allocate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in _FULL:  # otherwise the file system cannot; a full one is told later
                raise self._full(size) from error
        finally:
            os.close(descriptor)

    def _release(self, size: int) -> None:
        """Give back the space that a part is about to take."""
        path = self._folder / _RESERVE
        if path.is_file():
            os.truncate(path, max(path.stat().st_size - size, 0))

    def _path(self, name: str) -> Path:
        return self._folder / (self._prefix + name)

    def _digest(self, name: str, arrays: Iterable[np.ndarray], data: Iterable[Any]) -> bytes:
        kinds = [(array.shape, array.dtype.str) for array in arrays]
        digest = hashlib.sha256(repr((self._key, name, kinds)).encode())
        for one in data:
            digest.update(one)
        return digest.digest()

    def _full(self, needed: int) -> KernelError:
        free = shutil.disk_usage(self._folder).free
        return KernelError(
            f"finished parts of a computation need {needed / 2**20:,.1f} MiB in {self._folder} and "
            f"{free / 2**20:,.1f} MiB are free: free as much, or move the run directory to another "
            "disk, and give the same command again; what is finished is kept."
        )


def load_sums(scratch: Scratch, passes: int, sums: Iterable[np.ndarray]) -> int:
    """Fill zeros with the sums after the last finished pass that is whole; its number, or 0."""
    for done in range(passes, 0, -1):
        pieces = list(_pieces(done, sums))
        loaded = [name for name, piece in pieces if scratch.load(name, piece)]
        if len(loaded) == len(pieces):
            return done
        if loaded:
            for array in sums:
                array[...] = 0
    return 0


def save_sums(scratch: Scratch, done: int, sums: Iterable[np.ndarray]) -> None:
    """Keep the sums after `done` passes in place of those before."""
    for name, piece in _pieces(done, sums):
        scratch.save(name, piece)
    scratch.delete(f"sums-{done - 1}-")


def _pieces(done: int, sums: Iterable[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of the sums that are written at a time."""
    for number, array in enumerate(sums):
        rows = max(1, _PIECE_BYTES * len(array) // max(array.nbytes, 1))
        for start, stop in row_blocks(len(array), rows):
            yield f"sums-{done}-{number}-{start}", array[start:stop]


def key_of(arrays: Iterable[Any], settings: Any) -> str:
    """A key that changes with any entry of the arrays and with the settings' words."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        for leaf in jax.tree.leaves(array):
            pieces = [leaf]
            if isinstance(leaf, Piecewise) and not hasattr(leaf, "__array__"):
                spans = row_blocks(len(leaf), _PIECE_IMAGES)
                pieces = (leaf[start:stop] for start, stop in spans)
            for piece in pieces:
                own = np.ascontiguousarray(piece)
                digest.update(f"{own.shape}{own.dtype}".encode())
                digest.update(own.data)
    return digest.hexdigest()
