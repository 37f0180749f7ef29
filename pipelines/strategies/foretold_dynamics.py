"""What a query by dynamicAL would take, by timing a few gradients on this machine.

From a network's mirror, a few images and the sizes of a query to rows of a plan.
"""

import numpy as np

from bridge.mirror import Mirror
from kernel.dynamics.cost import cost
from kernel.engine.problem import cast
from pipelines.strategies.dynamical import BLOCK
from pipelines.strategies.dynamics_config import DynamicsConfig


def foretell(
    mirror: Mirror,
    images: np.ndarray,
    labelled: int,
    candidates: int,
    loss: str,
    settings: DynamicsConfig,
) -> dict[str, str]:
    """Rows of the plan.

    Args:
        mirror: of the network, whose weights do not matter.
        images: a few, as the network takes them.
        labelled: L.
        candidates: U.
        loss: of the training.
        settings: of the query.
    """
    sketch = settings.sketch if settings.batch == "dissimilar" else None
    found = cost(
        cast(mirror.model(), settings.precision),
        images,
        labelled,
        candidates,
        BLOCK,
        loss=loss,
        sketch=sketch,
        chunk=settings.chunk,
    )
    rows = {
        "labelled, candidates": f"{labelled:,}, {candidates:,}",
        "criterion": f"gamma {settings.weight:g}, {settings.batch}, {settings.precision}",
        "chunk": f"{found.chunk:,} images at a time",
        "compiling": f"{found.compile_seconds:.1f} s, once",
        "gradient of the labelled set": f"{found.labelled_seconds:.1f} s",
        "candidates": f"{found.candidate_seconds:.1f} s",
        "memory": f"{found.peak_gib:.2f} GiB",
    }
    if sketch is not None:
        rows["sketch"] = f"{sketch:,} dimensions"
    return rows
