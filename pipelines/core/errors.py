"""What a pipeline refuses, and why."""


class PipelineError(ValueError):
    """A configuration, run directory or request that cannot be carried out."""
