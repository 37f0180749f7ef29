"""Options of queries, for Python and for the command line, checked when they are made."""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from kernel.errors import KernelError
from kernel.options import (
    CRITERIA,
    GREEDY,
    KINDS,
    PRECISIONS,
    REFERENCES,
    CriterionOptions,
    Options,
    Reference,
    Request,
)
from pipelines.core.errors import PipelineError
from pipelines.strategies import READERS, SECTIONS, STRATEGIES
from trainer.config import Loss, LossPredictionConfig
from trainer.errors import lookup


def _whole(section: str, options: Any, **least: int) -> None:
    """Refuse options that are no whole number, or below their least; None where it is the default.

    Raises:
        PipelineError: naming section and option, and saying what is needed.
    """
    for name, bound in least.items():
        value: Any = getattr(options, name)
        optional = type(options).__dataclass_fields__[name].default is None
        if optional and value is None:
            continue
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or int(value) < bound:
            raise PipelineError(
                f"{section}.{name} must be {bound} or more{', or none' * optional}, not "
                f"{value}{'' if whole else ', which is no whole number'}."
            )
        object.__setattr__(options, name, int(value))


_RANGES: Mapping[str, Callable[[float], bool]] = MappingProxyType(
    {
        "above 0": lambda value: 0 < value < math.inf,
        "0 or more": lambda value: 0 <= value < math.inf,
        "from 0 to 1": lambda value: 0 <= value <= 1,
        "above 0 and at most 1": lambda value: 0 < value <= 1,
    }
)


def _number(section: str, options: Any, wanted: str, *names: str) -> None:
    """Refuse options that are no number in one of `_RANGES`; None where it is the default.

    Raises:
        PipelineError: naming section and option, and saying what is needed.
    """
    for name in names:
        value: Any = getattr(options, name)
        optional = type(options).__dataclass_fields__[name].default is None
        if optional and value is None:
            continue
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not _RANGES[wanted](float(value)):
            raise PipelineError(f"{section}.{name} must be {wanted}, not {value}.")
        object.__setattr__(options, name, float(value))


@dataclass(frozen=True)
class ALBLConfig:
    """Arms of albl, and how it learns which of them to follow.

    Attributes:
        arms: names of strategies, at least two, without ll4al and albl itself; those of BADGE's
            published comparison by default. Of random every candidate is drawn alike.
        delta: δ of Exp4.P: its bound holds with probability 1 − δ.
        budget: T of Exp4.P, how many images will be queried in all; None takes cycles times query
            of a run, and in a loop of your own those queried so far and the batch asked for.
    """

    arms: tuple[str, ...] = ("least_confident", "coreset")
    delta: float = 0.1
    budget: int | None = None

    def __post_init__(self):
        """Raise PipelineError on too few arms or a number out of range; `check` reads the names."""
        if len(self.arms) < 2:
            raise PipelineError(
                f"albl.arms are {', '.join(self.arms) or 'none'}: name at least two strategies to "
                "choose between."
            )
        if len(set(self.arms)) < len(self.arms):
            raise PipelineError(f"albl.arms names a strategy twice: {', '.join(self.arms)}.")
        _number("albl", self, "above 0 and at most 1", "delta")
        _whole("albl", self, budget=1)

    def within(self, budget: int) -> "ALBLConfig":
        """The same, with this budget where none was given."""
        return replace(self, budget=self.budget or max(budget, 1))

    def check(self, lookahead: "LookAheadConfig") -> None:
        """Refuse arms that cannot be drawn from.

        Raises:
            UnknownNameError: no such strategy.
            PipelineError: one that has to be trained along, learns by itself, or asks for labels.
        """
        for arm in self.arms:
            if arm == "albl":
                raise PipelineError(
                    "albl.arms names albl itself: name the strategies that it chooses from."
                )
            needs = lookup(STRATEGIES, arm, "strategy").needs
            if "hooks" in needs:
                raise PipelineError(
                    f"albl.arms names {arm}, which trains a module together with the network, and "
                    "albl trains none: leave it out."
                )
            if lookahead.batch == "hybrid" and "kernel" in needs:
                raise PipelineError(
                    f"lookahead.batch is hybrid, which asks for the labels of every pick of {arm}, "
                    "and albl draws only some of them: use top or conditioned."
                )


@dataclass(frozen=True)
class BaldConfig:
    """How bald samples the network.

    Attributes:
        samples: forward passes over all candidates with dropout at work.
    """

    samples: int = 20

    def __post_init__(self):
        """Raise PipelineError on fewer than two samples, which cannot disagree."""
        _whole("bald", self, samples=2)


