"""From one's own trained network and images to an object that asks for labels one at a time.

An asker in a folder: arrays and weights as safetensors, settings and answers as JSON.

The arrays are written once, under a name that follows from their contents; `state.json` names them
and is replaced whole, last. Nothing is pickled, and neither network nor images are needed to go on.

Ask, tell, undo: one question at a time, each answer absorbed before the next question.

From a linearised network and its candidates to data-set indices that are worth a label, and from
labels to a better linearised network.

From a trained network to what questions stand on: kernel, logits and candidates.

The certified mirror's empirical kernel between the labelled images, the candidates and the test
images; no entries between test images are needed, and without a sketch none are computed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn

from bridge import trace
from bridge import weights as files
from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from bridge.weights import Contents, replace
from kernel.covariance import Cross, Features, Given, Kernel
from kernel.errors import KernelError
from kernel.model import dtype_of
from kernel.ntk import Decision, Sizes, decide, query_kernel
from kernel.options import Options
from pipelines.errors import PipelineError
from pipelines.progress import Stages, generator, numbered
from pipelines.query import checked_images, checked_labels
from pipelines.sequential.learner import (
    NAMES,
    Answer,
    Event,
    Grounds,
    Learner,
    Linearisation,
    Question,
    Standing,
    next_question,
    options_of,
    viewer,
)
from pipelines.strategies.base import PROBE
from pipelines.strategies.lookahead import reference_sample
from pipelines.strategies.options import KernelConfig, LookAheadConfig
from trainer.config import Loss
from trainer.errors import lookup
from trainer.predict import logits

FORMAT = 1
STATE = "state.json"
_FORMS = {"dense": Kernel, "features": Features, "cross": Cross}
_PLAIN = ("classes", "norm", "strategy", "loss", "seed", "diagnostics")


def write(folder: Path, grounds: Grounds, events: Sequence[Event]) -> None:
    """Save; what was saved in the folder before is replaced.

    Raises:
        PipelineError: the folder holds something else.
        BridgeError, OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / STATE
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if foreign and not state.exists():
        raise PipelineError(
            f"{folder} is not empty and nothing was saved there (found {foreign[0]}); give an "
            "empty or new folder."
        )
    arrays, form = _arrays(grounds)
    name = f"ground-{_digest(arrays)}.safetensors"
    if not (folder / name).exists():
        files.pack(
            Contents(
                {
                    "parameter": grounds.weights.params,
                    "buffer": grounds.weights.buffers,
                    "constant": arrays,
                },
                grounds.weights.provenance,
                {},
            ),
            folder / name,
        )
    start = grounds.linearisation
    content = {
        "format": FORMAT,
        "arrays": name,
        "form": form,
        "precision": start.kernel.precision,
        "candidates": start.candidates,
        "keep": start.keep,
        "ridge": start.ridge,
        "options": dataclasses.asdict(grounds.options),
        "labelled": [[index, label] for index, label in grounds.labelled.items()],
        **{key: getattr(grounds, key) for key in _PLAIN},
        "events": [list(event) for event in events],
    }
    replace(state, (json.dumps(content, indent=1) + "\n").encode())
    for stale in folder.glob("ground-*.safetensors"):
        if stale.name != name:
            stale.unlink()


