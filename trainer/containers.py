"""A folder, zip or tar, or a folder with archives such as train.zip, as one tree of files.

The same files are the same tree in each of them, in the same order. Links are followed; a link to a
folder around it is passed over, as are hidden files and what macOS and Windows leave in folders.
Nothing is unpacked to the disk: files are read in the order in which they lie, so that a compressed
tar is quick too, and each once, however many links lead to it. An entry of an archive that could
not be unpacked without harm is refused by name.
"""

import io
import os
import re
import stat
import tarfile
import threading
import unicodedata
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from lzma import LZMAError
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import DataError

Parts = tuple[str, ...]
Stream = io.BytesIO | io.BufferedReader

SPLITS = ("train", "test")
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
LARGEST_FILE = 256 << 20  # bytes of an image in an archive, which is read whole
_LARGEST_HEADER = 1 << 20  # bytes of a long name or of extended attributes in a tar
_LONGEST_TARGET = 4096  # bytes of a path that a link in a zip leads to
_MOST_PATHS = 1000  # paths to an entry of an archive, on average
_LONGEST_CHAIN = 40  # links to links, as Linux has it
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
# Files that lie beside images and are none; every other file must be an image.
_SIDECARS = frozenset(".csv .db .htm .html .json .log .mat .md .npy .txt .xml .yaml .yml".split())
_ARCHIVE_FAILURES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    LZMAError,
    NotImplementedError,  # zipfile raises it for a compression that it cannot undo
    RuntimeError,  # zipfile: a password is needed
)


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


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Turn what the standard library raises on a damaged archive into a DataError."""
    try:
        with reading(path):
            yield
    except _ARCHIVE_FAILURES as error:
        raise DataError(
            f"{path} is damaged, cut short or locked: {error or type(error).__name__}. Make the "
            "archive again, without a password, or unpack it and give the folder."
        ) from error


class Entry(NamedTuple):
    """A folder, or a file that is to be an image.

    Attributes:
        parts: its path inside, folder by folder.
        folder: whether it is a folder.
    """

    parts: Parts
    folder: bool


class Location(NamedTuple):
    """Where the content of a file lies.

    Attributes:
        container: number of the folder or archive.
        offset: in bytes, of a tar's content or of a zip's entry; 0 in folders.
        size: bytes there.
        changed: nanoseconds, when the file, or the archive around it, was changed last.
        member: name of a zip's entry as it stands there.
        packed: flags, method, CRC and size when unpacked of a zip's entry.
    """

    container: int
    offset: int
    size: int
    changed: int
    member: str = ""
    packed: tuple[int, int, int, int] = (0, 0, 0, 0)


class Contents:
    """Files of a tree by location, from any thread; holds no list of them."""

    def __init__(self, path: Path, containers: "Sequence[_Folder | _Archive]"):
        """Nothing is opened yet."""
        self.path, self._containers = path, containers
        self._lock, self._handles = threading.Lock(), dict[int, Any]()

    def name(self, parts: Parts) -> str:
        """A path inside, as an error gives it."""
        return "/".join([str(self.path), *parts])

    def open(self, parts: Parts, location: Location) -> io.BytesIO:
        """The content of a file.

        Raises:
            DataError: it cannot be read, is gone, or was changed since it was located.
        """
        container = self._containers[location.container]
        if isinstance(container, _Folder):
            file = container.path.joinpath(*parts)
            with reading(file), file.open("rb") as stream:
                self._check(parts, location, os.fstat(stream.fileno()), whole=True)
                return io.BytesIO(stream.read())
        with reading(container.path):
            self._check(parts, location, os.stat(container.path), whole=False)
        with _sound(container.path):
            return io.BytesIO(container.content(self._handle(location.container), location))

    def _check(
        self, parts: Parts, location: Location, found: os.stat_result, *, whole: bool
    ) -> None:
        if found.st_mtime_ns != location.changed or (whole and found.st_size != location.size):
            raise DataError(
                f"{self.name(parts)} was changed after the images were listed. Run again when "
                f"{self.path} no longer changes."
            )

    def _handle(self, number: int) -> Any:
        """An archive, opened once for all threads."""
        with self._lock:
            if number not in self._handles:
                container = self._containers[number]
                assert isinstance(container, _Archive)
                handle = self._handles[number] = container.opened()
                weakref.finalize(self, handle.close)
            return self._handles[number]


class FileTree:
    """Folders and images of a folder or archive, listed once.

    Attributes:
        path: of the folder or archive.
        entries: sorted by path, in Unicode's composed form: macOS decomposes names.
    """

    def __init__(self, path: Path) -> None:
        """List it.

        Raises:
            DataError: path is absent, of another kind, unreadable or damaged, or an entry is
                refused; the message names it.
        """
        self.path = path
        self._containers = _containers(path)
        found: dict[Parts, bool] = {}
        self._sources: dict[Parts, tuple[int, Any]] = {}
        for number, container in enumerate(self._containers):
            for parts, source in container.list():
                if parts in found and source is not None:
                    raise DataError(f"{self.name(parts)} is there twice. Take one out.")
                found[parts] = source is None
                self._sources[parts] = number, source
        ordered = sorted(found, key=lambda parts: ([*map(composed, parts)], parts))
        self.entries = tuple(Entry(parts, found[parts]) for parts in ordered)

    def name(self, parts: Parts) -> str:
        """A path inside, as an error gives it."""
        return "/".join([str(self.path), *parts])

    @property
    def contents(self) -> Contents:
        """Opens single files; keeps no list of them."""
        return Contents(self.path, self._containers)

    def locations(self, files: Sequence[Parts]) -> list[Location] | None:
        """Where the content of each file lies; None if some cannot be read at random.

        Raises:
            DataError: a file is gone, or an archive cannot be read.
        """
        found: dict[tuple[int, Any], Location] = {}
        sources = [self._sources[parts] for parts in files]
        for number, container in enumerate(self._containers):
            wanted = {source for of, source in sources if of == number}
            for source, place in container.places(wanted):
                if place is None:
                    return None
                found[number, source] = place._replace(container=number)
        return [found[source] for source in sources]

    def read(self, files: Sequence[Parts]) -> Iterator[tuple[int, Stream]]:
        """Position in `files` and content of each, in the order in which they lie.

        A stream is valid until the next is asked for.

        Raises:
            DataError: a file cannot be read, is damaged, or is gone since the tree was listed.
        """
        positions: dict[tuple[int, Any], list[int]] = {}
        for position, parts in enumerate(files):
            positions.setdefault(self._sources[parts], []).append(position)
        for number, container in enumerate(self._containers):
            wanted = {source for of, source in positions if of == number}
            for source, stream in container.read(wanted):
                for position in positions.pop((number, source)):
                    stream.seek(0)
                    yield position, stream
        if positions:
            lost = min(position for some in positions.values() for position in some)
            raise DataError(
                f"{self.name(files[lost])} was there and is gone: {self.path} changed while it was "
                "read. Run again when it no longer changes."
            )


def composed(name: str) -> str:
    """A name in the form that all spellings with the same letters and accents share (NFC)."""
    return unicodedata.normalize("NFC", name)


def _passed_over(name: str) -> bool:
    return name in _JUNK or name.startswith(".")


def _is_sidecar(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SIDECARS


def _containers(path: Path) -> "list[_Folder | _Archive]":
    with reading(path):
        if not path.is_dir():
            return [_archive(path)]
        mounted: dict[str, Path] = {}
        for folder in (*SPLITS, *UNLABELLED_FOLDERS):
            archives = [file for file in path.glob(f"{folder}.*") if file.name.endswith(_ARCHIVES)]
            if len(archives) == 1 and not (path / folder).exists():
                mounted[folder] = archives[0]
        beside = _Folder(path, frozenset(file.name for file in mounted.values()))
        return [beside, *(_archive(file, (folder,)) for folder, file in mounted.items())]


def _archive(path: Path, mount: Parts = ()) -> "_Archive":
    with _sound(path):
        path.open("rb").close()  # raises where it is absent or unreadable, which is_zipfile hides
        if zipfile.is_zipfile(path):
            return _Archive(path, mount, _zip_members)
        with suppress(tarfile.TarError):
            tarfile.open(path, tarinfo=_TarInfo).close()
            return _Archive(path, mount, _tar_members)
    raise DataError(
        f"{path} is neither a folder nor a zip or tar file (it may be cut short): give a folder, "
        ".zip, .tar or .tar.gz."
    )


class _Folder:
    """A folder on the disk; a file's source is its path."""

    def __init__(self, path: Path, without: frozenset[str] = frozenset()) -> None:
        self.path, self._without = path, without

    def list(self) -> Iterator[tuple[Parts, Path | None]]:
        """Path inside and source of each file, None of each folder."""
        return self._walk(self.path, (), (self.path.resolve(),))

    def _walk(
        self, folder: Path, parts: Parts, around: tuple[Path, ...]
    ) -> Iterator[tuple[Parts, Path | None]]:
        with reading(folder):
            for item in list(os.scandir(folder)):
                inside = (*parts, item.name)
                if _passed_over(item.name) or (not parts and item.name in self._without):
                    continue
                _check_name(self.path, item.name)
                if item.is_dir():
                    real = around[-1] / item.name
                    if item.is_symlink():
                        real = Path(item.path).resolve()
                        if any(one.is_relative_to(real) for one in around):
                            continue
                    yield inside, None
                    yield from self._walk(Path(item.path), inside, (*around, real))
                elif not _is_sidecar(item.name):
                    if not item.is_file():
                        raise DataError(
                            f"{item.path} is no file but a device, pipe or socket, or a link that "
                            "leads nowhere. Take it out."
                        )
                    yield inside, Path(item.path)

    def read(self, wanted: set[Path]) -> Iterator[tuple[Path, Stream]]:
        """Source and content of each wanted file."""
        for path in sorted(wanted):
            with reading(path):
                stream = path.open("rb")
            with stream:
                yield path, stream

    def places(self, wanted: set[Path]) -> Iterator[tuple[Path, Location | None]]:
        """Source and location of each wanted file."""
        for path in wanted:
            with reading(path):
                found = path.stat()
            yield path, Location(0, 0, found.st_size, found.st_mtime_ns)


