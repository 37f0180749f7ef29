"""After a power cut a run comes to the same end, or names the file that is damaged."""

import os

import pytest

from tests.power_cut import STAGES, outcomes


@pytest.mark.skipif(os.name != "posix", reason="folders are flushed on POSIX")
@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_after_a_power_cut(stage, tmp_path):
    found = list(outcomes(stage, 6, tmp_path))
    assert len(found) >= 4
    assert [(cut.how, cut.where, was) for cut, was in found if was.startswith("DIFFERENT")] == []
