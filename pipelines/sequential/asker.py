"""Ask, tell, undo: one question at a time, each answer absorbed before the next question.

From a linearised network and its candidates to data-set indices that are worth a label, and from
labels to a better linearised network.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import PipelineError
from pipelines.seeds import generator
from pipelines.sequential import keeping
from pipelines.sequential.grounds import Event, Grounds
from pipelines.sequential.learner import Answer, Learner
from pipelines.sequential.question import Question, Standing, next_question
from pipelines.sequential.views import viewer


class Asker:
    """Says which image to label next, and absorbs the label.

    The same grounds and the same answers in the same order give the same question, to the last bit.
    `pipelines.sequential.start` makes one of a trained network.

    Attributes:
        grounds: what does not change with an answer.
    """

    def __init__(self, grounds: Grounds, events: Sequence[Event] = ()):
        """Stand on grounds and take up what was said before.

        Args:
            grounds: what does not change with an answer.
            events: labels and images set aside, in the order in which they came.

        Raises:
            PipelineError: as `tell` and `skip`.
            KernelError: the kernel cannot be conditioned on.
        """
        self.grounds = grounds
        self._places = {index: place for place, index in enumerate(grounds.candidates.tolist())}
        count = len(grounds.candidates)
        self._ties = generator(grounds.seed, "ties").permutation(count)
        self._events: list[Event] = []
        self._foreseen: list[bool] = []
        self._question: Question | None = None
        self._learner = self._learn(())
        for index, label in events:
            if label is None:
                self.skip(index)
            else:
                self.tell(index, label)

    @classmethod
    def restore(cls, folder: Path | str) -> "Asker":
        """As it was saved: it asks the same question and goes on in the same way.

        Raises:
            PipelineError, BridgeError: the folder holds nothing that was saved, or it was changed.
        """
        return cls(*keeping.read(Path(folder)))

    def save(self, folder: Path | str) -> None:
        """Write everything that `restore` needs: arrays, weights, settings and answers.

        The folder is made if it is not there. Saved again after further answers, only those are
        written. A process killed while it saves leaves what was saved before.

        Raises:
            PipelineError, BridgeError, OSError: it cannot be written.
        """
        keeping.write(Path(folder), self.grounds, self._events)

    @property
    def events(self) -> tuple[Event, ...]:
        """What was said so far, in order."""
        return tuple(self._events)

    @property
    def labels(self) -> dict[int, int]:
        """{data-set index: class} of the training and of all answers."""
        given = {index: label for index, label in self._events if label is not None}
        return {**self.grounds.labelled, **given}

    @property
    def predictions(self) -> np.ndarray:
        """The linearised network's logits, float64 (candidates, classes), by `grounds.candidates`.

        Those of labelled candidates are their labels, but for the ridge.
        """
        return self._learner.predictions[: len(self.grounds.candidates)]

    @property
    def test_predictions(self) -> np.ndarray:
        """The linearised network's logits of the test images, float64 (tests, classes)."""
        return self._learner.predictions[len(self.grounds.candidates) :]

    @property
    def standing(self) -> Standing:
        """Where the linearised network stands."""
        truth = self.grounds.test_labels
        right = self.test_predictions.argmax(axis=1) == truth
        return Standing(
            labelled=len(self.labels),
            answered=len(self._foreseen),
            foreseen=sum(self._foreseen),
            accuracy=float(right.mean()) if len(truth) else None,
            drift=float(np.sqrt(self._learner.moved)) / self.grounds.norm,
            rounding=self._learner.rounding,
            refreshed=self._learner.refreshed,
        )

    def ask(self) -> int:
        """The data-set index of the image to label next; the same until something is told.

        Raises:
            Exhausted: every candidate is labelled, set aside or determined by the labels so far.
        """
        return self.question().image

    def question(self) -> Question:
        """As `ask`, with the score of the image and what the linearised network makes of it.

        Raises:
            Exhausted: as `ask`.
        """
        if self._question is None:
            self._question = next_question(self.grounds, self._events, self._learner, self._ties)
        return self._question

    def tell(self, index: int, label: int) -> None:
        """Absorb a label: of the image in question, or of any other candidate.

        A label told again is taken once; an image that was set aside may be labelled after all.

        Args:
            index: in the data set.
            label: the class, from 0.

        Raises:
            PipelineError: no such class, an image that is no candidate, or another label than the
                one that the image has.
        """
        index, label = _whole(index, "index"), _whole(label, "label")
        if not 0 <= label < self.grounds.classes:
            raise PipelineError(
                f"image {index} was given the label {label}, and {self.grounds.classes} classes "
                f"have labels 0 to {self.grounds.classes - 1}."
            )
        known = self.labels.get(index)
        if known == label:
            return
        if known is not None:
            how = "the network was trained with it" if index in self.grounds.labelled else "undo it"
            raise PipelineError(
                f"image {index} has the label {known} and was now given {label}: {how}, or keep "
                "the first."
            )
        place = self._place(index)
        predicted = int(self._learner.predictions[place].argmax())
        self._learner.tell(Answer(place, label))
        self._foreseen.append(predicted == label)
        self._said(Event(index, label))

    def skip(self, index: int) -> None:
        """Set an image aside: it is not asked for again.

        Raises:
            PipelineError: it is no candidate, or labelled or set aside already.
        """
        index = _whole(index, "index")
        self._place(index)
        if index in self.labels or Event(index, None) in self._events:
            raise PipelineError(f"image {index} is labelled or set aside already.")
        self._said(Event(index, None))

    def undo(self) -> Event:
        """Take back what was told or set aside last.

        Returns:
            What it was.

        Raises:
            PipelineError: nothing was said since the training.
        """
        if not self._events:
            raise PipelineError(
                "there is nothing to take back: nothing was answered since the network was trained."
            )
        last = self._events.pop()
        self._question = None
        if last.label is not None:
            self._foreseen.pop()
            answers = self._learner.answers[:-1]
            del self._learner  # so that there are never two of them in memory
            self._learner = self._learn(answers)
        return last

    def _learn(self, answers: Sequence[Answer]) -> Learner:
        grounds = self.grounds
        rng = generator(grounds.seed, "order")
        seen = viewer(grounds.strategy, grounds.options, grounds.loss, rng)
        return Learner(grounds.linearisation, seen, answers)

    def _said(self, event: Event) -> None:
        self._events.append(event)
        self._question = None

    def _place(self, index: int) -> int:
        if index not in self._places:
            raise PipelineError(
                f"image {index} is not one of the {len(self._places)} candidates: only they can be "
                "labelled until the network is trained again."
            )
        return self._places[index]


def _whole(value: object, what: str) -> int:
    """A whole number, whatever its type.

    Raises:
        PipelineError: it is none.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise PipelineError(f"the {what} must be a whole number, not {value!r}.")
