"""The digits that scikit-learn ships: nothing to download, minutes on a laptop."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="digits",
    initial=30,
    query=10,
    subset=500,
    cycles=5,
    network="wide_resnet",
    network_args=("stages=1", "widen=1"),
    train=TrainConfig(augmentation="none"),
)

if __name__ == "__main__":
    main(DEFAULTS)
