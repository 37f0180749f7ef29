"""The table of strategies: what each of them needs, and the module that it is imported from.

A new strategy is a function `(context, batch_size, rng) -> Query` of its own name in a module of
this package, and a row here. It is imported when it is asked for.
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
        needs: names of NEEDS: what is checked before anything is trained, and computed once
            whatever the number of strategies that ask for it.
        summary: one line, for help texts.
    """

    name: str
    module: str
    needs: frozenset[str]
    summary: str

    def __post_init__(self):
        """Refuse a need that nobody computes.

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
            return self._implementation.look_ahead(context, batch_size, rng, self.name)
        return getattr(self._implementation, self.name)(context, batch_size, rng)

    @property
    def _implementation(self) -> ModuleType:
        return importlib.import_module(f"{__name__}.{self.module}")


def _row(name: str, module: str, needs: str, summary: str) -> Method:
    return Method(name, module, frozenset(needs.split()), summary)


_ROWS = (
    _row("random", "uncertainty", "draws", "a uniform draw"),
    _row("entropy", "uncertainty", "logits", "entropy of the class probabilities"),
    _row("margin", "uncertainty", "logits", "smallest margin of the two likeliest classes"),
    _row("least_confident", "uncertainty", "logits", "smallest probability of the likeliest class"),
    _row("badge", "badge", "logits features draws", "k-means++ on gradients of the last layer"),
    _row("coreset", "coreset", "features", "greedy k-centre on penultimate features"),
    _row("bald", "bald", "images dropout draws", "mutual information, by Monte Carlo dropout"),
    # Look-ahead: logits are those of the kernel's own pass, or computed when they are read.
    _row("mlmoc", "lookahead", "images kernel", "most likely model output change"),
    _row("emoc", "lookahead", "images kernel", "expected model output change"),
    _row("eer", "lookahead", "images kernel", "expected error reduction"),
    _row("flip", "lookahead", "images kernel", "candidates whose predicted class would change"),
    _row("ev_gp", "lookahead", "images kernel", "reduction of the posterior variances"),
    _row("loss_change", "lookahead", "images kernel", "reduction of the squared loss"),
    _row("max_det", "lookahead", "images kernel", "largest determinant of the batch's covariance"),
    _row("max_herding", "lookahead", "images kernel", "generalised coverage of the pool"),
    _row("uherding", "lookahead", "images kernel", "coverage of the pool, weighted by uncertainty"),
    _row("ntkcpl", "lookahead", "images kernel draws", "agreement with pseudo-labels of clusters"),
    # Baselines of look-ahead.
    _row("naive", "baselines", "logits images training", "mlmoc by retraining a copy each"),
    _row("ntk_no_blocks", "baselines", "logits images kernel", "mlmoc by a linear system each"),
    _row("one_step", "baselines", "logits images training", "mlmoc by one gradient step each"),
    _row("infinite_ntk", "infinite", "logits images infinite", "mlmoc with the infinite-width NTK"),
    _row("gp", "infinite", "logits images infinite", "mlmoc of a GP with the infinite-width NTK"),
    _row("ll4al", "ll4al", "images hooks", "largest predicted loss, by a module trained along"),
    _row("dynamical", "dynamical", "images gradients", "largest gain in training dynamics"),
    _row("albl", "albl", "logits draws history", "a bandit over several of the other strategies"),
)
STRATEGIES: Mapping[str, Method] = MappingProxyType({row.name: row for row in _ROWS})


def get(name: str) -> Method:
    """The row of a strategy's name.

    Raises:
        UnknownNameError: no such strategy.
    """
    return lookup(STRATEGIES, name, "strategy")


def help_text(names: Iterable[str] = STRATEGIES) -> str:
    """Names and summaries, for the help of `--strategy`."""
    return "; ".join(f"{name}: {STRATEGIES[name].summary}" for name in names)


def needing(*needs: str) -> frozenset[str]:
    """Names of the strategies that need any of these."""
    return frozenset(row.name for row in _ROWS if row.needs & {*needs})


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
    """Whether a JAX mirror of the network is among what is needed."""
    return bool(needs & {"kernel", "gradients"})


# Sections of the options that only some strategies read, by what those need.
_SECTIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "kernel": frozenset({"kernel", "training", "infinite"}),
        "lookahead": frozenset({"kernel"}),
        "baseline": frozenset({"training", "infinite"}),
        "dynamics": frozenset({"gradients"}),
        "bald": frozenset({"dropout"}),
        "ll4al": frozenset({"hooks"}),
        "albl": frozenset({"history"}),
    }
)
SECTIONS = frozenset(_SECTIONS)


def sections_of(strategy: str, arms: Sequence[str]) -> frozenset[str]:
    """Sections of the options that a strategy reads, and for albl its arms too.

    One that this version does not know may read all of them.
    """
    if not STRATEGIES.keys() >= {strategy, *arms}:
        return SECTIONS
    methods = methods_of(strategy, arms)
    needs = needs_of(methods)
    found = {section for section, its in _SECTIONS.items() if its & needs}
    if "ntk_no_blocks" in {method.name for method in methods}:
        found.add("baseline")
    return frozenset(found)
