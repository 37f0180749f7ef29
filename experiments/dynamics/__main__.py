"""Command line of the dynamics experiment: python -m experiments.dynamics --dataset mnist."""

from experiments.dynamics.config import TheoryConfig
from pipelines.cli import measurement

DESCRIPTION = "The theory of training dynamics, measured on your own network."

if __name__ == "__main__":
    measurement(TheoryConfig, "experiments.dynamics", DESCRIPTION)
