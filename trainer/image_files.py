"""Image files → one uint8 array: headers, decoding, scaling and cropping with Pillow.

Files are measured and decoded in passes, and only pixels at the wanted size are kept. Images are
turned upright (EXIF), composited on white, scaled to cover the wanted size with Pillow's
antialiased bilinear filter, and centre-cropped.
"""

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from trainer.containers import FileTree, Parts, Stream
from trainer.errors import DataError

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


def read_whole(stream: Stream, name: str, longest: int) -> UInt8[np.ndarray, "3 height width"]:
    """An image as it is, RGB and upright, reduced so that no side is longer than `longest` pixels.

    Raises:
        DataError: as `decode`.
    """
    with _named(name), Image.open(stream) as image:
        image.draft(None, (2 * longest, 2 * longest))
        picture = _to_mode(ImageOps.exif_transpose(image), "RGB")
        picture.thumbnail((longest, longest), Image.Resampling.BILINEAR)
        return np.asarray(picture).transpose(2, 0, 1)


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


def read_headers(tree: FileTree, files: Sequence[Parts]) -> tuple[Header, ...]:
    """Size and kind of each image.

    Raises:
        DataError: a file is no image; the message names it.
    """
    headers: dict[int, Header] = {}
    with quiet():
        for position, stream in tree.read(files):
            headers[position] = read_header(stream, tree.name(files[position]))
    return tuple(headers[position] for position in range(len(files)))


def read_pixels(
    tree: FileTree, files: Sequence[Parts], height: int, width: int, channels: int
) -> UInt8[np.ndarray, "examples channels height width"]:
    """The pixels of each image, scaled to cover height x width and cropped around the centre.

    Args:
        tree: the folder or archive.
        files: paths inside it; the result has their order.
        height: wanted, in pixels.
        width: wanted, in pixels.
        channels: 1 for grayscale, 3 for RGB.

    Raises:
        DataError: an image is corrupt; the message names it.
    """
    result = np.empty((len(files), channels, height, width), np.uint8)
    with quiet():
        for position, stream in tree.read(files):
            name = tree.name(files[position])
            result[position] = decode(stream, name, height, width, channels)
    return result
