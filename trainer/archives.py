"""From a folder, a zip or a tar to the files in it, read in place and one at a time.

Nothing is extracted to the disk, so names that point outside an archive are harmless. Hidden files
and what macOS and Windows leave in folders are passed over.
"""

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DataError
from trainer.files import reading

Stream = io.BytesIO | io.BufferedReader

_JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_ARCHIVE_FAILURES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    LZMAError,
    NotImplementedError,  # zipfile raises it for a compression that it cannot undo
    RuntimeError,  # zipfile: a password is needed
)


class Member(NamedTuple):
    """A file or folder inside a folder or archive.

    Attributes:
        parts: its path inside, folder by folder.
        open: gives its bytes, until the next member is asked for; None for a folder.
    """

    parts: tuple[str, ...]
    open: Callable[[], Stream] | None


def members(path: Path) -> Iterator[Member]:
    """Every file and folder inside a folder, zip or tar (also .tar.gz, .tar.bz2, .tar.xz).

    In the order in which they lie there, which is the one that a compressed tar is quick in.

    Raises:
        DataError: path is absent, of another kind, unreadable or damaged.
    """
    walk = _walk_of(path)
    with _sound(path), reading(path):
        for member in walk(path):
            if not any(part in _JUNK or part.startswith(".") for part in member.parts):
                yield member._replace(open=member.open and _guarded(path, member))


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Turn what the standard library raises on a damaged archive into a DataError."""
    try:
        yield
    except _ARCHIVE_FAILURES as error:
        raise DataError(
            f"{path} is damaged, cut short or locked: {error or type(error).__name__}. Make the "
            "archive again, without a password, or unpack it and give the folder."
        ) from error


def _guarded(path: Path, member: Member) -> Callable[[], Stream]:
    def opened() -> Stream:
        if member.open is None:
            raise DataError(f"{path}: {'/'.join(member.parts)} is a folder, not a file.")
        with _sound(path), reading(f"{path}/{'/'.join(member.parts)}"):
            return member.open()

    return opened


def _walk_of(path: Path) -> Callable[[Path], Iterator[Member]]:
    with reading(path):
        if path.is_dir():
            return _walk_folder
        path.open("rb").close()  # raises where it is absent or unreadable, which is_zipfile hides
        if zipfile.is_zipfile(path):
            return _walk_zip
        if tarfile.is_tarfile(path):
            return _walk_tar
    raise DataError(
        f"{path} is neither a folder nor a zip or tar file (it may be cut short): give a folder, "
        ".zip, .tar or .tar.gz."
    )


def _walk_folder(path: Path) -> Iterator[Member]:
    for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not _leads_up(Path(folder, name)))
        parts = Path(folder).relative_to(path).parts
        if parts:
            yield Member(parts, None)
        for file in sorted(files):
            yield Member((*parts, file), lambda file=Path(folder, file): file.open("rb"))


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _walk_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            parts = _parts(entry.filename.replace("\\", "/"))
            content = lambda entry=entry: io.BytesIO(archive.read(entry))
            yield Member(parts, None if entry.is_dir() else content)


def _walk_tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isdir():
                yield Member(_parts(entry.name), None)
            elif entry.isfile():
                yield Member(_parts(entry.name), lambda entry=entry: _tar_content(archive, entry))
        _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """Look for the zeros that end a tar: tarfile takes one cut between two files for whole."""
    if archive.fileobj is None:
        raise tarfile.ReadError("it was closed while it was read")
    archive.fileobj.seek(archive.offset)
    if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end, the closing block of zeros is missing")


def _tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Stream:
    stream = archive.extractfile(entry)
    return io.BytesIO(stream.read() if stream is not None else b"")


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", ".", ".."))


def _raise(error: OSError) -> None:
    raise error
