"""The sequential mode: labels one at a time, each absorbed without training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.sequential.config import SequentialOptions

if TYPE_CHECKING:
    from pipelines.sequential.session import (
        Exhausted,
        SequentialQuery,
        SequentialSession,
        Status,
        start,
    )

__all__ = [
    "Exhausted",
    "SequentialOptions",
    "SequentialQuery",
    "SequentialSession",
    "Status",
    "start",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch and JAX are imported with it: not for a command that is refused
        return getattr(import_module("pipelines.sequential.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
