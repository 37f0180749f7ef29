"""A person's own images in every format, colour mode, layout and archive, and every refusal."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.containers import FileTree
from trainer.data import load
from trainer.errors import DataError
from trainer.image_files import read_headers, read_pixels

REAL = os.environ.get("NTK_DATA_DIR", "")
RED = (200, 30, 30)
NAMES = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in (0, 1)]


def picture(size=(12, 12), mode="RGB", colour=None, kind="PNG", **options):
    stream = io.BytesIO()
    default = {"RGB": RED, "L": 90, "RGBA": (*RED, 255), "CMYK": (0, 200, 200, 50), "1": 1}
    base = default.get(mode, 5) if colour is None else colour
    Image.new(mode, size, base).save(stream, kind, **options)
    return stream.getvalue()


def files(extra=None):
    content = dict.fromkeys(NAMES, picture())
    content.update(extra or {})
    return content


def write(root, content, kind="folder"):
    if kind == "folder":
        for name, data in content.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root
    path = root / f"own.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def refused(path, message):
    with pytest.raises(DataError, match=message):
        load("images", path)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("top", ["", "mine/", "mine/inner/"])
def test_a_folder_or_archive_is_read_in_the_order_of_its_names(tmp_path, kind, top):
    shades = {name: 20 * position for position, name in enumerate(sorted(NAMES))}
    content = {top + name: picture(colour=(shades[name],) * 3) for name in reversed(NAMES)}
    content[top + "train/a/.DS_Store"] = content["__MACOSX/train/a/._0.png"] = b"junk"
    content[top + "train/a/notes.txt"] = content["README.md"] = b"not an image"
    dataset = load("images", write(tmp_path, content, kind))
    assert dataset.name == "images"
    assert dataset.class_names == ("a", "b")
    assert dataset.train_labels.tolist() == dataset.test_labels.tolist() == [0, 0, 1, 1]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [80, 100, 120, 140]
    assert dataset.test_images[:, 0, 0, 0].tolist() == [0, 20, 40, 60]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("x.jpg", picture(kind="JPEG", quality=95), RED),
        ("x.jpeg", picture(mode="L", kind="JPEG"), (90, 90, 90)),
        ("x.jpg", picture(mode="CMYK", kind="JPEG", quality=95), (205, 44, 44)),
        ("x.png", picture(mode="RGBA"), RED),
        ("x.png", picture(mode="RGBA", colour=(9, 9, 9, 0)), (255, 255, 255)),
        ("x.png", picture(mode="LA", colour=(90, 255)), (90, 90, 90)),
        ("x.png", picture(mode="I;16", colour=90 * 257), (90, 90, 90)),
        ("x.png", picture(mode="1"), (255, 255, 255)),
        ("x.tif", picture(mode="I;16", colour=65535, kind="TIFF"), (255, 255, 255)),
        ("x.tiff", picture(kind="TIFF", compression="tiff_lzw"), RED),
        ("x.gif", picture(kind="GIF"), RED),
        ("x.bmp", picture(kind="BMP"), RED),
        ("x.webp", picture(kind="WEBP", lossless=True), RED),
        ("X.PNG", picture(), RED),
        ("no-suffix", picture(), RED),
    ],
)
def test_every_common_format_and_colour_mode_becomes_rgb(tmp_path, file, content, expected):
    dataset = load("images", write(tmp_path, files(extra={f"train/a/{file}": content})))
    image = dataset.train_images[2]  # after 0.png and 1.png
    # JPEG and CMYK round; every other format is exact.
    tolerance = 4 if file.endswith(("jpg", "jpeg")) else 0
    assert np.abs(image.mean((1, 2)) - np.array(expected)).max() <= tolerance


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), RED).quantize(4).save(stream, "PNG")
    dataset = load("images", write(tmp_path, files(extra={"train/a/2.png": stream.getvalue()})))
    assert dataset.train_images[2].mean((1, 2)).tolist() == list(RED)


@pytest.mark.parametrize("mode", ["L", "I;16", "1", "LA"])
def test_images_that_are_all_grayscale_have_one_channel(tmp_path, mode):
    colour = (90, 255) if mode == "LA" else None
    content = dict.fromkeys(NAMES, picture(mode=mode, colour=colour))
    dataset = load("images", write(tmp_path, content))
    assert dataset.image_shape == (1, 12, 12)
    assert len(dataset.mean) == 1


def test_an_image_is_turned_as_its_camera_was_held(tmp_path):
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:6] = 255  # the upper half as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    upright = picture(size=(12, 20))
    content = {**dict.fromkeys(NAMES, upright), "train/a/0.png": stream.getvalue()}
    dataset = load("images", write(tmp_path, content))
    assert dataset.image_shape == (3, 20, 12)  # the one size that all have when upright
    assert (dataset.train_images[0, :, :, 6:] == 255).all()
    assert (dataset.train_images[0, :, :, :6] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "image_size", "expected"),
    [
        ([(20, 10)] * 8, None, (3, 10, 20)),  # one size is kept, also when it is not square
        ([(20, 10)] * 7 + [(10, 20)], None, (3, 64, 64)),
        ([(300, 300)] * 8, None, (3, 64, 64)),  # too large to be kept without being asked for
        ([(300, 300)] * 8, 280, (3, 280, 280)),
        ([(20, 10)] * 7 + [(1, 1)], 16, (3, 16, 16)),
    ],
)
def test_the_size_of_the_images(tmp_path, sizes, image_size, expected):
    content = {name: picture(size=size) for name, size in zip(NAMES, sizes, strict=True)}
    dataset = load("images", write(tmp_path, content), image_size=image_size)
    assert dataset.image_shape == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_shorter_side_is_scaled_and_the_centre_kept(tmp_path, kind):
    pixels = np.zeros((160, 320, 3), np.uint8)
    pixels[:, 80:240] = 255  # the square in the centre
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, quality=95)
    content = {**files(), "train/a/0.png": stream.getvalue()}
    dataset = load("images", write(tmp_path, content), image_size=16)
    assert dataset.train_images[0, :, 1:-1, 1:-1].min() >= 250


def test_an_image_of_the_wanted_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    dataset = load("images", write(tmp_path, {**files(), "train/a/0.png": stream.getvalue()}))
    assert np.array_equal(dataset.train_images[0].transpose(1, 2, 0), pixels)


def test_a_linked_folder_is_followed_and_a_loop_is_not(tmp_path):
    write(tmp_path / "real", {name: picture() for name in NAMES if name.startswith("train")})
    (tmp_path / "real" / "test").symlink_to(tmp_path / "real" / "train")
    (tmp_path / "real" / "train" / "a" / "up").symlink_to(tmp_path / "real")
    assert len(load("images", tmp_path / "real").test_images) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"train/a/0\.png is not an image that can be read"),
        (b"hello", r"train/a/0\.png is not an image that can be read .*take it out"),
        (picture(size=(90, 90), kind="JPEG")[:-400], r"train/a/0\.png is corrupt.*[Tt]runcated"),
        (picture(size=(90, 90))[:60], r"train/a/0\.png is corrupt.*Repair"),
        (picture(mode="F", colour=0.5, kind="TIFF"), r"0\.png .*no 8-bit form.*floating-point"),
        (picture(mode="I", colour=70000, kind="TIFF"), r"0\.png .*70000 do not fit into 16 bits"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_a_file_that_is_no_sound_image_is_named(tmp_path, data, message, kind):
    refused(write(tmp_path, {**files(), "train/a/0.png": data}, kind), message)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, {**files(), "test/b/1.png": picture(size=(50, 50))})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice as many are an error
    refused(path, r"test/b/1\.png is refused: .*2500 pixels.*Make it smaller, or raise")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    load("images", path)  # large, and no warning


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"has no folder train or test: found no folders\. Arrange the images as train/"),
        ({"pictures/a/0.png": b"", "photos/0.png": b""}, r"train or test: found photos, pictures"),
        ({n: picture() for n in NAMES if "train" in n}, r"has no folder test: found train"),
        ({**files(), "train/0.png": picture()}, r"train/0\.png lies in no class folder"),
        ({**files(), "test/c/0.png": picture()}, r"class\(es\) c have test images and no train"),
        ({**files(), "train/c/labels.csv": b""}, None),
        ({n: picture() for n in NAMES if "/a/" in n}, r"has 1 class\(es\) \(a\)"),
    ],
)
def test_another_layout_is_refused(tmp_path, content, message):
    path = write(tmp_path / "own", content)
    path.mkdir(exist_ok=True)
    if message is None:
        message = r"class folder .*train/c holds no images \(1 such\)"
    refused(path, message)


def test_a_missing_path_says_what_is_wanted(tmp_path):
    refused(tmp_path / "gone", r"gone does not exist\. Pass data_dir .*train/<class>")
    refused(None, r"none was given\. Pass data_dir")


def test_what_is_no_archive_or_a_broken_one_is_refused(tmp_path):
    compressed = write(tmp_path, files(), "tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(compressed[: len(compressed) // 2])
    refused(tmp_path / "half.tar.gz", r"half\.tar\.gz is damaged, cut short or locked")
    (tmp_path / "half.zip").write_bytes(write(tmp_path, files(), "zip").read_bytes()[:-300])
    refused(tmp_path / "half.zip", r"half\.zip is neither a folder nor a zip or tar")
    spoilt = bytearray(write(tmp_path, files(), "zip").read_bytes())
    spoilt[60] ^= 255  # inside the first image: its checksum no longer holds
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    refused(tmp_path / "spoilt.zip", r"spoilt\.zip is damaged.*Bad CRC")


@pytest.mark.parametrize("length", [1024, 1500, 1700, 7 * 1024, 7 * 1024 + 30])
def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path, length):
    content = write(tmp_path, files(), "tar").read_bytes()  # a header and a block for each file
    (tmp_path / "half.tar").write_bytes(content[:length])
    refused(tmp_path / "half.tar", r"half\.tar is damaged, cut short or locked: unexpected end")


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, files())
    whole = Path.open

    def no_permission(self, *arguments, **options):
        if self.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", no_permission)
    refused(path, r"/a/1\.png cannot be read: Permission denied")


@pytest.mark.skipif(not REAL, reason="NTK_DATA_DIR names no folder of real data sets")
def test_real_png_images_in_a_tar():
    archive = Path(REAL, "cifar100-subset.tar")
    tree = FileTree(archive)
    names = [entry.parts for entry in tree.entries if not entry.folder]
    headers = read_headers(tree, names)
    assert {header[:2] for header in headers} == {(32, 32)}
    pixels = read_pixels(tree, names, 32, 32, 3)
    assert len({image.tobytes() for image in pixels}) == len(names) == 284
    assert len({parts[1] for parts in names}) == 92
