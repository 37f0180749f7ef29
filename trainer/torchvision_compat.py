"""torchvision, importable beside a CPU-only torch.

torchvision's wheel is built for CUDA. Beside a torch without CUDA its compiled operators do not
load, and `import torchvision` then dies while it registers shape functions for `nms` and `qnms`,
which nothing here calls. Declaring their schemas is enough. A torchvision whose operators do load
is left as it is: declaring first and loading afterwards would abort the process.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _operator_is_known(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _declare_missing_operators() -> torch.library.Library | None:
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        raise ImportError(
            "torchvision is not installed; it reads the data sets: pip install torchvision"
        )
    for compiled in sorted(Path(specification.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:  # built for another torch: its libraries are not on this machine
            continue
    missing = [name for name in ("nms", "qnms") if not _operator_is_known(name)]
    if not missing:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in missing:
        library.define(name + _SCHEMA)
    return library


# Kept alive: the declarations go when the object does.
_declared = _declare_missing_operators()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
