"""The benchmark of all strategies: it runs at a tiny size, and its table by hand."""

import json
import sys

import pytest
import torch

from benchmarks import strategies
from benchmarks.measuring import Times
from benchmarks.strategies import Cost, Settings, table


def test_a_row_by_hand():
    head, rows = table(
        {
            10: {"naive": Cost(Times((2.5,)), 20, 0.5, 0.25)},
            100: {"naive": Cost(Times((3.0, 9.0, 4.0)), 20, 0.5, 0.125)},
        }
    )
    assert head[3:] == [
        "C = 10: seconds (least–most)",
        "C = 10: GiB",
        "C = 100: seconds (least–most)",
        "C = 100: GiB",
    ]
    assert rows == [("naive", "20", "1", "2.5", "0.250", "4 (3–9)", "0.125")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_prints_its_table_and_writes(tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(strategies, "apart", lambda work, *arguments: work(*arguments))
    path = tmp_path / "strategies.json"
    names = ("badge", "one_step", "ll4al", "albl")  # no mirror is compiled
    settings = Settings(
        strategies=names,
        classes=(5,),
        labelled=6,
        candidates=12,
        batch=2,
        side=6,
        scored=4,
        repeats=2,
        threads=1,
        json=path,
    )
    strategies.main(settings)
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0].lstrip("| "): line.split(" | ")[1:3] for line in shown[2:6]}
    assert rows["badge"] == ["12", "2"]
    assert rows["one_step"] == ["4", "1"]
    assert "L = 6, U = 12, b = 2" in shown[-1]
    figures = json.loads(path.read_text("utf-8"))["figures"]
    assert set(figures) == {"5"}
    assert set(figures["5"]) == set(names)
    assert len(figures["5"]["albl"]["times"]["seconds"]) == 2