class _Member(NamedTuple):
    """An entry of an archive, as it stands there.

    Attributes:
        name: path inside, folders separated by slashes.
        kind: file, folder, link (symbolic), hard link, or other.
        size: bytes of content that it declares.
        target: of a link.
        content: reads it, until the next member is asked for.
        place: of the content in the archive; None where it cannot be read at random.
    """

    name: str
    kind: str
    size: int
    target: str
    content: Callable[[], bytes]
    place: Location | None = None


class _Link(NamedTuple):
    target: str
    hard: bool


_Node = dict[str, Any] | int | _Link  # folder, file (the number of its member) or link


class _Archive:
    """A zip or tar; a file's source is the number of its member and the member's name."""

    def __init__(
        self,
        path: Path,
        mount: Parts,
        members: Callable[[Path], Iterator[_Member]],
    ) -> None:
        self.path, self._mount, self._members = path, mount, members

    def list(self) -> Iterator[tuple[Parts, tuple[int, str] | None]]:
        """Path inside and source of each file, None of each folder."""
        root: dict[str, _Node] = {}
        sizes: list[tuple[str, int]] = []
        with _sound(self.path):
            for member in self._members(self.path):
                self._add(root, member, len(sizes))
                sizes.append((member.name, member.size))
        for count, (path, node) in enumerate(self._walk((root,), (), frozenset())):
            if count > _MOST_PATHS * (len(sizes) + 1):
                raise self._refused("/".join(path), "is one of too many paths that its links make")
            parts = (*self._mount, *path[path[:1] == self._mount :])
            if not isinstance(node, int):
                yield parts, None
            elif not _is_sidecar(parts[-1]):
                name, size = sizes[node]
                if size > LARGEST_FILE:
                    raise self._refused(
                        name,
                        f"unpacks to {size} bytes, and an image in an archive may have "
                        f"{LARGEST_FILE}",
                        "Unpack it and give the folder if you trust it",
                    )
                yield parts, (node, name)

    def _add(self, root: dict[str, _Node], member: _Member, number: int) -> None:
        """Put a member into the tree of folders."""
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        if member.name.startswith("/") or (parts and re.fullmatch("[A-Za-z]:", parts[0])):
            raise self._refused(member.name, "has an absolute path")
        if ".." in parts:
            raise self._refused(member.name, "leads to another folder by ..")
        hidden = any(map(_passed_over, parts))
        is_folder = member.kind == "folder"
        folder: _Node = root
        for depth, part in enumerate(parts if is_folder else parts[:-1]):
            folder = folder.setdefault(part, {})
            if not isinstance(folder, dict):
                if hidden:
                    return
                inner = "/".join(parts[: depth + 1])
                raise self._refused(member.name, f"lies in {inner}, which is a file or link too")
        if is_folder or (hidden and member.kind == "other"):
            return
        if not hidden:
            _check_name(self.path, member.name)
            if member.kind == "other":
                raise self._refused(member.name, "is no file but a device, a pipe or the like")
            if not parts or parts[-1] in folder:
                raise self._refused(member.name, "is there twice" if parts else "has no name")
        if parts:
            links = member.kind in ("link", "hard link")
            folder[parts[-1]] = (
                _Link(member.target, member.kind == "hard link") if links else number
            )

    def _walk(
        self, trail: tuple[Any, ...], parts: Parts, around: frozenset[int]
    ) -> Iterator[tuple[Parts, _Node]]:
        """Path and node of everything that is visible below a folder, links followed.

        Args:
            trail: the folder, after those in which it really lies.
            parts: its path, which may lead through links.
            around: ids of folders that a link must not lead to, so that it has an end.
        """
        around = around.union(map(id, trail))
        for name, node in trail[-1].items():
            inside = (*parts, name)
            if _passed_over(name):
                continue
            try:
                found = self._follow(trail, (name,), inside, _LONGEST_CHAIN)
            except DataError:
                if _is_sidecar(name):
                    continue
                raise
            if not isinstance(found[-1], dict):
                yield inside, found[-1]
            elif not isinstance(node, _Link) or id(found[-1]) not in around:
                yield inside, found[-1]
                yield from self._walk(found, inside, around)

    def _follow(
        self, trail: tuple[Any, ...], path: Sequence[str], link: Parts, hops: int
    ) -> tuple[Any, ...]:
        """The trail of the node at a path from a folder, through all links."""
        for part in path:
            if part in ("", "."):
                continue
            if part == "..":
                if len(trail) == 1:
                    raise self._refused("/".join(link), "is a link that leads out of the archive")
                trail = trail[:-1]
                continue
            node = trail[-1].get(part) if isinstance(trail[-1], dict) else None
            if node is None:
                raise self._refused("/".join(link), "is a link to what the archive does not hold")
            if not isinstance(node, _Link):
                trail = (*trail, node)
                continue
            if hops == 0:
                raise self._refused("/".join(link), "is a link that leads in a circle")
            if node.target.startswith("/") and not node.hard:
                raise self._refused("/".join(link), "is a link that leads out of the archive")
            start = trail[:1] if node.hard else trail
            trail = self._follow(start, node.target.split("/"), link, hops - 1)
        return trail

    def read(self, wanted: set[tuple[int, str]]) -> Iterator[tuple[tuple[int, str], Stream]]:
        """Source and content of each wanted file."""
        left = len(wanted)
        with _sound(self.path):
            for number, member in enumerate(self._members(self.path) if left else ()):
                source = number, member.name
                if source in wanted:
                    yield source, io.BytesIO(member.content())
                    left -= 1
                    if not left:
                        return

    def places(
        self, wanted: set[tuple[int, str]]
    ) -> Iterator[tuple[tuple[int, str], Location | None]]:
        """Source and location of each wanted file."""
        if not wanted:
            return
        with _sound(self.path):
            changed = os.stat(self.path).st_mtime_ns
            for number, member in enumerate(self._members(self.path)):
                if (number, member.name) in wanted:
                    place = member.place
                    yield (number, member.name), place and place._replace(changed=changed)

    def opened(self) -> "zipfile.ZipFile | io.BufferedReader":
        """A zip without the list of its entries, or a tar as a plain file."""
        with _sound(self.path):
            if self._members is not _zip_members:
                return self.path.open("rb")
            archive = zipfile.ZipFile(self.path)
        archive.filelist.clear()
        archive.NameToInfo.clear()
        return archive

    def content(self, handle: Any, location: Location) -> bytes:
        """The content at a location of an archive that `opened` gave."""
        if not isinstance(handle, zipfile.ZipFile):
            return os.pread(handle.fileno(), location.size, location.offset)
        entry = zipfile.ZipInfo(location.member)
        entry.orig_filename, entry.header_offset = location.member, location.offset
        entry.flag_bits, entry.compress_type, entry.CRC, entry.file_size = location.packed
        entry.compress_size = location.size
        return _unzipped(handle, entry)

    def _refused(self, name: str, fault: str, remedy: str = "") -> DataError:
        remedy = (
            remedy or "Unpack the archive, put that right, and make it again or give the folder"
        )
        return DataError(f"{self.path}: the entry {name!r} {fault}. {remedy}.")


