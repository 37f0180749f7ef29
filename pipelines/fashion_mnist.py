"""Fashion-MNIST with the values of MNIST; neither paper uses it."""

from pipelines.cli import main
from pipelines.config import RunConfig
from trainer.config import TrainConfig

DEFAULTS = RunConfig(
    dataset="fashion_mnist",
    initial=100,
    query=20,
    subset=4000,
    network="wide_resnet",
    network_args=("stages=1", "widen=20"),
    train=TrainConfig(augmentation="flip_crop"),
)

if __name__ == "__main__":
    main(DEFAULTS)
