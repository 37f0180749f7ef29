"""The operator table: ATen name → JAX function."""

from collections.abc import Callable
from typing import Any

from jax import Array

from kernel import x64  # noqa: F401

Scalar = int | float | bool
Value = Array | Scalar

OPERATORS: dict[str, Callable[..., Any]] = {}


def register(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table under ATen names such as `aten.relu.default`.

    Raises:
        ValueError: a name is taken.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"operator {name} has a row already; each operator has one")
            OPERATORS[name] = function
        return function

    return enter


def enter(rows: dict[str, Callable[..., Any]]) -> None:
    """Enter functions under names; a key may hold several, separated by spaces."""
    for names, function in rows.items():
        register(*names.split())(function)