def _check_name(path: Path, name: str) -> None:
    """Refuse a name that cannot be written down."""
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(f"{path}: the name {ascii(name)} is not in UTF-8. Rename it.")


def _zip_members(path: Path) -> Iterator[_Member]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "folder"}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.orig_filename
            if not entry.flag_bits & 0x800:  # macOS writes UTF-8 and does not say so
                with suppress(UnicodeError):
                    name = name.encode("cp437").decode()
            unix = entry.create_system in (3, 19)  # Unix or macOS
            has_mode = unix or entry.external_attr & 0x8000  # p7zip's mark
            kind = kinds.get(stat.S_IFMT(entry.external_attr >> 16) if has_mode else 0, "other")
            name = name if unix else name.replace("\\", "/")
            link = kind == "link" and entry.file_size <= _LONGEST_TARGET
            yield _Member(
                name,
                "folder" if name.endswith("/") else kind,
                entry.file_size,
                os.fsdecode(_unzipped(archive, entry)) if link else "",
                lambda entry=entry: _unzipped(archive, entry),
                Location(
                    container=0,
                    offset=entry.header_offset,
                    size=entry.compress_size,
                    changed=0,
                    member=entry.orig_filename,
                    packed=(entry.flag_bits, entry.compress_type, entry.CRC, entry.file_size),
                ),
            )


