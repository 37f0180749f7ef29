"""Active learning, end to end. Its public functions are imported when they are asked for.

`query` and `compare` choose images for a loop of your own, `start` asks one at a time.
"""

# pyright: reportUnsupportedDunderAll=false
import importlib
from typing import Any

__all__ = ["Query", "QueryOptions", "SequentialOptions", "compare", "query", "start"]

_MODULES = {
    "Query": "pipelines.query",
    "QueryOptions": "pipelines.strategies.options",
    "SequentialOptions": "pipelines.sequential.config",
    "compare": "pipelines.query",
    "start": "pipelines.sequential",
}


def __getattr__(name: str) -> Any:
    if name == "query":  # the module, which is called as its function
        return importlib.import_module("pipelines.query")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
