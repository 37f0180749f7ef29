"""How faithful the kernel is: to the full one by width ([P]), and to retraining (the audit)."""

from experiments.approximation.config import ApproximationConfig
from experiments.statistics.claims import Part, falls, measured
from experiments.studies.study import Grid, Study, vary
from experiments.studies.tasks import DYNAMICS_SEEDS, FIVE, as_jpeg
from pipelines.audit.config import AuditConfig

_OWN = "experiments.approximation.networks:"
_ADAM = {
    "train.optimiser": "adam",
    "train.min_steps": 500,
    "train.epochs": 150,
    "train.weight_decay": 0.0,
}
_WIDTHS = vary(
    ApproximationConfig.of_dataset("mnist"), {"image_size": 14, "initial": 60, "test": 60}
)


def _widths(
    base: ApproximationConfig, network: str, argument: str, *widths: int, **changes: object
) -> ApproximationConfig:
    own = {"network": network, "width_argument": argument, "widths": widths}
    return vary(base, {**own, **changes})


_WIDTHS_SMALL = {
    "MNIST 14×14, fully connected": _widths(
        _WIDTHS, f"{_OWN}fcn", "width", 64, 128, 256, 512, 1024, **_ADAM
    ),
    "MNIST 14×14, convolutions": _widths(_WIDTHS, f"{_OWN}convnet", "width", 16, 32, 64, **_ADAM),
    "MNIST 14×14, wide ResNet": vary(
        _widths(_WIDTHS, "wide_resnet", "widen", 1, 2, 4),
        {"network_args": ("stages=1",), "train.min_steps": 500},
    ),
}
# For a GPU: of [P] the data set and the families of networks; counts and widths are chosen here.
_WIDTHS_LARGE = vary(
    ApproximationConfig.of_dataset("cifar10"),
    {"initial": 1000, "test": 500, "memory_gib": 60.0, **_ADAM},
)
_WIDTHS_PAPER = {
    "CIFAR-10, fully connected": _widths(
        _WIDTHS_LARGE, f"{_OWN}fcn", "width", 128, 256, 512, 1024, 2048
    ),
    "CIFAR-10, convolutions": _widths(_WIDTHS_LARGE, f"{_OWN}convnet", "width", 32, 64, 128, 256),
    "CIFAR-10, wide ResNet": vary(
        _widths(_WIDTHS_LARGE, "wide_resnet", "widen", 1, 2, 4, 8, 10),
        {"network_args": ("stages=2",)},
    ),
}
_STATES = (("initial", "at initialisation"), ("trained", "after training"))

APPROXIMATION = Study(
    name="approximation",
    title="One number in place of a block",
    source="[P], its figures by width",
    question=(
        "Does the kernel of the sum of the logits come near the full one as the network grows?"
    ),
    paper=(
        "The relative Frobenius error, that of the largest eigenvalue and that of kernel "
        "regression fall as the width grows, at initialisation and after training."
    ),
    small=(Grid(_WIDTHS_SMALL, {"kinds": {}}, FIVE),),
    paper_size=(Grid(_WIDTHS_PAPER, {"kinds": {}}, DYNAMICS_SEEDS),),
    claims=tuple(
        falls(Part(quantity, state=state), text=f"{what} falls with the width {words}.")
        for state, words in _STATES
        for quantity, what in (
            ("frobenius error, sum", "The relative Frobenius error"),
            ("largest eigenvalue error, sum", "The error of the largest eigenvalue"),
            (
                "regression error, sum, ridge 0, zero",
                "With λ = 0 the error of kernel regression",
            ),
        )
    ),
)

# Large networks: fewer candidates, and without the kernel of all pairs of classes, which is a
# hundred times the work of `single`.
_FEW_KINDS = {"kinds": ("single", "sum", "rademacher", "trace")}
_LARGE = {"candidates": 16, "train_steps": (150,), **_FEW_KINDS}


def _audit(dataset: str, network: str, *arguments: str, **changes: object) -> AuditConfig:
    own = {"image_size": 16, "initial": 100, "sketches": (None, 4096), "probes": (4,)}
    named = {"network": network, "network_args": arguments}
    return vary(AuditConfig.of_dataset(dataset), {**own, **named, **changes})


def _small_audits(name: str, dataset: str, *wide: str) -> dict[str, AuditConfig]:
    return {
        f"{name} 16×16, wide ResNet": _audit(dataset, "wide_resnet", *wide, train_steps=(300,)),
        # Without BatchNorm [L]'s rates diverge, and [D]'s optimiser takes longer to fit the labels.
        f"{name} 16×16, CNN": _audit(
            dataset,
            "cnn",
            train_steps=(600,),
            **{"train.optimiser": "adam", "train.learning_rate": 0.003},
        ),
        # [L]'s optimiser at rates at which these fit a hundred labels without a restart.
        f"{name} 16×16, VGG11": _audit(
            dataset, "vgg11_bn", **{**_LARGE, "train.learning_rate": 0.05}
        ),
        f"{name} 16×16, ResNet18": _audit(
            dataset,
            "resnet18",
            **{**_LARGE, "train.learning_rate": 0.02, "train_steps": (100,), "candidates": 12},
        ),
    }


_AUDIT_SMALL = _small_audits("MNIST", "mnist", "stages=1", "widen=1") | {
    name: as_jpeg(audit)
    for name, audit in _small_audits("CIFAR-10", "cifar10", "stages=2", "widen=1").items()
}
# [L]'s labels and widths, images as they are.
_WHOLE = {
    "image_size": None,
    "initial": 1000,
    "subset": 1000,
    "candidates": 40,
    "repeats": 3,
    "memory_gib": 60.0,
    **_FEW_KINDS,
}
_AUDIT_PAPER = {
    "MNIST, wide ResNet": _audit(
        "mnist", "wide_resnet", "stages=1", "widen=20", **{**_WHOLE, "initial": 100}
    ),
    "CIFAR-10, wide ResNet": _audit("cifar10", "wide_resnet", "stages=2", "widen=10", **_WHOLE),
    "CIFAR-10, ResNet18": _audit("cifar10", "resnet18", **_WHOLE),
    "CIFAR-10, VGG11": _audit("cifar10", "vgg11_bn", **_WHOLE),
}

AUDIT = Study(
    name="audit",
    title="Does look-ahead predict what retraining does?",
    source="[L], what every figure of it supposes",
    question=(
        "Do the changes that the kernel predicts rank candidates as those of really retraining do, "
        "for each network of the papers?"
    ),
    paper=(
        "The linearised network stands for the retrained one, so that what it predicts may be "
        "asked in its place. [L] does not compare the two candidate by candidate."
    ),
    small=(Grid(_AUDIT_SMALL, {"audited": {}}, (0,)),),
    paper_size=(Grid(_AUDIT_PAPER, {"audited": {}}, (0, 1, 2)),),
    shows=("spearman", "ceiling", "error", "gain"),
    claims=(
        *(
            measured(
                Part(f"spearman, single, {reference}"),
                above=0.0,
                text=f"MLMOC ranks candidates as retraining does, {words}.",
            )
            for reference, words in (
                ("network", "beside the network before it"),
                ("linearised", "free of drift"),
            )
        ),
        measured(
            Part("error, single, linearised"),
            below=1.0,
            text="The changes themselves are predicted better than by no change at all.",
        ),
        measured(
            Part("gain, single, linearised"),
            above=0.0,
            text="The kernel ranks better than ‖onehot(ŷ) − f‖, which needs none.",
        ),
    ),
)
