"""The sequential mode: labels one at a time, each absorbed without training."""

from pipelines.sequential.asker import Asker
from pipelines.sequential.question import Exhausted, Question, Standing
from pipelines.sequential.starting import start

__all__ = ["Asker", "Exhausted", "Question", "Standing", "start"]