@dataclass(frozen=True)
class BaselineConfig:
    """How the strategies naive, ntk_no_blocks, one_step, infinite_ntk and gp are computed.

    Attributes:
        epochs: of naive, for every candidate; batches and schedule are those of the training.
        learning_rate: of naive, the highest of its schedule; None takes that of the training.
        step: of one_step, the learning rate η of its one step θ − ηg.
        candidates: of naive, one_step and ntk_no_blocks: how many are scored, drawn at random; None
            scores all. (kernel.sample says over how many the change is summed.)
        image_size: of infinite_ntk and gp: pixels of a side that images are averaged to before
            their kernel, whose cost grows with the fourth power of it; None leaves them.
        test: of gp, test images on which its own accuracy is measured, drawn at random.
        hours: what a query by one of these may take; more is refused once its pace is known.
    """

    epochs: int = 15
    learning_rate: float | None = None
    step: float = 0.01
    candidates: int | None = None
    image_size: int | None = None
    test: int = 1000
    hours: float = field(default=24.0, metadata={"identity": False})

    def __post_init__(self):
        """Raise PipelineError on a number out of range."""
        _whole("baseline", self, epochs=1, candidates=1, image_size=1, test=0)
        _number("baseline", self, "above 0", "learning_rate", "step", "hours")


DYNAMICS_BATCHES = ("top", "dissimilar")


@dataclass(frozen=True)
class DynamicsConfig:
    """How the strategy dynamical scores candidates, and how a batch is made of the scores.

    Attributes:
        gamma: γ of Δ = ‖g_u‖² + γ g_u·g_S, 0 or more; inf is the inner product alone. With the
            paper's 2 it is exactly what the candidate would add to the training dynamics.
        batch: top takes the highest scores (the paper's); dissimilar, which is not the paper's,
            takes one after another, each score less the share of it that a pick has already.
        sketch: of dissimilar: dimensions that gradients are folded to before they are compared.
        precision: of gradients and their lengths.
        chunk: images differentiated at a time; None chooses for the machine.
    """

    gamma: Literal["inf"] | float = 2.0
    batch: Literal["top", "dissimilar"] = "top"
    sketch: int = 1024
    precision: Literal["float32", "float64"] = "float32"
    chunk: int | None = field(default=None, metadata={"identity": False})

    def __post_init__(self):
        """Raise UnknownNameError on an unknown name, PipelineError on a number out of range."""
        if self.gamma in (math.inf, "inf"):
            object.__setattr__(self, "gamma", "inf")  # JSON has no infinity
        elif not isinstance(self.gamma, numbers.Real) or not self.gamma >= 0:
            raise PipelineError(f"dynamics.gamma must be 0 or more, or inf, not {self.gamma}.")
        lookup(dict.fromkeys(DYNAMICS_BATCHES), self.batch, "batch mode of dynamical")
        lookup(dict.fromkeys(("float32", "float64")), self.precision, "precision")
        _whole("dynamics", self, sketch=1, chunk=1)

    @property
    def weight(self) -> float:
        """γ as a number."""
        return math.inf if self.gamma == "inf" else float(self.gamma)


@dataclass(frozen=True)
class FrozenConfig:
    """How the outputs of the network's frozen part are kept: a row an image, computed once.

    Attributes:
        dtype: of the rows; float16 takes half the space, and its error is told.
        memory_gib: of rows in memory; further ones are read from the disk when they are needed.
        folder: of rows for later runs; by default the folder `frozen` beside the run's. A query
            keeps none after the process.
    """

    dtype: Literal["float32", "float16"] = "float32"
    memory_gib: float = field(default=1.0, metadata={"identity": False})
    folder: Path | None = field(default=None, metadata={"identity": False})

    def __post_init__(self):
        """Raise UnknownNameError on an unknown dtype, PipelineError on a number out of range."""
        lookup(dict.fromkeys(("float32", "float16")), self.dtype, "dtype of frozen rows")
        _number("frozen", self, "0 or more", "memory_gib")


@dataclass(frozen=True)
class KernelConfig(Request):
    """How look-ahead strategies compute and use the kernel.

    Attributes:
        sample: candidates, drawn anew each cycle, over which the change of the network is summed;
            None sums over all of them. The kernel is then computed between these and all others
            only, for pools whose whole kernel does not fit.
        reference: MLMOC compares with the trained network (`network`, the paper's) or with the
            linearised network fitted to the labels (`linearised`, free of drift).
        ridge: λ ≥ 0 added to the diagonal of the labelled block, in units of the kernel.
    """

    sample: int | None = None
    reference: Reference = "network"
    ridge: float = 0.0

    def __post_init__(self):
        """Raise UnknownNameError on an unknown name, PipelineError on values nothing computes."""
        lookup(dict.fromkeys(KINDS), self.kind, "kernel kind")
        lookup(dict.fromkeys(REFERENCES), self.reference, "reference")
        lookup(dict.fromkeys(PRECISIONS), self.precision, "precision")
        _whole("kernel", self, sketch=1, sample=1, chunk=1, devices=1, probes=1)
        _number("kernel", self, "0 or more", "ridge")
        _number("kernel", self, "above 0", "memory_gib")
        if self.precision == "tf32" and self.sketch is not None:
            raise PipelineError(
                "kernel.precision is tf32, which is for products between whole gradients, and "
                "kernel.sketch leaves none: use float32, or no sketch."
            )


