"""Settings of runs and measurements; their command lines are made from these dataclasses.

Every data set's script holds only values for them; see the paper's values in docs/mathematics.md.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from pipelines.core.entries import digest
from pipelines.core.errors import PipelineError
from pipelines.strategies import STRATEGIES, help_text, methods_of, needs_of
from pipelines.strategies.options import StrategyOptions
from trainer.config import Argument, TrainConfig, is_pretrained, last_blocks, parse_arguments
from trainer.data import DATASETS
from trainer.errors import lookup

DATA_DIR_VARIABLE = "NTK_DATA_DIR"
_STRATEGY_HELP = f"how the batch is chosen. {help_text()}."
# Metadata of a field: it says where and how something is computed, and not what.
_MACHINE: Mapping[str, Any] = MappingProxyType({"identity": False})


def identity(config: Any) -> dict[str, Any]:
    """Settings that change a result, by name and JSON-able; a record is compared by them alone.

    Args:
        config: a dataclass. The metadata of a field may say otherwise than that its value is
            compared: `"identity": False` leaves it out, a function maps it to the value compared.
    """
    compared = {}
    for one in fields(config):
        rule, value = one.metadata.get("identity", True), getattr(config, one.name)
        if callable(rule):
            compared[one.name] = rule(value)
        elif rule:
            compared[one.name] = identity(value) if is_dataclass(value) else value
    return json.loads(json.dumps(compared))  # tuples are lists there


def machine_settings(config: Any) -> dict[str, Any]:
    """The settings that `identity` leaves out, by dotted name and JSON-able."""
    left_out = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            left_out |= {f"{one.name}.{name}": v for name, v in machine_settings(value).items()}
        elif one.metadata.get("identity") is False:
            left_out[one.name] = str(value) if isinstance(value, Path) else value
    return left_out


def _contents(weights: str | None) -> str | None:
    """A file of weights by its digest, so that a renamed one is the same and another is not."""
    path = None if weights is None else Path(weights).expanduser()
    return digest(path.read_bytes()) if path is not None and path.is_file() else weights


@dataclass(frozen=True)
class NetworkSettings:
    """A data set, a network and its first training: what runs and measurements have in common.

    Attributes:
        dataset: digits, mnist, fashion_mnist, svhn, cifar10, cifar100, caltech101 or images.
        seed: the one seed of everything random.
        initial: labels at the start, drawn uniformly.
        network: wide_resnet, resnet18, vgg11_bn, cnn, timm:NAME, torchvision:NAME, or your own as
            module:factory.
        network_args: arguments of the network, as name=value; those of a data set's script are for
            its own network, and another has none by default.
        weights: a file of pretrained weights, safetensors or .pt/.pth; none for random ones. By
            default those that timm and torchvision download; other networks have random ones. The
            head is a new one where its size differs.
        trainable: what is trained: head, all, last:N (the last N of the blocks that bridge.check
            lists), or a regular expression of parameters' names. By default the head of a
            pretrained network, and of others what requires a gradient.
        mean: of each channel, pixels in [0, 1]; by default that of the pretrained model's own
            configuration, else of the images.
        std: likewise.
        twin: your own JAX function in place of the mirror that is made of the network, as
            module:function, called with the network and a few images; it returns what
            bridge.twin.twin does. For a network that cannot be mirrored.
        image_size: pixels of a side that images are resized to, for data sets whose images differ
            in size; by default that of the model's own configuration for timm and torchvision.
        data_dir: folder of the data set (for `images`: the folder or archive of images itself);
            by default the environment variable NTK_DATA_DIR, then ./data.
        download: fetch the data set into data_dir when it is not there and can be fetched.
        run: directory of the record; complete results there are not computed again.
        device: where the network is trained; auto takes a GPU if there is one.
        dry_run: estimate memory and seconds, and stop.
        train: training of the network.
    """

    dataset: str
    seed: int = 0
    initial: int = 100
    network: str = "wide_resnet"
    network_args: tuple[str, ...] = field(default=(), metadata={"identity": parse_arguments})
    weights: str | None = field(default=None, metadata={"identity": _contents})
    trainable: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    twin: str | None = None
    image_size: int | None = None
    data_dir: Path | None = field(default=None, metadata=_MACHINE)
    download: bool = field(default=True, metadata=_MACHINE)
    run: Path | None = field(default=None, metadata=_MACHINE)
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=_MACHINE)
    dry_run: bool = field(default=False, metadata=_MACHINE)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        """Choose what is not named: the data set's augmentation, a pretrained network's recipe.

        Raises:
            NetworkError: trainable is no such choice.
            PipelineError: it is to start from pretrained weights, and there are none.
        """
        own: dict[str, Any] = {}
        if self.pretrained:
            own["recipe"] = self.train.recipe or "finetune"
            if own["recipe"] == "finetune":
                own["init"] = self.train.init or "pretrained"
            object.__setattr__(self, "trainable", self.trainable or "head")
        elif self.train.init == "pretrained":
            raise PipelineError(
                "train.init is pretrained and the network has no pretrained weights: give "
                "--weights FILE, or --train.init initial."
            )
        if self.train.augmentation == "auto":
            plain = own.get("recipe", self.train.recipe) == "finetune"
            known = self.dataset in DATASETS and not plain
            own["augmentation"] = defaults_of(self.dataset).train.augmentation if known else "none"
        object.__setattr__(self, "train", replace(self.train, **own))
        if self.trainable is not None:
            last_blocks(self.trainable)
        for name in ("mean", "std"):
            if not all(math.isfinite(value) for value in getattr(self, name)):
                raise PipelineError(f"{name} must be finite, not {getattr(self, name)}.")
        if not all(value > 0 for value in self.std):
            raise PipelineError(f"std must be above 0, not {self.std}.")

    def check_at_least(self, **least: int) -> None:
        """Refuse settings below their minimum; None passes.

        Raises:
            PipelineError: the first of them.
        """
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise PipelineError(f"{name} must be {bound} or more, not {value}.")

    @property
    def pretrained(self) -> bool:
        """Whether the network starts from weights that were trained before."""
        return is_pretrained(self.network, self.weights)

    @property
    def network_arguments(self) -> dict[str, Argument]:
        """The network's arguments, numbers as numbers."""
        return parse_arguments(self.network_args)

    @property
    def data_folder(self) -> Path:
        """Folder of the data set."""
        return self.data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


@dataclass(frozen=True)
class RunConfig(StrategyOptions, NetworkSettings):
    """One active-learning run: train, score, query, label, again, until the budget is spent.

    Attributes:
        dataset: the data set.
        strategy: how the batch is chosen, one of `pipelines.strategies.STRATEGIES`.
        query: labels bought in each cycle.
        cycles: how many times a batch is queried.
        run: directory of the run's record; by default runs/DATASET-STRATEGY-seedN. An unfinished
            run found there is resumed.
        train: training of the network in each cycle.
        dry_run: estimate memory and seconds of the run, and stop.
    """

    dataset: tyro.conf.Suppress[str]
    strategy: Annotated[str, tyro.conf.arg(help=f"how the batch is chosen. {help_text()}.")] = (
        "mlmoc"
    )
    query: int = 20
    cycles: int = 10

    def __post_init__(self):
        """Validate before anything is read.

        Raises:
            UnknownNameError: an unknown strategy.
            PipelineError: a number out of range.
            NetworkError: a network argument that is not name=value.
        """
        super().__post_init__()
        lookup(STRATEGIES, self.strategy, "strategy")
        self.check_at_least(seed=0, initial=1, query=1, cycles=0)
        if self.subset is not None and self.subset < self.query:
            raise PipelineError(
                f"subset is {self.subset} and query is {self.query}: a batch cannot be larger "
                "than the candidates it is chosen from; raise subset or lower query."
            )
        self.check(self.strategy)
        if "hooks" in self.needs and self.train.recipe == "finetune":
            raise PipelineError(
                f"{self.strategy} trains a module of its own along with the network, which the "
                "recipe finetune does not: give --train.recipe scratch, or another strategy."
            )
        _ = self.network_arguments

    def with_budget(self) -> "RunConfig":
        """The same with the budget of albl, where it was not given."""
        if self.strategy != "albl":
            return self
        return replace(self, albl=self.albl.within(self.cycles * self.query))

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the strategies that choose: the strategy itself, or the arms of albl."""
        return self.choosing(self.strategy)

    @property
    def needs(self) -> frozenset[str]:
        """Their needs, names in `pipelines.strategies.NEEDS`."""
        return needs_of(methods_of(self.strategy, self.albl.arms))

    @property
    def run_folder(self) -> Path:
        """Folder of the record."""
        return self.run or Path("runs") / f"{self.dataset}-{self.strategy}-seed{self.seed}"


def defaults_of(dataset: str) -> RunConfig:
    """The settings of a data set's script; change some by `dataclasses.replace`.

    Raises:
        UnknownNameError: no such data set.
    """
    lookup(DATASETS, dataset, "data set")
    return import_module(f"pipelines.{dataset}").DEFAULTS


@dataclass(frozen=True)
class MeasurementSettings(NetworkSettings):
    """A measurement of the network that the first round of a run with this seed trains.

    Attributes:
        precision: of gradients and their contraction.
        memory_gib: limit of kernels and of what is computed from them.
    """

    FOLDER: ClassVar[str] = "measurements"  # that records are written to by default

    dataset: str = "digits"
    precision: Literal["float32", "float64"] = "float32"
    memory_gib: float = field(default=4.0, metadata=_MACHINE)

    @classmethod
    def of_dataset(cls, dataset: str) -> Self:
        """The default settings, with the training of the data set's script.

        Raises:
            UnknownNameError: no such data set.
        """
        return cls(dataset=dataset, train=defaults_of(dataset).train)

    def check_memory(self) -> None:
        """Refuse memory_gib of 0 or less.

        Raises:
            PipelineError: it is.
        """
        if not self.memory_gib > 0:
            raise PipelineError(f"memory_gib must be above 0, not {self.memory_gib}.")

    @property
    def run_folder(self) -> Path:
        """Folder of the record."""
        name = self.network.replace(":", ".")
        return self.run or Path(self.FOLDER) / f"{self.dataset}-{name}-seed{self.seed}"

    def first_round(
        self, network_args: tuple[str, ...] | None = None, train: TrainConfig | None = None
    ) -> RunConfig:
        """The run without queries whose only round has this network.

        Arguments replace its own settings.

        Raises:
            UnknownNameError, PipelineError: an unknown name, or a number out of range.
        """
        shared = {one.name: getattr(self, one.name) for one in fields(NetworkSettings)}
        shared |= {"run": None, "dry_run": False}
        own = {"network_args": network_args, "train": train}
        shared |= {name: value for name, value in own.items() if value is not None}
        return RunConfig(**shared, strategy="random", query=1, cycles=0)


def with_width(arguments: tuple[str, ...], name: str, width: int | None) -> tuple[str, ...]:
    """Arguments of a network, with the width replaced unless it is None."""
    if width is None:
        return arguments
    others = (text for text in arguments if text.partition("=")[0] != name)
    return (*others, f"{name}={width}")


def check_list(
    name: str, values: tuple[Any, ...], least: float | None = 1, empty: bool = False
) -> None:
    """Refuse an empty list unless `empty`, duplicates, and numbers below `least`.

    Raises:
        PipelineError: the first of these.
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
