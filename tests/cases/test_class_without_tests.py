"""A class that is never tested is noted wherever data are summarised or an accuracy is told."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from pipelines import digits, dry_run, run
from pipelines import images as own_images
from pipelines.core import record
from pipelines.report import curves
from pipelines.report.build import caveats
from pipelines.sequential.config import SequentialConfig
from pipelines.sequential.run import run as sequential
from tests.cases.image_trees import folder, images
from trainer.data import load
from trainer.dataset import UNLABELLED, assemble
from trainer.images import read_images, read_partly_labelled

NOTE = "test has no images of c: the test accuracy is that of the other 2 of 3 classes."


@pytest.fixture
def data(tmp_path):
    names = [f"train/{name}/{i}.png" for name in "abc" for i in range(4)]
    return folder(tmp_path / "data", images(*names, "test/a/0.png", "test/b/0.png"))


def config(data, folder, **changes):
    return dataclasses.replace(
        own_images.DEFAULTS,
        data_dir=data,
        run=folder,
        initial=4,
        query=2,
        cycles=1,
        subset=None,
        strategy="margin",
        network="tests.own_network:make",
        network_args=("hidden=8",),
        train=dataclasses.replace(own_images.DEFAULTS.train, epochs=2, min_steps=2, extensions=0),
        **changes,
    )


def test_the_data_note_it(data):
    assert read_images(data).notes == (NOTE,)
    assert load("digits", None).notes == ()


def test_classes_that_are_tested_and_never_trained(tmp_path):
    pixels = np.zeros((3, 1, 4, 4), np.uint8)
    train, test = (pixels, np.array([0, 0, 1])), (pixels, np.array([0, 1, 2]))
    (note,) = assemble("own", train, test, ("a", "b", "c"), flip=False).notes
    assert note == "test has images of c and train has none with that label."
    unlabelled = (pixels, np.array([0, 1, UNLABELLED]))
    assert assemble("own", unlabelled, test, "abc", flip=False, complete=False).notes == (note,)
    nothing = (pixels[:0], np.zeros(0, int))
    assert assemble("own", unlabelled, nothing, "abc", flip=False, complete=False).notes == ()
    own = folder(tmp_path, images("train/a/0.png", "unlabelled/1.png", "test/b/0.png"))
    assert len(read_partly_labelled(own).notes) == 2


def test_a_run_says_it_before_and_after_its_accuracies_and_so_does_the_report(data, tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    made = run.run(config(data, tmp_path / "run"), console)
    lines = shown.getvalue().splitlines()
    where = [number for number, line in enumerate(lines) if NOTE in line]
    (heading,) = [number for number, line in enumerate(lines) if "test acc train acc" in line]
    assert len(where) == 2
    assert where[0] == heading - 1
    assert where[1] > heading + 2
    (group,) = curves.groups([record.read(made.path)])
    assert f"Of the data: {NOTE}" in caveats(group, curves.tidy(group))
    shown.truncate(0)
    dry_run.dry_run(config(data, tmp_path / "planned"), console)
    assert NOTE in shown.getvalue()


def test_a_note_is_no_part_of_what_identifies_a_run(data, tmp_path):
    begun = run.run(config(data, tmp_path / "run"))
    (data / "validation").mkdir()
    folder(data, images("validation/a/0.png"))
    again = run.run(config(data, tmp_path / "run"))
    assert again.identity == begun.identity
    assert len(again.config["machine"]["data_notes"]) == 2


def test_a_sequential_run_says_it(data, tmp_path):
    shown = io.StringIO()
    own = {
        field.name: getattr(config(data, tmp_path / "run"), field.name)
        for field in dataclasses.fields(digits.DEFAULTS)
        if field.name not in ("query", "cycles", "strategy")
    }
    asked = SequentialConfig(**own, strategy="random", budget=2)
    sequential(asked, Console(file=shown, width=200))
    assert shown.getvalue().count(NOTE) == 2
