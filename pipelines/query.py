"""One query for your own loop: which images should be labelled next?

`query` asks one strategy; `compare` asks several, and computes once what several of them need. The
module itself can be called as `query`.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from pipelines import strategies as table
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, generator
from pipelines.strategies import Method, needs_mirror, needs_of
from pipelines.strategies.base import (
    Images,
    Labelling,
    Query,
    QueryContext,
    Resources,
    build_context,
    checked_count,
    checked_index,
    checked_label,
    reference_sample,
)
from pipelines.strategies.options import QueryOptions
from trainer.config import TrainConfig
from trainer.networks.loss_prediction import LossPrediction

if TYPE_CHECKING:
    from bridge.mirror import Mirror

__all__ = ["Query", "QueryOptions", "compare", "query", "query_context"]


@runtime_checkable
class DataSet(Protocol):
    """A data set of items, such as torch's."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One of them."""
        ...


OwnImages = np.ndarray | torch.Tensor | DataSet


def query(
    model: nn.Module,
    images: OwnImages,
    labelled: Mapping[int, int],
    batch_size: int,
    strategy: str = "mlmoc",
    options: QueryOptions | None = None,
    *,
    history: Sequence[Query | Mapping[str, Any]] = (),
    auxiliary_module: LossPrediction | None = None,
    oracle: Callable[[np.ndarray], np.ndarray] | None = None,
    mirror: "Mirror | None" = None,
    seed: int = 0,
    progress: Stages | None = None,
) -> Query:
    """Choose the next images to label.

    Args:
        model: your trained network in eval mode: (batch, channels, height, width) → (batch,
            classes) logits.
        images: float (examples, channels, height, width), all of them, labelled or not, exactly
            as the network takes them (normalised, not augmented); or a data set of such images,
            torch's or any other with a length and items, which is read when it is needed.
        labelled: the labels so far, {index into images: class from 0}.
        batch_size: how many to choose.
        strategy: a name in `pipelines.strategies.STRATEGIES`.
        options: of the loss, the candidates and the strategies; the defaults if None.
        history: what your earlier queries returned, first to last, or lines of a run's record;
            ALBL learns from them, with the labels that they have now.
        auxiliary_module: for ll4al, the loss prediction module that was trained together with the
            model (`trainer.networks.loss_prediction`).
        oracle: indices into `images` → their true classes, int64; asked while the batch is chosen,
            in the batch mode `hybrid` only. The answers are in the diagnostics.
        mirror: your own mirror of the model, by `bridge.twin` or kept from an earlier query; it is
            given the model's present weights. None traces one.
        seed: of everything random, with the number of labels: successive queries of one seed draw
            independently.
        progress: records time and memory, and shows progress.

    Returns:
        The chosen indices into `images`, best first, with their scores, every candidate's score
        and diagnostics.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: images, labels, options or sizes that cannot be used.
        NetworkError: the network is in train mode or does not return one row of logits an image.
        DataError: labelled indices that are out of range.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    method = table.get(strategy)
    batch_size, seed = checked_count("batch_size", batch_size, 1), checked_count("seed", seed, 0)
    resources = _resources(history, auxiliary_module, oracle, progress)
    context = query_context(
        model, images, labelled, batch_size, [method], options, resources, mirror, seed
    )
    return method(context, batch_size, generator(seed, strategy, len(labelled)))


def compare(
    model: nn.Module,
    images: OwnImages,
    labelled: Mapping[int, int],
    batch_size: int,
    strategies: Sequence[str],
    options: QueryOptions | None = None,
    *,
    history: Sequence[Query | Mapping[str, Any]] = (),
    auxiliary_module: LossPrediction | None = None,
    oracle: Callable[[np.ndarray], np.ndarray] | None = None,
    mirror: "Mirror | None" = None,
    seed: int = 0,
    progress: Stages | None = None,
) -> dict[str, Query]:
    """Ask each strategy for the same next images.

    Each answers as `query` would with the same seed, but for rounding (all read the network's own
    logits) and for random projections and samples of a kernel, which all of them share and which
    follow from the seed. A kernel that is shared is kept, so that its posterior takes memory
    beside it, beyond kernel.memory_gib.

    The arguments are those of `query`, but for the names of the strategies, each once.

    Raises:
        PipelineError: no strategy, or one twice; what `query` raises.
    """
    names = [strategies] if isinstance(strategies, str) else list(strategies)
    if not names or len(set(names)) < len(names):
        raise PipelineError(f"strategies are {names}; name at least one, and each of them once.")
    methods = [table.get(name) for name in names]
    batch_size, seed = checked_count("batch_size", batch_size, 1), checked_count("seed", seed, 0)
    known = len(labelled) if isinstance(labelled, Mapping) else 0  # which is refused below
    shared_seed = int(generator(seed, "shared", known).integers(2**63))
    resources = _resources(history, auxiliary_module, oracle, progress, shared_seed)
    context = query_context(
        model, images, labelled, batch_size, methods, options, resources, mirror, seed
    )
    return {
        row.name: row(context, batch_size, generator(seed, row.name, len(labelled)))
        for row in methods
    }


def _resources(
    history: Iterable[Query | Mapping[str, Any]],
    auxiliary_module: LossPrediction | None,
    oracle: Callable[[np.ndarray], np.ndarray] | None,
    progress: Stages | None,
    shared_seed: int | None = None,
) -> Resources:
    lines: list[Any] = [history] if isinstance(history, Query | Mapping) else list(history)
    if not all(isinstance(line, Query | Mapping) for line in lines):
        raise PipelineError("history holds something else than queries or lines of a run's record.")
    if auxiliary_module is not None and not isinstance(auxiliary_module, LossPrediction):
        raise PipelineError(
            f"auxiliary_module is a {type(auxiliary_module).__name__}; give the LossPrediction "
            "that was trained together with the model."
        )
    if oracle is not None and not callable(oracle):
        raise PipelineError(
            f"oracle is a {type(oracle).__name__}; give a function of indices that returns classes."
        )
    return Resources(
        progress=progress or Stages(),
        oracle=oracle,
        history=[line._asdict() if isinstance(line, Query) else line for line in lines],
        auxiliary_module=auxiliary_module,
        shared_seed=shared_seed,
    )


def query_context(
    model: nn.Module,
    images: OwnImages,
    labelled: Mapping[int, int],
    batch_size: int,
    methods: Sequence[Method] = (),
    options: QueryOptions | None = None,
    resources: Resources | None = None,
    mirror: "Mirror | None" = None,
    seed: int = 0,
) -> QueryContext:
    """The context of a network, images and labels of one's own, checked; as `query` takes them."""
    options = QueryOptions() if options is None else options
    for name, given, wanted in (("model", model, nn.Module), ("options", options, QueryOptions)):
        if not isinstance(given, wanted):
            found = given.__name__ if isinstance(given, type) else type(given).__name__
            raise PipelineError(f"{name} is a {found}; it must be a {wanted.__name__}.")
    options.check_read([method.name for method in methods])
    array = checked_images(images)
    indices, labels = checked_labels(labelled, len(array))
    unlabelled = np.setdiff1d(np.arange(len(array)), indices)
    if batch_size > len(unlabelled):
        raise PipelineError(
            f"a query of {batch_size} images was asked for and {len(unlabelled)} are not labelled "
            "yet; lower batch_size."
        )
    candidates = unlabelled
    if options.subset is not None:
        subset = checked_count("subset", options.subset, 1)
        if subset < batch_size:
            raise PipelineError(
                f"subset is {subset} and batch_size is {batch_size}: a batch cannot be larger than "
                "the candidates it is chosen from."
            )
        drawn = reference_sample(len(unlabelled), subset, generator(seed, "subset", len(indices)))
        candidates = unlabelled if drawn is None else unlabelled[drawn]
    read: Images = lambda indices: array[indices]
    resources = resources or Resources()
    frozen = not all(parameter.requires_grad for parameter in model.parameters())
    if frozen and mirror is None and needs_mirror(needs_of(methods)):
        from pipelines.strategies.frontier import frontier_of  # JAX

        with resources.progress("certificate"):
            rows = frontier_of(model, array, read, options.frozen)
        resources = replace(resources, frontier=rows)
    return build_context(
        model,
        read,
        Labelling(indices, labels, candidates),
        methods,
        train=TrainConfig(loss=options.loss),
        options=options,
        resources=resources,
        mirror=mirror,
    )


