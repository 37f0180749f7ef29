"""Settings of an audit; its command line is made from this dataclass."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from kernel.options import KINDS, PROBES
from pipelines.config import MeasurementSettings, RunConfig, check_list, with_width
from pipelines.core.errors import PipelineError
from pipelines.strategies.options import KernelConfig
from trainer.config import TrainConfig
from trainer.errors import lookup

LEAST_CANDIDATES = 8
Kind = Literal["single", "sum", "trace", "rademacher", "full"]


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name


@dataclass(frozen=True)
class AuditConfig(MeasurementSettings):
    """Retrain a network for a sample of candidates, and compare with what look-ahead predicts.

    The table has a row for each combination of the lists.

    Attributes:
        subset: reference points, drawn from the pool, over which changes are summed.
        candidates: how many of these, drawn uniformly, are really retrained with; at least 8.
        repeats: retrainings for each candidate, with training seeds of their own; their agreement
            bounds what any prediction can reach. 1 leaves that unknown.
        controls: retrainings without a new label, at least 2 and as many as repeats: the effect of
            training on alone.
        kinds: kernels to predict with; the first is that of the conclusion. One that does not fit
            in the memory is left out, and named.
        probes: of the kind rademacher.
        sketches: dimensions that gradients are folded to; none keeps them whole.
        reference: of the conclusion: change from the trained network (`network`, drift included)
            or from the one trained on without a new label (`linearised`). The table has both.
        widths: values of the argument `width_argument` of the network; none keeps network_args.
        width_argument: name of that argument.
        train_steps: lengths of training, first and again, in optimiser steps; each in place of
            train.epochs and train.min_steps and without train.extensions.
        trained: a file of trained weights, or a run directory, in place of training. Of a run, its
            data, network, training and labelled set are taken too; a file belongs to the labelled
            set in `labelled`, or else to the one that `seed` and `initial` draw.
        labelled: a text file of data-set indices, one a line, that are labelled.
        run: directory of the audit; by default audits/DATASET-NETWORK-seedN. Trainings found there
            are not done again, whichever settings they do not depend on have changed.
        ridge: λ of the kernel regression, in units of the kernel.
    """

    FOLDER: ClassVar[str] = "audits"

    initial: int = 50
    subset: int = 200
    candidates: int = 24
    repeats: int = 2
    controls: int = 3
    kinds: tuple[Kind, ...] = ("single", "sum", "rademacher", "trace", "full")
    probes: tuple[int, ...] = (PROBES,)
    sketches: tuple[int | None, ...] = (None,)
    reference: Literal["network", "linearised"] = "network"
    widths: tuple[int, ...] = ()
    width_argument: str = "widen"
    train_steps: tuple[int, ...] = ()
    trained: Path | None = field(default=None, metadata={"identity": _name})
    labelled: Path | None = field(default=None, metadata={"identity": _name})
    ridge: float = 0.0

    def __post_init__(self):
        """Validate before anything is read.

        Raises:
            UnknownNameError: an unknown kernel kind or reference.
            PipelineError: a number out of range, an empty list, or options that exclude each other.
        """
        super().__post_init__()
        for kind in self.kinds:
            lookup(dict.fromkeys(KINDS), kind, "kernel kind")
        lookup(dict.fromkeys(("network", "linearised")), self.reference, "reference")
        # a rank correlation of fewer candidates is void; the effect of training alone is the
        # difference between two controls, and each repeat is compared with a control of its own
        self.check_at_least(seed=0, initial=1, repeats=1, candidates=LEAST_CANDIDATES)
        self.check_at_least(controls=max(2, self.repeats))
        if self.subset < self.candidates:
            raise PipelineError(
                f"subset is {self.subset} and candidates is {self.candidates}: candidates are "
                "drawn from the reference points; raise subset or lower candidates."
            )
        for name in ("widths", "train_steps", "kinds", "probes", "sketches"):
            check_list(name, getattr(self, name), empty=name in ("widths", "train_steps"))
        if self.trained is not None and (self.widths or self.train_steps):
            raise PipelineError(
                "trained is of one width and one training: leave out widths and train_steps, or "
                "leave out trained and let the audit train."
            )
        if self.train_steps and self.train.recipe == "finetune":
            raise PipelineError(
                "train_steps are of the recipe scratch, and the recipe finetune ends when it "
                "converges: leave out train_steps, or give --train.recipe scratch."
            )
        _ = self.kernels

    @property
    def kernels(self) -> tuple[KernelConfig, ...]:
        """The kernels to predict with, one for each kind, number of probes and sketch."""
        return tuple(
            KernelConfig(
                kind=kind,
                probes=probes,
                sketch=sketch,
                ridge=self.ridge,
                precision=self.precision,
                memory_gib=self.memory_gib,
            )
            for kind in self.kinds
            for probes in (self.probes if kind == "rademacher" else self.probes[:1])
            for sketch in self.sketches
        )

    @property
    def networks(self) -> tuple[tuple[int | None, int | None], ...]:
        """Width and steps of each network to train; None for those of the settings."""
        return tuple(
            (width, steps)
            for width in (self.widths or (None,))
            for steps in (self.train_steps or (None,))
        )

    def run_config(self, width: int | None = None, steps: int | None = None) -> RunConfig:
        """The run whose first round has this network."""
        train = None if steps is None else of_length(self.train, steps, self.initial)
        arguments = with_width(self.network_args, self.width_argument, width)
        return self.first_round(arguments, train)


def of_length(train: TrainConfig, steps: int, labelled: int) -> TrainConfig:
    """The same training with its batches, in one schedule of `steps` steps or slightly more."""
    batches, _ = train.plan(labelled)
    return dataclasses.replace(
        train, epochs=math.ceil(steps / batches), min_steps=steps, extensions=0
    )
