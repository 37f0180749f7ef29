"""Whether look-ahead predicts what retraining does, for each network of the papers."""

import dataclasses

from experiments.statistics.claims import measured
from experiments.studies.study import Grid, Study
from pipelines.audit.config import AuditConfig
from trainer.config import TrainConfig

_BASE = AuditConfig(dataset="mnist", image_size=16, initial=100, sketches=(None, 4096), probes=(4,))
# Large networks: fewer candidates, and without the kernel of all pairs of classes, which is a
# hundred times the work of `single`.
_LARGE = dataclasses.replace(
    _BASE, candidates=16, kinds=("single", "sum", "rademacher", "trace"), train_steps=(150,)
)


def _of(base: AuditConfig, network: str, *arguments: str) -> AuditConfig:
    return dataclasses.replace(base, network=network, network_args=arguments)


def _on_cifar10(audit: AuditConfig, **changes: object) -> AuditConfig:
    return dataclasses.replace(audit, dataset="cifar10", **changes)  # pyright: ignore[reportArgumentType]


_WIDE = dataclasses.replace(_of(_BASE, "wide_resnet", "stages=1", "widen=1"), train_steps=(300,))
# Without BatchNorm [L]'s rates diverge, and [D]'s optimiser takes longer to fit the labels.
_CNN = dataclasses.replace(
    _of(_BASE, "cnn"), train=TrainConfig(optimiser="adam", learning_rate=0.003), train_steps=(600,)
)
# [L]'s optimiser at rates at which these fit a hundred labels without a restart.
_VGG = dataclasses.replace(_of(_LARGE, "vgg11_bn"), train=TrainConfig(learning_rate=0.05))
_RESNET = dataclasses.replace(
    _of(_LARGE, "resnet18"),
    train=TrainConfig(learning_rate=0.02),
    train_steps=(100,),
    candidates=12,
)
_SMALL = {
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
    _BASE,
    image_size=None,
    initial=1000,
    subset=1000,
    candidates=40,
    repeats=3,
    kinds=_LARGE.kinds,
    memory_gib=60.0,
)
_PAPER = {
    "MNIST, wide ResNet": dataclasses.replace(
        _of(_WHOLE, "wide_resnet", "stages=1", "widen=20"), initial=100
    ),
    "CIFAR-10, wide ResNet": _on_cifar10(_of(_WHOLE, "wide_resnet", "stages=2", "widen=10")),
    "CIFAR-10, ResNet18": _on_cifar10(_of(_WHOLE, "resnet18")),
    "CIFAR-10, VGG11": _on_cifar10(_of(_WHOLE, "vgg11_bn")),
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
    small=(Grid(_SMALL, {"audited": {}}, (0,)),),
    paper_size=(Grid(_PAPER, {"audited": {}}, (0, 1, 2)),),
    shows=("spearman", "ceiling", "error", "gain"),
    claims=(
        *(
            measured(
                f"spearman, single, {reference}",
                above=0.0,
                text=f"MLMOC ranks candidates as retraining does, {words}.",
            )
            for reference, words in (
                ("network", "beside the network before it"),
                ("linearised", "free of drift"),
            )
        ),
        measured(
            "error, single, linearised",
            below=1.0,
            text="The changes themselves are predicted better than by no change at all.",
        ),
        measured(
            "gain, single, linearised",
            above=0.0,
            text="The kernel ranks better than ‖onehot(ŷ) − f‖, which needs none.",
        ),
    ),
)
