"""From one IDX file, gzipped or not, to an array; nothing is written.

IDX is the format of MNIST and Fashion-MNIST: two zero bytes, a type, the number of dimensions, the
dimensions as big-endian 32-bit integers, then the bytes themselves.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from trainer.errors import DataError
from trainer.files import check_md5, read_bytes

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes.

    Args:
        path: the file; a name that ends in `.gz` is decompressed in memory.
        dimensions: how many the array must have: 3 for images, 1 for labels.
        md5: checksum of the file as it lies on the disk, if it is to be checked.

    Raises:
        DataError: the file is unreadable, cut short, of another kind or has another checksum.
    """
    stored = read_bytes(path)
    content = _decompressed(path, stored) if path.suffix == ".gz" else stored
    if md5 is not None:
        check_md5(path, stored, md5)
    magic = _UNSIGNED_BYTE * 256 + dimensions
    header = 4 + 4 * dimensions
    found = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else None
    if found != magic:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {dimensions} dimension(s): it "
            f"begins with the number {found}, {magic} was needed. Replace it by the published file."
        )
    if len(content) < header:
        raise DataError(f"{path} is cut short inside its header. Replace it by the published file.")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = math.prod(shape)
    if len(content) - header != size:
        fault = "is cut short" if len(content) - header < size else "is too long"
        raise DataError(
            f"{path} {fault}: its header promises {' x '.join(map(str, shape))} = {size} bytes and "
            f"{len(content) - header} follow. Replace it by the published file."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _decompressed(path: Path, stored: bytes) -> bytes:
    try:
        return gzip.decompress(stored)
    except EOFError as error:
        raise DataError(
            f"{path} is cut short: the gzip stream does not end within its {len(stored)} bytes. "
            "Delete it and download it again."
        ) from error
    except (OSError, zlib.error) as error:
        raise DataError(
            f"{path} is not a sound gzip file ({error}). Delete it and download it again."
        ) from error
