"""From a folder or archive and the names of images in it to one array of their pixels.

What is read is listed, measured and decoded in three passes, each in the order in which the files
lie, so that a compressed tar is quick too; only the decoded pixels of the wanted size are kept.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from trainer.archives import Stream, members
from trainer.errors import DataError
from trainer.pixels import Header, decode, quiet, read_header

Parts = tuple[str, ...]

# Files that lie beside images and are none; every other file must be an image.
_SIDECARS = frozenset(".csv .db .htm .html .json .log .mat .md .npy .txt .xml .yaml .yml".split())


class Entry(NamedTuple):
    """One thing inside a folder or archive.

    Attributes:
        parts: its path inside, folder by folder.
        folder: whether it is a folder.
    """

    parts: Parts
    folder: bool


def list_entries(path: Path) -> tuple[Entry, ...]:
    """Every folder and every file that is to be an image, sorted by path.

    Raises:
        DataError: path is no folder, zip or tar, or a damaged one.
    """
    entries = {Entry(member.parts, member.open is None) for member in members(path)}
    return tuple(sorted(entry for entry in entries if entry.folder or not _is_sidecar(entry.parts)))


def read_headers(path: Path, files: Sequence[Parts]) -> tuple[Header, ...]:
    """Size and kind of each image.

    Raises:
        DataError: a file is no image; the message names it.
    """
    headers: dict[int, Header] = {}
    with quiet():
        for position, stream in _each(path, files):
            headers[position] = read_header(stream, _name(path, files[position]))
    return tuple(headers[position] for position in range(len(files)))


def read_pixels(
    path: Path, files: Sequence[Parts], height: int, width: int, channels: int
) -> UInt8[np.ndarray, "examples channels height width"]:
    """The pixels of each image, scaled to cover height x width and cropped around the centre.

    Args:
        path: folder, zip or tar.
        files: paths inside it; the result has their order.
        height: wanted, in pixels.
        width: wanted, in pixels.
        channels: 1 for grayscale, 3 for RGB.

    Raises:
        DataError: an image is corrupt; the message names it.
    """
    result = np.empty((len(files), channels, height, width), np.uint8)
    with quiet():
        for position, stream in _each(path, files):
            name = _name(path, files[position])
            result[position] = decode(stream, name, height, width, channels)
    return result


def _each(path: Path, files: Sequence[Parts]) -> Iterator[tuple[int, Stream]]:
    """Position in `files` and content of each, in the order in which they lie."""
    positions = {parts: position for position, parts in enumerate(files)}
    remaining = set(positions)
    for member in members(path):
        if member.parts in positions and member.open is not None:
            with member.open() as stream:
                yield positions[member.parts], stream
            remaining.discard(member.parts)
            if not remaining:
                return
    if remaining:
        raise DataError(
            f"{_name(path, min(remaining))} was there and is gone: {path} changed while it was "
            "read. Run again when it no longer changes."
        )


def _is_sidecar(parts: Parts) -> bool:
    return os.path.splitext(parts[-1])[1].lower() in _SIDECARS


def _name(path: Path, parts: Parts) -> str:
    return f"{path}/{'/'.join(parts)}"
