"""Small trees of images, as a folder, zip or tar."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in (0, 1)]


def png(seed=0, size=8):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def images(*names):
    """An image of its own for each name; without names a whole data set."""
    return {name: png(number) for number, name in enumerate(names or NAMES)}


def folder(path, files, links=None):
    for name, content in files.items():
        file = Path(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name, target in (links or {}).items():
        Path(path, name).parent.mkdir(parents=True, exist_ok=True)
        Path(path, name).symlink_to(target)
    return Path(path)


def tar(path, files, links=None, hard=None, extra=()):
    with tarfile.open(path, "w:gz" if str(path).endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for kind, given in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard)):
            for name, target in (given or {}).items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                archive.addfile(entry)
        for entry in extra:
            archive.addfile(entry)
    return Path(path)


def packed(path, files, links=None, **options):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
        for name, target in (links or {}).items():
            archive.writestr(special(name, 0o120777), target)
    return Path(path)


def special(name, mode):
    """An entry of a zip with the mode of a file that is none."""
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry
