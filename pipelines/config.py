"""The settings of a run; the command line is made from these dataclasses.

Every data set's script holds only values for them; see the paper's values in docs/mathematics.md.

Settings of a measurement → the run whose first round has its network and labelled set.

What audits and measurements of one network share: they begin where a run with the same seed does.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import tyro

from kernel.options import CRITERIA
from pipelines.errors import PipelineError
from pipelines.strategies import STRATEGIES, albl, needs_of
from pipelines.strategies.options import (
    ALBLConfig,
    BaldConfig,
    BaselineConfig,
    DynamicsConfig,
    KernelConfig,
    LL4ALConfig,
    LookAheadConfig,
)
from trainer.errors import lookup
from trainer.fit import TrainConfig
from trainer.networks import Argument, parse_arguments

DATA_DIR_VARIABLE = "NTK_DATA_DIR"
# Where a run finds its files and what it runs on is no part of what it computes.
_MACHINE, _KERNEL_MACHINE = ("data_dir", "run", "download", "device", "dry_run"), ("devices",)
_PATIENCE = "hours"  # of the baselines: another decides only whether there is a result

# Settings that records of older versions lack, with what those versions did.
ADDED: dict[str, Any] = {
    "lookahead": dataclasses.asdict(LookAheadConfig()),
    "baseline": {
        name: value
        for name, value in dataclasses.asdict(BaselineConfig()).items()
        if name != _PATIENCE
    },
    "dynamics": dataclasses.asdict(DynamicsConfig()),
    "bald": dataclasses.asdict(BaldConfig()),
    "ll4al": json.loads(json.dumps(dataclasses.asdict(LL4ALConfig()))),
    "albl": json.loads(json.dumps(dataclasses.asdict(ALBLConfig()))),
}
# Likewise within the settings of training.
_ADDED_TO_TRAINING = {"precision": "float32"}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as recorded; those that older versions lacked as these understood them."""
    return ADDED | completed_training(settings)


def completed_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of anything that trains a network: only what lies in `train`."""
    training = settings.get("train")
    if not isinstance(training, dict):
        return dict(settings)
    return {**settings, "train": _ADDED_TO_TRAINING | training}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One active-learning run: train, score, query, label, again, until the budget is spent.

    Attributes:
        dataset: the data set.
        strategy: how the batch is chosen: random, entropy, margin, least_confident, badge,
            coreset, bald, ll4al, albl; by look-ahead mlmoc, emoc, eer, flip, ev_gp, loss_change,
            max_det, max_herding, uherding, ntkcpl; by its baselines naive, ntk_no_blocks,
            one_step, infinite_ntk, gp; by training dynamics dynamical.
        seed: the one seed of everything random.
        initial: labels at the start, drawn uniformly.
        query: labels bought in each cycle.
        subset: candidates drawn afresh from the pool each cycle; None scores the whole pool.
        cycles: how many times a batch is queried.
        network: wide_resnet, resnet18, vgg11_bn, cnn, or your own as module:factory.
        network_args: arguments of the network, as name=value; those of the script are for its own
            network, and another has none by default.
        twin: your own JAX function in place of the mirror that is made of the network, as
            module:function, called with the network and a few images; it returns what
            bridge.twin.twin does. For a network that cannot be mirrored.
        image_size: pixels of a side that images are resized to, for data sets whose images differ
            in size.
        data_dir: folder of the data set (for `images`: the folder or archive of images itself);
            by default the environment variable NTK_DATA_DIR, then ./data.
        download: fetch the data set into data_dir when it is not there and can be fetched.
        run: directory of the run's record; by default runs/DATASET-STRATEGY-seedN. An unfinished
            run found there is resumed.
        device: where the network is trained; auto takes a GPU if there is one.
        train: training of the network in each cycle.
        dry_run: tell what the run would take, in memory and seconds, and stop.
        kernel: kernel of the look-ahead strategies.
        lookahead: how they score candidates, and how a batch is made of the scores.
        baseline: naive, ntk_no_blocks, one_step, infinite_ntk and gp, the look-ahead baselines.
        dynamics: dynamical, by training dynamics.
        bald: bald, which samples the network by its dropout.
        ll4al: ll4al, whose loss prediction module is trained along with the network.
        albl: albl, which learns which of several strategies to follow.
    """

    dataset: tyro.conf.Suppress[str]
    strategy: str = "mlmoc"
    seed: int = 0
    initial: int = 100
    query: int = 20
    subset: int | None = None
    cycles: int = 10
    network: str = "wide_resnet"
    network_args: tuple[str, ...] = ()
    twin: str | None = None
    image_size: int | None = None
    data_dir: Path | None = None
    download: bool = True
    run: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    kernel: KernelConfig = dataclasses.field(default_factory=KernelConfig)
    lookahead: LookAheadConfig = dataclasses.field(default_factory=LookAheadConfig)
    baseline: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    dynamics: DynamicsConfig = dataclasses.field(default_factory=DynamicsConfig)
    bald: BaldConfig = dataclasses.field(default_factory=BaldConfig)
    ll4al: LL4ALConfig = dataclasses.field(default_factory=LL4ALConfig)
    albl: ALBLConfig = dataclasses.field(default_factory=ALBLConfig)

    def __post_init__(self):
        """Refuse what can be seen to be wrong before anything is read or computed.

        Raises:
            UnknownNameError: a strategy that is not there.
            PipelineError: a number out of range.
            NetworkError: a network argument that is not name=value.
        """
        lookup(STRATEGIES, self.strategy, "strategy")
        for name, least in (("seed", 0), ("initial", 1), ("query", 1), ("cycles", 0)):
            if getattr(self, name) < least:
                what = " (the labelled set would be empty)" if name == "initial" else ""
                raise PipelineError(
                    f"{name} must be {least} or more, not {getattr(self, name)}{what}."
                )
        if self.subset is not None and self.subset < self.query:
            raise PipelineError(
                f"subset is {self.subset} and query is {self.query}: a batch cannot be larger "
                "than the candidates it is chosen from; raise subset or lower query."
            )
        if self.strategy == "albl":
            albl.check(self.albl.arms, STRATEGIES, self.lookahead)
        for name in self.asked:
            if name in CRITERIA:
                self.lookahead.check(name, self.kernel)
        if "ntk_no_blocks" in self.asked and self.kernel.kind == "full":
            raise PipelineError(
                "ntk_no_blocks is computed on a scalar-valued kernel and kernel.kind is full: use "
                "single, sum, trace or rademacher."
            )
        _ = self.network_arguments

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the strategies that choose: the strategy itself, or the arms of albl."""
        return self.albl.arms if self.strategy == "albl" else (self.strategy,)

    @property
    def needs(self) -> frozenset[str]:
        """What these need, names of `pipelines.strategies.base.NEEDS`."""
        return needs_of(self.strategy, self.albl.arms)

    @property
    def network_arguments(self) -> dict[str, Argument]:
        """The network's arguments, numbers as numbers."""
        return parse_arguments(self.network_args)

    @property
    def data_folder(self) -> Path:
        """Where the data set is looked for."""
        return self.data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or "data")

    @property
    def run_folder(self) -> Path:
        """Where the record is written."""
        return self.run or Path("runs") / f"{self.dataset}-{self.strategy}-seed{self.seed}"

    def record(self) -> dict[str, Any]:
        """What is computed, JSON-able: everything but the machine's own places."""
        values = dataclasses.asdict(self)
        for name in _MACHINE:
            del values[name]
        for name in _KERNEL_MACHINE:
            del values["kernel"][name]
        del values["baseline"][_PATIENCE]
        values["network_args"] = self.network_arguments
        return json.loads(json.dumps(values))  # tuples are lists there


