"""[D]'s figures and table: dynamicAL by rounds and by γ, and what its theory says of a network."""

import dataclasses

from experiments.statistics.claims import Claim, Part, better, measured, not_better
from experiments.studies.study import Grid, Study, methods, vary
from experiments.studies.tasks import (
    DYNAMICS_SEEDS,
    FIVE,
    PAPER_D,
    PAPER_THEORY,
    SMALL_D,
    SMALL_THEORY,
    as_jpeg,
)

# What a whole budget is, in labels, and how many rounds the figures spend it in.
_SMALL_BUDGET, _PAPER_BUDGET = 200, 1000
_ROUNDS = 4
_MARGIN = 0.5  # points of accuracy below which nobody would care
_PAPER_CNN = PAPER_D["CIFAR-10, CNN"]


def _in(rounds: int, budget: int) -> dict[str, int]:
    return {"query": budget // rounds, "cycles": rounds}


def _by_rounds(budget: int) -> dict[str, dict[str, object]]:
    """A budget in 1 to 10 rounds of dynamicAL, and random choice in 1 and 10."""
    dynamical = {
        f"dynamical, R = {rounds}": {"strategy": "dynamical", **_in(rounds, budget)}
        for rounds in (1, 2, 4, 10)
    }
    return {
        "random": {"strategy": "random", **_in(1, budget)},
        "random, R = 10": {"strategy": "random", **_in(10, budget)},
        **dynamical,
    }


_TEN, _ONE = "dynamical, R = 10", "dynamical, R = 1"
ROUNDS = Study(
    name="rounds",
    title="One large batch or many small ones",
    source="[D] Table 1",
    question="Does dynamicAL gain when its budget is spent in more rounds?",
    paper=(
        "A budget of 1,000 in R = 10, 4, 2 and 1 rounds: CIFAR-10 with the CNN 36.84, 36.72, 36.71 "
        "and 36.67%; with ResNet18 40.92, 40.78, 40.46 and 40.09; SVHN with VGG 76.34, 75.26, "
        "74.10 and 70.04; Caltech-101 with ResNet18 37.06, 36.48, 35.91 and 33.82."
    ),
    small=(Grid(SMALL_D, _by_rounds(_SMALL_BUDGET), FIVE),),
    paper_size=(Grid(PAPER_D, _by_rounds(_PAPER_BUDGET), DYNAMICS_SEEDS),),
    claims=(
        better(_TEN, _ONE, "final", text="Ten rounds are better than one."),
        better(
            _TEN, "random, R = 10", "final", text="In ten rounds dynamicAL is better than random."
        ),
        better(_ONE, "random", "final", text="In one round it is better than random."),
    ),
)

_SMALL_CNN = {
    "CIFAR-10 16×16, CNN": as_jpeg(
        vary(_PAPER_CNN, {"image_size": 16, "train.precision": "bfloat16"})
    )
}
CIFAR10_ROUNDS = dataclasses.replace(
    ROUNDS,
    name="cifar10_rounds",
    title="CIFAR-10 with the CNN, in one round or many",
    source="[D] Table 1, CIFAR-10 with the CNN",
    paper=(
        "A budget of 1,000 beside 500 labels, on CIFAR-10 with the CNN: R = 10, 4, 2 and 1 rounds "
        "come to 36.84, 36.72, 36.71 and 36.67%."
    ),
    # its network, training, labels and budget; images are smaller, products of training rounder
    small=(Grid(_SMALL_CNN, _by_rounds(_PAPER_BUDGET), (0, 1, 2)),),
    paper_size=(Grid({"CIFAR-10, CNN": _PAPER_CNN}, _by_rounds(_PAPER_BUDGET), DYNAMICS_SEEDS),),
)

_COMPARED = ("random", "dynamical", "badge", "coreset", "least_confident", "albl")
BY_ROUND = Study(
    name="dynamical",
    title="dynamicAL against the state of the art",
    source="[D] Figure 3",
    question="Is dynamicAL better than random and than the strategies in use, round by round?",
    paper="dynamicAL is above random, Coreset, least confidence, BADGE and ALBL in most rounds.",
    small=(Grid(SMALL_D, methods(_COMPARED, **_in(_ROUNDS, _SMALL_BUDGET)), FIVE),),
    paper_size=(Grid(PAPER_D, methods(_COMPARED, **_in(_ROUNDS, _PAPER_BUDGET)), DYNAMICS_SEEDS),),
    claims=(
        better("dynamical", "random", text="dynamicAL is better than random."),
        *(
            not_better(
                name, "dynamical", margin=_MARGIN, text=f"{name} is no better than dynamicAL."
            )
            for name in _COMPARED
            if name not in ("random", "dynamical")
        ),
    ),
)


def _gammas(budget: int) -> dict[str, dict[str, object]]:
    shared = _in(_ROUNDS, budget)
    return {"random": {"strategy": "random", **shared}} | {
        f"γ = {'∞' if gamma == 'inf' else gamma}": {
            "strategy": "dynamical",
            "dynamics.gamma": gamma,
            **shared,
        }
        for gamma in (0.0, 1.0, 2.0, "inf")
    }


GAMMA = Study(
    name="gamma",
    title="How much of the query's own gradient counts",
    source="[D] Figure 5",
    question="Which γ of Δ = ‖g_u‖² + γ g_u·g_S is best?",
    paper="γ = 2, what a candidate would really add to the training dynamics, is best.",
    small=(Grid(SMALL_D, _gammas(_SMALL_BUDGET), FIVE),),
    paper_size=(Grid({"CIFAR-10, CNN": _PAPER_CNN}, _gammas(_PAPER_BUDGET), DYNAMICS_SEEDS),),
    claims=tuple(
        better("γ = 2.0", f"γ = {other}", text=f"γ = 2 is better than γ = {other}.")
        for other in ("0.0", "1.0", "∞")
    ),
)

# The three share their trials: a network is trained and its kernel computed once for all.
_SMALL_MEASURED = (Grid(SMALL_THEORY, {"measured": {}}, FIVE),)
_PAPER_MEASURED = (Grid(PAPER_THEORY, {"measured": {}}, DYNAMICS_SEEDS),)
_STATES = (("initial", "at initialisation"), ("trained", "after training"))

BOUND = Study(
    name="bound",
    title="What a query shifts, beside the bound",
    source="[D] Figure 1",
    question="Is MMD(S, S ∪ Q) small beside the bound B on the generalisation error?",
    paper="MMD is far below B for queries of 250, 500 and 1,000.",
    small=_SMALL_MEASURED,
    paper_size=_PAPER_MEASURED,
    shows=("MMD", "bound", "MMD over bound"),
    claims=tuple(
        measured(
            Part(f"MMD over bound, {chosen}", state=state),
            below=0.1,
            text=f"MMD is below a tenth of B, {chosen} queries, {words}.",
        )
        for state, words in _STATES
        for chosen in ("dynamical", "random")
    ),
)

CORRELATION = Study(
    name="correlation",
    title="Training dynamics and alignment",
    source="[D] Figure 2",
    question="Do training dynamics rank queries as the alignment of labels and kernel does?",
    paper="Kendall's τ between G_MSE and alignment is clearly positive.",
    small=_SMALL_MEASURED,
    paper_size=_PAPER_MEASURED,
    shows=("tau",),
    claims=tuple(
        measured(Part("tau, G_MSE", state=state), above=0.0, text=f"τ is positive {words}.")
        for state, words in _STATES
    ),
)


def _near_one(queries: int) -> tuple[Claim, ...]:
    return tuple(
        measured(
            Part(f"ratio, {chosen}, {queries}", x=200.0),
            above=0.8,
            below=1.25,
            text=f"R is near 1 (0.8 to 1.25) after training, {chosen} queries of {queries}.",
        )
        for chosen in ("dynamical", "random")
    )


RATIO = Study(
    name="ratio",
    title="Scoring one by one, or the batch as a whole",
    source="[D] Figure 4",
    question="Is the sum of single scores near what the whole query adds to training dynamics?",
    paper="The approximation ratio R goes to 1 over training.",
    small=_SMALL_MEASURED,
    paper_size=_PAPER_MEASURED,
    shows=("ratio", "median ratio", "training accuracy"),
    small_claims=_near_one(25),
    paper_claims=_near_one(250),
)
