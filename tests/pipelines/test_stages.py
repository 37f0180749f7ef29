import json
import subprocess
import sys

import pytest
from rich.console import Console

from pipelines.core.progress import Stages, generator


def test_seconds_add_up_by_name_and_keep_their_order():
    stages = Stages()
    for name in ("kernel", "score", "kernel"):
        with stages(name) as advance:
            advance(1, 2)
    assert list(stages.seconds) == ["kernel", "score"]
    assert all(seconds > 0 for seconds in stages.seconds.values())


def test_a_stage_that_fails_is_noted_and_the_failure_goes_on():
    stages = Stages()
    with pytest.raises(KeyError, match="lost"), stages("kernel"):
        raise KeyError("lost")
    assert "kernel" in stages.seconds


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_peak_memory_is_that_of_the_stage():
    """In a process of its own: a large one may have memory to reuse, and then does not grow."""
    code = """
import json
import numpy as np
from pipelines.core.progress import Stages

stages = Stages()
for name, size in (("before", 1), ("large", 2**25), ("after", 1)):
    with stages(name):
        np.ones(size).sum()
print(json.dumps(stages.peak_memory_mib))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak = json.loads(said.stdout)
    assert peak["large"] - peak["before"] == pytest.approx(256, abs=16)
    assert peak["large"] - peak["after"] == pytest.approx(256, abs=16)


def test_a_bar_on_a_terminal_shows_stage_progress_and_words(capsys):
    stages = Stages(Console(force_terminal=True, width=100))
    with stages("kernel") as advance:
        advance(3, 7, "a sentence that is much too long for the line of a progress bar")
    shown = capsys.readouterr().out
    assert "kernel" in shown
    assert "43%" in shown
    assert "progress bar" not in shown


def test_streams_differ_by_seed_name_and_round_and_repeat():
    draws = {
        tuple(generator(seed, name, number).integers(2**62, size=2))
        for seed in (0, 1)
        for name in ("fit", "subset")
        for number in (0, 1)
    }
    assert len(draws) == 8
    assert generator(3, "fit", 2).random() == generator(3, "fit", 2).random()
