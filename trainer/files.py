"""From a data directory to files that are known to be there, readable and unaltered.

A data set that is absent is downloaded by torchvision into a staging folder inside the data
directory and moved into place when it is complete, so no partial file is left behind.
"""

import hashlib
import http.client
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DataError

_DOWNLOAD_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def data_directory(name: str, data_dir: Path | None) -> Path:
    """The data directory of a data set that lies in one.

    Raises:
        DataError: there is none, it is not a directory or it cannot be read.
    """
    if data_dir is None:
        raise DataError(
            f"{name} is read from a data directory and none was given: pass data_dir "
            "(--data-dir DIR on the command line). The data set `digits` needs none."
        )
    if not os.path.lexists(data_dir):
        raise DataError(
            f"the data directory {data_dir} does not exist. Correct its name, or create it "
            f"(mkdir -p {data_dir}) and {name} is downloaded into it."
        )
    if not data_dir.is_dir():
        raise DataError(
            f"the data directory {data_dir} is not a directory. Give the folder that holds {name}."
        )
    if not os.access(data_dir, os.R_OK | os.X_OK):
        raise DataError(
            f"the data directory {data_dir} cannot be read: you have no permission. Change its "
            f"permissions (chmod u+rx {data_dir}) or give another folder."
        )
    return data_dir


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn a failure of the file system while `path` is read into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. Check that it exists, is a file "
            "and that you may read it."
        ) from error


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        DataError: it cannot be read.
    """
    with reading(path):
        return path.read_bytes()


def check_md5(path: Path, content: bytes, expected: str) -> None:
    """Compare the MD5 of a file's content with the published one.

    Raises:
        DataError: they differ.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} has the wrong checksum: found MD5 {found}, expected {expected} "
            f"({len(content)} bytes). The file was altered or its download was broken off: delete "
            "it and run again to download it, or put the published file in its place."
        )


def check_files(data_dir: Path, files: Sequence[tuple[str, str]]) -> None:
    """Compare files with their published MD5 checksums.

    Args:
        data_dir: the data directory.
        files: names within it, and the MD5 of each.

    Raises:
        DataError: a file cannot be read or has another checksum.
    """
    for name, md5 in files:
        check_md5(data_dir / name, read_bytes(data_dir / name), md5)


def ensure(
    name: str,
    data_dir: Path,
    files: Sequence[str],
    fetch: Callable[[Path], object],
    *,
    download: bool,
    exists: Callable[[Path], bool] = Path.exists,
) -> None:
    """See to it that the files of a data set are in the data directory.

    Args:
        name: the data set.
        data_dir: an existing directory.
        files: names within it.
        fetch: downloads the data set into an empty folder that it is given, in the same layout.
        download: whether what is absent may be downloaded.
        exists: whether a file is there, in whichever form can be read.

    Raises:
        DataError: files are absent and may not or cannot be downloaded.
    """
    with reading(data_dir):
        absent = [file for file in files if not exists(data_dir / file)]
    if not absent:
        return
    lacking = f"{name} is not complete in {data_dir}: no {', '.join(absent)}"
    if not download:
        raise DataError(
            f"{lacking}. Put the published files there, or allow downloading (download=True)."
        )
    try:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as staging:
            fetch(Path(staging))
            _move_into(Path(staging), data_dir)
    except _DOWNLOAD_FAILURES as error:
        raise DataError(
            f"{lacking}, and it could not be downloaded ({error}). Put the published files there "
            "yourself, or give a data directory that has them, or one that you may write to on a "
            "machine with a network."
        ) from error
    still = [file for file in files if not exists(data_dir / file)]
    if still:
        raise DataError(
            f"{name} was downloaded into {data_dir} and {', '.join(still)} did not come with it. "
            "Put the published files there yourself."
        )


def _move_into(source: Path, target: Path) -> None:
    """Move every file below source to the same place below target, where there is none yet."""
    for path in sorted(source.rglob("*")):
        destination = target / path.relative_to(source)
        if path.is_dir():
            destination.mkdir(exist_ok=True)
        elif not destination.exists():
            os.replace(path, destination)
