"""A person's own network: from `module:factory` to the function and what it is called with."""

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from trainer.errors import NetworkError

Argument = int | float | str


def load(name: str, what: str = "network") -> Callable[..., object]:
    """Import the function that `module:function` names.

    Args:
        name: the module, a colon, the function.
        what: what the function makes, for the messages.

    Raises:
        NetworkError: it cannot be imported, is not there, or cannot be called.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise NetworkError(f"{what} {name!r} is not of the form module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise NetworkError(
            f"{what} {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); "
            "start in the folder that holds it, or put that folder on PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        raise NetworkError(f"{what} {name!r}: {module_name} has no attribute {attribute!r}")
    if isinstance(function, nn.Module):
        raise NetworkError(
            f"{what} {name!r} is a network already; give a function that makes one, so that every "
            "seed has initial weights of its own"
        )
    if not callable(function):
        raise NetworkError(
            f"{what} {name!r} is a {type(function).__name__}, which cannot be called; it must be a "
            f"function that makes the {what}"
        )
    return function


def keywords_for(
    name: str,
    factory: Callable[..., object],
    input_shape: tuple[int, ...],
    classes: int,
    arguments: Mapping[str, Argument],
) -> dict[str, object]:
    """What a factory is called with: `input_shape` and `classes` if it takes them, and the rest.

    Raises:
        NetworkError: an argument is unknown to it, or one that it needs is not given.
    """
    offered: dict[str, object] = {"input_shape": input_shape, "classes": classes}
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # written in C, without a signature: the call itself will tell
        return {**offered, **arguments}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {**offered, **arguments}
    known = [p.name for p in parameters if p.name not in offered]
    for argument in arguments:
        if argument not in known:
            raise NetworkError(
                f"network {name!r} has no argument {argument!r}. "
                + (f"Known: {', '.join(known)}." if known else "It takes none.")
            )
    for p in parameters:
        needed = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if needed and p.name not in offered and p.name not in arguments:
            raise NetworkError(
                f"network {name!r} needs the argument {p.name!r}: give it as "
                f"--network-args {p.name}=VALUE, or give it a default value"
            )
    taken = {p.name for p in parameters}
    return {**{key: value for key, value in offered.items() if key in taken}, **arguments}


def parse_arguments(texts: Iterable[str]) -> dict[str, Argument]:
    """Arguments of a network from texts like `widen=2`; numbers become numbers.

    Raises:
        NetworkError: a text is not of that form.
    """
    return dict(_name_and_value(text) for text in texts)


def _name_and_value(argument: str) -> tuple[str, Argument]:
    name, equals, text = argument.partition("=")
    if not (name and equals and text):
        raise NetworkError(
            f"network argument {argument!r} is not of the form name=value, such as widen=2."
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return name, text
    return name, value if isinstance(value, int | float) else text
