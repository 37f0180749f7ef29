"""All of the data that a result depends on is in their fingerprint, and no other may be resumed."""

import dataclasses
import shutil

import numpy as np
import pytest

from pipelines import run
from pipelines.core.errors import PipelineError
from tests.cases.image_trees import NAMES, folder, images
from tests.cases.test_class_without_tests import config
from trainer.data import load


def moved_test_image(data):
    shutil.move(data / "test/a/0.png", data / "test/b/2.png")


def moved_train_image(data):
    shutil.move(data / "train/a/0.png", data / "train/b/2.png")


def another_test_image(data):
    shutil.copy(data / "test/b/0.png", data / "test/a/0.png")


def another_class(data):
    for split in ("train", "test"):
        shutil.move(data / split / "a", data / split / "z")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (moved_test_image, "data.test_labels hold other values"),
        (moved_train_image, "data.train_labels hold other values"),
        (another_test_image, "data.test_images hold other values"),
        (another_class, "data.classes is"),
    ],
)
def test_a_run_on_other_data_is_not_resumed(tmp_path, change, said):
    names = [*NAMES, *(f"train/{name}/{i}.png" for name in "ab" for i in range(2, 6))]
    data = folder(tmp_path / "data", images(*names))
    run.run(config(data, tmp_path / "run"))
    change(data)
    with pytest.raises(PipelineError, match=f"made with another configuration: .*{said}"):
        run.run(config(data, tmp_path / "run"))


def test_every_part_of_the_data_is_in_the_fingerprint():
    dataset = load("digits", None)
    changes = {
        "train_images": dataset.train_images[:, :, ::-1],
        "train_labels": dataset.train_labels[::-1],
        "test_images": 255 - dataset.test_images[:],
        "test_labels": (dataset.test_labels + 1) % 10,
        "mean": (0.5,),
        "std": (0.5,),
    }
    known = dataset.fingerprint()
    for field, value in changes.items():
        other = dataclasses.replace(dataset, **{field: value}).fingerprint()
        assert [n for n in known if known[n] != other[n]] == [
            field if field in known else "normalisation"
        ]
    sized = load("digits", None, image_size=4).fingerprint()
    assert all(known[name] != sized[name] for name in ("train_images", "test_images"))


def test_the_shape_is_part_of_the_fingerprint():
    dataset = load("digits", None)
    wide, tall = (
        dataclasses.replace(
            dataset,
            train_images=np.zeros((1438, 1, *shape), np.uint8),
            test_images=np.zeros((359, 1, *shape), np.uint8),
        ).fingerprint()
        for shape in ((2, 8), (8, 2))
    )
    assert wide["train_images"] != tall["train_images"]
