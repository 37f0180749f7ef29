"""Settings of a sequential run; its command line is made from this dataclass."""

import dataclasses
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from kernel.options import CRITERIA, Options
from pipelines.config import NetworkSettings, RunConfig, defaults_of
from pipelines.core.errors import PipelineError
from pipelines.strategies import help_text
from pipelines.strategies.options import (
    ALBLConfig,
    BaselineConfig,
    KernelConfig,
    LL4ALConfig,
    LookAheadConfig,
    QueryOptions,
    StrategyOptions,
)
from trainer.data import DATASETS
from trainer.errors import lookup

STRATEGIES = (*CRITERIA, "random", "entropy", "margin", "least_confident")
_STRATEGY_HELP = (
    f"how the next image is chosen, by logits of the linearised network. {help_text(STRATEGIES)}."
)


def criterion_options(strategy: str, options: StrategyOptions, seed: int) -> Options:
    """Options of a look-ahead criterion for one query at a time, without those of batches.

    Raises:
        PipelineError: a criterion that this kernel does not serve.
    """
    if strategy in CRITERIA:
        dataclasses.replace(options.lookahead, batch="top").check(strategy, options.kernel)
    return options.lookahead.criterion_options(options.kernel.reference, seed)


@dataclass(frozen=True)
class SequentialOptions(QueryOptions):
    """Options of `pipelines.sequential.start`; those of batches have no effect.

    Attributes:
        kernel: by default changes are measured from the linearised network.
    """

    kernel: KernelConfig = KernelConfig(reference="linearised")


@dataclass(frozen=True)
class SequentialConfig(RunConfig):
    """Query one label at a time, and absorb each answer without training.

    Attributes:
        dataset: the data set: digits, mnist, fashion_mnist, cifar10, cifar100, svhn, caltech101, or
            images, your own in --data-dir, labelled or not.
        strategy: how the next image is chosen, one of `STRATEGIES`.
        budget: questions that are answered, beyond the labels at the start. A run that is complete
            goes on with a larger one.
        initial: labels at the start, drawn uniformly. Of your own images those in train/CLASS/ are
            taken, and others queried only up to this number.
        subset: candidates drawn afresh from the pool at each training; None takes the whole pool.
        test_subset: test images, drawn once, on which the linearised network is evaluated after
            each answer; None takes all.
        retrain_every: train again after this number of answers; None never does.
        retrain_when_stale: train again when the drift, the change of the linearised network's
            parameters relative to their norm, exceeds this; None never does.
        final_training: train once more when the budget is spent.
        oracle: dataset, person (at this terminal), or your own module:function: data-set indices
            → classes.
        class_names: of your own images, the classes that have no folder yet.
    """

    dataset: str = "digits"
    strategy: Annotated[str, tyro.conf.arg(help=_STRATEGY_HELP)] = "mlmoc"
    mode: tyro.conf.Suppress[str] = "sequential"
    budget: int = field(default=100, metadata={"growing": True})
    subset: int | None = None
    test_subset: int | None = 1000
    retrain_every: int | None = None
    retrain_when_stale: float | None = None
    final_training: bool = field(default=False, metadata={"growing": True})
    oracle: str = "dataset"
    class_names: tuple[str, ...] = ()
    query: tyro.conf.Suppress[int] = 1
    # trainings after the first, as far as they are known beforehand; set in __post_init__
    cycles: tyro.conf.Suppress[int] = field(default=0, metadata={"growing": True})
    dry_run: tyro.conf.Suppress[bool] = field(default=False, metadata={"identity": False})
    baseline: tyro.conf.Suppress[BaselineConfig] = field(default_factory=BaselineConfig)
    ll4al: tyro.conf.Suppress[LL4ALConfig] = field(default_factory=LL4ALConfig)
    albl: tyro.conf.Suppress[ALBLConfig] = field(default_factory=ALBLConfig)

    def __post_init__(self):
        """Validate before anything is read.

        Raises:
            UnknownNameError: an unknown data set or strategy.
            PipelineError: a number out of range, or settings that exclude each other.
        """
        NetworkSettings.__post_init__(self)
        lookup(DATASETS, self.dataset, "data set")
        lookup(dict.fromkeys(STRATEGIES), self.strategy, "sequential strategy")
        self.check_at_least(budget=0, test_subset=1, retrain_every=1)
        if self.retrain_when_stale is not None and not self.retrain_when_stale > 0:
            raise PipelineError(
                f"retrain_when_stale must be above 0, not {self.retrain_when_stale:g}."
            )
        if self.oracle not in ("dataset", "person") and ":" not in self.oracle:
            raise PipelineError(
                f"oracle is {self.oracle!r}; it must be dataset, person, or your own function as "
                "module:function."
            )
        if self.class_names and self.dataset != "images":
            raise PipelineError(
                "class_names are for your own images (--dataset images); other data sets have "
                "their own."
            )
        if self.subset is not None and self.subset < self.budget and not self.retrains:
            raise PipelineError(
                f"budget is {self.budget} and subset is {self.subset}, and other candidates are "
                "drawn only when the network is trained again: raise subset, lower budget, or "
                "give retrain_every."
            )
        if self.lookahead.batch is not None or self.lookahead.interval != 1:
            raise PipelineError(
                "lookahead.batch and lookahead.interval are for batches, and questions are asked "
                "one at a time here: leave them out."
            )
        object.__setattr__(self, "cycles", self._trainings)
        _ = self.rounds_of_one
        self.options.check_read([self.strategy], {"kernel"})
        criterion_options(self.strategy, self.options, self.seed)

    @property
    def _trainings(self) -> int:
        trainings = 0
        if self.retrain_every is not None:
            trainings = max(self.budget - 1, 0) // self.retrain_every
        return trainings + (self.final_training and self.budget > 0)

    @property
    def retrains(self) -> bool:
        """Whether it trains again before the budget is spent."""
        return self.retrain_every is not None or self.retrain_when_stale is not None

    @property
    def rounds_of_one(self) -> RunConfig:
        """The run in rounds of one question with the same data and network."""
        own: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(RunConfig)}
        own |= {"strategy": "mlmoc", "lookahead": LookAheadConfig(), "query": 1}
        own["cycles"] = self.budget
        return RunConfig(**own)

    @property
    def options(self) -> SequentialOptions:
        """As `pipelines.sequential.start` takes them."""
        own = {one.name: getattr(self, one.name) for one in fields(StrategyOptions)}
        return SequentialOptions(**own, loss=self.train.loss)

    @property
    def run_folder(self) -> Path:
        """Folder of the record."""
        default = f"{self.dataset}-sequential-{self.strategy}-seed{self.seed}"
        return self.run or Path("runs") / default


# Settings that may change when a run is resumed.
GROWING = frozenset(one.name for one in fields(SequentialConfig) if one.metadata.get("growing"))


def defaults(dataset: str) -> SequentialConfig:
    """The settings of a data set's script, for asking one question at a time.

    Raises:
        UnknownNameError: no such data set.
    """
    script = defaults_of(dataset)
    return SequentialConfig(
        dataset=dataset,
        initial=script.initial,
        subset=script.subset,
        network=script.network,
        network_args=script.network_args,
        image_size=script.image_size,
        train=script.train,
        lookahead=script.lookahead,
        kernel=dataclasses.replace(script.kernel, reference="linearised"),
    )
