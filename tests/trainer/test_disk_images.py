"""Images that stay on disk: the pixels that Pillow gives, decoded when they are asked for."""

import gc
import io
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer import disk_images
from trainer.containers import FileTree
from trainer.dataset import Dataset
from trainer.disk_images import DiskImages, images_of, list_items
from trainer.errors import DataError
from trainer.images import read_images
from trainer.oracle import as_png

SIDE, PER_CLASS = 12, 10
CONTAINERS = ("folder", "zip", "stored.zip", "tar", "tar.gz")


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def expected(path: Path) -> np.ndarray:
    """By Pillow alone."""
    with Image.open(path) as image:
        image.draft(None, (2 * SIDE, 2 * SIDE))
        picture = ImageOps.exif_transpose(image).convert("RGB")
        fitted = ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ä", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                size = (int(rng.integers(10, 40)), int(rng.integers(10, 40)))
                (root / split / name / f"{number}.jpg").write_bytes(jpeg(rng, size))
    return root


def packed(folder: Path, kind: str, target: Path) -> Path:
    if kind == "folder":
        return Path(shutil.copytree(folder, target / "copy"))
    path = target / f"pool.{kind}"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if kind.endswith("zip"):
        method = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for file in files:
                archive.add(file, file.relative_to(folder))
    return path


def train_images(dataset: Dataset) -> DiskImages:
    assert isinstance(dataset.train_images, DiskImages)
    return dataset.train_images


@pytest.mark.parametrize("kind", CONTAINERS)
def test_pixels_are_pillows_wherever_the_files_lie(folder, tmp_path, kind):
    dataset = read_images(packed(folder, kind, tmp_path), SIDE)
    images = train_images(dataset)
    paths = sorted((folder / "train").rglob("*.jpg"))
    assert images.shape == (2 * PER_CLASS, 3, SIDE, SIDE)
    assert [images.name(index) for index in range(len(images))] == [
        path.relative_to(folder).as_posix() for path in paths
    ]
    by_pillow = np.stack([expected(path) for path in paths])
    assert np.array_equal(images[::-1], by_pillow[::-1])
    assert np.array_equal(images[[3, 3, 0]], by_pillow[[3, 3, 0]])
    assert np.array_equal(images[4], by_pillow[4])
    assert np.array_equal(images[dataset.train_labels == 1], by_pillow[dataset.train_labels == 1])
    assert dataset.fingerprint() == read_images(folder, SIDE).fingerprint()
    assert ("a compressed tar" in " ".join(dataset.remarks)) == (kind == "tar.gz")
    scaled = by_pillow / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_nothing_is_decoded_before_it_is_read_and_little_is_kept(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        disk_images,
        "decode",
        lambda stream, name, *size, real=disk_images.decode: (
            decoded.append(name) or real(stream, name, *size)
        ),
    )
    tree = FileTree(folder)
    files = [entry.parts for entry in tree.entries if not entry.folder]
    _, table = list_items(tree, files)
    images = DiskImages(tree.contents, table, np.arange(40), (3, SIDE, SIDE), 5 * 3 * SIDE * SIDE)
    assert decoded == []
    first = images[:4]
    assert len(decoded) == 4
    assert np.array_equal(images[:4], first)
    assert len(decoded) == 4  # five are kept
    images[10:14]
    images[12:14]
    assert len(decoded) == 8
    assert np.array_equal(images[:4], first)
    assert 9 <= len(decoded) <= 12  # most had to go
    assert images._kept.nbytes == 5 * 3 * SIDE * SIDE


def test_many_threads_read_the_same_pixels(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_images, "_cores", lambda: 4)
    monkeypatch.setattr(disk_images, "_LEAST", 1)
    monkeypatch.setattr(disk_images, "CACHE_BYTES", 7 * 3 * SIDE * SIDE)
    for kind in ("zip", "tar", "folder"):
        images = train_images(read_images(packed(folder, kind, tmp_path), SIDE))
        whole = images[:]
        orders = [np.random.default_rng(seed).permutation(len(images)) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for order, found in zip(orders, pool.map(images.__getitem__, orders), strict=True):
                assert np.array_equal(found, whole[order])


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("change", ["gone", "another size", "another time"])
def test_a_file_that_changed_is_named(folder, tmp_path, kind, change, monkeypatch):
    monkeypatch.setattr(disk_images, "CACHE_BYTES", 0)
    path = packed(folder, kind, tmp_path)
    images = train_images(read_images(path, SIDE))
    images[0]
    changed = path / "train" / "b" / "3.jpg" if kind == "folder" else path
    if change == "gone":
        changed.unlink()
    elif change == "another size":
        changed.write_bytes(changed.read_bytes() + b"\0" * 512)
    else:
        os.utime(changed, ns=(0, 0))
    told = "cannot be read" if change == "gone" else "was changed after the images were listed"
    with pytest.raises(DataError, match=told) as caught:
        images[:]
    assert "3.jpg" in str(caught.value) or kind != "folder"


def test_a_person_sees_the_file_and_not_the_networks_pixels(folder):
    images = train_images(read_images(folder, SIDE))
    path = folder / images.name(2)
    with Image.open(path) as image:
        own = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(images.original(2, 384), own)
    assert max(images.original(2, 8).shape) == 8
    assert as_png(images.original(2, 384))


def test_train_and_test_images_share_the_bound(folder, monkeypatch):
    each = 3 * SIDE * SIDE
    monkeypatch.setattr(disk_images, "CACHE_BYTES", 10 * each)
    dataset = read_images(folder, SIDE)
    kept = []
    for images in (dataset.train_images, dataset.test_images):
        assert isinstance(images, DiskImages)
        images[:]
        kept.append(images._kept.nbytes)
    assert kept == [5 * each, 5 * each]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_item_takes_at_most_two_hundred_bytes(tmp_path, kind):
    count, content = 1000, jpeg(np.random.default_rng(0), (2, 2))
    root = tmp_path / "many"
    root.mkdir()
    for number in range(count):
        (root / f"photo number {number:07d} of my camera.jpg").write_bytes(content)
    path = packed(root, kind, tmp_path)

    def opened() -> DiskImages:
        tree = FileTree(path)
        files = [entry.parts for entry in tree.entries if not entry.folder]
        _, table = list_items(tree, files)
        images = images_of(tree, files, table, (3, 2, 2)).take(np.arange(count))
        images[:10]
        return images

    opened()  # what is imported and compiled is no part of it
    gc.collect()
    tracemalloc.start()
    try:
        images = opened()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - images._kept.nbytes
    finally:
        tracemalloc.stop()
    assert len(images) == count
    assert held <= 200 * count
