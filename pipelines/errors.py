"""Exceptions of pipelines."""

from pipelines.core.errors import PipelineError

__all__ = ["PipelineError"]
