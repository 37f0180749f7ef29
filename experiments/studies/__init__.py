"""Studies: which trials answer a question, and what the papers say of it; only values, no work.

`STUDIES` is the table of their names; a new one is a module of values here and a row.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from experiments.studies import dynamics, fidelity, look_ahead
from experiments.studies.study import Study
from pipelines.core.errors import PipelineError
from trainer.errors import lookup

STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        study.name: study
        for study in (
            look_ahead.COST,
            look_ahead.LOOK_AHEADS,
            look_ahead.STRATEGIES,
            look_ahead.CIFAR10,
            look_ahead.SEQUENTIAL,
            look_ahead.WIDTHS,
            look_ahead.CRITERIA,
            dynamics.ROUNDS,
            dynamics.CIFAR10_ROUNDS,
            dynamics.BY_ROUND,
            dynamics.GAMMA,
            dynamics.BOUND,
            dynamics.CORRELATION,
            dynamics.RATIO,
            fidelity.APPROXIMATION,
            fidelity.AUDIT,
        )
    }
)


def find(name: str) -> Study:
    """A study by its name here, or a user's own as `module:STUDY`.

    Raises:
        UnknownNameError: no study has this name; the message says which is nearest.
        PipelineError: a module that cannot be imported, or without such a study in it.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        return lookup(STUDIES, name, "study")
    if not (module and attribute):
        raise PipelineError(f"study {name!r} is not of the form module:STUDY.")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        raise PipelineError(
            f"study {name!r}: cannot import {module!r} ({type(error).__name__}: {error}); start in "
            "the folder that holds it, or put that folder on PYTHONPATH."
        ) from error
    if found is None:
        raise PipelineError(f"study {name!r}: {module} has no attribute {attribute!r}.")
    if not isinstance(found, Study):
        raise PipelineError(
            f"study {name!r} is a {type(found).__name__}, and must be a Study "
            "(experiments.studies.study)."
        )
    return found
