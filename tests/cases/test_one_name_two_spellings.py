"""A class called the same by macOS (decomposed) and everyone else (composed) is one class."""

import unicodedata

import pytest

from tests.cases.image_trees import folder, images, packed, tar
from trainer.data import load
from trainer.errors import DataError
from trainer.images import read_images, read_partly_labelled
from trainer.oracle import parse_answer

NFC, NFD = (unicodedata.normalize(form, "bébé") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("train", [(NFD,), (NFC, NFD)])
def test_both_spellings_are_one_class(tmp_path, kind, train):
    names = [f"train/{name}/{i}.png" for name in ("chien", *train) for i in (0, 1)]
    files = images(*names, *(f"test/{name}/{i}.png" for name in ("chien", NFC) for i in (0, 1)))
    way = {"folder": folder, "zip": packed, "tar": tar}[kind]
    dataset = read_images(way(tmp_path / f"own.{kind}", files))
    assert dataset.class_names == (NFC, "chien")
    assert dataset.train_labels.tolist() == [0, 0] * len(train) + [1, 1]
    assert dataset.test_labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("given", [NFC, NFD])
@pytest.mark.parametrize("stored", [NFC, NFD])
def test_a_class_named_on_the_command_line_is_the_folders(tmp_path, given, stored):
    own = folder(tmp_path, images(f"train/{stored}/0.png", "unlabelled/1.png"))
    dataset = read_partly_labelled(own, None, (given, "chien"))
    assert dataset.class_names == (NFC, "chien")
    assert dataset.train_labels.tolist() == [0, -1]


@pytest.mark.parametrize("typed", [NFC, NFD, NFD[:3]])
def test_an_answer_is_understood_in_either(typed):
    assert parse_answer(typed, (NFC, "chien")) == 0


@pytest.mark.parametrize(
    ("given", "other"),
    [
        ("Cat", "cat"),
        ("cat ", "cat"),
        ("my  cat", "my cat"),
        ("mycat", "my cat"),
        ("ﬁsh", "fish"),  # a ligature
        ("ｃａｔ", "cat"),
        ("catt", "cat"),
        ("hosre", "horse"),
        ("hose", "horse"),
        ("house", "horse"),
    ],
)
def test_a_name_that_resembles_a_folders_is_refused_with_a_suggestion(tmp_path, given, other):
    own = folder(tmp_path, images(f"train/{other}/0.png", "unlabelled/1.png"))
    with pytest.raises(DataError, match=rf"resembles the folder '{other}'.*Did you mean '{other}'"):
        read_partly_labelled(own, None, (given, "dog"))


@pytest.mark.parametrize(
    "given", [("cat", "car"), ("dog", "goat"), ("class2", "class3"), ("u", "v"), ("11", "12")]
)
def test_names_that_are_meant_are_let_through(tmp_path, given):
    """Two classes that are both named, that differ in a digit, or that are too short for a typo."""
    stored = {"dog": "cat", "class2": "class1", "u": "w", "11": "10"}.get(given[0], given[0])
    own = folder(tmp_path, images(f"train/{stored}/0.png", "unlabelled/1.png"))
    assert set(given) <= set(read_partly_labelled(own, None, given).class_names)


@pytest.mark.parametrize(("one", "other"), [("cat", "cat "), ("fish", "ﬁsh"), ("a b", "a  b")])
def test_folders_that_look_alike_are_refused(tmp_path, one, other):
    names = [f"{split}/{name}/0.png" for split in ("train", "test") for name in (one, other)]
    with pytest.raises(DataError, match="look alike and would be two"):
        load("images", packed(tmp_path / "own.zip", images(*names)))


def test_upper_case_alone_is_noted_and_refused_between_train_and_test(tmp_path):
    names = [f"{split}/{name}/0.png" for split in ("train", "test") for name in ("A", "a")]
    (note,) = load("images", folder(tmp_path / "letters", images(*names))).notes
    assert "'A' and 'a' differ by upper case alone and are two here" in note
    names = ["train/cat/0.png", "train/dog/0.png", "test/Cat/0.png", "test/dog/0.png"]
    with pytest.raises(DataError, match=r"Cat have test images.*\('Cat' resembles 'cat'\)"):
        load("images", folder(tmp_path / "split", images(*names)))
    files = images(*names, "unlabelled/0.png")
    with pytest.raises(DataError, match="'Cat' and 'cat' .* look alike"):
        read_partly_labelled(folder(tmp_path / "partly", files))


def test_names_of_one_letter_more_are_two_classes(tmp_path):
    names = [f"{split}/{name}/0.png" for split in ("train", "test") for name in ("cat", "cats")]
    assert load("images", folder(tmp_path, images(*names))).notes == ()
