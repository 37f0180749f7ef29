"""Settings of the approximation experiment; its command line is made from this dataclass."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from kernel.options import KINDS, PRECISIONS
from pipelines.config import MeasurementSettings, RunConfig, check_list, with_width
from trainer.errors import lookup

INITIAL, TRAINED = "initial", "trained"
STATES = (INITIAL, TRAINED)
FULL = "full"
SCALAR = tuple(kind for kind in KINDS if kind != FULL)


@dataclass(frozen=True)
class ApproximationConfig(MeasurementSettings):
    """Compare cheap kernels with the full one, at several widths, before and after training.

    Attributes:
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
        widths: values of the argument `width_argument` of the network; none keeps network_args.
        width_argument: name of that argument.
        run: directory of the results; by default approximations/DATASET-NETWORK-seedN. What was
            measured there with the same settings is not measured again.
        memory_gib: what the full kernel, and what is computed from it, may take.
    """

    FOLDER: ClassVar[str] = "approximations"

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
    widths: tuple[int, ...] = (1, 2, 4)
    width_argument: str = "widen"
    precision: Literal["float32", "float64"] = "float64"

    def __post_init__(self):
        """Validate before anything is read.

        Raises:
            UnknownNameError: an unknown state, kernel kind or precision.
            PipelineError: a number out of range, an empty list, one with duplicates.
        """
        super().__post_init__()
        for state in self.states:
            lookup(dict.fromkeys(STATES), state, "state")
        for kind in self.kinds:
            lookup(dict.fromkeys(SCALAR), kind, "kind of scalar-valued kernel")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        self.check_at_least(seed=0, initial=2, test=1)
        for name in ("states", "kinds", "probes", "ridges", "widths"):
            least = 0 if name == "ridges" else 1
            check_list(name, getattr(self, name), least, empty=name == "widths")
        self.check_memory()
        self.run_config()

    @property
    def networks(self) -> tuple[int | None, ...]:
        """Widths of the networks, narrowest first; None where network_args stand as they are."""
        return tuple(sorted(self.widths)) or (None,)

    def run_config(self, width: int | None = None) -> RunConfig:
        """The run whose first round has the network of this width."""
        return self.first_round(with_width(self.network_args, self.width_argument, width))
