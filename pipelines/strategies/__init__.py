"""The table of strategies: name, module, needs and summary of each.

A new strategy is a function `(context, batch_size, rng) -> Query` of its own name in a module of
this package, and a row here. Modules are imported on first use.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from kernel.options import CRITERIA
from pipelines.core.errors import PipelineError
from trainer.errors import lookup

if TYPE_CHECKING:
    import numpy as np

    from pipelines.strategies.base import Query, QueryContext, Requirement

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "classes": "two logits or more, so that there are probabilities to compare",
        "logits": "logits of the labelled images and the candidates, by `QueryContext.logits`",
        "features": "penultimate features of both, in the same forward pass, by `build_context`",
        "images": "the images themselves, through `QueryContext.images`",
        "kernel": "the mirror and its empirical NTK, by `lookahead.empirical_kernel`",
        "gradients": "the mirror and loss gradients through it, by `kernel.gradients`",
        "infinite": "a kernel of infinite width, by `infinite.analytic_kernel`",
        "training": "SGD on copies of the network, by the strategy itself",
        "dropout": "a network with dropout, for the passes of `bald`",
        "hooks": "a module trained together with the network (`auxiliary_module`)",
        "draws": "random numbers for more than ties, so that scores are not of the images alone",
        "history": "the earlier rounds of this run, through `QueryContext.resources`",
    }
)


@dataclass(frozen=True)
class Method:
    """A row of the table; called as the strategy itself.

    Attributes:
        name: of the strategy.
        module: that implements it, in this package.
        needs: names of NEEDS, checked before anything is trained, and computed once for all
            strategies that are asked together.
        summary: one line, for help texts.
    """

    name: str
    module: str
    needs: frozenset[str]
    summary: str

    def __post_init__(self):
        """Refuse an unknown need.

        Raises:
            ValueError: it is not in NEEDS.
        """
        unknown = self.needs - set(NEEDS)
        if unknown:
            raise ValueError(f"needs {sorted(unknown)} are not among {', '.join(NEEDS)}")

    @property
    def requirement(self) -> "Requirement | None":
        """The check of network and options that its module has, if it has one."""
        return getattr(self._implementation, "require", None)

    def __call__(
        self, context: "QueryContext", batch_size: int, rng: "np.random.Generator"
    ) -> "Query":
        """Choose a batch; all randomness is drawn from `rng`.

        Picks whose score other candidates have too are reported in the diagnostics as `ties`.

        Raises:
            PipelineError: none are asked for, or more than there are candidates.
        """
        candidates = len(context.candidates)
        if not 1 <= batch_size <= candidates:
            raise PipelineError(
                f"a query of {batch_size} images was asked for and there are {candidates} "
                "candidates: ask for 1 to that many."
            )
        if "logits" in self.needs:
            context.logits()  # before other stages, whose seconds are their own
        if self.name in CRITERIA:
            found = self._implementation.look_ahead(context, batch_size, rng, self.name)
        else:
            found = getattr(self._implementation, self.name)(context, batch_size, rng)
        found = found._replace(diagnostics=found.diagnostics | context.frozen)
        return found if "history" in self.needs else found.with_ties()  # albl draws from batches

    @property
    def _implementation(self) -> ModuleType:
        return importlib.import_module(f"{__name__}.{self.module}")


_ROWS = (
    ("random", "uncertainty", "draws", "a uniform draw"),
    ("entropy", "uncertainty", "classes logits", "entropy of the class probabilities"),
    ("margin", "uncertainty", "classes logits", "smallest margin of the two likeliest classes"),
    ("least_confident", "uncertainty", "classes logits", "smallest top probability"),
    ("badge", "badge", "classes logits features draws", "k-means++ on last-layer gradients"),
    ("coreset", "coreset", "features", "greedy k-centre on penultimate features"),
    ("bald", "bald", "classes images dropout draws", "mutual information, by dropout passes"),
    # Look-ahead: logits are those of the kernel's own pass, or computed when they are read.
    ("mlmoc", "lookahead", "classes images kernel", "most likely model output change"),
    ("emoc", "lookahead", "classes images kernel", "expected model output change"),
    ("eer", "lookahead", "classes images kernel", "expected error reduction"),
    ("flip", "lookahead", "classes images kernel", "candidates that would change their class"),
    ("ev_gp", "lookahead", "images kernel", "reduction of the posterior variances"),
    ("loss_change", "lookahead", "classes images kernel", "reduction of the squared loss"),
    ("max_det", "lookahead", "images kernel", "largest determinant of the batch's covariance"),
    ("max_herding", "lookahead", "images kernel", "generalised coverage of the pool"),
    ("uherding", "lookahead", "classes images kernel", "coverage weighted by uncertainty"),
    ("ntkcpl", "lookahead", "classes images kernel draws", "agreement with clusters' labels"),
    # Baselines of look-ahead.
    ("naive", "baselines", "classes logits images training", "mlmoc by retraining a copy each"),
    ("ntk_no_blocks", "baselines", "classes logits images kernel", "mlmoc by a system each"),
    ("one_step", "baselines", "classes logits images training", "mlmoc by a gradient step each"),
    ("infinite_ntk", "infinite", "classes logits images infinite", "mlmoc, infinite-width NTK"),
    ("gp", "infinite", "classes logits images infinite", "mlmoc of a GP, infinite-width NTK"),
    ("ll4al", "ll4al", "classes images hooks", "largest loss predicted by a module trained along"),
    ("dynamical", "dynamical", "classes images gradients", "largest gain in training dynamics"),
    ("albl", "albl", "classes logits draws history", "a bandit over several other strategies"),
)
STRATEGIES: Mapping[str, Method] = MappingProxyType(
    {row[0]: Method(row[0], row[1], frozenset(row[2].split()), row[3]) for row in _ROWS}
)


def get(name: str) -> Method:
    """The row of a strategy's name.

    Raises:
        UnknownNameError: no such strategy.
    """
    return lookup(STRATEGIES, str(name), "strategy")


def help_text(names: Iterable[str] = STRATEGIES) -> str:
    """Names and summaries, for the help of `--strategy`."""
    return "; ".join(f"{name}: {STRATEGIES[name].summary}" for name in names)


def needing(*needs: str) -> frozenset[str]:
    """Names of the strategies that need any of these."""
    return frozenset(name for name, row in STRATEGIES.items() if row.needs & {*needs})


def methods_of(strategy: str, arms: Sequence[str]) -> tuple[Method, ...]:
    """A strategy and, of albl, its arms.

    Raises:
        UnknownNameError: no such strategy.
    """
    names = (strategy, *arms) if strategy == "albl" else (strategy,)
    return tuple(map(get, names))


def needs_of(methods: Iterable[Method]) -> frozenset[str]:
    """Everything that some strategies need."""
    return frozenset().union(*(method.needs for method in methods))


def needs_mirror(needs: Set[str]) -> bool:
    """Whether some needs include a JAX mirror of the network."""
    return bool(needs & {"kernel", "gradients"})


# Strategies that read a section of the options or, where others do, one option of it.
READERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "kernel": needing("kernel"),
        "kernel.sample": needing("kernel", "training", "infinite"),
        "kernel.ridge": needing("kernel", "infinite") - {"max_herding"},
        "kernel.reference": frozenset(
            {"mlmoc", "emoc", "flip", "naive", "ntk_no_blocks", "infinite_ntk"}
        ),
        "lookahead": frozenset(CRITERIA),
        "lookahead.labels": frozenset({"emoc", "eer", "uherding"}),
        "lookahead.beta": frozenset({"emoc", "eer", "uherding"}),
        "lookahead.uncertainty": frozenset({"uherding"}),
        "lookahead.temperature": frozenset({"uherding"}),
        "lookahead.radius": frozenset({"max_herding", "uherding"}),
        "lookahead.clusters": frozenset({"ntkcpl"}),
        "baseline": frozenset({"naive"}),
        "baseline.step": frozenset({"one_step"}),
        "baseline.candidates": frozenset({"naive", "one_step", "ntk_no_blocks"}),
        "baseline.image_size": needing("infinite"),
        "baseline.test": frozenset({"gp"}),
        "dynamics": needing("gradients"),
        "bald": needing("dropout"),
        "ll4al": needing("hooks"),
        "albl": needing("history"),
    }
)
SECTIONS = frozenset(name.partition(".")[0] for name in READERS)


def sections_of(strategy: str, arms: Sequence[str]) -> frozenset[str]:
    """Sections of the options that a strategy reads, and for albl its arms too.

    One that this version does not know may read all of them.
    """
    if not STRATEGIES.keys() >= {strategy, *arms}:
        return SECTIONS
    names = {method.name for method in methods_of(strategy, arms)}
    return frozenset(name.partition(".")[0] for name, own in READERS.items() if own & names)
