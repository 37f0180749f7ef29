"""[L]'s figures and table: what look-ahead costs and finds, beside what it is compared with.

Every method `random` is the reference of its task; a look-ahead that is a batch strategy carries
its own name.
"""

import dataclasses

from experiments.statistics.claims import Claim, alike, better, faster, not_better, reaches
from experiments.studies.study import Grid, Study, methods
from experiments.studies.tasks import FIVE, LOOK_AHEAD_SEEDS, PAPER_L, SLOW, SMALL, SMALL_CIFAR10
from pipelines.config import RunConfig
from pipelines.sequential.config import SequentialConfig, defaults

# Points of accuracy below which nobody would care.
_MARGIN = 0.5
# The kernel of infinite width costs the fourth power of the pixels of a side.
_AVERAGED = {"baseline.image_size": 7}
_PAPER_MNIST = {"MNIST": PAPER_L["MNIST"]}

_COMPARED_COSTS = ["naive", "ntk_no_blocks"]
_BOTH = ["random", "mlmoc"]
_OTHERS = {"one_step": "one SGD step", "infinite_ntk": "the infinite NTK", "gp": "the GP"}

COST = Study(
    name="look_ahead_cost",
    title="What look-ahead costs",
    source="[L] Figure 1a",
    question=(
        "Is look-ahead by the kernel as good as really retraining with each candidate, and how "
        "much faster is it?"
    ),
    paper=(
        "On MNIST the kernel's look-ahead is more than 100 times as fast as naive look-ahead and "
        "no less accurate."
    ),
    small=(Grid(SLOW, methods(_BOTH) | methods(_COMPARED_COSTS, **_AVERAGED), FIVE),),
    paper_size=(Grid(_PAPER_MNIST, methods([*_BOTH, *_COMPARED_COSTS]), LOOK_AHEAD_SEEDS[:1]),),
    claims=(
        faster("mlmoc", "naive", 100.0, text="NTK look-ahead is over 100 times as fast as naive."),
        not_better("naive", "mlmoc", margin=_MARGIN, text="Its accuracy is no lower than naive's."),
        faster("mlmoc", "ntk_no_blocks", text="Block computation is faster than one solve each."),
    ),
)

LOOK_AHEADS = Study(
    name="look_aheads",
    title="Four ways to look ahead",
    source="[L] Figure 1b and Table 1",
    question="Which way of looking ahead beats random choice?",
    paper=(
        "Only look-ahead by the empirical NTK beats its random baseline (Friedman p = 0.0045; "
        "paired t-tests, uncorrected: against one step 0.011, infinite NTK 0.0093, GP 0.0014)."
    ),
    small=(Grid(SLOW, methods(_BOTH) | methods(_OTHERS, **_AVERAGED), FIVE),),
    paper_size=(Grid(PAPER_L, methods([*_BOTH, *_OTHERS]), LOOK_AHEAD_SEEDS),),
    claims=(
        better("mlmoc", "random", text="NTK look-ahead beats random."),
        *(
            not_better(
                name,
                "random",
                margin=_MARGIN,
                text=f"{words[0].upper()}{words[1:]} does not beat random.",
            )
            for name, words in _OTHERS.items()
        ),
        *(
            better("mlmoc", name, text=f"NTK look-ahead is better than {words}.")
            for name, words in _OTHERS.items()
        ),
    ),
)

_COMPARED = ("entropy", "margin", "badge", "ll4al")
_SMALL_ARMS = methods(["random", "mlmoc", *_COMPARED, "uherding", "flip"])
_PAPER_ARMS = methods(["random", "mlmoc", *_COMPARED])
STRATEGIES = Study(
    name="strategies",
    title="Look-ahead against the state of the art",
    source="[L] Figure 2",
    question="Is look-ahead as good as the strategies in use, and better than random?",
    paper=(
        "NTK look-ahead is as good as or better than Entropy, Margin, BADGE and LL4AL on MNIST, "
        "SVHN, CIFAR-10 and CIFAR-100."
    ),
    small=(Grid(SMALL, _SMALL_ARMS, FIVE),),
    paper_size=(Grid(PAPER_L, _PAPER_ARMS, LOOK_AHEAD_SEEDS),),
    claims=(
        better("mlmoc", "random", text="NTK look-ahead is better than random."),
        *(
            not_better(
                name, "mlmoc", margin=_MARGIN, text=f"{name} is no better than NTK look-ahead."
            )
            for name in _COMPARED
        ),
    ),
)

