"""Every row of the data-set table, on small files in torchvision's layout and on the real ones."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from trainer.data import DATASETS, load
from trainer.dataset import assemble, moments, stratified_split
from trainer.errors import DataError
from trainer.torchvision_compat import torchvision

REAL = os.environ.get("NTK_DATA_DIR", "")
needs_real = pytest.mark.skipif(not REAL, reason="NTK_DATA_DIR names no folder of real data sets")
CIFAR_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RNG = np.random.default_rng(0)


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_mnist(folder, name, *, gzipped):
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    content = {}
    for kind, count in (("train", 20), ("t10k", 10)):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        content[kind] = images, labels
        for array, what in ((images, "images-idx3"), (labels, "labels-idx1")):
            file = raw / f"{kind}-{what}-ubyte"
            if gzipped:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                file.write_bytes(idx(array))
    return content


def as_2009(array):
    """An array pickled as Python 2 and the numpy of 2009 did."""
    modern = pickle.dumps(array, protocol=2)
    return modern.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(
        b"\x89\x88\x87", b"K\x00K\x01\x87"
    )


def write_cifar(folder, published, monkeypatch, *, key, classes):
    base = folder / published.base_folder
    base.mkdir()
    tables = {}
    for table, count in (("train_list", 3 * classes), ("test_list", classes)):
        tables[table] = []
        for file, _ in getattr(published, table):
            data = RNG.integers(0, 256, (count, 3072), np.uint8)
            labels = [index % classes for index in range(count)]
            # A dictionary around a pickled array, spliced by hand: {"data": array, key: labels}.
            head = as_2009(data)[2:-1]
            first = pickle.dumps("data", protocol=2)[2:-1]
            both = pickle.dumps(key, protocol=2)[2:-1] + pickle.dumps(labels, protocol=2)[2:-1]
            (base / file).write_bytes(b"\x80\x02}(" + first + head + both + b"u.")
            tables[table].append([file, md5(base / file)])
        monkeypatch.setattr(published, table, tables[table])
    meta = base / published.meta["filename"]
    meta.write_bytes(pickle.dumps({published.meta["key"]: [f"c{i}" for i in range(classes)]}))
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": md5(meta)})


@pytest.mark.parametrize(("name", "flip"), [("mnist", False), ("fashion_mnist", True)])
@pytest.mark.parametrize("gzipped", [True, False])
def test_idx_files_are_read_in_place(tmp_path, monkeypatch, name, flip, gzipped):
    published = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name]
    content = write_mnist(tmp_path, published, gzipped=gzipped)
    before = sorted(tmp_path.rglob("*"))
    resources = [(p.name, md5(p)) for p in before if p.suffix == ".gz"]
    if gzipped:
        monkeypatch.setattr(getattr(torchvision.datasets, published), "resources", resources)
    dataset = load(name, tmp_path, download=False)
    assert np.array_equal(dataset.train_images[:, 0], content["train"][0])
    assert np.array_equal(dataset.test_labels, content["t10k"][1])
    assert (dataset.name, dataset.flip, dataset.classes) == (name, flip, 10)
    assert dataset.image_shape == (1, 28, 28)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "key", "classes"), [("cifar10", "labels", 10), ("cifar100", "fine_labels", 100)]
)
def test_cifar_is_read_from_pickles_as_old_as_the_published_ones(
    tmp_path, monkeypatch, name, key, classes
):
    published = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    write_cifar(tmp_path, published[name], monkeypatch, key=key, classes=classes)
    dataset = load(name, str(tmp_path), download=False)
    assert (dataset.name, dataset.classes, dataset.flip) == (name, classes, True)
    assert dataset.class_names[:2] == ("c0", "c1")
    assert dataset.test_images.shape == (classes, 3, 32, 32)
    reference = published[name](tmp_path, train=False)
    assert np.array_equal(dataset.test_images[1].transpose(1, 2, 0), np.asarray(reference[1][0]))
    assert dataset.test_labels.tolist() == reference.targets


def test_svhn_is_read_and_its_ten_is_a_zero(tmp_path, monkeypatch):
    table = {}
    for split, count in (("train", 20), ("test", 10)):
        path = tmp_path / f"{split}_32x32.mat"
        pixels = RNG.integers(0, 256, (32, 32, 3, count), np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": pixels, "y": labels})
        table[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    dataset = load("svhn", tmp_path, download=False)
    assert dataset.train_images.shape == (20, 3, 32, 32)
    assert dataset.test_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert np.array_equal(dataset.test_images[4, 2], pixels[:, :, 2, 4])
    assert dataset.train_images[:].flags.c_contiguous


def test_a_folder_of_one_archive_a_split_is_read_as_images(tmp_path):
    for split, labels in (("train", [6, 9, 9, 4]), ("test", [9, 4, 6])):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for position, label in enumerate(labels):
                pixels = np.full((32, 32, 3), 12 * position, np.uint8)
                file = f"{split}/{CIFAR_NAMES[label]}/{position:04d}.jpg"
                archive.writestr(file, encoded(pixels, "JPEG"))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not looked at")
    dataset = load("images", tmp_path)
    assert dataset.class_names == ("deer", "frog", "truck")
    assert dataset.train_labels.tolist() == [0, 1, 2, 2]  # by class, then by number
    assert dataset.test_labels.tolist() == [0, 1, 2]
    assert dataset.train_images.shape == (4, 3, 32, 32)
    assert np.abs(dataset.train_images[:, 0, 0, 0] // 12 - [3, 0, 1, 2]).max() == 0


@pytest.mark.parametrize(
    "where", ["folder", "caltech101-small.tar", "caltech101/caltech101.tar.gz"]
)
def test_caltech_leaves_the_background_out_and_splits_every_class(tmp_path, where):
    files = {
        f"101_ObjectCategories/{category}/image_{number:04d}.jpg": encoded(
            np.full((20, 30, 3) if number % 2 else (30, 20), shade, np.uint8), "JPEG"
        )
        for category, shade in (("BACKGROUND_Google", 9), ("Faces", 50), ("ant", 200))
        for number in range(1, 11)
    }
    if where == "folder":
        for name, content in files.items():
            path = tmp_path / "caltech101" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        (tmp_path / where).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / where, "w:gz" if where.endswith("gz") else "w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    dataset = load("caltech101", tmp_path, image_size=16, download=False)
    assert dataset.class_names == ("Faces", "ant")
    assert np.bincount(dataset.train_labels).tolist() == [8, 8]
    assert np.bincount(dataset.test_labels).tolist() == [2, 2]
    assert dataset.image_shape == (3, 16, 16)
    shades = np.array([50, 200])[dataset.train_labels]
    assert np.abs(dataset.train_images[:].mean((1, 2, 3)) - shades).max() < 2
    assert load("caltech101", tmp_path, download=False).image_shape == (3, 64, 64)


def test_digits_need_no_folder_and_are_always_split_alike():
    dataset, again = load("digits", None), load("digits", None)
    assert dataset.train_images.shape == (1438, 1, 8, 8)
    assert dataset.test_images.shape == (359, 1, 8, 8)
    assert np.array_equal(dataset.test_images, again.test_images)
    assert (dataset.train_images[:].min(), dataset.train_images[:].max()) == (0, 255)
    counts = np.bincount(dataset.test_labels)
    assert np.abs(counts / (counts + np.bincount(dataset.train_labels)) - 0.2).max() < 0.003


def test_an_image_size_applies_to_any_data_set_and_its_moments():
    dataset = load("digits", None, image_size=4)
    assert dataset.image_shape == (1, 4, 4)
    assert dataset.mean == moments(dataset.train_images)[0]
    with pytest.raises(DataError, match="image_size is 0; a side of at least 1"):
        load("digits", None, image_size=0)


def test_normalised_train_images_have_mean_zero_and_deviation_one():
    dataset = load("digits", None)
    normal = dataset.normalise(dataset.train_images[:]).astype(np.float64)
    # float32 pixels: rounding of 6e-8 times values up to 2
    assert abs(normal.mean()) < 1e-6
    assert abs(normal.std() - 1) < 1e-6


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 1, 8, 8)), r"type float64 with 1 channel.* uint8 images"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"uint8 with 3 channel.* with 1 channel"),
    ],
)
def test_what_cannot_be_normalised_is_refused(images, message):
    with pytest.raises(DataError, match=message):
        load("digits", None).normalise(images)


def test_moments_are_those_of_numpy_and_a_constant_channel_has_deviation_one():
    images = RNG.integers(0, 256, (5000, 2, 3, 3), np.uint8)
    images[:, 1] = 7
    mean, std = moments(images)
    pixels = images[:, 0] / 255
    assert mean == pytest.approx((pixels.mean(), 7 / 255), abs=1e-12)
    assert std == pytest.approx((pixels.std(), 1.0), abs=1e-12)


def test_a_stratified_split_takes_the_same_share_of_each_class():
    labels = np.repeat([0, 1, 2], [100, 31, 1])
    train, test = stratified_split(labels, 0.2, np.random.default_rng(1))
    assert np.bincount(labels[test]).tolist() == [20, 6, 1]
    assert sorted([*train, *test]) == list(range(132))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "has 3 images and 2 labels"),
        ({"labels": [0, 2, 1]}, "label out of range: image 1 has label 2, and 2 classes"),
        ({"names": ("one",)}, r"has 1 class\(es\) \(one\).*at least 2"),
        ({"test": np.zeros((1, 1, 5, 4), np.uint8)}, r"\(1, 4, 4\) and test images \(1, 5, 4\)"),
        ({"test": np.zeros((0, 1, 4, 4), np.uint8)}, "own test has no images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    images = np.zeros((3, 1, 4, 4), np.uint8)
    test = change.get("test", images)
    labels = np.array(change.get("labels", [0, 1, 0]))
    names = change.get("names", ("a", "b"))
    with pytest.raises(DataError, match=message):
        assemble("own", (images, labels), (test, np.zeros(len(test), int)), names, flip=False)


MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs_real
@pytest.mark.parametrize(
    ("name", "mean", "train", "test"),
    [
        ("mnist", 0.1307, MNIST_TRAIN, MNIST_TEST),
        ("fashion_mnist", 0.2860, [6000] * 10, [1000] * 10),
    ],
)
def test_the_real_idx_data_sets(name, mean, train, test):
    dataset = load(name, Path(REAL), download=False)
    assert np.bincount(dataset.train_labels).tolist() == train
    assert np.bincount(dataset.test_labels).tolist() == test
    assert dataset.mean[0] == pytest.approx(mean, abs=5e-5)  # four published digits


def load_apart(name, folder=""):
    """Load in a process of its own, without the type checks of the tests on every image."""
    code = (
        "import json, numpy, sys; from trainer.data import load;"
        f"d = load({name!r}, sys.argv[1] + {'/' + folder!r}, download=False);"
        "train, test = (numpy.bincount(x).tolist() for x in (d.train_labels, d.test_labels));"
        "print(json.dumps([d.name, train, test, d.train_labels[:5].tolist(), d.mean, "
        "d.class_names, d.train_images.shape]))"
    )
    run = subprocess.run([sys.executable, "-c", code, REAL], capture_output=True, check=True)
    return json.loads(run.stdout)


@needs_real
@pytest.mark.slow
def test_the_real_cifar10_as_jpeg():
    name, train, test, _, mean, names, shape = load_apart("images", "cifar10-jpeg")
    assert (name, names) == ("images", CIFAR_NAMES)
    assert (train, test) == ([5000] * 10, [1000] * 10)
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-4)  # JPEG is lossy
    assert shape == [50000, 3, 32, 32]


@needs_real
@pytest.mark.slow
def test_the_real_caltech101():
    name, train, test, _, _, names, shape = load_apart("caltech101")
    counts = np.add(train, test)
    assert (name, len(names), counts.sum()) == ("caltech101", 101, 8677)
    named = dict(zip(names, counts.tolist(), strict=True))
    assert (named["inline_skate"], named["airplanes"]) == (31, 800)
    assert shape[1:] == [3, 64, 64]
    assert test == [round(0.2 * count) for count in counts.tolist()]


def test_the_table_has_the_data_sets_of_both_papers():
    papers = {"mnist", "svhn", "cifar10", "cifar100", "caltech101"}
    assert papers | {"digits", "fashion_mnist", "images"} == set(DATASETS)
