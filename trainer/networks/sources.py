"""Networks of timm and torchvision by name, and the preprocessing that they were trained with.

`timm:NAME` and `torchvision:NAME`. Their own pretrained weights are downloaded unless a file of
weights is given, or none are wanted. What size, mean and standard deviation images should have is
read from the model's configuration.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from trainer.config import RANDOM, TIMM, Argument, source_of
from trainer.errors import NetworkError, some

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Preprocessing(NamedTuple):
    """Preprocessing of the images that a network was trained on; None where nothing is known.

    Attributes:
        mean: of each channel, pixels in [0, 1].
        std: likewise.
        size: pixels of a side.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None


def _timm() -> ModuleType:
    import trainer.torchvision_compat  # noqa: F401 - timm imports torchvision

    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise NetworkError(
            "networks named timm:NAME need the package timm: pip install timm (or pip install "
            "'ntk-lookahead[timm]')"
        ) from error


def _torchvision_models() -> ModuleType:
    from trainer.torchvision_compat import torchvision

    return torchvision.models


def preprocessing_of(name: str) -> Preprocessing:
    """The preprocessing in a model's configuration, before the model is made.

    Raises:
        NetworkError: the library is not installed, or has no such model.
    """
    source = source_of(name)
    if source is None:
        return Preprocessing()
    library, own = source
    if library == TIMM:
        timm = _timm()
        _check_name(name, own, timm.is_model(own.partition(".")[0]), timm.list_models)
        config = timm.models.get_pretrained_cfg(own)
        return of_configuration({} if config is None else config.to_dict())
    models = _torchvision_models()
    listed = lambda pattern="*": models.list_models(module=models, include=pattern)
    _check_name(name, own, own in listed(), listed)
    try:
        transforms = models.get_model_weights(own).DEFAULT.transforms()
    except (ValueError, AttributeError):
        return Preprocessing(*IMAGENET)
    mean, std = (tuple(map(float, getattr(transforms, one))) for one in ("mean", "std"))
    return Preprocessing(mean, std, int(transforms.crop_size[0]))


def of_configuration(config: Mapping[str, Any]) -> Preprocessing:
    """Of a dictionary as timm's `pretrained_cfg` is, with `input_size`, `mean` and `std`."""
    size = config.get("input_size")
    mean, std = (config.get(one) for one in ("mean", "std"))
    return Preprocessing(
        None if mean is None else tuple(map(float, mean)),
        None if std is None else tuple(map(float, std)),
        None if size is None else int(size[-1]),
    )


def preprocessing_in(network: nn.Module) -> Preprocessing:
    """Preprocessing that a user's own network has as `pretrained_cfg` or `default_cfg`."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(network, attribute, None)
        if isinstance(config, Mapping):
            return of_configuration(config)
    return Preprocessing()


def _check_name(name: str, own: str, known: bool, list_models: Callable[[str], list[str]]) -> None:
    if known:
        return
    library = name.partition(":")[0]
    near = list_models(f"*{own}*") or list_models(f"{own[:4]}*")
    hint = f"; it has {some(near)}" if near else ""
    raise NetworkError(f"network {name!r}: {library} has no model {own!r}{hint}")


def factory_of(name: str, *, pretrained: bool) -> Callable[..., nn.Module]:
    """A function of `input_shape`, `classes` and the model's own arguments.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.
        pretrained: download the library's weights; the head is new in any case.

    Raises:
        NetworkError: as `preprocessing_of`; of the function: weights that cannot be had.
    """
    preprocessing_of(name)
    source = source_of(name)
    assert source is not None
    library, own = source

    def of_timm(
        input_shape: tuple[int, int, int], classes: int, **arguments: Argument
    ) -> nn.Module:
        timm = _timm()
        config = timm.models.get_pretrained_cfg(own)
        sized = config is not None and config.fixed_input_size
        if sized and not {"img_size", "dynamic_img_size"} & arguments.keys():
            arguments["img_size"] = input_shape[1:]  # pyright: ignore[reportArgumentType]
        if input_shape[0] != 3:
            arguments.setdefault("in_chans", input_shape[0])
        return timm.create_model(own, pretrained=pretrained, num_classes=classes, **arguments)

    def of_torchvision(
        input_shape: tuple[int, int, int], classes: int, **arguments: Argument
    ) -> nn.Module:
        models = _torchvision_models()
        if own.startswith("vit_"):
            arguments.setdefault("image_size", input_shape[-1])
        if not pretrained:
            return models.get_model(own, weights=None, num_classes=classes, **arguments)
        network = models.get_model(own, weights="DEFAULT", **arguments)
        head = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        return _with_classes(network, *head[-1], classes)

    make = of_timm if library == TIMM else of_torchvision

    def made(**keywords: Any) -> nn.Module:
        try:
            return make(**keywords)
        except (TypeError, NetworkError):
            raise
        except Exception as error:
            if not pretrained:
                raise NetworkError(f"network {name!r}: {type(error).__name__}: {error}") from error
            raise NetworkError(
                f"the pretrained weights of {name!r} cannot be had here "
                f"({type(error).__name__}: {str(error).strip()[:200]}): give --weights FILE, or "
                f"--weights {RANDOM} for random ones"
            ) from error

    return made


def _with_classes(network: nn.Module, path: str, old: nn.Module, classes: int) -> nn.Module:
    """The network with a new last layer of so many outputs."""
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        kernel: Any = old.kernel_size
        new = nn.Conv2d(old.in_channels, classes, kernel, bias=old.bias is not None)
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
    return network
