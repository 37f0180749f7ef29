"""The strategies by name; a new one is a function and a row here, with what it needs.

What a strategy needs of a network, looked for before the network is trained.

From the needs of a strategy, a network and a few images to nothing, or to a refusal in plain words.
"""

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

import numpy as np
from torch import nn

from kernel.options import CRITERIA
from pipelines.strategies import (
    albl,
    badge,
    bald,
    baselines,
    coreset,
    dynamical,
    infinite,
    ll4al,
    lookahead,
    uncertainty,
)
from pipelines.strategies.bald import require_dropout
from pipelines.strategies.base import Method, method
from pipelines.strategies.infinite import architecture_of
from trainer.predict import find_head

# Those that choose by themselves, and so can be arms of albl.
_ROWS: Mapping[str, Method] = MappingProxyType(
    {
        "random": method(uncertainty.random, "draws"),
        "entropy": method(uncertainty.entropy, "logits"),
        "margin": method(uncertainty.margin, "logits"),
        "least_confident": method(uncertainty.least_confident, "logits"),
        "badge": method(badge.badge, "logits", "features", "draws"),
        "coreset": method(coreset.coreset, "features"),
        "bald": method(bald.bald, "images", "dropout", "draws"),
        **{
            # logits are those of the kernel's own pass, or asked for by themselves
            criterion: method(lookahead.looking(criterion), "images", "kernel")
            for criterion in CRITERIA
        },
        # its clusters are drawn
        "ntkcpl": method(lookahead.looking("ntkcpl"), "images", "kernel", "draws"),
        "naive": method(baselines.naive, "logits", "images", "training"),
        "ntk_no_blocks": method(baselines.ntk_no_blocks, "logits", "images", "kernel"),
        "one_step": method(baselines.one_step, "logits", "images", "training"),
        "infinite_ntk": method(infinite.infinite_ntk, "logits", "images", "infinite"),
        "gp": method(infinite.gp, "logits", "images", "infinite"),
        "ll4al": method(ll4al.ll4al, "images", "hooks"),
        "dynamical": method(dynamical.dynamical, "images", "gradients"),
    }
)
STRATEGIES: Mapping[str, Method] = MappingProxyType(
    {**_ROWS, "albl": method(albl.over(_ROWS), "logits", "draws", "history")}
)


def needing(*needs: str) -> frozenset[str]:
    """Names of the strategies that need any of these."""
    return frozenset(name for name, row in STRATEGIES.items() if row.needs & {*needs})


def needs_of(strategy: str, arms: Sequence[str]) -> frozenset[str]:
    """What a strategy needs, and for albl what its arms do."""
    names = (strategy, *arms) if strategy == "albl" else (strategy,)
    return frozenset().union(*(STRATEGIES[name].needs for name in names))


# Sections of a run's settings that only some strategies look at, by what those need.
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
SETTINGS = frozenset(_SECTIONS)


def settings_of(strategy: str, arms: Sequence[str]) -> frozenset[str]:
    """Sections of the settings that a strategy looks at, and for albl its arms too.

    One that this version does not know may look at all of them.
    """
    if not STRATEGIES.keys() >= {strategy, *arms}:
        return SETTINGS
    needs = needs_of(strategy, arms)
    found = {section for section, its in _SECTIONS.items() if its & needs}
    if "ntk_no_blocks" in (strategy, *arms):
        found.add("baseline")
    return frozenset(found)


def mirrored(needs: Set[str]) -> bool:
    """Whether a mirror of the network is among what is needed."""
    return bool(needs & {"kernel", "gradients"})


# Those that compute a kernel of the network.
LOOK_AHEAD = needing("kernel")
# Those that need a mirror of the network.
MIRRORED = needing("kernel", "gradients")
# Those that need a network which has a counterpart of infinite width.
INFINITE = needing("infinite")


def require(needs: Set[str], network: nn.Module, images: np.ndarray) -> None:
    """Refuse a network that a strategy cannot be asked with.

    Args:
        needs: of the strategy, names of `method.NEEDS`.
        network: in eval mode, trained or not.
        images: a few, as the network takes them.

    Raises:
        NetworkError: no layer makes the logits, and penultimate features are needed.
        PipelineError: it has no dropout, or no counterpart of infinite width, and it is needed.
    """
    if "features" in needs:
        find_head(network, images)
    if "dropout" in needs:
        require_dropout(network)
    if "infinite" in needs:
        architecture_of(network)
