"""One training of a run: from labelled images to weights on disk and what the record says of it."""

from typing import Any

import numpy as np
from torch import nn

from bridge import export
from pipelines import companion as companions
from pipelines.config import RunConfig
from pipelines.first_training import FirstTrainings
from pipelines.record import Run
from pipelines.seeds import generator
from pipelines.stages import Stages
from trainer.fit import FitResult, fit
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
    first: FirstTrainings | None = None,
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
        first: where the first training of a run may lie that another did; None looks nowhere.

    Returns:
        `train_accuracy`, `fit` and `seconds`, JSON-able; with `first` also `shared`, the name of
        the training there, of a training that can be shared.

    Raises:
        FitError: images and labels that cannot be trained on, or training that diverges.
    """

    def train() -> dict[str, Any]:
        with stages("fit") as advance:
            rng = generator(config.seed, "fit", number)
            fitted = fit(network, images, labels, config.train, rng, advance, companion)
        return _notes(fitted, stages.seconds["fit"])

    if first is None or number or companion is not None:
        trained = train()
    else:
        trained = first.once(network, images, labels, config, train)
        stages.seconds["fit"] = trained["seconds"]
    companions.keep(companion, run, number)  # first: weights of the network end a training
    export.save(network, run.weights(number), {"round": str(number)})
    return trained


def _notes(fitted: FitResult, seconds: float) -> dict[str, Any]:
    return {
        "train_accuracy": fitted.train_accuracy,
        "fit": {
            "steps": fitted.steps,
            "epochs": fitted.epochs,
            "fitted": fitted.fitted,
            "stopped": fitted.stopped,
            "residual_rms": fitted.residual_rms,
        },
        "seconds": seconds,
    }
