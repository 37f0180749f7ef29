"""Images that stay on disk: a table of items, decoded where they are read.

An item is a file of a folder or a member of an archive; what is kept of it are its path, where it
lies, its size and the hash of its content, some hundred bytes in arrays. `DiskImages` has the
pixels of all items at one size, as an array has them: they are decoded piece by piece on all
cores, and the latest are kept up to a bound. The images of a compressed tar, which cannot be read
at random, are decoded once and kept.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from trainer.containers import Contents, FileTree, Location, Parts
from trainer.image_files import Header, decode, quiet, read_header, read_pixels, read_whole

CACHE_BYTES = 2**30
"""Of decoded pixels that are kept of a data set, its train and test images together."""
_HASH_BYTES = 16
_LEAST = 8  # images that are worth a thread


def _cores() -> int:
    """That this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Names:
    """Texts in one buffer."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode() for text in texts]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __getitem__(self, index: int) -> str:
        return self._buffer[self._ends[index] : self._ends[index + 1]].decode()


class _Table(NamedTuple):
    """Items of a tree in arrays, one entry an item.

    Attributes:
        paths: inside the tree, their parts joined by slashes.
        members: names of zips' entries, as they stand there, where they are not the paths.
        place: int64 (items, 4): container, where the content lies there, how many bytes it takes
            there, time of the last change; as `trainer.containers.Location` has them.
        packed: uint32 (items, 4): of a zip's entry flags, method, CRC and size when unpacked; empty
            without a zip.
        hashes: uint8 (items, 16), BLAKE2b of the content.
        random: whether items can be read at random.
    """

    paths: _Names
    members: _Names | None
    place: Int64[np.ndarray, "items 4"]
    packed: UInt32[np.ndarray, "zipped 4"]
    hashes: UInt8[np.ndarray, "items 16"]
    random: bool


class DiskImages:
    """uint8 (examples, channels, height, width), decoded when they are read.

    Attributes:
        shape: as of an array.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        contents: Contents,
        table: _Table,
        items: Int64[np.ndarray, " examples"],
        shape: tuple[int, int, int],
        cache_bytes: int | None = None,
        pixels: UInt8[np.ndarray, "examples channels height width"] | None = None,
    ):
        """Nothing is decoded yet.

        Args:
            contents: of the folder or archive.
            table: of its items.
            items: which of them these are.
            shape: channels, height and width.
            cache_bytes: bound on decoded pixels that are kept; `CACHE_BYTES` by default.
            pixels: of all of them, if they are decoded.
        """
        self.shape = (len(items), *shape)
        self._contents, self._table, self._items = contents, table, items
        each = int(np.prod(shape))
        self._cache_bytes = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._room = min(len(items), self._cache_bytes // each)
        if pixels is not None:
            self._room = len(items)
        self._kept = np.empty((self._room, *shape), np.uint8) if pixels is None else pixels
        every = np.arange(len(items), dtype=np.int32)
        self._slot = np.full_like(every, -1) if pixels is None else every
        self._owner = np.full(self._room, -1, np.int32)
        self._next = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> UInt8[np.ndarray, "..."]:
        """The image at an index, or the images at a slice, mask or array of indices.

        What follows in a tuple is an index into what these decode to.

        Raises:
            DataError: a file is corrupt, gone or changed; the message names it.
        """
        if isinstance(key, tuple):
            some = self[key[0]]
            return some[(slice(None),) * (some.ndim == 4) + key[1:]]
        index = np.arange(len(self))[key]
        flat = np.atleast_1d(index)
        found = np.empty((len(flat), *self.shape[1:]), np.uint8)
        with self._lock:
            slots = self._slot[flat]
            known = slots >= 0
            found[known] = self._kept[slots[known]]
        where = np.flatnonzero(~known)
        if len(where):
            missing, back = np.unique(flat[where], return_inverse=True)
            pixels = self._decoded(missing)
            found[where] = pixels[back]
            self._keep(missing, pixels)
        return found if index.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, decoded."""
        return np.asarray(self[:], dtype)

    def name(self, index: int) -> str:
        """Path of an image inside the folder or archive."""
        return self._table.paths[int(self._items[index])]

    def original(self, index: int, longest: int) -> UInt8[np.ndarray, "channels height width"]:
        """An image as its file has it, RGB and upright, reduced to `longest` pixels a side.

        As it is decoded, where its file cannot be read at random.
        """
        if not self._table.random:
            return self[index]
        with quiet():
            return read_whole(self._stream(int(self._items[index])), self._named(index), longest)

    def digest(self) -> bytes:
        """Of the content of all files, in their order; not of how they are decoded."""
        return hashlib.sha256(self._table.hashes[self._items].tobytes()).digest()

    def take(self, indices: np.ndarray) -> "DiskImages":
        """Some of the images, which keep their own pixels, up to their share of the bound."""
        pixels = None if self._table.random else self[indices]
        items, share = self._items[indices], self._cache_bytes * len(indices) // len(self)
        return DiskImages(self._contents, self._table, items, self.shape[1:], share, pixels)

    def _named(self, index: int) -> str:
        return self._contents.name(tuple(self.name(index).split("/")))

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        channels, height, width = self.shape[1:]

        def fill(some: np.ndarray) -> None:
            for position in some:
                index = int(indices[position])
                stream = self._stream(int(self._items[index]))
                pixels[position] = decode(stream, self._named(index), height, width, channels)

        threads = min(_cores(), len(indices) // _LEAST)
        parts = np.array_split(np.arange(len(indices)), max(threads, 1))
        with quiet():  # here, for it is not of one thread
            if threads < 2:
                fill(parts[0])
            else:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(fill, parts))
        return pixels

    def _stream(self, item: int) -> io.BytesIO:
        """The content of an item.

        Raises:
            DataError: it is gone, or other bytes lie there than when it was listed.
        """
        table = self._table
        container, offset, size, changed = (int(value) for value in table.place[item])
        location = Location(container, offset, size, changed)
        if len(table.packed):
            flags, method, crc, unpacked = (int(value) for value in table.packed[item])
            names = table.paths if table.members is None else table.members
            location = location._replace(member=names[item], packed=(flags, method, crc, unpacked))
        return self._contents.open(tuple(table.paths[item].split("/")), location)

    def _keep(self, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Keep the latest pixels in place of the oldest."""
        count = min(len(indices), self._room)
        if not count:
            return
        with self._lock:
            slots = (self._next + np.arange(count)) % self._room
            self._next = (self._next + count) % self._room
            old = self._owner[slots]
            self._slot[old[old >= 0]] = -1
            self._slot[indices[:count]] = slots
            self._owner[slots] = indices[:count]
            self._kept[slots] = pixels[:count]


def list_items(tree: FileTree, files: Sequence[Parts]) -> tuple[tuple[Header, ...], _Table]:
    """Headers and table of files, each of which is read once.

    Raises:
        DataError: a file is no image; the message names it.
    """
    places = tree.locations(files)
    headers: dict[int, Header] = {}
    hashes = np.zeros((len(files), _HASH_BYTES), np.uint8)
    with quiet():
        for position, stream in tree.read(files):
            headers[position] = read_header(stream, tree.name(files[position]))
            stream.seek(0)
            content = hashlib.blake2b(stream.read(), digest_size=_HASH_BYTES).digest()
            hashes[position] = np.frombuffer(content, np.uint8)
    known = places or ()
    place = [(p.container, p.offset, p.size, p.changed) for p in known]
    zipped = known if any(p.member for p in known) else ()
    paths, members = ["/".join(parts) for parts in files], [p.member for p in zipped]
    table = _Table(
        paths=_Names(paths),
        members=None if members == paths else _Names(members),
        place=np.array(place, np.int64).reshape(-1, 4),
        packed=np.array([p.packed for p in zipped], np.uint32).reshape(-1, 4),
        hashes=hashes,
        random=places is not None,
    )
    return tuple(headers[position] for position in range(len(files))), table


def images_of(
    tree: FileTree, files: Sequence[Parts], table: _Table, shape: tuple[int, int, int]
) -> DiskImages:
    """The images of a table; those that cannot be read at random are decoded now.

    Args:
        tree: the folder or archive.
        files: as of `list_items`.
        table: as from it.
        shape: channels, height and width.
    """
    pixels = None
    if not table.random:
        channels, height, width = shape
        pixels = read_pixels(tree, files, height, width, channels)
    return DiskImages(tree.contents, table, np.arange(len(files)), shape, pixels=pixels)
