"""The module that a run's strategy has trained along with the network: made, kept, taken up.

From settings, data and an untrained network to a fresh module, and between it and the run's folder.
"""

from torch import nn

from bridge import export
from bridge.weights import read
from pipelines.config import RunConfig
from pipelines.record import Run
from pipelines.seeds import generator
from pipelines.strategies.situation import PROBE
from trainer.data import Dataset
from trainer.networks.loss_prediction import LossPrediction


def companion_of(config: RunConfig, dataset: Dataset, network: nn.Module) -> LossPrediction | None:
    """A fresh module for an untrained network, or None for a strategy that needs none.

    Raises:
        NetworkError: the network has no feature map that it could read, or not the ones named.
    """
    if "hooks" not in config.needs or not config.cycles:
        return None
    settings = config.ll4al
    return LossPrediction.of(
        network,
        dataset.normalise(dataset.train_images[:PROBE]),
        generator(config.seed, "companion"),
        settings.taps,
        width=settings.width,
        margin=settings.margin,
        weight=settings.weight,
        detach=settings.detach,
        learning_rate=settings.learning_rate,
        felt=settings.share(config.train.loss, dataset.classes),
    )


def keep(companion: LossPrediction | None, run: Run, number: int) -> None:
    """Save what was trained along in a training of the run, if anything was.

    Raises:
        BridgeError: it cannot be written.
    """
    if companion is not None:
        export.save(companion, run.companion(number), {"round": str(number)})


def take_up(companion: LossPrediction | None, run: Run, number: int) -> None:
    """Put what was saved of a training back into the module, if there is one.

    Raises:
        BridgeError: it is not there, or of another module.
    """
    if companion is not None:
        export.restore(companion, read(run.companion(number)))
