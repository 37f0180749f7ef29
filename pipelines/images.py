"""Your own images: a folder, zip or tar of train/CLASS/… and test/CLASS/…, given as --data-dir."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="images",
    initial=100,
    query=20,
    subset=2000,
    network="wide_resnet",
    network_args=("stages=1", "widen=2"),
    train=TrainConfig(augmentation="crop"),
)

if __name__ == "__main__":
    main(DEFAULTS)
