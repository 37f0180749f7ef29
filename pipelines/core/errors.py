"""Exceptions of pipelines."""


class PipelineError(ValueError):
    """A configuration, run directory or request that cannot be carried out."""
