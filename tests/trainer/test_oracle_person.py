"""A person at the terminal: what is typed, what is shown, and partly labelled folders."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style

from kernel.files import write_file
from trainer.dataset import UNLABELLED
from trainer.errors import DataError
from trainer.images import read_partly_labelled
from trainer.oracle import (
    LARGE,
    Command,
    DatasetOracle,
    PersonOracle,
    as_blocks,
    as_png,
    parse_answer,
)

CATS = ("cat", "catfish", "Dog", "doll", "skip")


@pytest.mark.parametrize(
    ("typed", "meaning"),
    [
        ("cat", 0),  # the whole name, though another begins with it
        ("catf", 1),
        (" DOG \n", 2),
        ("dol", 3),
        ("4", 4),
        ("skip", 4),  # a class that is called like a command
        ("/skip", Command.SKIP),
        ("undo", Command.UNDO),
        ("Quit", Command.QUIT),
        ("?", Command.HELP),
    ],
)
def test_what_is_meant(typed, meaning):
    assert parse_answer(typed, CATS) == meaning


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "nothing was typed"),
        ("c", "'c' may be cat, catfish: type more"),
        ("do", "may be Dog, doll"),
        ("mouse", "no class is called 'mouse'. Known: cat, catfish, Dog, doll, skip; or a number"),
        ("5", "no class is called '5'"),
        ("-1", "no class is called '-1'"),
        ("²", "no class is called"),
    ],
)
def test_what_is_not_understood(typed, message):
    with pytest.raises(DataError, match=message):
        parse_answer(typed, CATS)


def test_a_name_goes_before_a_number():
    digits = tuple("9876543210")
    assert [parse_answer(word, digits) for word in "9 0".split()] == [0, 9]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (1, 1, 1), (3, 500, 300)])
def test_a_png_is_the_image_enlarged_by_a_whole_factor(shape, rng):
    image = rng.integers(0, 256, size=shape, dtype=np.uint8)
    opened = Image.open(io.BytesIO(as_png(image)))
    factor = max(1, LARGE // max(shape[1:]))
    assert opened.size == (factor * shape[2], factor * shape[1])
    pixels = np.asarray(opened)[::factor, ::factor]
    np.testing.assert_array_equal(pixels.reshape(*shape[1:], -1), image.transpose(1, 2, 0))


def test_blocks_have_the_colours_of_the_image(rng):
    image = rng.integers(0, 256, size=(3, 5, 4), dtype=np.uint8)
    text = as_blocks(image, 64, 32)
    lines = text.plain.splitlines()
    assert [len(line) for line in lines] == [4, 4, 4]
    style = text.spans[5].style  # the second character of the second line
    above, below = (Color.from_rgb(*image[:, row, 1].tolist()) for row in (2, 3))
    assert style == Style(color=above, bgcolor=below)
    small = as_blocks(rng.integers(0, 256, size=(1, 90, 200), dtype=np.uint8), 64, 32).plain
    assert max(map(len, small.splitlines())) == 64


def person(lines, folder, rng, **options):
    images = rng.integers(0, 256, size=(4, 1, 6, 6), dtype=np.uint8)
    shown = io.StringIO()
    console = Console(file=shown, width=100, **options)
    typed = iter(lines)

    def read():
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    return PersonOracle(images, CATS, folder / "question.png", console, read, write_file), shown


def test_a_person_is_asked_until_the_answer_is_understood(tmp_path, rng):
    oracle, shown = person(["", "c", "?", "catf"], tmp_path, rng)
    assert oracle.ask(2, "question [1] of 9") == 1
    said = shown.getvalue()
    assert "question [1] of 9" in said
    assert f"image 2: {tmp_path}" in said.replace("\n", "")
    assert "nothing was typed" in said
    assert "cat, catfish" in said
    assert "2 Dog" in said
    assert (tmp_path / "question.png").read_bytes() == as_png(oracle.images[2])
    assert "▀" not in said  # not a terminal
    assert oracle.ask(2, "again") is Command.QUIT  # no more lines


def test_a_terminal_with_colours_shows_the_image(tmp_path, rng):
    oracle, shown = person(["undo"], tmp_path, rng, force_terminal=True, color_system="truecolor")
    assert oracle.ask(0, "question") is Command.UNDO
    assert shown.getvalue().count("▀") == 6 * 3


def paint(folder, names, rng):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size=(9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize(
    ("files", "given", "names", "labels", "tests"),
    [
        (["unlabelled/a.png", "unlabelled/x/b.png"], ("u", "v"), ("u", "v"), [-1, -1], []),
        (["a.png", "b.png"], ("u", "v"), ("u", "v"), [-1, -1], []),
        (["mine/may/a.png", "mine/june/b.png"], ("u", "v"), ("u", "v"), [-1, -1], []),
        (
            ["in/train/v/1.png", "in/train/u/2.png", "in/Unlabeled/3.png", "in/test/u/4.png"],
            (),
            ("u", "v"),
            [0, 1, -1],
            [0],
        ),
        (["train/u/1.png", "unlabelled/3.png"], ("w", "u"), ("w", "u"), [1, -1], []),
        (["train/u/1.png", "unlabelled/3.png"], ("w",), ("w", "u"), [1, -1], []),
    ],
)
def test_images_that_nobody_has_labelled(files, given, names, labels, tests, tmp_path, rng):
    paint(tmp_path, files, rng)
    dataset = read_partly_labelled(tmp_path, None, given)
    assert not dataset.complete
    assert dataset.class_names == names
    assert dataset.train_labels.tolist() == labels
    assert dataset.test_labels.tolist() == tests
    assert dataset.image_shape == (3, 9, 8)
    with pytest.raises(DataError, match=f"image {labels.index(-1)} has no label"):
        DatasetOracle(dataset.train_labels)(np.array([labels.index(UNLABELLED)]))


def test_a_labelled_folder_is_read_as_ever(tmp_path, rng):
    paint(tmp_path, [f"{part}/{name}/0.png" for part in ("train", "test") for name in "uv"], rng)
    assert read_partly_labelled(tmp_path).complete


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (["unlabelled/a.png"], (), "the classes are not known; name at least two"),
        (["unlabelled/a.png"], ("u",), "the classes are u; name at least two"),
        (["unlabelled/a.png"], ("u", "u"), "name at least two, each once"),
        (["unlabelled/a.png", "train/b.png"], ("u", "v"), "lies in no class folder"),
        (["train/u/a.png", "test/v/a.png"], ("u", "v"), "holds no image without a label"),
    ],
)
def test_folders_that_cannot_be_labelled(files, given, message, tmp_path, rng):
    paint(tmp_path, files, rng)
    with pytest.raises(DataError, match=message):
        read_partly_labelled(tmp_path, None, given)
