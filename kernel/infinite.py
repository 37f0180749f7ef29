"""Analytic NTKs of networks of infinite width, by tiles of pairs of images (Arora et al. 2019).

The networks of the papers as neural-tangents has them: the same convolutions, strides, padding and
residual sums as in `trainer.networks`, without BatchNorm, which has no analytic kernel, and with
means in place of maxima, which have none either. Parametrised as Jacot, Gabriel, Hongler (2018):
weights W_std/√fan-in and biases b_std times standard normal parameters. Because a network ends in a
mean over pixels, the covariances of all pairs of pixels of two images are needed: time and memory
grow with images² · pixels² (docs/mathematics.md, 4).
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core
import numpy as np
from jax.interpreters import ad
from jaxtyping import Array, Float, Int64

from kernel.contract import reserved
from kernel.covariance import AnyKernel, Cross, Kernel
from kernel.errors import KernelError
from kernel.model import Images, selection
from kernel.plan import GIB, Report, enough
from kernel.scratch import Scratch, key_of

_MOVED_TO_EXTEND = ("ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")


def _import_neural_tangents() -> Any:
    """neural-tangents, with the names put back that it imports from JAX.

    Its last release (0.6.5, 2023) imports names that have since moved or gone, and TensorFlow for a
    sub-package that nothing here uses, which an empty module replaces. With that, stax kernels,
    `nt.predict`, `nt.batch`, Jacobian contraction (implementation 1) and NTK-vector products (2)
    work. Structured derivatives (3, and 0, which may choose them) do not: name an implementation.
    """

    def safe_map(function, *sequences):
        lists = [list(sequence) for sequence in sequences]
        if len({len(one) for one in lists}) > 1:
            raise ValueError(f"sequences of unequal length: {[len(one) for one in lists]}")
        return list(map(function, *lists))

    for name in _MOVED_TO_EXTEND:
        if not hasattr(jax.core, name):
            setattr(jax.core, name, getattr(jax.extend.core, name))
    if not hasattr(ad, "zeros_like_p"):
        # only a key in a table of rules: no program of today's JAX contains this primitive
        ad.zeros_like_p = jax.extend.core.Primitive("zeros_like")  # pyright: ignore[reportAttributeAccessIssue]
    if "jax.util" not in sys.modules:
        utilities: Any = ModuleType("jax.util", "names that neural-tangents imports from here")
        utilities.safe_map = safe_map
        utilities.safe_zip = lambda *sequences: safe_map(lambda *entries: entries, *sequences)
        sys.modules["jax.util"] = utilities
    experimental = "neural_tangents.experimental"
    sys.modules.setdefault(experimental, ModuleType(experimental, "left out"))
    import neural_tangents

    return neural_tangents  # its own annotations do not fit the JAX of today


nt = _import_neural_tangents()
CONVOLUTION_STD, HEAD_STD, BIAS_STD = 2.0**0.5, 1.0, 0.1
_EVERY_SECOND = nt.stax.Slice[:, ::2, ::2]


class Architecture(NamedTuple):
    """A network at infinite width: its kind and its depths.

    Attributes:
        name: a row of `ARCHITECTURES`.
        depths: its arguments that are not widths, by name.
    """

    name: str
    depths: tuple[tuple[str, int], ...] = ()

    def layers(self, side: int) -> Any:
        """The layers for images whose shorter side has so many pixels; their third is Θ.

        Raises:
            KernelError: no such architecture.
        """
        if self.name not in ARCHITECTURES:
            raise KernelError(
                f"{self.name!r} has no counterpart of infinite width; "
                f"known: {', '.join(ARCHITECTURES)}."
            )
        return nt.stax.serial(
            *ARCHITECTURES[self.name](side, **dict(self.depths)),
            nt.stax.GlobalAvgPool(),
            nt.stax.Dense(1, W_std=HEAD_STD, b_std=BIAS_STD),
        )


def _convolution(stride: int = 1, window: int = 3, bias: bool = True) -> Any:
    """As torch has it with padding (window − 1)/2: positions 0, 2, 4, … where the stride is 2.

    `SAME` with a stride would take 1, 3, 5, … of an even number of positions.
    """
    # (40) f = (W_std/√fan-in) ω·h + b_std β
    layer = nt.stax.Conv(
        1,
        (window, window),
        padding="SAME",
        W_std=CONVOLUTION_STD,
        b_std=BIAS_STD if bias else None,
    )
    if stride == 1:
        return layer
    every_second = nt.stax.Index(_EVERY_SECOND, channel_axis=3)
    return nt.stax.serial(*((layer, every_second) if window > 1 else (every_second, layer)))


def _sum(one: Any, other: Any) -> list[Any]:
    """One branch plus another."""
    return [nt.stax.FanOut(2), nt.stax.parallel(one, other), nt.stax.FanInSum()]


def _cnn(side: int) -> list[Any]:
    layers: list[Any] = []
    for _ in range(3):
        layers += [_convolution(), nt.stax.Relu()]
    return layers


def _vgg11(side: int, halvings: int = 5) -> list[Any]:
    """Means of 2×2 pixels for maxima; a halving that would leave no pixel is left out."""
    layers: list[Any] = []
    for group, convolutions in enumerate((1, 1, 2, 2, 2)):
        for _ in range(convolutions):
            layers += [_convolution(), nt.stax.Relu()]
        if group < halvings and side >= 2:
            layers.append(nt.stax.AvgPool((2, 2), (2, 2)))
            side //= 2
    return layers


def _stage(stride: int, blocks: int, bias: bool) -> list[Any]:
    """Pre-activation blocks; where the stride is 2 the first has a 1×1 convolution as shortcut."""
    layers: list[Any] = []
    for number in range(blocks):
        first = stride if number == 0 else 1
        body = (_convolution(first, bias=bias), nt.stax.Relu(), _convolution(bias=bias))
        if first > 1:
            shortcut = _convolution(first, 1, bias=bias)
            layers += [nt.stax.Relu(), *_sum(nt.stax.serial(*body), shortcut)]
        else:
            layers += _sum(nt.stax.serial(nt.stax.Relu(), *body), nt.stax.Identity())
    return layers


def _resnet18(side: int) -> list[Any]:
    """Two blocks in each of four stages, pre-activated; only the last layer has a bias.

    torchvision's blocks end in a ReLU, whose output the next shortcut carries to a sum that is then
    not Gaussian at any width: for those there is no analytic kernel. With the ReLUs before the
    convolutions (He et al. 2016, Identity Mappings) there is one; nothing else differs.
    """
    layers = [_convolution(bias=False)]
    for stride in (1, 2, 2, 2):
        layers += _stage(stride, 2, bias=False)
    return [*layers, nt.stax.Relu()]


def _wide_resnet(side: int, stages: int = 1, blocks: int = 1) -> list[Any]:
    """Pre-activation blocks; the first of a stage halves the image."""
    layers = [_convolution()]
    for _ in range(stages):
        layers += _stage(2, blocks, bias=True)
    return [*layers, nt.stax.Relu()]


ARCHITECTURES: Mapping[str, Callable[..., list[Any]]] = MappingProxyType(
    {"cnn": _cnn, "vgg11_bn": _vgg11, "resnet18": _resnet18, "wide_resnet": _wide_resnet}
)


# Arrays of covariances that XLA holds at once, by its own account 3 to 10 for these networks.
_ARRAYS = 12
_LARGEST_TILE = 32


class Tiling(NamedTuple):
    """Tiles of pairs of images.

    Attributes:
        anchors: rows of the kernel, the first of the images.
        examples: its columns, all images.
        size: images a side of a tile.
        peak_gib: what the kernel takes at its highest.
    """

    anchors: int
    examples: int
    size: int
    peak_gib: float

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        rows = -(-self.anchors // self.size)
        columns = -(-self.examples // self.size)
        return rows * columns - rows * (rows - 1) // 2


def tiling(
    images: Images | jax.ShapeDtypeStruct,
    labelled: int,
    sample: int | None,
    memory_gib: float,
) -> Tiling:
    """The largest tiles that fit in the memory.

    Args:
        images: the labelled images, then the candidates, or their shape.
        labelled: how many are labelled.
        sample: over how many candidates changes are summed; None for all.
        memory_gib: what the kernel may take.

    Raises:
        KernelError: the kernel, or the pixels of one pair of images, do not fit.
    """
    examples, _, height, width = images.shape
    anchors = examples if sample is None else labelled + sample
    result = 8.0 * anchors * examples * (1 if sample is None else 2)  # its columns are reordered
    pair = 8.0 * _ARRAYS * (height * width) ** 2
    room = memory_gib * GIB - result
    if room < pair:
        raise KernelError(
            f"the kernel of infinite width between {examples:,} images of {height}×{width} pixels "
            f"needs {enough(result + pair)} GiB, most of it for the "
            f"{'pixels of one pair' if pair > result else 'pairs'} of images, and {memory_gib:g} "
            "GiB are given: give more, score fewer candidates, or make the images smaller "
            "(baseline.image_size)."
        )
    size = min(int((room / pair) ** 0.5), _LARGEST_TILE, examples)
    return Tiling(anchors, examples, size, (result + pair * size**2) / GIB)


def infinite_kernel(
    architecture: Architecture,
    images: Images,
    labelled: int,
    *,
    sample: Int64[np.ndarray, " sample"] | None = None,
    memory_gib: float = 4.0,
    progress: Report | None = None,
    folder: Path | None = None,
) -> AnyKernel:
    """The kernel that a posterior is made of, in float64.

    Args:
        architecture: of the network.
        images: the labelled images, then the candidates, normalised; read tile by tile.
        labelled: how many are labelled.
        sample: candidates over which changes are summed; all if None. Then the
            kernel is between all images, else between anchors and all.
        memory_gib: GiB that it may take.
        progress: called with the tiles done and all tiles, first when everything is compiled.
        folder: where finished tiles are kept, so that an interrupted query goes on where it stood;
            its contents belong to this function.

    Raises:
        KernelError: no such architecture; too little memory; entries that are not finite.
    """
    how = {"memory_gib": memory_gib, "progress": progress, "folder": folder}
    if sample is None:
        return Kernel(infinite_rows(architecture, images, len(images), **how), "float64")
    anchors = np.concatenate([np.arange(labelled), labelled + sample])
    order = np.concatenate([anchors, np.setdiff1d(np.arange(len(images)), anchors)])
    values = infinite_rows(architecture, selection(images, order, "float64"), len(anchors), **how)
    back = np.argsort(order)
    others = _diagonal(architecture, selection(images, order[len(anchors) :], "float64"))
    diagonal = np.concatenate([values.diagonal(), others])
    return Cross(values[:, back], diagonal[back], "float64")


def infinite_rows(
    architecture: Architecture,
    images: Images,
    anchors: int,
    *,
    memory_gib: float = 4.0,
    progress: Report | None = None,
    folder: Path | None = None,
) -> Float[np.ndarray, "anchors examples"]:
    """The kernel between the first images and all, by tiles.

    Args:
        architecture: of the network.
        images: normalised.
        anchors: how many are the first.
        memory_gib: GiB that it may take.
        progress: called with the tiles done and all tiles, first when everything is compiled.
        folder: as for `infinite_kernel`.

    Raises:
        KernelError: as `infinite_kernel`.
    """
    cut = tiling(images, anchors, None if anchors == len(images) else 0, memory_gib)
    size = cut.size
    kept = None
    if folder is not None:
        kept = Scratch(folder, key_of((images,), ("infinite", architecture, cut)))
    values = np.zeros((cut.anchors, cut.examples))
    function = pairs(architecture, min(images.shape[2:]))
    first = _tile(images, 0, size)
    jax.block_until_ready(function(first, first))  # compiled before the clock starts
    with reserved(kept, values.nbytes):
        done = 0
        for top in range(0, cut.anchors, size):
            band, corners = values[top : top + size, top:], range(top, cut.examples, size)
            if kept is None or not kept.load(f"rows-{top}", band):
                for number, left in enumerate(corners):
                    if progress is not None:
                        progress(done + number, cut.tiles)
                    made = np.asarray(function(_tile(images, top, size), _tile(images, left, size)))
                    tile = (made + made.T) / 2 if left == top else made
                    own = values[top : top + size, left : left + size]
                    own[...] = tile[: own.shape[0], : own.shape[1]]
                if kept is not None:
                    kept.save(f"rows-{top}", band)
            values[top : cut.anchors, top : top + len(band)] = band[:, : cut.anchors - top].T
            done += len(corners)
    if progress is not None:
        progress(cut.tiles, cut.tiles)
    if not np.isfinite(values).all():
        raise KernelError("the kernel of infinite width has entries that are not finite.")
    return values


@cache
def pairs(architecture: Architecture, side: int) -> Callable[[np.ndarray, np.ndarray], Array]:
    """Θ between two sets of images (examples, height, width, channels), compiled once a shape.

    Args:
        architecture: of the network.
        side: pixels of the shorter side of an image.
    """
    kernel = architecture.layers(side)[2]

    @partial(jax.jit, compiler_options=_options())
    def ntk(ones, others):
        with warnings.catch_warnings():  # branches are independent: each has its convolution
            warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs")
            return kernel(ones, others, "ntk")

    return ntk


def _options() -> dict[str, int]:
    """For the compiler: on a CPU, not to vectorise convolutions.

    Its vectorised ones (jaxlib 0.10, AVX-512) read past the end of their input, which kills the
    process at sizes such as 16×16 pixels. The kernel takes as long without.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def _diagonal(architecture: Architecture, images: Images) -> np.ndarray:
    """Θ(x, x) of each image."""
    function = pairs(architecture, min(images.shape[2:]))
    ones = (_tile(images, number, 1) for number in range(len(images)))
    return np.array([np.asarray(function(one, one))[0, 0] for one in ones])


def _tile(images: Images, start: int, size: int) -> np.ndarray:
    """A tile of images, channels last, padded by repeating the last."""
    some = images[np.minimum(np.arange(start, start + size), len(images) - 1)]
    return np.ascontiguousarray(some.transpose(0, 2, 3, 1), np.float64)
