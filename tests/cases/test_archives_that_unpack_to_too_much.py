"""A zip of 2 MB that unpacks to 2 GiB is refused before it is read, and a size that lies is cut."""

import io
import resource
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.cases.image_trees import NAMES, images, packed, tar
from trainer import containers
from trainer.containers import LARGEST_FILE, FileTree
from trainer.data import load
from trainer.errors import DataError


class Zeros(io.RawIOBase):
    """So many zeros, without the memory for them."""

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(containers, "LARGEST_FILE", 100_000)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_entry_above_the_limit_is_refused_before_it_is_read(tmp_path, kind, small_limit):
    path = tmp_path / f"own.{kind}"
    files = {**images(), "train/a/huge.png": bytes(100_001), "train/a/huge.json": bytes(200_000)}
    packed(path, files) if kind == "zip" else tar(path, files)
    message = r"'train/a/huge\.png' unpacks to 100001 bytes, and .* may have 100000\. Unpack"
    with pytest.raises(DataError, match=message):
        load("images", path)
    del files["train/a/huge.png"]
    packed(path, files) if kind == "zip" else tar(path, files)
    assert len(load("images", path).train_images) == 4  # what is no image is not read


def test_a_bomb_takes_no_memory(tmp_path):
    files = images()
    with tarfile.open(tmp_path / "own.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo("train/a/huge.png")
        entry.size = LARGEST_FILE + 1
        archive.addfile(entry, io.BufferedReader(Zeros(entry.size)))
    assert (tmp_path / "own.tar.gz").stat().st_size < 3_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=f"unpacks to {LARGEST_FILE + 1} bytes"):
        load("images", tmp_path / "own.tar.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.parametrize(
    ("compression", "most"),
    [(zipfile.ZIP_DEFLATED, 10), (zipfile.ZIP_BZIP2, 100), (zipfile.ZIP_LZMA, 10)],  # MB
)
def test_no_more_is_unpacked_than_an_entry_declares(tmp_path, compression, most):
    path, declared, real = tmp_path / "own.zip", 1000, 200_000_000
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("train/a/0.png", bytes(real))
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", real)
    while size in content:
        start = content.index(size)
        content[start : start + 4] = struct.pack("<I", declared)
    path.write_bytes(content)
    tree = FileTree(path)
    tracemalloc.start()
    with pytest.raises(DataError, match="damaged.*CRC"):
        [stream for _, stream in tree.read([("train", "a", "0.png")])]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < most * 1_000_000


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_compression_of_a_zip_is_read_whole(tmp_path, compression):
    pixels = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    path = packed(tmp_path / "own.zip", {"a/0.png": pixels}, compress_type=compression)
    ((_, stream),) = FileTree(path).read([("a", "0.png")])
    assert stream.read() == pixels


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_tar_that_is_too_large_is_refused(tmp_path, kind):
    entry = tarfile.TarInfo("long")
    entry.type, entry.size = kind, 1 << 31
    path = tmp_path / "own.tar"
    path.write_bytes(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match="damaged.*a header of 2147483648 bytes"):
        FileTree(path)


def test_folders_that_links_multiply_are_refused(tmp_path):
    links = {f"train/a/{i}/{side}": f"../{i + 1}" for i in range(40) for side in "lr"}
    files = images(*NAMES, "train/a/40/0.png")
    with pytest.raises(DataError, match="is one of too many paths that its links make"):
        load("images", tar(tmp_path / "own.tar", files, links))


def test_a_long_chain_of_links_ends(tmp_path):
    links = {f"train/a/{i}.png": f"{i + 1}.png" for i in range(10, 60)}
    path = tar(tmp_path / "own.tar", images(), links)
    with pytest.raises(DataError, match="is a link"):
        load("images", path)
