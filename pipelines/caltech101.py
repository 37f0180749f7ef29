"""Caltech-101 with the values of dynamicAL ([D]): 500 labels, cross-entropy, Adam, ResNet18."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="caltech101",
    initial=500,
    query=500,
    subset=None,
    cycles=4,
    network="resnet18",
    train=TrainConfig(
        loss="cross_entropy", optimiser="adam", learning_rate=1e-3, augmentation="none"
    ),
)

if __name__ == "__main__":
    main(DEFAULTS)
