"""Command line of the approximation experiment: python -m experiments.approximation."""

from experiments.approximation.config import ApproximationConfig
from pipelines.cli import measurement

DESCRIPTION = "How well cheap kernels stand for the full one, against width."

if __name__ == "__main__":
    measurement(ApproximationConfig, "experiments.approximation", DESCRIPTION)