def read(folder: Path) -> tuple[Grounds, tuple[Event, ...]]:
    """What was saved.

    Raises:
        PipelineError: nothing was, or it was changed since.
        BridgeError: the arrays are missing, cut short or changed.
    """
    path = folder / STATE
    if not path.is_file():
        raise PipelineError(f"{folder} holds nothing that an asker saved: it has no {STATE}.")
    try:
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if state["format"] != FORMAT:
            raise PipelineError(
                f"{path} was written in format {state['format']!r}; this version reads {FORMAT}."
            )
        groups, provenance, _ = files.unpack(folder / state["arrays"])
        arrays = groups["constant"]
        linearisation = Linearisation(
            kernel=_kernel(state["form"], state["precision"], arrays),
            targets=arrays["targets"],
            labelled_logits=arrays["labelled_logits"],
            logits=arrays["logits"],
            sample=arrays["sample"],
            candidates=state["candidates"],
            keep=state["keep"],
            ridge=state["ridge"],
        )
        grounds = Grounds(
            linearisation=linearisation,
            candidates=arrays["indices"],
            labelled={int(index): int(label) for index, label in state["labelled"]},
            test_labels=arrays["test_labels"],
            options=Options(**state["options"]),
            weights=files.Weights(groups["parameter"], groups["buffer"], provenance),
            **{key: state[key] for key in _PLAIN},
        )
        events = tuple(Event(index, label) for index, label in state["events"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"{path} is not what was saved ({error!r}): it was changed, or written by another "
            "version. Restore it, or start again."
        ) from error
    return grounds, events


def _arrays(grounds: Grounds) -> tuple[dict[str, np.ndarray], str]:
    """Everything that is an array, and the form of the kernel."""
    start = grounds.linearisation
    form = next(name for name, kind in _FORMS.items() if isinstance(start.kernel, kind))
    arrays = {
        "kernel": np.asarray(start.kernel.values),
        "targets": start.targets,
        "labelled_logits": start.labelled_logits,
        "logits": start.logits,
        "sample": start.sample,
        "indices": grounds.candidates,
        "test_labels": grounds.test_labels,
    }
    if isinstance(start.kernel, Cross):
        arrays["diagonal"] = start.kernel.diagonal
    return arrays, form


def _kernel(form: str, precision: Any, arrays: dict[str, np.ndarray]) -> Given:
    if form == "cross":
        return Cross(arrays["kernel"], arrays["diagonal"], precision)
    return _FORMS[form](arrays["kernel"], precision)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


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
        return cls(*read(Path(folder)))

    def save(self, folder: Path | str) -> None:
        """Write everything that `restore` needs: arrays, weights, settings and answers.

        The folder is made if it is not there. Saved again after further answers, only those are
        written. A process killed while it saves leaves what was saved before.

        Raises:
            PipelineError, BridgeError, OSError: it cannot be written.
        """
        write(Path(folder), self.grounds, self._events)

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


class Scene(NamedTuple):
    """What there is to ask about.

    Attributes:
        images: data-set indices → images as the network takes them.
        labelled: {data-set index: class} that the network was trained on.
        candidates: data-set indices that may be asked for.
        test_images: as the network takes them; None without any.
        test_labels: their classes.
        classes: how many there are.
    """

    images: Callable[[np.ndarray], np.ndarray]
    labelled: Mapping[int, int]
    candidates: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray
    classes: int


def grounds(
    network: nn.Module,
    mirror: Mirror,
    certificate: dict[str, Any],
    scene: Scene,
    strategy: str,
    options: Options,
    settings: KernelConfig,
    *,
    loss: str,
    seed: int,
    rng: np.random.Generator,
    stages: Stages,
    folder: Path | None = None,
) -> Grounds:
    """What questions stand on.

    Args:
        network: in eval mode.
        mirror: of it, certified.
        certificate: for the record.
        scene: what there is to ask about.
        strategy: how the next image is chosen.
        options: of look-ahead criteria.
        settings: of the kernel.
        loss: of the training.
        seed: of the random strategy and of ties.
        rng: of random projections and of the sample.
        stages: where time, memory and progress are noted.
        folder: where a kernel keeps its finished chunks; None keeps none.

    Raises:
        PipelineError, KernelError: as `fits`.
        NetworkError: logits that are not finite.
    """
    kernel_rng, sample_rng = rng.spawn(2)
    labelled = np.fromiter(scene.labelled, np.int64, len(scene.labelled))
    classes = np.array([scene.labelled[int(index)] for index in labelled], np.int64)
    candidates = scene.candidates
    others = scene.images(candidates)
    if scene.test_images is not None:
        others = np.concatenate([others, scene.test_images])
    tests = len(scene.test_labels)
    fits(mirror, others[0], len(labelled), len(candidates), tests, settings)
    sample = reference_sample(len(candidates), settings.sample, sample_rng)
    sample = np.arange(len(candidates)) if sample is None else sample
    with stages("predict"):
        own = scene.images(labelled)
        with numbered(labelled):
            labelled_logits = logits(network, own)
        with numbered(candidates, range(tests)):
            other_logits = logits(network, others)
    both = np.concatenate([labelled, candidates])
    with stages("kernel") as advance, numbered(both, range(tests)):
        kernel, held = query_kernel(
            mirror.model(),
            np.concatenate([own, others]),
            len(labelled),
            settings,
            sample=sample,
            sketch=settings.sketch,
            rng=kernel_rng,
            progress=advance,
            folder=folder,
        )
    linearisation = Linearisation(
        kernel=kernel,
        targets=np.eye(scene.classes)[classes],
        labelled_logits=labelled_logits.astype(np.float64),
        logits=other_logits.astype(np.float64),
        sample=sample,
        candidates=len(candidates),
        keep=held.keep,
        ridge=settings.ridge,
    )
    squares = [float(np.sum(np.asarray(p, np.float64) ** 2)) for p in mirror.params.values()]
    residual = linearisation.targets - linearisation.labelled_logits
    return Grounds(
        linearisation=linearisation,
        candidates=candidates,
        labelled=scene.labelled,
        test_labels=scene.test_labels,
        classes=scene.classes,
        norm=float(np.sqrt(sum(squares))),
        strategy=strategy,
        options=options,
        loss=loss,
        seed=seed,
        diagnostics={
            "kind": settings.kind,
            "sketch": settings.sketch,
            "sample": settings.sample,
            "held": held.form if held.keep else f"{held.form}, streamed",
            "predicted_gib": round(held.peak_gib, 3),
            "ridge": settings.ridge,
            "residual_rms": float(np.sqrt(np.mean(residual**2))),
            "certificate": certificate,
        },
        weights=weights_of(network),
    )


def fits(
    mirror: Mirror,
    image: np.ndarray,
    labelled: int,
    candidates: int,
    tests: int,
    settings: KernelConfig,
) -> Decision:
    """How the kernel is held, and that it can be: told before anything is trained.

    Raises:
        PipelineError: a sample of the candidates without a sketch.
        KernelError: it does not fit in the memory; the message says what would.
    """
    if settings.sketch is None and (settings.sample or candidates) < candidates:
        raise PipelineError(
            f"kernel.sample is {settings.sample}: absorbing a label needs the kernel between that "
            f"image and all others, and so of all {candidates} candidates. Use a sketch with it "
            "(kernel.sketch), whose features give every entry, or a smaller subset."
        )
    sizes = Sizes(labelled, candidates + tests, settings.sample or candidates, settings.sketch)
    shape = jax.ShapeDtypeStruct(image.shape, dtype_of(settings.precision))
    try:
        return decide(mirror.model(), shape, sizes, settings)
    except KernelError as error:
        raise KernelError(
            f"{error} In the sequential mode the candidates are counted with {tests} test images "
            "(test_subset), and a reference sample is for sketches only."
        ) from error


LINEARISED = KernelConfig(reference="linearised")


def start(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    labelled: Mapping[int, int],
    strategy: str = "mlmoc",
    *,
    tests: tuple[np.ndarray | torch.Tensor, np.ndarray] | None = None,
    subset: int | None = None,
    loss: Loss = "l2",
    lookahead: LookAheadConfig | None = None,
    kernel: KernelConfig | None = None,
    mirror: Mirror | None = None,
    seed: int = 0,
    stages: Stages | None = None,
) -> Asker:
    """Linearise a trained network, to ask for labels one at a time.

    Args:
        model: your trained network in eval mode: (batch, channels, height, width) → (batch,
            classes) logits.
        images: float (examples, channels, height, width), all of them, labelled or not, exactly
            as the network takes them (normalised, not augmented).
        labelled: what the network was trained on, {index into images: class from 0}.
        strategy: a look-ahead criterion, or random, entropy, margin or least_confident of the
            linearised network.
        tests: images and their classes, on which the linearised network's accuracy is told.
        subset: ask only about so many unlabelled images, drawn at random; None asks about all.
        loss: what the network was trained with; look-ahead assumes `l2`.
        lookahead: of look-ahead criteria; what it says of batches is without effect.
        kernel: how the kernel is computed; by default changes refer to the linearised network.
        mirror: your own mirror of the model; None makes one.
        seed: of the subset, of random choice, projections and ties.
        stages: where time and memory are noted and progress is shown.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: images, labels or sizes that cannot be used.
        NetworkError, DataError: as `pipelines.query.query`.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    lookup(dict.fromkeys(NAMES), strategy, "sequential strategy")
    array = checked_images(images)
    pool, labels = checked_labels(labelled, len(array))
    test_images, test_labels = (None, np.empty(0, np.int64)) if tests is None else _checked(*tests)
    candidates = pool.candidates(subset, generator(seed, "subset"))
    if not len(candidates):
        raise PipelineError("every image is labelled already: there is nothing to ask.")
    twin = mirror.with_weights(weights_of(model)) if mirror else trace.mirror(model, array[:PROBE])
    classes = logits(model, array[:1]).shape[1]
    for which, given in (("labelled", labels), ("test", test_labels)):
        if len(given) and not 0 <= given.min() <= given.max() < classes:
            raise PipelineError(
                f"the {which} images have classes {given.min()} to {given.max()} and the network "
                f"has {classes} logits: classes go from 0 to {classes - 1}."
            )
    scene = Scene(
        images=lambda indices: array[indices],
        labelled=dict(zip(pool.labelled.tolist(), labels.tolist(), strict=True)),
        candidates=candidates,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
    )
    settings = kernel or LINEARISED
    options = options_of(strategy, lookahead or LookAheadConfig(), settings, seed)
    made = grounds(
        model,
        twin,
        certify(model, twin, array[:PROBE]).summary(),
        scene,
        strategy,
        options,
        settings,
        loss=loss,
        seed=seed,
        rng=generator(seed, "kernel"),
        stages=stages or Stages(),
    )
    return Asker(made)


def _checked(
    images: np.ndarray | torch.Tensor, labels: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    array, classes = checked_images(images), np.asarray(labels)
    if classes.shape != (len(array),) or not np.issubdtype(classes.dtype, np.integer):
        raise PipelineError(
            f"tests are {len(array)} images and labels of shape {classes.shape} and dtype "
            f"{classes.dtype}: one whole number an image is needed."
        )
    return (array if len(array) else None), classes.astype(np.int64)
