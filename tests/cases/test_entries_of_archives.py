"""One data set is one data set as folder, zip and tar; an entry that would be moved is refused."""

import io
import os
import stat
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest

from tests.cases.image_trees import NAMES, folder, images, packed, png, special, tar
from trainer.data import load
from trainer.errors import DataError

WAYS = {"folder": folder, "zip": packed, "tar": tar, "tar.gz": tar}


def same(one, other):
    assert one.class_names == other.class_names
    assert np.array_equal(one.train_images, other.train_images)
    assert np.array_equal(one.train_labels, other.train_labels)
    assert one.fingerprint() == other.fingerprint()
    return True


def refused(path, message):
    with pytest.raises(DataError, match=message):
        load("images", path)


@pytest.mark.parametrize(
    "links",
    [
        {"train/b/link.png": "../a/0.png"},
        {"train/b/link.png": "../a/linked.png", "train/a/linked.png": "1.png"},
        {"train/c": "a", "test/c": "../test/b"},  # folders
        {"train/c": "d", "train/d": "./a/", "test/c": "b", "test/d": "b"},
        {"train/a/hidden.png": "../../.store/0.png"},
        {"train/a/up": "../..", "train/a/here": "."},  # circles are passed over
        {"train/b/x": "../a/y", "train/a/y": "../b"},
        {"train/b/gone.txt": "nothing", "train/b/.gone": "nothing"},
    ],
)
def test_symbolic_links_are_read_as_a_folders_are(tmp_path, links):
    files = images(*NAMES, ".store/0.png")
    expected = load("images", folder(tmp_path / "folder", files, links))
    for kind in ("zip", "tar", "tar.gz"):
        assert same(load("images", WAYS[kind](tmp_path / f"own.{kind}", files, links)), expected)


def test_hard_links_in_a_tar_are_files(tmp_path):
    files = images()
    target = folder(tmp_path / "folder", files)
    os.link(target / "train/a/0.png", target / "train/b/again.png")
    expected = load("images", target)
    assert len(expected.train_images) == 5
    with tarfile.open(tmp_path / "own.tar", "w") as archive:  # makes the link by itself
        archive.add(target, ".")
        kinds = {entry.type for entry in archive.getmembers()}
    assert tarfile.LNKTYPE in kinds
    assert same(load("images", tmp_path / "own.tar"), expected)
    written = tar(tmp_path / "by_hand.tar", files, hard={"train/b/again.png": "./train/a/0.png"})
    assert same(load("images", written), expected)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_the_order_is_that_of_the_folder(tmp_path, kind):
    names = ["train/a/é.png", "train/a/f.png", "train/a/e.png", "train/b b/0.png", *NAMES]
    files = images(*names, "test/b b/1.png")
    mac = {unicodedata.normalize("NFD", name): content for name, content in files.items()}
    expected = load("images", folder(tmp_path / "folder", files))
    for form in (files, mac, dict(reversed([*files.items()]))):
        assert same(load("images", WAYS[kind](tmp_path / f"own.{kind}", form)), expected)
    assert same(load("images", folder(tmp_path / "mac", mac)), expected)