@dataclass(frozen=True)
class LL4ALConfig(LossPredictionConfig):
    """How the loss prediction module of ll4al is made and trained along with the network."""

    def __post_init__(self):
        """Raise PipelineError on a number out of range, or a tap named twice."""
        if len(set(self.taps)) < len(self.taps):
            raise PipelineError(f"ll4al.taps names something twice: {', '.join(self.taps)}.")
        _whole("ll4al", self, width=1)
        _number("ll4al", self, "0 or more", "margin", "weight")
        _number("ll4al", self, "above 0", "learning_rate")
        _number("ll4al", self, "from 0 to 1", "detach", "grad_scale")

    def resolved(self, loss: str, classes: int) -> "LL4ALConfig":
        """These options with the default of `grad_scale` for a loss: 1/C with l2, else 1."""
        if self.grad_scale is not None:
            return self
        return replace(self, grad_scale=1 / classes if loss == "l2" else 1.0)


# Options that are read only where another has a value, but for some strategies.
_READ_WHERE: Mapping[str, tuple[str, str | None, Set[str]]] = MappingProxyType(
    {
        "kernel.probes": ("kind", "rademacher", frozenset()),
        "lookahead.interval": ("batch", "hybrid", frozenset()),
        "lookahead.labels": ("temperature", None, frozenset({"emoc", "eer"})),
        "lookahead.beta": ("labels", "softmax", frozenset({"eer"})),
        "dynamics.sketch": ("batch", "dissimilar", frozenset()),
    }
)
LOOKAHEAD_BATCHES = ("top", "conditioned", "hybrid")


@dataclass(frozen=True)
class LookAheadConfig(CriterionOptions):
    """How look-ahead strategies score candidates, and how a batch is made of the scores.

    Attributes:
        batch: top takes the highest scores; conditioned scores anew after each pick, as if it had
            been labelled as expected; hybrid asks for the true labels of `interval` picks at a
            time and scores anew, without training. None is conditioned for max_herding, uherding
            and max_det, which are greedy by themselves, and top for the others.
        interval: labels that hybrid asks for at a time; 1 is the sequential mode within a batch.
    """

    batch: Literal["top", "conditioned", "hybrid"] | None = None
    interval: int = 1

    def __post_init__(self):
        """Raise UnknownNameError on an unknown mode, PipelineError on what no criterion takes."""
        if self.batch is not None:
            lookup(dict.fromkeys(LOOKAHEAD_BATCHES), self.batch, "batch mode")
        _whole("lookahead", self, interval=1)
        try:
            super().__post_init__()
        except KernelError as error:
            raise PipelineError(str(error)) from error

    def criterion_options(self, reference: Reference, seed: int) -> Options:
        """Options of the criteria in one query.

        Args:
            reference: what changes are changes from.
            seed: of clusters.
        """
        own = {field.name: getattr(self, field.name) for field in fields(CriterionOptions)}
        own["beta"] = float(self.beta)
        return Options(**own, reference=reference, seed=seed)

    def mode(self, criterion: str) -> str:
        """How this criterion makes a batch."""
        return self.batch or ("conditioned" if criterion in GREEDY else "top")

    def check(self, criterion: str, kernel: KernelConfig) -> None:
        """Refuse options that a criterion cannot be computed with.

        Args:
            criterion: its name.
            kernel: how the kernel is computed.

        Raises:
            PipelineError: it is not for the full kernel; columns of S are needed that a reference
                sample without a sketch does not give.
        """
        if kernel.kind == "full" and criterion != "mlmoc":
            raise PipelineError(
                f"{criterion} is computed on a scalar-valued kernel and kernel.kind is full: use "
                "single, sum, trace or rademacher."
            )
        mode = self.mode(criterion)
        herding = criterion in GREEDY and criterion != "max_det"
        columns = mode == "hybrid" or (mode == "conditioned" and not herding)
        if columns and kernel.kind != "full" and kernel.sample is not None and not kernel.sketch:
            raise PipelineError(
                f"{criterion} with batch mode {mode} needs to know how every pick moves all "
                "candidates, and with kernel.sample alone the kernel holds that for the sample "
                "only: set kernel.sketch too, or no kernel.sample, or lookahead.batch top."
            )


