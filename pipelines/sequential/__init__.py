"""The sequential mode: labels one at a time, each absorbed without training."""

from pipelines.sequential.learner import Exhausted, Question, Standing
from pipelines.sequential.session import Asker, start

__all__ = ["Asker", "Exhausted", "Question", "Standing", "start"]