def _unzipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The content of an entry, at most as many bytes as it declares."""
    step = 1 << 20
    with archive.open(entry) as stream:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # what is read of bzip2 and LZMA is unpacked at once, and then cut to size: this is less
            # than a block of bzip2, and no block unpacks to more than 46 MB
            assert isinstance(stream, zipfile.ZipExtFile)
            step = stream.MIN_READ_SIZE = 16
        return b"".join(iter(lambda: stream.read(step), b""))


class _TarInfo(tarfile.TarInfo):
    """An entry whose own headers are of a size that can be read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_TarInfo":
        entry = super().frombuf(buf, encoding, errors)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        attributes = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if entry.type in (*names, *attributes) and entry.size > _LARGEST_HEADER:
            raise RuntimeError(f"a header of {entry.size} bytes")
        return entry


def _tar_members(path: Path) -> Iterator[_Member]:
    kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}
    kinds |= dict.fromkeys((tarfile.GNUTYPE_SPARSE, *tarfile.REGULAR_TYPES), "file")
    with tarfile.open(path, tarinfo=_TarInfo) as archive:
        plain = isinstance(archive.fileobj, io.BufferedReader)  # not compressed
        for entry in archive:
            yield _Member(
                entry.name,
                kinds.get(entry.type, "other"),
                entry.size,
                entry.linkname,
                lambda entry=entry: _untarred(archive, entry),
                Location(0, entry.offset_data, entry.size, 0)
                if plain and not entry.issparse()
                else None,
            )
        # tarfile takes a tar cut between two files for whole: look for the zeros that end it
        if archive.fileobj is None:
            raise tarfile.ReadError("it was closed while it was read")
        archive.fileobj.seek(archive.offset)
        if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end, the closing block of zeros is missing")
        while block := archive.fileobj.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("another archive follows its end, and would not be read")


def _untarred(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    return b"" if stream is None else stream.read()