@dataclass(frozen=True)
class StrategyOptions:
    """Options of all strategies; each reads its own sections.

    Attributes:
        subset: candidates drawn afresh from the pool for each query; None scores the whole pool.
        frozen: the part of the network that is not trained, if it has one.
        kernel: kernel of the look-ahead strategies.
        lookahead: how they score candidates, and how a batch is made of the scores.
        baseline: naive, ntk_no_blocks, one_step, infinite_ntk and gp, the look-ahead baselines.
        dynamics: dynamical, by training dynamics.
        bald: bald, which samples the network by its dropout.
        ll4al: ll4al, whose loss prediction module is trained along with the network.
        albl: albl, which learns which of several strategies to follow.
    """

    subset: int | None = None
    frozen: FrozenConfig = FrozenConfig()
    kernel: KernelConfig = KernelConfig()
    lookahead: LookAheadConfig = LookAheadConfig()
    baseline: BaselineConfig = BaselineConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    bald: BaldConfig = BaldConfig()
    ll4al: LL4ALConfig = LL4ALConfig()
    albl: ALBLConfig = ALBLConfig()

    def check(self, strategy: str) -> None:
        """Refuse options that a strategy cannot be computed with.

        Raises:
            UnknownNameError: no such strategy, or arm of albl.
            PipelineError: options that do not go together.
        """
        lookup(STRATEGIES, strategy, "strategy")
        if strategy == "albl":
            self.albl.check(self.lookahead)
        for name in self.choosing(strategy):
            if name in CRITERIA:
                self.lookahead.check(name, self.kernel)
            if name == "ntk_no_blocks" and self.kernel.kind == "full":
                raise PipelineError(
                    "ntk_no_blocks is computed on a scalar-valued kernel and kernel.kind is full: "
                    "use single, sum, trace or rademacher."
                )

    def check_read(self, strategies: Sequence[str], sections: Set[str] = frozenset()) -> None:
        """Refuse options that strategies would ignore.

        Args, Raises: PipelineError with the first sentence of `ignored`.
        """
        for sentence in self.ignored(strategies, sections):
            raise PipelineError(sentence)

    def ignored(self, strategies: Sequence[str], sections: Set[str] = frozenset()) -> Iterator[str]:
        """Sentences on options that differ from their defaults and that no strategy reads.

        Args:
            strategies: that are asked.
            sections: that are read whatever the strategies.
        """
        names = {name for strategy in strategies for name in (strategy, *self.choosing(strategy))}
        for section, option, value in self._changed():
            name, given = f"{section}.{option}", ", ".join(strategies)
            readers = READERS.get(name, READERS[section])
            if not readers & names and section not in sections:
                known = [*sorted(readers)[:4], *(["…"] if len(readers) > 4 else [])]
                yield (
                    f"{name} is {value}, which {given} would ignore: leave it out (it is read by "
                    f"{', '.join(known)})."
                )
                continue
            where, wanted, always = _READ_WHERE.get(name, ("", None, names))
            if not always & names and getattr(getattr(self, section), where) != wanted:
                yield (
                    f"{name} is {value}, which {given} would ignore unless {section}.{where} is "
                    f"{'none' if wanted is None else wanted}: set that too, or leave {name} out."
                )

    def _changed(self) -> Iterator[tuple[str, str, Any]]:
        """Section, name and value of options that change a result and are not their defaults."""
        for section in sorted(SECTIONS):
            own, default = getattr(self, section), type(self).__dataclass_fields__[section].default
            for option in fields(own):
                value = getattr(own, option.name)
                if option.metadata.get("identity", True) and value != getattr(default, option.name):
                    yield section, option.name, value

    def choosing(self, strategy: str) -> tuple[str, ...]:
        """Names of the strategies that choose images: the strategy itself, or the arms of albl."""
        return self.albl.arms if strategy == "albl" else (strategy,)


@dataclass(frozen=True)
class QueryOptions(StrategyOptions):
    """Options of `query` and `compare`.

    Attributes:
        loss: of the network's training, l2 on one-hot labels or cross_entropy; it decides how
            logits become probabilities. Look-ahead assumes l2.
    """

    loss: Loss = "l2"

    def __post_init__(self):
        """Raise UnknownNameError on an unknown loss."""
        lookup(dict.fromkeys(get_args(Loss)), self.loss, "loss")

    def ignored(self, strategies: Sequence[str], sections: Set[str] = frozenset()) -> Iterator[str]:
        """As for runs, and options that only a run reads."""
        yield from super().ignored(strategies, sections)
        for section, option, value in self._changed():
            if section == "ll4al" or (section, option) == ("baseline", "test"):
                yield (
                    f"{section}.{option} is {value}, which only a run would not ignore (it trains "
                    "the module and has test images): leave it out."
                )