_NAMED = "pixel_values"  # of what image processors make
_TRANSFORM = (
    "give the data set a transform that makes what the network takes, such as torchvision's v2 "
    "ToImage, ToDtype(torch.float32, scale=True), Resize and Normalize (a Hugging Face data set "
    "takes it by with_transform)"
)


class Items:
    """float32 images (examples, ...) of a data set, read item by item whenever they are needed.

    An item is an image, a tuple or list that begins with one, or a dict with the entry
    `pixel_values` or a single entry of floating point numbers. Labels in it are not read.
    """

    def __init__(self, items: DataSet):
        """Read the first item.

        Args:
            items: at whole numbers from 0.

        Raises:
            PipelineError: there is none, or it holds no image.
        """
        if not len(items):
            raise PipelineError("images are a data set without items; at least one is needed.")
        self._items = items
        self._of_one = self._image(0).shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them."""
        return (len(self), *self._of_one)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    def __getitem__(self, some: Any) -> np.ndarray:
        """The images at a slice or an array of indices.

        Raises:
            PipelineError: an item holds no image, one of another shape, or one that is not finite.
        """
        indices = np.atleast_1d(np.arange(len(self))[some])
        images = np.empty((len(indices), *self._of_one), np.float32)
        for position, index in enumerate(indices.tolist()):
            found = self._image(index)
            if found.shape != self._of_one:
                raise PipelineError(
                    f"item {index} is an image of shape {found.shape} and item 0 one of shape "
                    f"{self._of_one}; resize or crop them in the data set's transform."
                )
            images[position] = found
            if not np.isfinite(images[position]).all():
                raise PipelineError(f"images [{index}] hold NaN or infinite values.")
        return images

    def _image(self, index: int) -> np.ndarray:
        try:
            item = self._items[index]
        except Exception as error:
            raise PipelineError(
                f"item {index} of the images cannot be read ({type(error).__name__}: {error}); "
                "they must be a data set with items at whole numbers from 0 to its length."
            ) from error
        return _floating(_as_array(_entry(item, index), f"item {index}"), f"item {index}")


def _entry(item: Any, index: int) -> Any:
    """Image of an item."""
    if isinstance(item, Mapping):
        if _NAMED in item:
            return item[_NAMED]
        floats = [name for name, value in item.items() if _is_floating(value)]
        if len(floats) == 1:
            return item[floats[0]]
        names = ", ".join(map(str, floats or item))
        raise PipelineError(
            f"item {index} is a dict with {len(floats)} entries of floating point numbers "
            f"({names}); name the image {_NAMED}, or {_TRANSFORM}."
        )
    if isinstance(item, tuple | list):
        if not item:
            raise PipelineError(f"item {index} is empty; it must begin with the image.")
        return item[0]
    return item


def _is_floating(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() and value.ndim > 0
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0


def _as_array(value: Any, who: str) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        value = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or not value.ndim:
        raise PipelineError(
            f"{who} is of type {type(value).__name__}, and no array or tensor: {_TRANSFORM}."
        )
    return value


def _floating(array: np.ndarray, who: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise PipelineError(
            f"{who} has dtype {array.dtype}; give images as the network takes them, floating point "
            f"and normalised: {_TRANSFORM}."
        )
    if np.ma.is_masked(array):
        raise PipelineError(f"{who} is masked in part; fill these pixels as the network expects.")
    return array


def checked_images(images: OwnImages) -> np.ndarray | Items:
    """Images as float32 (examples, channels, height, width), or rows of any other shape.

    Args:
        images: an array or tensor, or a data set (`Items`), such as torch's or Hugging Face's.

    Raises:
        PipelineError: they are none of these, or not finite and normalised.
    """
    array: Any = images
    if isinstance(images, torch.Tensor) and images.layout == torch.strided:
        array = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()
    plain = isinstance(array, np.ndarray | torch.Tensor | list | tuple | str | bytes | Mapping)
    if not plain and isinstance(array, DataSet):
        return Items(array)
    if not isinstance(array, np.ndarray) or array.ndim < 2 or not len(array):
        shaped = isinstance(array, np.ndarray)
        raise PipelineError(
            f"images are {f'shape {array.shape}' if shaped else type(images).__name__}; they must "
            "be an array or tensor of shape (examples, ...): channels, height, width, or rows; or "
            "a data set with a length and items."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise PipelineError(
            f"images have dtype {array.dtype}; give them as the network takes them: floating "
            "point and normalised."
        )
    if np.ma.is_masked(array):
        raise PipelineError("images are masked in part; fill these pixels as the network expects.")
    with np.errstate(over="ignore"):  # beyond float32: infinite, and refused below
        single = np.asarray(array).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(single).all(axis=tuple(range(1, single.ndim))))
    if len(bad):
        raise PipelineError(f"images {bad[:5].tolist()} hold NaN or infinite values.")
    return single


def checked_labels(labelled: object, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the labelled images and their labels, int64 (labelled,), in their order.

    Indices may be text, as the keys of JSON are.

    Args:
        labelled: {index of an image: class from 0}.
        examples: number of images.

    Raises:
        PipelineError: no labels, an image that is labelled twice, or with no whole number from 0.
        DataError: an index of no image.
    """
    if not isinstance(labelled, Mapping):
        raise PipelineError(
            f"labelled is a {type(labelled).__name__}; it must be the labels so far as a mapping "
            "{index into images: class}, without the images that have none."
        )
    if not labelled:
        raise PipelineError("the labelled set is empty: label a few images at random first.")
    found: dict[int, int] = {}
    keys: dict[int, object] = {}
    for key, label in labelled.items():
        index = checked_index(key, examples)
        if index in found:
            raise PipelineError(
                f"image {index} is labelled twice, as {keys[index]!r} and as {key!r}: keep one."
            )
        found[index], keys[index] = checked_label(label, index), key
    return np.array(list(found), np.int64), np.array(list(found.values()), np.int64)


class _Callable(ModuleType):
    """The module as the function `query`: `from pipelines import query` gives the module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Query:
        return self.query(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.query)


sys.modules[__name__].__class__ = _Callable
