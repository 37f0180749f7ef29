"""Cost of images that stay on disk: decoding over Pillow's own time, memory of a large pool.

Synthetic JPEGs of one size, some of them distinct and the rest links to these, in a folder that is
deleted afterwards. Decoding is timed in turns with Pillow alone on as many threads, nothing kept;
the pool is opened, and read through once, in a process of its own. Run it as

    python -m benchmarks.disk_images [--json FILE] [--pool 100000]
"""

import io
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageOps

from benchmarks.measuring import apart, load, machine, markdown, read, turns, watched, write
from trainer.containers import FileTree
from trainer.disk_images import DiskImages, list_items

RATIO, GIB = 1.15, 2e9 / 2**30


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    pool: int = 100_000
    """Images of which memory is measured; 0 leaves it out."""
    decoded: int = 1000
    """Images that are decoded in turns with Pillow."""
    distinct: int = 200
    width: int = 640
    height: int = 480
    image_size: int = 96
    repeats: int = 7
    seed: int = 0
    json: Path | None = None


def photos(settings: Settings, count: int, folder: Path) -> None:
    """Smooth random pictures, as photographs are; all but some are links."""
    rng = np.random.default_rng(settings.seed)
    contents = []
    for _ in range(min(settings.distinct, count)):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        stream = io.BytesIO()
        small.resize((settings.width, settings.height), Image.Resampling.BICUBIC).save(
            stream, "JPEG", quality=90
        )
        contents.append(stream.getvalue())
    for number in range(count):
        path = folder / "train" / str(number % 2) / f"photo {number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < len(contents):
            path.write_bytes(contents[number])
        else:
            first = number % len(contents)
            os.link(folder / "train" / str(first % 2) / f"photo {first:07d}.jpg", path)


def opened(folder: Path, size: int, cache_bytes: int | None = None) -> DiskImages:
    """The images of a folder; the bound on pixels that are kept is the default if None."""
    tree = FileTree(folder)
    files = [entry.parts for entry in tree.entries if not entry.folder]
    _, table = list_items(tree, files)
    every = np.arange(len(files))
    return DiskImages(tree.contents, table, every, (3, size, size), cache_bytes)


def by_pillow(paths: list[Path], size: int, threads: int) -> np.ndarray:
    """All images decoded, scaled and cropped by Pillow on some threads."""
    pixels = np.empty((len(paths), 3, size, size), np.uint8)

    def fill(some: np.ndarray) -> None:
        for position in some:
            with Image.open(paths[position]) as image:
                image.draft(None, (2 * size, 2 * size))
                upright = ImageOps.exif_transpose(image).convert("RGB")
                fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
                pixels[position] = np.asarray(fitted).transpose(2, 0, 1)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, np.array_split(np.arange(len(paths)), threads)))
    return pixels


def decoding(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row: decoding all images over Pillow's own time."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos(settings, settings.decoded, folder)
        images = opened(folder, settings.image_size, 0)
        paths = [folder / images.name(index) for index in range(len(images))]
        pillow = lambda: by_pillow(paths, settings.image_size, threads)
        assert np.array_equal(images[:], pillow())
        times = turns({"ours": lambda: images[:], "pillow": pillow}, settings.repeats)
    clock = times["ours"].over(times["pillow"])
    processor = times["ours"].processor_over(times["pillow"])
    assert processor is not None
    met = "yes" if max(clock.median, processor.median) <= RATIO else "**no**"
    row = (f"{settings.decoded:,}", threads, f"{times['ours'].median:.2f} s", clock, processor)
    return [(*row, f"≤ {RATIO:g}", met)], {n: t._asdict() for n, t in times.items()}


def read_through(settings: Settings, folder: Path) -> dict[str, Any]:
    """Open a folder and read all of its images, a thousand at a time."""

    def work() -> tuple[float, float, float]:
        began = time.perf_counter()
        images = opened(folder, settings.image_size)
        listed = time.perf_counter() - began
        total = 0.0
        for start in range(0, len(images), 1000):
            total += float(images[start : start + 1000].mean())
        return listed, time.perf_counter() - began - listed, total

    (listed, decoded, _), memory = watched(work)
    return {"listing": listed, "decoding": decoded, "peak": memory.peak}


def memory_of_pool(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row: most memory of a process that opens and reads a large pool."""
    with tempfile.TemporaryDirectory() as name:
        photos(settings, settings.pool, Path(name))
        found = apart(read_through, settings, Path(name))
    met = "yes" if found["peak"] < GIB else "**no**"
    seconds = (f"{found['listing']:.0f} s", f"{found['decoding']:.0f} s")
    return [(f"{settings.pool:,}", *seconds, f"{found['peak']:.2f}", f"< {GIB:.2f}", met)], found


DECODING = ("images", "threads", "clock", "clock over Pillow's", "processor", "target", "met")
MEMORY = ("images", "listing", "decoding", "peak, GiB", "target", "met")


def main(settings: Settings) -> None:
    """Print the tables and add the figures to those in the file."""
    figures: dict[str, Any] = read(settings.json)
    rows, figures["decoding"] = decoding(settings)
    print(markdown(DECODING, rows), flush=True)
    if settings.pool:
        rows, figures["memory"] = memory_of_pool(settings)
        print(markdown(MEMORY, rows), flush=True)
    write(settings.json, asdict(settings), figures)
    print(
        f"JPEG of {settings.width}×{settings.height} at {settings.image_size} pixels, "
        f"{settings.distinct} of them distinct; n = {settings.repeats} turns. {machine()}; "
        f"{load()}."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
