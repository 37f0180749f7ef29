"""CIFAR-100 with the look-ahead paper's values ([L]): 10000 labels, 1000 a cycle."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="cifar100",
    initial=10000,
    query=1000,
    subset=6000,
    network="wide_resnet",
    network_args=("stages=2", "widen=10"),
    train=TrainConfig(augmentation="flip_crop"),
)

if __name__ == "__main__":
    main(DEFAULTS)