CIFAR10 = dataclasses.replace(
    STRATEGIES,
    name="cifar10_strategies",
    title="Look-ahead against the state of the art, on CIFAR-10",
    source="[L] Figure 2, CIFAR-10",
    small=(Grid(SMALL_CIFAR10, _SMALL_ARMS, FIVE),),
    paper_size=(Grid({"CIFAR-10": PAPER_L["CIFAR-10"]}, _PAPER_ARMS, LOOK_AHEAD_SEEDS),),
)

CRITERIA = Study(
    name="criteria",
    title="Which change to look for",
    source="[L] Figure 3c",
    question="Does it matter which criterion is asked of the same look-ahead predictions?",
    paper="MLMOC and EMOC are about equally good, and so is EER.",
    small=(Grid(SMALL, methods(["random", "mlmoc", "emoc", "eer", "flip"]), FIVE),),
    paper_size=(
        Grid(_PAPER_MNIST, methods(["random", "mlmoc", "emoc", "eer", "flip"]), LOOK_AHEAD_SEEDS),
    ),
    claims=(
        alike("emoc", "mlmoc", within=_MARGIN, text="EMOC is as good as MLMOC."),
        alike("eer", "mlmoc", within=_MARGIN, text="EER is as good as MLMOC."),
    ),
)


def _widths(script: RunConfig, name: str, widths: tuple[int, ...]) -> dict[str, RunConfig]:
    """A task for each width of the widest layer, which is 32 times the widen factor."""
    return {
        f"{name}, width {width}": dataclasses.replace(
            script, network_args=("stages=1", f"widen={width / 32:g}")
        )
        for width in widths
    }


def _at(task: str) -> Claim:
    text = f"NTK look-ahead is better than random: {task}."
    return better("mlmoc", "random", tasks=(task,), text=text)


_SMALL_WIDTHS = _widths(SMALL["MNIST 14×14"], "MNIST 14×14", (16, 32, 64))
_PAPER_WIDTHS = _widths(PAPER_L["MNIST"], "MNIST", (40, 80, 160, 320, 640))
WIDTHS = Study(
    name="widths",
    title="Narrow and wide networks",
    source="[L] Figure 3b",
    question="Does look-ahead need a wide network?",
    paper="NTK look-ahead is better than random at each of the widths 40, 80, 160, 320 and 640.",
    small=(Grid(_SMALL_WIDTHS, methods(_BOTH), FIVE),),
    paper_size=(Grid(_PAPER_WIDTHS, methods(_BOTH), LOOK_AHEAD_SEEDS),),
    claims=(
        better("mlmoc", "random", text="NTK look-ahead is better than random over all widths."),
    ),
    small_claims=tuple(_at(task) for task in _SMALL_WIDTHS),
    paper_claims=tuple(_at(task) for task in _PAPER_WIDTHS),
)


def _one_by_one(script: RunConfig) -> SequentialConfig:
    """As many labels and trainings as the run in batches, but each asked for by itself."""
    return dataclasses.replace(
        defaults(script.dataset),
        image_size=script.image_size,
        initial=script.initial,
        subset=script.subset,
        network=script.network,
        network_args=script.network_args,
        train=script.train,
        budget=script.query * script.cycles,
        retrain_every=script.query,
        final_training=True,
    )


def _both_ways(name: str, script: RunConfig, seeds: tuple[int, ...]) -> tuple[Grid, Grid]:
    """Three strategies in batches and one by one."""
    names = ["random", "mlmoc", "uherding"]
    sequential = {f"sequential {name}": {"strategy": name} for name in names}
    return (
        Grid({name: script}, methods(names), seeds),
        Grid({name: _one_by_one(script)}, sequential, seeds),
    )


SEQUENTIAL = Study(
    name="sequential",
    title="One label at a time",
    source="[L] Figure 3a",
    question=(
        "Is a label worth more when it is asked for in the light of every answer before it, "
        "absorbed without SGD?"
    ),
    paper=(
        "On MNIST sequential look-ahead is above 94% after one cycle of 20 labels and at 96% after "
        "three, where batches reach a plateau below."
    ),
    small=_both_ways("MNIST 14×14", SMALL["MNIST 14×14"], FIVE),
    paper_size=_both_ways("MNIST", PAPER_L["MNIST"], LOOK_AHEAD_SEEDS),
    claims=(
        better("sequential mlmoc", "mlmoc", text="Sequential look-ahead is better than batches."),
        better("sequential mlmoc", "random", text="Sequential look-ahead is better than random."),
    ),
    paper_claims=(
        reaches("sequential mlmoc", 94.0, 120, text="Above 94% after one cycle."),
        reaches("sequential mlmoc", 96.0, 160, text="96% after three cycles."),
    ),
)
