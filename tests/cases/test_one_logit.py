"""Networks with one logit: strategies that compare classes refuse them in words."""

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.core.errors import PipelineError
from pipelines.query import query
from pipelines.sequential import start
from pipelines.strategies import STRATEGIES, needing

IMAGES = np.random.default_rng(0).normal(size=(20, 3, 4, 4)).astype(np.float32)
LABELS = {0: 0, 5: 0}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).eval()


# refused for what comes first: dropout, a counterpart of infinite width
@pytest.mark.parametrize("name", sorted(needing("classes") - needing("dropout", "infinite")))
def test_one_logit_is_refused(name, network):
    with pytest.raises(PipelineError, match="compares classes, and .* returns 1 logit an image"):
        query(network, IMAGES, LABELS, 2, name)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - needing("classes")))
def test_one_logit_is_enough(name, network):
    found = query(network, IMAGES, LABELS, 2, name)
    assert np.ptp(found.candidate_scores) > 0


@pytest.mark.parametrize("name", ["margin", "entropy", "mlmoc"])
def test_one_logit_is_refused_one_label_at_a_time(name, network):
    with pytest.raises(PipelineError, match=f"{name} compares classes, and this Sequential"):
        start(network, IMAGES, LABELS, name)


class TwoLogits(nn.Module):
    """What the message advises."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        z = self.inner(images)
        return torch.cat([0 * z, z], 1)


def test_the_advice_works(network):
    found = query(TwoLogits(network).eval(), IMAGES, {0: 0, 5: 1}, 2, "margin")
    assert np.ptp(found.candidate_scores) > 0
