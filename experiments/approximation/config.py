"""The settings of the study; the command line is made from this dataclass."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernel.options import KINDS, PRECISIONS
from pipelines.config import RunConfig, at_width, check_list, computed, first_round, folder
from pipelines.errors import PipelineError
from trainer.errors import lookup
from trainer.fit import TrainConfig

INITIAL, TRAINED = "initial", "trained"
STATES = (INITIAL, TRAINED)
FULL = "full"
SCALAR = tuple(kind for kind in KINDS if kind != FULL)


@dataclass(frozen=True)
class ApproximationConfig:
    """Compare cheap kernels with the full one, at several widths, before and after training.

    Attributes:
        dataset: digits, mnist, fashion_mnist, svhn, cifar10, cifar100, caltech101 or images.
        seed: the one seed of everything random; network and labelled set are those that the first
            round of a run with this seed has.
        initial: labelled images, drawn uniformly: the network is trained on them, kernels between
            them are compared, and regression is on their labels.
        test: images drawn uniformly from the test set, that regression predicts.
        states: at which weights: initial, trained.
        kinds: which kernels are compared with the full one: sum (the pNTK of [P]), single,
            rademacher, trace.
        probes: numbers of projections of the kind rademacher; each is a kernel of its own.
        ridges: what is added to the diagonal for regression, the same for every kernel, as
            fractions of the mean diagonal of the full one; 0 is the case that [P]'s theory is of.
        network: wide_resnet, or your own as module:factory, such as
            experiments.approximation.networks:convnet (see docs/approximation.md).
        network_args: arguments of the network, as name=value.
        widths: values of the argument `width_argument` of the network; none keeps network_args.
        width_argument: name of that argument.
        twin: your own JAX function in place of the mirror, as module:function (see a run's --help).
        image_size: pixels of a side that images are resized to.
        data_dir: folder of the data set; by default the variable NTK_DATA_DIR, then ./data.
        download: fetch the data set into data_dir when it is not there and can be fetched.
        run: directory of what is found; by default approximations/DATASET-NETWORK-seedN. What was
            measured there with the same settings is not measured again.
        device: where the network is trained; auto takes a GPU if there is one.
        precision: of gradients and their contraction.
        memory_gib: what the full kernel, and what is made of it, may take.
        dry_run: tell what there is to do and about how long it takes, and stop.
        train: of the network.
    """

    dataset: str = "digits"
    seed: int = 0
    initial: int = 100
    test: int = 100
    states: tuple[Literal["initial", "trained"], ...] = STATES
    kinds: tuple[Literal["sum", "single", "rademacher", "trace"], ...] = (
        "sum",
        "single",
        "rademacher",
        "trace",
    )
    probes: tuple[int, ...] = (1, 4)
    ridges: tuple[float, ...] = (0.0, 0.01, 1.0)
    network: str = "wide_resnet"
    network_args: tuple[str, ...] = ()
    widths: tuple[int, ...] = (1, 2, 4)
    width_argument: str = "widen"
    twin: str | None = None
    image_size: int | None = None
    data_dir: Path | None = None
    download: bool = True
    run: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "float64"] = "float64"
    memory_gib: float = 4.0
    dry_run: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        """Refuse what can be seen to be wrong before anything is read.

        Raises:
            UnknownNameError: a state, kernel kind or precision that is not there.
            PipelineError: a number out of range, an empty list, one that repeats itself.
        """
        for state in self.states:
            lookup(dict.fromkeys(STATES), state, "state")
        for kind in self.kinds:
            lookup(dict.fromkeys(SCALAR), kind, "kind of scalar-valued kernel")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        for name, least in {"seed": 0, "initial": 2, "test": 1}.items():
            if getattr(self, name) < least:
                raise PipelineError(f"{name} must be {least} or more, not {getattr(self, name)}.")
        for name in ("states", "kinds", "probes", "ridges", "widths"):
            least = 0 if name == "ridges" else 1
            check_list(name, getattr(self, name), least, empty=name == "widths")
        if not self.memory_gib > 0:
            raise PipelineError(f"memory_gib must be above 0, not {self.memory_gib}.")
        _ = self.run_config()

    @property
    def networks(self) -> tuple[int | None, ...]:
        """Widths of the networks, narrowest first; None where network_args stand as they are."""
        return tuple(sorted(self.widths)) or (None,)

    @property
    def run_folder(self) -> Path:
        """Where the record is written."""
        return folder(self, "approximations")

    def run_config(self, width: int | None = None) -> RunConfig:
        """The run whose first round has the network of this width."""
        return first_round(self, at_width(self.network_args, self.width_argument, width))

    def record(self) -> dict[str, Any]:
        """What is computed, JSON-able: everything but the machine's own places."""
        return computed(self)
