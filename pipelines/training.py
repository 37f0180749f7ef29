"""One training of a run: from labelled images to weights on disk and what the record says of it."""

from typing import Any

import numpy as np
from torch import nn

from bridge import export
from pipelines import companion as companions
from pipelines.config import RunConfig
from pipelines.record import Run
from pipelines.seeds import generator
from pipelines.stages import Stages
from trainer.fit import fit
from trainer.networks.loss_prediction import LossPrediction


def fit_and_save(
    network: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: RunConfig,
    run: Run,
    number: int,
    stages: Stages,
    companion: LossPrediction | None = None,
) -> dict[str, Any]:
    """Train from the network's present weights and save.

    Args:
        network: is trained in place.
        images: labelled, as the network takes them.
        labels: the class of each.
        config: of the run.
        run: where the weights go.
        number: of the training in this run, from 0.
        stages: where time and progress are noted.
        companion: a module trained along, and saved beside the network; None for none.

    Returns:
        `train_accuracy`, `fit` and `seconds`, JSON-able.

    Raises:
        FitError: images and labels that cannot be trained on, or training that diverges.
    """
    with stages("fit") as advance:
        rng = generator(config.seed, "fit", number)
        fitted = fit(network, images, labels, config.train, rng, advance, companion)
        companions.keep(companion, run, number)  # first: weights of the network end a training
        export.save(network, run.weights(number), {"round": str(number)})
    return {
        "train_accuracy": fitted.train_accuracy,
        "fit": {
            "steps": fitted.steps,
            "epochs": fitted.epochs,
            "fitted": fitted.fitted,
            "stopped": fitted.stopped,
            "residual_rms": fitted.residual_rms,
        },
        "seconds": stages.seconds["fit"],
    }
