"""The executors by name; a new one is a function from a sweep's settings to an executor."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pipelines.sweep.config import SweepConfig
from pipelines.sweep.executor import Executor
from pipelines.sweep.inline import Inline
from trainer.tables import lookup

EXECUTORS: Mapping[str, Callable[[SweepConfig], Executor]] = MappingProxyType(
    {
        "here": lambda config: Inline(),
    }
)


def executor_of(config: SweepConfig) -> Executor:
    """The executor that the settings name.

    Raises:
        UnknownNameError: there is none of that name.
        PipelineError: it is not available here, or not with these settings.
    """
    return lookup(EXECUTORS, config.executor, "executor")(config)
