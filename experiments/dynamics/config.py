"""Settings of the dynamics experiment; its command line is made from this dataclass."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from kernel.options import KINDS, PRECISIONS, PROBES, Request
from pipelines.config import MeasurementSettings, check_list
from pipelines.core.errors import PipelineError
from trainer.config import TrainConfig
from trainer.errors import lookup

# Of [D]: mmd is its Figure 1, tau 2, ratio 4, gamma 5; envelope is its Eqs. 16 and 17.
FIGURES = ("mmd", "tau", "envelope", "ratio", "gamma")
_FEWEST = 8  # draws for which quartiles and rank correlations are meaningful


def _train_of_d() -> TrainConfig:
    """[D]'s training."""
    return TrainConfig(loss="cross_entropy", optimiser="adam", augmentation="none")


def _names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


@dataclass(frozen=True)
class TheoryConfig(MeasurementSettings):
    """Measure on a network what the theory of dynamicAL says of training dynamics.

    Attributes:
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
        run: directory of the results; by default dynamics/DATASET-NETWORK-seedN. What was measured
            there with the same settings is not measured again.
        train: of the network; [D]'s cross-entropy and Adam.
    """

    FOLDER: ClassVar[str] = "dynamics"

    subset: int = 500
    queries: tuple[int, ...] = (50, 100, 200)
    figures: tuple[Literal["mmd", "tau", "envelope", "ratio", "gamma"], ...] = FIGURES
    draws: int = 200
    repeats: int = 20
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100, 200)
    runs: tuple[Path, ...] = field(default=(), metadata={"identity": _names})
    kind: Literal["single", "sum", "trace", "rademacher", "full"] = "trace"
    probes: int = PROBES
    sketch: int | None = None
    network: str = "cnn"
    train: TrainConfig = field(default_factory=_train_of_d)

    def __post_init__(self):
        """Validate before anything is read.

        Raises:
            UnknownNameError: an unknown figure, kernel kind or precision.
            PipelineError: a number out of range, an empty list, one with duplicates.
        """
        super().__post_init__()
        for figure in self.figures:
            lookup(dict.fromkeys(FIGURES), figure, "figure")
        lookup(dict.fromkeys(KINDS), self.kind, "kernel kind")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        self.check_at_least(seed=0, initial=1, probes=1, draws=_FEWEST, repeats=2)
        for name, value in (("figures", None), ("queries", 1), ("epochs", 0)):
            check_list(name, getattr(self, name), value)
        if self.sketch is not None and self.sketch < 1:
            raise PipelineError(f"sketch must be 1 or more, or none, not {self.sketch}.")
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
        self.check_memory()
        self.first_round()

    @classmethod
    def of_dataset(cls, dataset: str) -> Self:
        """The default settings, with [D]'s training for every data set."""
        return cls(dataset=dataset)

    @property
    def measured(self) -> bool:
        """Whether there is anything to measure, or only runs to read."""
        return set(self.figures) != {"gamma"}

    @property
    def request(self) -> Request:
        """The kernel to compute."""
        return Request(
            self.kind, self.probes, self.precision, self.sketch, memory_gib=self.memory_gib
        )


def of_epochs(train: TrainConfig, epochs: int, labelled: int) -> TrainConfig:
    """The first epochs of a training, with its batches, whether or not it would stop before.

    With Adam's constant rate these are the very steps that the whole training begins with. With SGD
    the rate follows a schedule, which is then as long as the epochs asked for.
    """
    batches, _ = train.plan(labelled)
    return dataclasses.replace(
        train, epochs=epochs, min_steps=epochs * batches, extensions=0, stop="schedule"
    )
