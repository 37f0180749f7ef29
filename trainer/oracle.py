"""Oracles: data-set indices → labels, from the data set, a function or a person at a terminal.

A person sees the image as blocks of text and as a PNG enlarged by whole factors, and types a class
by its name, an unambiguous beginning of it or its number (case-insensitive), or a command: undo,
skip, help, quit. A class named like a command keeps its name; the command is then `/name`.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.text import Text

from trainer.containers import composed
from trainer.dataset import UNLABELLED
from trainer.disk_images import DiskImages
from trainer.errors import DataError, some


class Oracle(Protocol):
    """Labels of the images with the given dataset-level indices, in their order."""

    def __call__(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """Answer a batch."""
        ...


@dataclass(frozen=True, eq=False)
class DatasetOracle:
    """Labels of the data set.

    Attributes:
        labels: of every image, such as `dataset.train_labels`.
    """

    labels: Int64[np.ndarray, " examples"]

    def __call__(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """Labels of the images with these dataset-level indices, in their order.

        Raises:
            DataError: an index is out of range, or of an image without a label.
        """
        outside = indices[(indices < 0) | (indices >= len(self.labels))]
        if len(outside):
            raise DataError(
                f"the oracle was asked for image {outside[0]} and knows 0 to "
                f"{len(self.labels) - 1}. Query dataset-level indices."
            )
        unknown = indices[self.labels[indices] == UNLABELLED]
        if len(unknown):
            raise DataError(
                f"image {unknown[0]} has no label ({len(unknown)} such): ask a person, with "
                "--oracle person."
            )
        return self.labels[indices]


@dataclass(frozen=True, eq=False)
class CallableOracle:
    """Checked answers of a user's function.

    Attributes:
        function: takes dataset-level indices (int64) and gives as many labels.
        classes: how many classes there are.
    """

    function: Callable[[np.ndarray], Any]
    classes: int

    def __call__(self, indices: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        """Labels of the images with these dataset-level indices, in their order.

        Raises:
            DataError: the answers are too many or too few, no integers or out of range.
        """
        answers = np.asarray(self.function(indices))
        if answers.shape != indices.shape:
            raise DataError(
                f"the oracle gave answers of shape {answers.shape} to {len(indices)} images; one "
                "label for each is needed, in their order."
            )
        if len(answers) and not np.issubdtype(answers.dtype, np.integer):
            raise DataError(
                f"the oracle gave labels of type {answers.dtype} (image {indices[0]}: "
                f"{answers[0]!r}); integers from 0 to {self.classes - 1} are needed."
            )
        wrong = np.flatnonzero((answers < 0) | (answers >= self.classes))
        if len(wrong):
            raise DataError(
                f"label out of range: the oracle gave image {indices[wrong[0]]} the label "
                f"{answers[wrong[0]]}, and {self.classes} classes have labels 0 to "
                f"{self.classes - 1} ({len(wrong)} such answers)."
            )
        return answers.astype(np.int64)


def missing_classes(
    labels: Int64[np.ndarray, " labelled"], class_names: Sequence[str]
) -> tuple[str, ...]:
    """Names of the classes without a label, in the order of the classes."""
    present = set(labels.tolist())
    return tuple(name for label, name in enumerate(class_names) if label not in present)


LARGE = 384  # pixels of the longer side of a PNG, at least where the image is smaller
_UPPER = "▀"


def as_png(image: UInt8[np.ndarray, "channels height width"]) -> bytes:
    """The image as a PNG file, its longer side `LARGE` pixels or a little less, never reduced."""
    picture = _picture(image)
    factor = max(1, LARGE // max(picture.size))
    larger = (factor * picture.width, factor * picture.height)
    stream = io.BytesIO()
    picture.resize(larger, Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def as_blocks(image: UInt8[np.ndarray, "channels height width"], columns: int, rows: int) -> Text:
    """The image in coloured characters, reduced where it does not fit.

    Args:
        image: grayscale or RGB.
        columns: characters in a line, at most.
        rows: lines, at most.
    """
    picture = _picture(image).convert("RGB")
    factor = min(1.0, columns / picture.width, 2 * rows / picture.height)
    if factor < 1:
        size = (max(1, int(factor * picture.width)), max(1, int(factor * picture.height)))
        picture = picture.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(picture)
    if len(pixels) % 2:  # the last line has no lower half: it is shown black
        pixels = np.concatenate([pixels, np.zeros_like(pixels[:1])])
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append(_UPPER, Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


class Command(Enum):
    """Typed in place of a label."""

    UNDO = "undo"
    SKIP = "skip"
    HELP = "?"
    QUIT = "quit"


def parse_answer(typed: str, class_names: Sequence[str]) -> int | Command:
    """The class or the command that a typed line means.

    Args:
        typed: the line.
        class_names: in the order of the labels.

    Raises:
        DataError: it is empty, no class, or the beginning of several.
    """
    typed = typed.strip()
    word = composed(typed).casefold()
    names = [composed(name).strip().casefold() for name in class_names]
    if not word:
        raise DataError("nothing was typed: type a class, or ? for help.")
    if names.count(word) == 1:
        return names.index(word)
    commands = {command.value: command for command in Command}
    if word.removeprefix("/") in commands:
        return commands[word.removeprefix("/")]
    if word.isascii() and word.isdigit() and int(word) < len(names):
        return int(word)
    starting = [label for label, name in enumerate(names) if name.startswith(word)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        among = some((class_names[label] for label in starting), _LISTED)
        raise DataError(f"{typed!r} may be {among}: type more of it.")
    raise DataError(
        f"no class is called {typed!r}. Known: {some(class_names, _LISTED)}; or a number from 0 to "
        f"{len(names) - 1}, undo, skip, quit, ?."
    )


_LISTED = 12  # names that a message gives; `?` gives all
_WIDEST, _HIGHEST = 64, 32  # characters of an image in the terminal
_HELP = (
    "type a class by name, by the beginning of its name or by its number, then Enter.\n"
    "undo takes the last answer back, skip leaves this image out, quit stops: the same command "
    "goes on from here."
)


@dataclass(frozen=True, eq=False)
class PersonOracle:
    """Labels typed by a person at the terminal.

    Attributes:
        images: of the whole data set, as they are before normalisation; those on disk are shown by
            name, as their files have them.
        class_names: in the order of the labels.
        file: where the image in question is written, as PNG; replaced with each question.
        console: where it is shown; in coloured characters if it is a terminal with colours.
        read: a line from the person, without its end; EOFError where there are no more.
        write: replaces a file atomically.
    """

    images: UInt8[np.ndarray, "examples channels height width"] | DiskImages
    class_names: Sequence[str]
    file: Path
    console: Console
    read: Callable[[], str]
    write: Callable[[Path, bytes], None]

    def ask(self, index: int, heading: str) -> int | Command:
        """Show an image until a label or a command other than help is typed.

        Args:
            index: of the image, in the data set.
            heading: what is said above it, such as how many questions are left.

        Raises:
            OSError: the image cannot be written to its file.
        """
        self._show(index, heading)
        while True:
            self.console.print("class? ", end="")
            try:
                answer = parse_answer(self.read(), self.class_names)
            except EOFError:
                self.console.print()
                return Command.QUIT
            except DataError as error:
                self.console.print(str(error), style="yellow", markup=False, highlight=False)
                continue
            if answer is not Command.HELP:
                return answer
            self._help()

    def _show(self, index: int, heading: str) -> None:
        image, name = self.images[index], f"image {index}"
        if isinstance(self.images, DiskImages):
            image, name = self.images.original(index, LARGE), self.images.name(index)
        self.write(self.file, as_png(image))
        self.console.print(escape(heading), style="bold", highlight=False)
        if self.console.is_terminal and self.console.color_system is not None:
            columns = min(_WIDEST, self.console.width)
            self.console.print(as_blocks(image, columns, _HIGHEST), end="")
        self.console.print(
            f"{name}: {self.file}",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _help(self) -> None:
        self.console.print(_HELP, style="dim", markup=False, highlight=False)
        names = "  ".join(f"{label} {name}" for label, name in enumerate(self.class_names))
        self.console.print(names, markup=False, highlight=False)
