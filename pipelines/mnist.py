"""MNIST with the look-ahead paper's values ([L]): 100 labels, 20 a cycle from 4000 candidates."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="mnist",
    initial=100,
    query=20,
    subset=4000,
    network="wide_resnet",
    network_args=("stages=1", "widen=20"),
    train=TrainConfig(augmentation="crop"),
)

if __name__ == "__main__":
    main(DEFAULTS)
