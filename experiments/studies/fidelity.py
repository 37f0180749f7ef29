"""How faithful the kernel is: to the full one by width ([P]), and to retraining (the audit)."""

import dataclasses

from experiments.approximation.config import ApproximationConfig
from experiments.statistics.claims import Part, falls, measured
from experiments.studies.study import Grid, Study
from experiments.studies.tasks import DYNAMICS_SEEDS, FIVE
from pipelines.audit.config import AuditConfig
from trainer.config import TrainConfig

_OWN = "experiments.approximation.networks:"
_WIDTHS = ApproximationConfig(
    dataset="mnist",
    image_size=14,
    initial=60,
    test=60,
    train=TrainConfig(optimiser="adam", min_steps=500, epochs=150, weight_decay=0.0),
)


def _widths(
    base: ApproximationConfig, network: str, argument: str, *widths: int
) -> ApproximationConfig:
    return dataclasses.replace(base, network=network, width_argument=argument, widths=widths)


_WIDTHS_SMALL = {
    "MNIST 14×14, fully connected": _widths(
        _WIDTHS, f"{_OWN}fcn", "width", 64, 128, 256, 512, 1024
    ),
    "MNIST 14×14, convolutions": _widths(_WIDTHS, f"{_OWN}convnet", "width", 16, 32, 64),
    "MNIST 14×14, wide ResNet": dataclasses.replace(
        _widths(_WIDTHS, "wide_resnet", "widen", 1, 2, 4),
        network_args=("stages=1",),
        train=TrainConfig(min_steps=500),
    ),
}
# For a GPU: of [P] the data set and the families of networks; counts and widths are chosen here.
_WIDTHS_LARGE = dataclasses.replace(
    _WIDTHS, dataset="cifar10", image_size=None, initial=1000, test=500, memory_gib=60.0
)
_WIDTHS_PAPER = {
    "CIFAR-10, fully connected": _widths(
        _WIDTHS_LARGE, f"{_OWN}fcn", "width", 128, 256, 512, 1024, 2048
    ),
    "CIFAR-10, convolutions": _widths(_WIDTHS_LARGE, f"{_OWN}convnet", "width", 32, 64, 128, 256),
    "CIFAR-10, wide ResNet": dataclasses.replace(
        _widths(_WIDTHS_LARGE, "wide_resnet", "widen", 1, 2, 4, 8, 10), network_args=("stages=2",)
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

_AUDIT = AuditConfig(
    dataset="mnist", image_size=16, initial=100, sketches=(None, 4096), probes=(4,)
)
# Large networks: fewer candidates, and without the kernel of all pairs of classes, which is a
# hundred times the work of `single`.
_AUDIT_LARGE = dataclasses.replace(
    _AUDIT, candidates=16, kinds=("single", "sum", "rademacher", "trace"), train_steps=(150,)
)


def _audit(base: AuditConfig, network: str, *arguments: str) -> AuditConfig:
    return dataclasses.replace(base, network=network, network_args=arguments)


def _on_cifar10(audit: AuditConfig, **changes: object) -> AuditConfig:
    return dataclasses.replace(audit, dataset="cifar10", **changes)  # pyright: ignore[reportArgumentType]


_WIDE = dataclasses.replace(
    _audit(_AUDIT, "wide_resnet", "stages=1", "widen=1"), train_steps=(300,)
)
# Without BatchNorm [L]'s rates diverge, and [D]'s optimiser takes longer to fit the labels.
_CNN = dataclasses.replace(
    _audit(_AUDIT, "cnn"),
    train=TrainConfig(optimiser="adam", learning_rate=0.003),
    train_steps=(600,),
)
# [L]'s optimiser at rates at which these fit a hundred labels without a restart.
_VGG = dataclasses.replace(_audit(_AUDIT_LARGE, "vgg11_bn"), train=TrainConfig(learning_rate=0.05))
_RESNET = dataclasses.replace(
    _audit(_AUDIT_LARGE, "resnet18"),
    train=TrainConfig(learning_rate=0.02),
    train_steps=(100,),
    candidates=12,
)
_AUDIT_SMALL = {
    "MNIST 16×16, wide ResNet": _WIDE,
    "MNIST 16×16, CNN": _CNN,
    "MNIST 16×16, VGG11": _VGG,
    "MNIST 16×16, ResNet18": _RESNET,
    "CIFAR-10 16×16, wide ResNet": _on_cifar10(_WIDE, network_args=("stages=2", "widen=1")),
    "CIFAR-10 16×16, CNN": _on_cifar10(_CNN),
    "CIFAR-10 16×16, VGG11": _on_cifar10(_VGG),
    "CIFAR-10 16×16, ResNet18": _on_cifar10(_RESNET),
}
# [L]'s labels and widths, images as they are.
_WHOLE = dataclasses.replace(
    _AUDIT,
    image_size=None,
    initial=1000,
    subset=1000,
    candidates=40,
    repeats=3,
    kinds=_AUDIT_LARGE.kinds,
    memory_gib=60.0,
)
_AUDIT_PAPER = {
    "MNIST, wide ResNet": dataclasses.replace(
        _audit(_WHOLE, "wide_resnet", "stages=1", "widen=20"), initial=100
    ),
    "CIFAR-10, wide ResNet": _on_cifar10(_audit(_WHOLE, "wide_resnet", "stages=2", "widen=10")),
    "CIFAR-10, ResNet18": _on_cifar10(_audit(_WHOLE, "resnet18")),
    "CIFAR-10, VGG11": _on_cifar10(_audit(_WHOLE, "vgg11_bn")),
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
