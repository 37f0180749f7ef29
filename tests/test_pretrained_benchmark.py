"""The benchmark of pretrained networks runs at a tiny size; its rows say what was met."""

import sys

import numpy as np
import pytest
import torch

from benchmarks import pretrained
from benchmarks.measuring import read

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.filterwarnings("ignore")  # of scikit-activeml and timm
def test_every_part_is_measured_and_written(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(pretrained, "apart", lambda work, *arguments: work(*arguments))
    settings = pretrained.Settings(
        pools=(40,),
        strategies=("mlmoc", "max_herding"),
        width=16,
        latent=4,
        classes=3,
        labelled=6,
        batch=2,
        peers=40,
        picks=4,
        peer_repeats=1,
        candidates=50,
        sample=20,
        answer_classes=3,
        network="test_efficientnet",
        trained=("blocks.3", "conv_head", "classifier"),
        images=4,
        side=32,
        sketch=64,
        repeats=1,
        threads=threads,
        json=tmp_path / "p.json",
    )
    pretrained.main(settings)
    shown = capsys.readouterr().out
    for words in ("| 40 | mlmoc |", "| badge | 1 |", "absorbed and all scored", "frozen part of"):
        assert words in shown
    figures = read(settings.json)
    assert set(figures) == {"head, 40", "scikit-activeml", "absorbing", "last blocks", "prefix"}
    assert set(figures["head, 40"]["mlmoc"]) == {"first", "again"}
    assert figures["head, 40"]["mlmoc"]["first"]["grown"] >= 0


def test_features_are_correlated_and_labels_nearly_fitted():
    settings = pretrained.Settings(width=64, latent=3, classes=4, labelled=12)
    rows = pretrained.features(settings, 200)
    powers = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    assert powers[:3].sum() > 0.2 * powers.sum()
    head = pretrained.Head.made(settings, 200)
    with torch.no_grad():
        logits = head.network(torch.from_numpy(head.rows[:12])).numpy()
    assert (logits.argmax(axis=1) == list(head.labelled.values())).all()
