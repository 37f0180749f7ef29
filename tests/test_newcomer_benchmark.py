"""The benchmark of a newcomer's accuracy runs at a tiny size; its intervals are by hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import newcomer
from benchmarks.measuring import read
from benchmarks.newcomer import THEIRS, Score, Settings, draw, table
from trainer.predict import logits

ARMS = ("head, l2", "last:2, cross_entropy")


def photos(_: Settings) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(0), np.arange(27) % 9
    patterns = rng.normal(size=(9, 3, 32, 32))
    noise = rng.normal(size=(27, 3, 32, 32))
    return (patterns[labels] + 0.3 * noise).astype(np.float32), labels


@pytest.mark.slow
def test_every_training_is_measured_from_the_same_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(newcomer, "photos", photos)
    settings = Settings(
        tmp_path, seeds=(3, 4), labelled=2, image_size=32, arms=ARMS, json=tmp_path / "n.json"
    )
    network = newcomer.pretrained(settings)
    images, labels = photos(settings)
    before = logits(network, images[:4])
    monkeypatch.setattr(newcomer, "pretrained", lambda _: network)
    newcomer.main(settings)
    assert np.array_equal(logits(network, images[:4]), before)
    figures = read(settings.json)
    assert set(figures) == {THEIRS, *ARMS}
    assert all(len(own) == 2 for own in figures.values())
    for name in figures:
        # a guess is right once in nine
        assert np.mean([one["accuracy"] for one in figures[name]]) > 0.3, name
    assert "| head, l2 | " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("NTK_DATA_DIR" not in os.environ, reason="needs Caltech-101")
def test_the_head_is_as_accurate_as_logistic_regression(tmp_path):
    arms = ("head, l2", "head, cross_entropy")
    settings = Settings(Path(os.environ["NTK_DATA_DIR"]), arms=arms)
    images, labels = newcomer.photos(settings)
    rows = table(newcomer.measure(newcomer.pretrained(settings), images, labels, settings))
    assert [row[3] for row in rows] == ["", "≥ -1.5: yes", "≥ -1.5: yes"]


def test_a_draw_has_as_many_of_each_class():
    labels = np.repeat(np.arange(3), 5)
    labelled, others = draw(labels, 2, seed=0)
    assert np.bincount(labels[labelled]).tolist() == [2, 2, 2]
    assert sorted([*labelled, *others]) == list(range(15))
    assert not np.array_equal(labelled, draw(labels, 2, seed=1)[0])


@pytest.mark.parametrize(("loss", "met"), [(0.01, "yes"), (0.03, "**no**")])
def test_intervals_are_of_paired_differences(loss, met):
    reference = [0.5, 0.7, 0.9]
    own = [one - loss + change for one, change in zip(reference, (-0.001, 0, 0.001), strict=True)]
    scores = {
        THEIRS: [Score(one, 1.0) for one in reference],
        "head, l2": [Score(one, 2.0, 0.1) for one in own],
    }
    half = 4.302653 * 0.1 / 3**0.5
    (_, row) = table(scores)
    low, high = -100 * loss - half, -100 * loss + half
    assert row[1] == f"{100 * (0.7 - loss):.1f}%"
    assert row[2] == f"{-100 * loss:+.2f} ({low:+.2f}, {high:+.2f})"
    assert row[3:] == (f"≥ -1.5: {met}", "0.1", "2.00")
