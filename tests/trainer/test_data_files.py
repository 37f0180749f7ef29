"""Every message for a data directory or file that cannot be used, and downloads that fail."""

import gzip
import hashlib
import os
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from trainer.data import check_md5, load, read_idx
from trainer.errors import DataError, UnknownNameError
from trainer.torchvision_compat import torchvision

FOLDERS = ["mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "caltech101"]
IMAGES = struct.pack(">4I", 2051, 2, 3, 3) + bytes(range(18))


def idx_file(folder, content, *, gzipped=False):
    path = folder / ("images.gz" if gzipped else "images")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    return path


def published_class(name):
    names = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "caltech101": "Caltech101"}
    return getattr(torchvision.datasets, names[name] if name in names else name.upper())


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match=r"data set 'mnst': did you mean 'mnist'\? Known: d"):
        load("mnst", tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_data_directory_is_needed_and_must_be_one(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} is read from a data directory and none was give"):
        load(name, None)
    with pytest.raises(DataError, match=r"directory .*gone does not exist.*mkdir -p"):
        load(name, tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"file is not a directory\. Give the folder .*{name}"):
        load(name, tmp_path / "file")


def test_a_data_directory_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(DataError, match=r"cannot be read: you have no permission.*chmod u\+rx"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_absent_is_listed_where_it_may_not_be_downloaded(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name} is not complete in .*: no .*download=True"):
        load(name, tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_download_that_fails_says_what_to_put_where_and_leaves_nothing(
    tmp_path, monkeypatch, name
):
    def no_network(self):
        Path(self.root, "half-a-file").write_bytes(b"half")
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(published_class(name), "download", no_network)
    with pytest.raises(DataError, match=r"no .*could not be downloaded \(.*no route to host.*Put"):
        load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told_from_a_missing_network(tmp_path, monkeypatch):
    def read_only(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(DataError, match=r"not be downloaded \(.*Permission denied.*may write to"):
        load("svhn", tmp_path)


def test_a_download_is_moved_into_place_and_keeps_what_was_there(tmp_path, monkeypatch):
    published = torchvision.datasets.MNIST
    content = {
        "train-images-idx3-ubyte.gz": struct.pack(">4I", 2051, 2, 3, 3) + bytes(18),
        "train-labels-idx1-ubyte.gz": struct.pack(">2I", 2049, 2) + bytes([1, 2]),
        "t10k-images-idx3-ubyte.gz": struct.pack(">4I", 2051, 1, 3, 3) + bytes(9),
        "t10k-labels-idx1-ubyte.gz": struct.pack(">2I", 2049, 1) + bytes([3]),
    }
    stored = {name: gzip.compress(data, mtime=0) for name, data in content.items()}
    sums = [(n, hashlib.md5(d, usedforsecurity=False).hexdigest()) for n, d in stored.items()]

    def download(self):
        os.makedirs(self.raw_folder)
        for name, data in stored.items():
            Path(self.raw_folder, name).write_bytes(data)
            Path(self.raw_folder, name[:-3]).write_bytes(content[name])

    monkeypatch.setattr(published, "resources", sums)
    monkeypatch.setattr(published, "download", download)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 1) + bytes([7]))
    dataset = load("mnist", tmp_path)
    assert dataset.train_labels.tolist() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]
    assert (raw / "t10k-labels-idx1-ubyte").read_bytes()[-1] == 7
    assert load("mnist", tmp_path, download=False).test_labels.tolist() == [3]


def test_a_download_that_brings_something_else_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "SVHN", lambda *a, **k: None, raising=True)
    monkeypatch.setattr(
        torchvision.datasets.SVHN,
        "split_list",
        {s: ["", f"{s}.mat", ""] for s in ("train", "test")},
        raising=False,
    )
    with pytest.raises(DataError, match=r"was downloaded .*train\.mat, test\.mat did not come"):
        load("svhn", tmp_path)


@pytest.mark.parametrize("gzipped", [True, False])
def test_an_idx_file_is_read(tmp_path, gzipped):
    array = read_idx(idx_file(tmp_path, IMAGES, gzipped=gzipped), 3)
    assert array.tolist() == np.arange(18).reshape(2, 3, 3).tolist()
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES[:-5], r"images is cut short: its header promises 2 x 3 x 3 = 18 bytes and 13"),
        (IMAGES + b"x", r"images is too long: .*18 bytes and 19 follow"),
        (IMAGES[:9], r"images is cut short inside its header"),
        (b"", r"images is not an IDX file .* the number None, 2051 was needed"),
        (struct.pack(">2I", 2049, 2) + bytes(2), r"begins with the number 2049, 2051 was needed"),
        (b"<html><body>", r"images is not an IDX file of unsigned bytes with 3 dimension"),
    ],
)
def test_a_wrong_idx_file_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_idx(idx_file(tmp_path, content), 3)


def test_a_gzip_file_that_is_cut_or_damaged_is_refused(tmp_path):
    path = idx_file(tmp_path, IMAGES, gzipped=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"cut short: the gzip .* {len(whole) - 9} bytes\. Delete"):
        read_idx(path, 3, "0" * 32)
    path.write_bytes(whole[:-6] + b"xx" + whole[-4:])
    with pytest.raises(
        DataError, match=r"not a sound gzip file \(CRC check failed.*download it ag"
    ):
        read_idx(path, 3)
    path.write_bytes(IMAGES)
    with pytest.raises(DataError, match=r"not a sound gzip file \(Not a gzipped file"):
        read_idx(path, 3)


def test_a_wrong_checksum_shows_both(tmp_path):
    path = idx_file(tmp_path, IMAGES, gzipped=True)
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    assert read_idx(path, 3, found).shape == (2, 3, 3)
    expected = "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    message = rf"wrong checksum: found MD5 {found}, expected {expected} .*delete it and run again"
    with pytest.raises(DataError, match=message):
        read_idx(path, 3, expected)
    with pytest.raises(DataError, match=message):
        check_md5(path, path.read_bytes(), expected)


@pytest.mark.parametrize("name", ["svhn", "cifar10", "cifar100"])
def test_altered_files_are_refused_before_they_are_unpickled(tmp_path, name):
    published = published_class(name)
    if name == "svhn":
        names = [published.split_list[split][1] for split in ("train", "test")]
    else:
        listed = [file for file, _ in [*published.train_list, *published.test_list]]
        names = [
            f"{published.base_folder}/{file}" for file in (*listed, published.meta["filename"])
        ]
    for file in names:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"altered")
    with pytest.raises(DataError, match=rf"{names[0]} has the wrong checksum: found MD5 .*7 bytes"):
        load(name, tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone cannot be read: No such file"):
        read_idx(tmp_path / "gone", 3)
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read_idx(tmp_path, 3)


def test_a_caltech_archive_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no 101_ObjectCategories/<category>/image"):
        load("caltech101", tmp_path)
