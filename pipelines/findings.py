"""What the records of an audit and of the dynamics have in common: plain JSON, and its past."""

import json
import math
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """JSON has no arrays, tuples with names, or NaN: lists, objects and null in their place."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def past(path: Path) -> list[Any]:
    """The environments that a record was written in before; none where there is no record."""
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text("utf-8"))["environment"]
    except (ValueError, KeyError):  # it is written anew: nothing is computed from it
        return []