# ruff: noqa: D102 - the properties are fields of a run, which RunConfig tells of


# Settings that say where and how something is computed, and not what.
_FIRST_ROUND_MACHINE = ("data_dir", "run", "download", "device", "memory_gib", "dry_run")


class Begun(Protocol):
    """Settings that name a data set, a network and a training: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def dataset(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def initial(self) -> int: ...
    @property
    def network(self) -> str: ...
    @property
    def network_args(self) -> tuple[str, ...]: ...
    @property
    def twin(self) -> str | None: ...
    @property
    def image_size(self) -> int | None: ...
    @property
    def data_dir(self) -> Path | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def run(self) -> Path | None: ...


def first_round(
    settings: Begun,
    network_args: tuple[str, ...] | None = None,
    train: TrainConfig | None = None,
) -> RunConfig:
    """A run without queries, of these settings.

    Args:
        settings: whose network it is.
        network_args: in place of its own.
        train: in place of its own.

    Raises:
        UnknownNameError: a name that is not there.
        PipelineError: a number out of range.
    """
    return RunConfig(
        dataset=settings.dataset,
        strategy="random",
        seed=settings.seed,
        initial=settings.initial,
        query=1,
        cycles=0,
        network=settings.network,
        network_args=settings.network_args if network_args is None else network_args,
        twin=settings.twin,
        image_size=settings.image_size,
        data_dir=settings.data_dir,
        download=settings.download,
        device=settings.device,
        train=settings.train if train is None else train,
    )


def computed(settings: Begun) -> dict[str, Any]:
    """What is computed, by name and JSON-able: every setting but the machine's own places."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in _FIRST_ROUND_MACHINE}


def at_width(arguments: tuple[str, ...], name: str, width: int | None) -> tuple[str, ...]:
    """Arguments of a network with another width; None leaves them as they are."""
    if width is None:
        return arguments
    others = (text for text in arguments if text.partition("=")[0] != name)
    return (*others, f"{name}={width}")


def folder(settings: Begun, parent: str) -> Path:
    """Where the record of a measurement is written."""
    name = settings.network.replace(":", ".")
    return settings.run or Path(parent) / f"{settings.dataset}-{name}-seed{settings.seed}"


def check_list(
    name: str, values: tuple[Any, ...], least: float | None = 1, empty: bool = False
) -> None:
    """Refuse a list that names nothing or something twice, or a number in it out of range.

    Args:
        name: of the list, for the messages.
        values: what it holds; what is no number is not compared.
        least: the least that a number may be; None where there are none.
        empty: whether the list may be.

    Raises:
        PipelineError: saying what was found and what is needed.
    """
    if not values and not empty:
        raise PipelineError(f"{name} is empty: name at least one.")
    if len(set(values)) < len(values):
        raise PipelineError(f"{name} names something twice: {', '.join(map(str, values))}.")
    for value in values:
        if least is None or not isinstance(value, int | float):
            continue
        if not least <= value < math.inf:
            finite = " and finite" if isinstance(value, float) else ""
            raise PipelineError(f"{name} must be {least} or more{finite}, not {value}.")