def test_a_zip_of_macos_says_nothing_of_its_encoding(tmp_path):
    files = images(*NAMES, "train/bébé/0.png", "test/bébé/0.png")
    path = packed(tmp_path / "own.zip", files)
    # the flag that says UTF-8 is taken out of both headers of every entry
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset + 1] &= ~8
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    assert not any(e.flag_bits & 0x800 for e in zipfile.ZipFile(path).infolist())
    assert same(load("images", path), load("images", folder(tmp_path / "folder", files)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/a/../b/2.png", r"'train/a/\.\./b/2\.png' leads to another folder by \.\."),
        ("../train/a/2.png", r"leads to another folder by \.\."),
        ("/train/a/2.png", "has an absolute path"),
        ("C:/train/a/2.png", "has an absolute path"),
        ("train/a/0.png", r"'train/a/0\.png' is there twice"),
        ("./train//a/0.png", r"'\./train//a/0\.png' is there twice"),
        ("train/a/0.png/2.png", r"lies in train/a/0\.png, which is a file"),
        ("train/a", "'train/a' is there twice"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_entry_that_would_be_moved_is_refused_by_name(tmp_path, kind, name, message):
    path = WAYS[kind](tmp_path / f"own.{kind}", images())
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)  # of a name given twice
            archive.writestr(name, png(9))
    else:
        files = [*images().items(), (name, png(9))]
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for own, content in files:
                entry = tarfile.TarInfo(own)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    refused(path, message)


def test_names_from_windows_and_from_unix(tmp_path):
    """A backslash separates folders where Windows wrote it, and is a letter where Unix did."""
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for name, content in images().items():
            entry = special(name.replace("/", "\\"), 0)
            entry.create_system = 0
            archive.writestr(entry, content)
    expected = load("images", folder(tmp_path / "folder", images()))
    assert same(load("images", tmp_path / "windows.zip"), expected)
    unix = images(*NAMES, "train/a/b\\2.png")
    with zipfile.ZipFile(tmp_path / "unix.zip", "w") as archive:
        for name, content in unix.items():
            archive.writestr(special(name, 0o100644), content)
    expected = load("images", folder(tmp_path / "unix", unix))
    assert same(load("images", tmp_path / "unix.zip"), expected)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing.png", "'train/b/2.png' is a link to what the archive does not hold"),
        ("../../../etc/passwd", "is a link that leads out of the archive"),
        ("/etc/passwd", "is a link that leads out of the archive"),
        ("2.png", "is a link that leads in a circle"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, kind, target, message):
    path = WAYS[kind](tmp_path / f"own.{kind}", images(), {"train/b/2.png": target})
    refused(path, message)
    linked = folder(tmp_path / "folder", images(), {"train/b/2.png": "nothing.png"})
    refused(linked, r"train/b/2\.png is no file but .* a link that leads nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX has pipes")
def test_what_is_no_file_is_refused(tmp_path):
    made = folder(tmp_path / "folder", images())
    os.mkfifo(made / "train/a/2.png")
    refused(made, r"train/a/2\.png is no file but a device, pipe or socket")
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M"):
        entry = tarfile.TarInfo("train/a/2.png")
        entry.type = kind
        refused(tar(tmp_path / "own.tar", images(), extra=[entry]), "is no file but a device")
    path = packed(tmp_path / "own.zip", images())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(special("train/a/2.png", stat.S_IFIFO | 0o644), b"")
    refused(path, r"'train/a/2\.png' is no file but a device")


def test_hidden_entries_of_any_kind_are_passed_over(tmp_path):
    entry = tarfile.TarInfo("train/a/.socket")
    entry.type = tarfile.FIFOTYPE
    path = tar(tmp_path / "own.tar", images(), {"train/a/.link": "/etc"}, extra=[entry])
    assert same(load("images", path), load("images", folder(tmp_path / "folder", images())))


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    made = folder(tmp_path / "folder", images())
    os.rename(made / "train/a", os.fsencode(made / "train") + b"/a\xe9")
    refused(made, r"the name 'a\\udce9' is not in UTF-8")


def test_a_tar_behind_a_tar_is_said(tmp_path):
    one = tar(tmp_path / "one.tar", images())
    other = tar(tmp_path / "other.tar", images("train/a/2.png"))
    path = tmp_path / "both.tar"
    path.write_bytes(one.read_bytes() + other.read_bytes())
    refused(path, "another archive follows its end, and would not be read")


def test_an_archive_in_an_archive_is_no_image(tmp_path):
    inner = packed(tmp_path / "inner.zip", images()).read_bytes()
    path = packed(tmp_path / "own.zip", {**images(), "train/a/more.zip": inner})
    refused(path, r"train/a/more\.zip is not an image")


def test_archives_beside_folders_are_read_with_them(tmp_path):
    """unlabelled.zip beside train.zip and test.zip was not read, and nothing said so."""
    from trainer.images import read_partly_labelled

    own = folder(tmp_path / "own", {})
    own.mkdir()
    for split in ("train", "test"):
        packed(own / f"{split}.zip", images(f"a/{split}.png", f"b/{split}.png"))
    tar(own / "unlabelled.tar.gz", images("0.png", "1.png"))
    dataset = read_partly_labelled(own)
    assert dataset.train_labels.tolist() == [0, 1, -1, -1]
    assert dataset.test_labels.tolist() == [0, 1]
    with zipfile.ZipFile(own / "train.zip", "a") as archive:
        archive.writestr("train/a/train.png", png(7))
    with pytest.raises(DataError, match=r"train/a/train\.png is there twice"):
        read_partly_labelled(own)


def test_what_is_not_read_is_noted(tmp_path):
    own = folder(tmp_path / "own", images(*NAMES, "validation/a/0.png", "extra.png"))
    (note,) = load("images", own).notes
    assert note == "not read, for only train and test are: extra.png, validation."
    assert load("images", folder(tmp_path / "plain", images())).notes == ()
    nested = folder(tmp_path / "nested", images(*NAMES, "train/a/cats/0.png", "train/a/dogs/0.png"))
    (note,) = load("images", nested).notes
    assert note == "folders in a class's folder are of that class: train/a/cats, train/a/dogs."
