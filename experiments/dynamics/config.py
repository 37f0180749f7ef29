"""The settings of the measurement; the command line is made from this dataclass."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernel.options import KINDS, PRECISIONS, PROBES, Request
from pipelines.config import RunConfig, check_list, computed, first_round, folder
from pipelines.errors import PipelineError
from trainer.errors import lookup
from trainer.fit import TrainConfig

# Of [D]: mmd is its Figure 1, tau 2, ratio 4, gamma 5; envelope is its Eqs. 16 and 17.
FIGURES = ("mmd", "tau", "envelope", "ratio", "gamma")
OF_KERNEL = frozenset({"mmd", "tau", "envelope"})
_FEWEST = 8  # of which quartiles and rank correlations say something


def _trained() -> TrainConfig:
    """[D]'s training."""
    return TrainConfig(loss="cross_entropy", optimiser="adam")


@dataclass(frozen=True)
class TheoryConfig:
    """Measure on a network what the theory of dynamicAL says of training dynamics.

    Attributes:
        dataset: digits, mnist, fashion_mnist, svhn, cifar10, cifar100, caltech101 or images.
        seed: the one seed of everything random; network, labelled set and candidates are those
            that the first round of a run with this seed has.
        initial: labels at the start, S, drawn uniformly.
        subset: candidates, drawn from the pool, of which queries Q are made.
        queries: sizes of a query, b; [D] has 250 500 1000.
        figures: what is measured: mmd (MMD against the bound B), tau (G_MSE against alignment),
            envelope (how fast the error can fall), ratio (R over training) and gamma (accuracy by
            γ, from the runs named by `runs`).
        draws: random queries of each size between which tau is taken.
        repeats: random queries of each size for mmd and ratio.
        epochs: after how many epochs of training the ratio is measured; 0 is the initial network.
        runs: run directories, of the strategy `dynamical` with several gammas, for gamma.
        kind: the kernel of mmd, tau and envelope: single, sum, trace, rademacher or full.
        probes: of the kind rademacher.
        sketch: dimensions that gradients are folded to for it; None keeps them whole.
        precision: of gradients and their contraction.
        memory_gib: what the kernel may take.
        network: wide_resnet, resnet18, vgg11_bn, cnn, or your own as module:factory.
        network_args: arguments of the network, as name=value.
        twin: your own JAX function in place of the mirror, as module:function (see a run's --help).
        image_size: pixels of a side that images are resized to.
        data_dir: folder of the data set; by default the variable NTK_DATA_DIR, then ./data.
        download: fetch the data set into data_dir when it is not there and can be fetched.
        run: directory of what is found; by default dynamics/DATASET-NETWORK-seedN. What was
            measured there with the same settings is not measured again.
        device: where the network is trained; auto takes a GPU if there is one.
        dry_run: tell what there is to do and about how long it takes, and stop.
        train: of the network; [D]'s cross-entropy and Adam.
    """

    dataset: str = "digits"
    seed: int = 0
    initial: int = 100
    subset: int = 500
    queries: tuple[int, ...] = (50, 100, 200)
    figures: tuple[Literal["mmd", "tau", "envelope", "ratio", "gamma"], ...] = FIGURES
    draws: int = 200
    repeats: int = 20
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100, 200)
    runs: tuple[Path, ...] = ()
    kind: Literal["single", "sum", "trace", "rademacher", "full"] = "trace"
    probes: int = PROBES
    sketch: int | None = None
    precision: Literal["float32", "float64"] = "float32"
    memory_gib: float = 4.0
    network: str = "cnn"
    network_args: tuple[str, ...] = ()
    twin: str | None = None
    image_size: int | None = None
    data_dir: Path | None = None
    download: bool = True
    run: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    train: TrainConfig = field(default_factory=_trained)

    def __post_init__(self):
        """Refuse what can be seen to be wrong before anything is read.

        Raises:
            UnknownNameError: a figure, kernel kind or precision that is not there.
            PipelineError: a number out of range, an empty list, one that repeats itself.
        """
        for figure in self.figures:
            lookup(dict.fromkeys(FIGURES), figure, "figure")
        lookup(dict.fromkeys(KINDS), self.kind, "kernel kind")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        least = {"seed": 0, "initial": 1, "probes": 1, "draws": _FEWEST, "repeats": 2}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise PipelineError(f"{name} must be {value} or more, not {getattr(self, name)}.")
        for name, value in (("figures", None), ("queries", 1), ("epochs", 0)):
            check_list(name, getattr(self, name), value)
        if self.sketch is not None and self.sketch < 1:
            raise PipelineError(f"sketch must be 1 or more, or none, not {self.sketch}.")
        if not self.memory_gib > 0:
            raise PipelineError(f"memory_gib must be above 0, not {self.memory_gib}.")
        if max(self.queries) >= self.subset:
            raise PipelineError(
                f"a query of {max(self.queries)} is to be drawn from {self.subset} candidates: "
                "queries differ only if there are more candidates; raise subset or lower queries."
            )
        if self.runs and "gamma" not in self.figures:
            raise PipelineError("runs are read for the figure gamma, which is not in figures.")
        if self.figures == ("gamma",) and not self.runs:
            raise PipelineError(
                "gamma is read from recorded runs and none are given: name their directories "
                "with --runs, or ask for other figures."
            )
        _ = self.run_config

    @property
    def measured(self) -> bool:
        """Whether there is anything to measure, or only runs to read."""
        return set(self.figures) != {"gamma"}

    @property
    def request(self) -> Request:
        """What the kernel engine is asked for."""
        return Request(self.kind, self.probes, self.precision, memory_gib=self.memory_gib)

    @property
    def run_folder(self) -> Path:
        """Where the record is written."""
        return folder(self, "dynamics")

    @property
    def run_config(self) -> RunConfig:
        """The run whose first round has this network."""
        return first_round(self)

    def record(self) -> dict[str, Any]:
        """What is computed, JSON-able: everything but the machine's own places."""
        values = computed(self)
        values["runs"] = [path.name for path in self.runs]
        return values


def of_epochs(train: TrainConfig, epochs: int, labelled: int) -> TrainConfig:
    """The first epochs of a training, with its batches, whether or not it would stop before.

    With Adam's constant rate these are the very steps that the whole training begins with. With SGD
    the rate follows a schedule, which is then as long as the epochs asked for.
    """
    batches, _ = train.plan(labelled)
    return dataclasses.replace(
        train, epochs=epochs, min_steps=epochs * batches, extensions=0, stop="schedule"
    )
