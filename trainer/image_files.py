"""Image files in a folder, zip or tar → one uint8 array, read in place.

Files are listed, measured and decoded in three passes, each in the order in which they lie, so that
a compressed tar is quick too; only pixels at the wanted size are kept. Hidden files and what macOS
and Windows leave in folders are passed over. Images are turned upright (EXIF), composited on white,
scaled to cover the wanted size with Pillow's antialiased bilinear filter, and centre-cropped.
Downloads go through a staging folder and are moved into place when complete.
"""

import hashlib
import http.client
import io
import os
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

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


Stream = io.BytesIO | io.BufferedReader

SPLITS = ("train", "test")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
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

    In the order in which they lie there, which is the one that a compressed tar is quick in. A
    folder with one archive for each split (train.zip and test.zip) is walked as the folder of
    what they hold.

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
            return _walk_splits if _split_archives(path) else _walk_folder
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


def _split_archives(path: Path) -> dict[str, Path]:
    """The archive of each split in a folder that has train.zip and test.zip in place of folders."""
    found = {}
    for split in SPLITS:
        archives = [file for file in path.glob(f"{split}.*") if file.name.endswith(_ARCHIVES)]
        if len(archives) != 1 or (path / split).exists():
            return {}
        found[split] = archives[0]
    return found


def _walk_splits(path: Path) -> Iterator[Member]:
    for split, archive in _split_archives(path).items():
        with _sound(archive):
            for member in _walk_of(archive)(archive):
                inside = member.parts[member.parts[:1] == (split,) :]
                yield member._replace(parts=(split, *inside))


def _leads_up(folder: Path) -> bool:
    """True for a link to a folder that contains it."""
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


_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_GRAYSCALE_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
# What Pillow's decoders raise on a damaged file.
_DECODING_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
)


class Header(NamedTuple):
    """Header of an image file.

    Attributes:
        height: in pixels, upright.
        width: in pixels, upright.
        grayscale: whether the file is stored as grayscale.
    """

    height: int
    width: int
    grayscale: bool


def read_header(stream: Stream, name: str) -> Header:
    """Size and kind of an image, without decoding its pixels where the format allows it.

    Raises:
        DataError: it is not an image that Pillow can read, or too large.
    """
    with _named(name), Image.open(stream) as image:
        # Pillow would decode all of a PNG to look for EXIF behind its pixels.
        has_exif = image.format != "PNG" or "exif" in image.info
        sideways = has_exif and image.getexif().get(_ORIENTATION) in _SIDEWAYS
        width, height = reversed(image.size) if sideways else image.size
        return Header(height, width, _is_grayscale(image))


def decode(
    stream: Stream, name: str, height: int, width: int, channels: int
) -> UInt8[np.ndarray, "channels height width"]:
    """The pixels of an image, scaled to cover height x width and cropped around the centre.

    16-bit images keep their 8 high bits' worth: 65535 becomes 255. Of an animation or a document of
    several pages the first is taken.

    Args:
        stream: the file.
        name: what an error calls it.
        height: wanted, in pixels.
        width: wanted, in pixels.
        channels: 1 for grayscale, 3 for RGB.

    Raises:
        DataError: the image is damaged, of a kind that has no 8-bit form, or too large.
    """
    with _named(name), Image.open(stream) as image:
        # A large JPEG is decoded at a fraction of its size, never below twice the wanted one.
        image.draft(None, (2 * max(width, height), 2 * max(width, height)))
        upright = ImageOps.exif_transpose(image)
        plain = _to_mode(upright, "L" if channels == 1 else "RGB")
        return _fit(plain, height, width)


def resize(
    images: UInt8[np.ndarray, "examples channels height width"], size: int
) -> UInt8[np.ndarray, "examples channels size size"]:
    """Images scaled to cover size x size and cropped around the centre; as they are if they fit."""
    examples, channels, height, width = images.shape
    if (height, width) == (size, size):
        return images
    result = np.empty((examples, channels, size, size), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
        result[index] = _fit(picture, size, size)
    return result


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's remarks on odd metadata and on images that are large but not refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what Pillow raises into a DataError that names the file."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not an image that can be read (JPEG, PNG, GIF, BMP, WebP, TIFF, …), or its "
            "first bytes are corrupt: convert or repair it, or take it out."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} is refused: {error} Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if "
            "you trust it."
        ) from error
    except _DECODING_FAILURES as error:
        raise DataError(
            f"{name} is corrupt or of a kind that has no 8-bit form: "
            f"{error or type(error).__name__}. Repair or convert it, or take it out."
        ) from error


def _is_grayscale(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or (), int).reshape(-1, 3)
        return bool(len(palette)) and bool((palette == palette[:, :1]).all())
    return image.mode in _GRAYSCALE_MODES


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, 8- or 16-bit ones are needed")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colours)
    return image.convert(mode)


def _from_16_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"pixels from {pixels.min()} to {pixels.max()} do not fit into 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def _fit(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "channels height width"]:
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


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
