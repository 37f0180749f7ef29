"""Study: a question, what a paper says of it, and grids of trials that answer it in two sizes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.approximation.config import ApproximationConfig
from experiments.dynamics.config import TheoryConfig
from pipelines.audit.config import AuditConfig
from pipelines.config import RunConfig, identity
from pipelines.core.errors import PipelineError
from pipelines.sequential.config import SequentialConfig
from pipelines.strategies import SECTIONS, sections_of
from trainer.errors import lookup

# What one trial can be; the first that a configuration is an instance of names its kind.
KINDS = {
    "sequential": SequentialConfig,
    "run": RunConfig,
    "audit": AuditConfig,
    "dynamics": TheoryConfig,
    "approximation": ApproximationConfig,
}
Config = RunConfig | AuditConfig | TheoryConfig | ApproximationConfig
SIZES = ("small", "paper")
_KEY = 12  # hexadecimal digits


@dataclass(frozen=True)
class Trial:
    """One thing to do: a run (also sequential), an audit, a measurement of dynamics or of kernels.

    Attributes:
        task: data set and network, as the study calls them.
        method: what is compared, as the study calls it.
        seed: of everything random.
        config: all settings, with those that the trial does not look at as they are by default, so
            that trials that compute the same are the same.
    """

    task: str
    method: str
    seed: int
    config: Config

    @property
    def kind(self) -> str:
        """A name of `KINDS`."""
        return kind_of(self.config)

    @property
    def key(self) -> str:
        """Of what is computed: equal exactly where the same is computed."""
        return key_of(self.kind, identity(self.config))

    @property
    def folder(self) -> str:
        """Name of the directory of its record: what it is, for people, and its key."""
        strategy = getattr(self.config, "strategy", "")
        words = [self.config.dataset, self.kind, strategy, f"seed{self.seed}", self.key]
        return "-".join(word for word in words if word)


@dataclass(frozen=True)
class Grid:
    """Trials that are the product of three axes.

    Attributes:
        tasks: by name, a data set and network with all settings that the methods have in common.
        methods: by name, what is compared: settings that differ from the task's, nested names
            joined by dots, such as {"strategy": "mlmoc", "kernel.kind": "sum"}.
        seeds: a trial each.
    """

    tasks: Mapping[str, Config]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    def trials(self) -> tuple[Trial, ...]:
        """All of them, seed by seed, so that what is done first can be compared first.

        Raises:
            PipelineError: a setting that is not there, or a value that is out of range.
        """
        return tuple(
            Trial(task, method, seed, canonical(vary(config, {**changes, "seed": seed})))
            for seed in self.seeds
            for task, config in self.tasks.items()
            for method, changes in self.methods.items()
        )


@dataclass(frozen=True)
class Study:
    """A question and the trials that answer it.

    Attributes:
        name: for the command line and files.
        title: a few words.
        source: which figure or table of which paper.
        question: what is asked, in one sentence.
        paper: what the paper says, in one sentence or two.
        small: the question at a size that two CPU cores answer within hours.
        paper_size: the paper's own protocol.
        shows: of the measures that its trials have, those that its report is about; all without.
        claims: what is judged, in either size.
        small_claims: what is judged in the small size only, such as of its tasks.
        paper_claims: what is judged in the paper's size only, such as accuracies of its network.
    """

    name: str
    title: str
    source: str
    question: str
    paper: str
    small: tuple[Grid, ...]
    paper_size: tuple[Grid, ...]
    shows: tuple[str, ...] = ()
    claims: tuple[Any, ...] = ()
    small_claims: tuple[Any, ...] = ()
    paper_claims: tuple[Any, ...] = ()

    def claims_of(self, size: str) -> tuple[Any, ...]:
        """The claims of a size."""
        return self.claims + (self.small_claims if size == "small" else self.paper_claims)

    def trials(self, size: str) -> tuple[Trial, ...]:
        """The trials of a size, seed by seed; every pair of task and method has one of each seed.

        Raises:
            PipelineError: an unknown size or setting, or two trials of one task, method and seed.
        """
        lookup(dict.fromkeys(SIZES), size, "size")
        grids = self.small if size == "small" else self.paper_size
        found = [trial for grid in grids for trial in grid.trials()]
        names = [(trial.task, trial.method, trial.seed) for trial in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise PipelineError(
                f"study {self.name!r}, size {size}, has two trials of task {twice[0]!r}, method "
                f"{twice[1]!r} and seed {twice[2]}: give the methods of its grids different names."
            )
        return tuple(sorted(found, key=lambda trial: trial.seed))


def vary(config: Any, changes: Mapping[str, Any]) -> Any:
    """The settings with some of them changed, nested names joined by dots.

    Raises:
        PipelineError: a name that is not there; a value that the configuration refuses; a whole
            section, whose other settings would be lost without a word.
    """
    names = [field.name for field in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, dot, rest = name.partition(".")
        if first not in names:
            raise PipelineError(
                f"a study sets {first!r}, and {type(config).__name__} has no such setting; it has "
                f"{', '.join(names)}."
            )
        if not dot and dataclasses.is_dataclass(getattr(config, first)):
            raise PipelineError(
                f"a study sets {first!r} whole, and would lose what the data set sets of it: name "
                f"the settings that change, as {first}.NAME."
            )
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            values[first] = value
    for first, inner in nested.items():
        values[first] = vary(getattr(config, first), inner)
    # all at once: a configuration half changed may be one that is refused
    return dataclasses.replace(config, **values)


def canonical(config: Config) -> Config:
    """The same run with the settings that its strategy does not look at as by default."""
    if not isinstance(config, RunConfig) or isinstance(config, SequentialConfig):
        return config
    ignored = SECTIONS - sections_of(config.strategy, config.albl.arms)
    default = RunConfig(config.dataset)
    return dataclasses.replace(config, **{name: getattr(default, name) for name in ignored})


def kind_of(config: Config) -> str:
    """A name of `KINDS`."""
    return next(name for name, kind in KINDS.items() if isinstance(config, kind))


def key_of(kind: str, record: Mapping[str, Any]) -> str:
    """Hexadecimal digits that follow from what is computed; `record` is the config's own."""
    text = json.dumps([kind, record], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def methods(names: Iterable[str], **settings: Any) -> dict[str, dict[str, Any]]:
    """Methods that are strategies, each under its own name, with settings that all have."""
    return {name: {"strategy": name, **settings} for name in names}
