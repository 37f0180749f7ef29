"""Sequential queries: one image at a time, each label absorbed before the next query."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from torch import nn

from bridge import trace
from bridge.mirror import Mirror
from bridge.module import weights_of
from bridge.parity import certify
from bridge.weights import Contents, Weights, pack, unpack
from kernel.covariance import AnyKernel, Cross, Features, Kernel
from kernel.errors import KernelError
from kernel.files import write_file
from kernel.model import dtype_of
from kernel.ntk import compute_kernel
from kernel.options import CRITERIA, Options
from kernel.plan import Plan, Sizes, linear_head, plan_query
from pipelines.core.entries import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    changed,
    check_entries,
    list_of,
    optional,
)
from pipelines.core.errors import PipelineError
from pipelines.core.json_io import digest_arrays
from pipelines.core.progress import Stages, generator, named_images
from pipelines.query import Items, OwnImages, checked_images, checked_labels
from pipelines.sequential.config import STRATEGIES, SequentialOptions, criterion_options
from pipelines.sequential.learner import (
    Answer,
    Event,
    Learner,
    Linearisation,
    SequentialState,
    acquisition_of,
)
from pipelines.strategies import get
from pipelines.strategies.base import (
    PROBE,
    check_classes,
    check_labels,
    checked_count,
    checked_index,
    checked_label,
    reference_sample,
)
from pipelines.strategies.frontier import FrontierRows, frontier_of
from pipelines.strategies.options import KernelConfig
from trainer.errors import lookup
from trainer.pool import Pool
from trainer.predict import Piecewise, logits


class Exhausted(PipelineError):
    """No candidate is left that is worth a label."""


class SequentialQuery(NamedTuple):
    """The image to label next.

    Attributes:
        image: its data-set index.
        score: the strategy's, higher = sooner; comparable with others at the same moment only.
        predicted: the class that the linearised network would give it.
    """

    image: int
    score: float
    predicted: int


class Status(NamedTuple):
    """The linearised network after the labels so far.

    Attributes:
        labelled: how many labels it has, those of the training included.
        answered: how many since the training.
        foreseen: how many of these it had predicted.
        accuracy: on the test images; None without any.
        drift: ‖Δθ‖/‖θ‖, how far its parameters have moved for the labels.
        rounding: the recursion's, as last measured; see `Learner.measure`.
        refreshed: how often it was above the tolerance and everything was factorised anew.
    """

    labelled: int
    answered: int
    foreseen: int
    accuracy: float | None
    drift: float
    rounding: float
    refreshed: int


class SequentialSession:
    """Chooses the next image to label, and absorbs labels.

    The same state and the same labels in the same order give the same query, to the last bit.
    `pipelines.sequential.start` makes one of a trained network.

    Attributes:
        state: constant over the session.
    """

    def __init__(self, state: SequentialState, events: Sequence[Event] = ()):
        """Start from a state, and repeat events in their order.

        Raises:
            PipelineError: as `add_label` and `skip`.
            KernelError: the kernel cannot be conditioned on.
        """
        self.state = state
        self._positions = {index: n for n, index in enumerate(state.candidates.tolist())}
        ties = generator(state.seed, "ties", state.round_number)
        self._ties = ties.permutation(len(state.candidates))
        self._events: list[Event] = []
        self._foreseen: list[bool] = []
        self._query: SequentialQuery | None = None
        self._learner = self._learn(())
        for index, label in events:
            if label is None:
                self.skip(index)
            else:
                self.add_label(index, label)

    @classmethod
    def restore(cls, folder: Path | str) -> "SequentialSession":
        """Read a saved session; its queries are the same, to the last bit.

        Raises:
            PipelineError, BridgeError: nothing was saved in the folder, or it was changed.
        """
        return cls(*read(Path(folder)))

    def save(self, folder: Path | str) -> None:
        """Write arrays, weights, settings and labels.

        The folder is made if missing. Saved again, only the labels are written. A process killed
        while it saves leaves the earlier save.

        Raises:
            PipelineError, BridgeError, OSError: it cannot be written.
        """
        write(Path(folder), self.state, self._events)

    @property
    def events(self) -> tuple[Event, ...]:
        """Labels and images set aside since the training, in order."""
        return tuple(self._events)

    @property
    def labels(self) -> dict[int, int]:
        """{data-set index: class} of the training and of all labels since."""
        given = {index: label for index, label in self._events if label is not None}
        return {**self.state.labelled, **given}

    @property
    def predictions(self) -> np.ndarray:
        """The linearised network's logits, float64 (candidates, classes), by `state.candidates`.

        Those of labelled candidates are their labels, but for the ridge.
        """
        return self._learner.predictions[: len(self.state.candidates)]

    @property
    def test_predictions(self) -> np.ndarray:
        """The linearised network's logits of the test images, float64 (tests, classes)."""
        return self._learner.predictions[len(self.state.candidates) :]

    @property
    def status(self) -> Status:
        """The linearised network after the labels so far."""
        truth = self.state.test_labels
        right = self.test_predictions.argmax(axis=1) == truth
        return Status(
            labelled=len(self.labels),
            answered=len(self._foreseen),
            foreseen=sum(self._foreseen),
            accuracy=float(right.mean()) if len(truth) else None,
            drift=float(np.sqrt(self._learner.squared_change)) / self.state.norm,
            rounding=self._learner.rounding,
            refreshed=self._learner.refreshed,
        )

    def next_query(self) -> SequentialQuery:
        """The open candidate with the highest score; the same until something is labelled.

        Raises:
            Exhausted: every candidate is labelled, set aside or determined by the labels so far.
            PipelineError: scores that are not numbers.
        """
        if self._query is None:
            self._query = self._best()
        return self._query

    def add_label(self, index: int, label: int) -> None:
        """Absorb a label: of the image queried, or of any other candidate, by data-set index.

        The same label again counts once; an image that was set aside may be labelled.

        Raises:
            PipelineError: no such class, an image that is no candidate, or another label than the
                one that the image has.
        """
        index = checked_index(index)
        label = checked_label(label, index, self.state.classes)
        known = self.labels.get(index)
        if known == label:
            return
        if known is not None:
            how = "the network was trained with it" if index in self.state.labelled else "undo it"
            raise PipelineError(
                f"image {index} has the label {known} and was now given {label}: {how}, or keep "
                "the first."
            )
        position = self._position(index)
        predicted = int(self._learner.predictions[position].argmax())
        self._learner.add_label(Answer(position, label))
        self._foreseen.append(predicted == label)
        self._add(Event(index, label))

    def skip(self, index: int) -> None:
        """Set an image aside: it is not queried again.

        Raises:
            PipelineError: it is no candidate, or labelled or set aside already.
        """
        index = checked_index(index)
        self._position(index)
        if index in self.labels or Event(index, None) in self._events:
            raise PipelineError(f"image {index} is labelled or set aside already.")
        self._add(Event(index, None))

    def undo(self) -> Event:
        """Take back the last label, or the last image set aside.

        Returns:
            The event that was taken back.

        Raises:
            PipelineError: there is none since the training.
        """
        if not self._events:
            raise PipelineError(
                "there is nothing to take back: nothing was answered since the network was trained."
            )
        last = self._events.pop()
        self._query = None
        if last.label is not None:
            self._foreseen.pop()
            answers = self._learner.answers[:-1]
            del self._learner  # so that there are never two of them in memory
            self._learner = self._learn(answers)
        return last

    def _learn(self, answers: Sequence[Answer]) -> Learner:
        state = self.state
        rng = generator(state.seed, "order", state.round_number)
        make = acquisition_of(state.strategy, state.options, state.loss, rng)
        return Learner(state.linearisation, make, answers)

    def _best(self) -> SequentialQuery:
        candidates, learner = self.state.candidates, self._learner
        closed = {event.image for event in self._events}
        is_open = np.array([index not in closed for index in candidates.tolist()], bool)
        if not is_open.any():
            raise Exhausted(
                f"all {len(candidates)} candidates are labelled or set aside: train again to draw "
                "others."
            )
        if self.state.strategy in CRITERIA:
            left = int(is_open.sum())
            is_open &= ~learner.determined[: len(candidates)]
            if not is_open.any():
                raise Exhausted(
                    f"the labels so far determine all {left} candidates that are left (they are "
                    "duplicates, or the kernel has no more directions), so that look-ahead cannot "
                    "rank them: train again, choose another kernel kind, or a larger sketch."
                )
        scores = np.asarray(learner.acquisition.scores(), np.float64)[: len(candidates)]
        if np.isnan(scores[is_open]).any():
            bad = candidates[is_open & np.isnan(scores)][:5].tolist()
            raise PipelineError(f"the scores of images {bad} are not numbers.")
        best = int(np.lexsort((self._ties, -scores, ~is_open))[0])
        predicted = int(learner.predictions[best].argmax())
        return SequentialQuery(int(candidates[best]), float(scores[best]), predicted)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._query = None

    def _position(self, index: int) -> int:
        if index not in self._positions:
            raise PipelineError(
                f"image {index} is not one of the {len(self._positions)} candidates: only they can "
                "be labelled until the network is trained again."
            )
        return self._positions[index]


FORMAT = 3
STATE = "state.json"
_FORMS = {"dense": Kernel, "features": Features, "cross": Cross}
# fields of a state and of its linearisation, by how they are saved
_PLAIN = {
    "classes": COUNT,
    "norm": NUMBER,
    "strategy": TEXT,
    "loss": TEXT,
    "seed": COUNT,
    "round_number": COUNT,
    "diagnostics": ANY_OBJECT,
}
_PLAIN_OF_START = {"candidates": COUNT, "keep": FLAG, "ridge": NUMBER}
_SAVED = {"arrays": TEXT, "form": TEXT, "precision": TEXT, "options": ANY_OBJECT}
_SAVED |= {"labelled": list_of(list_of(COUNT)), "events": list_of(list_of(optional(COUNT)))}
_ARRAYS_OF_START = ("targets", "labelled_logits", "logits", "sample")


def write(folder: Path, state: SequentialState, events: Sequence[Event]) -> None:
    """Save a session, over an earlier one; nothing is pickled.

    The arrays are written once, under their digest; `state.json` names them and is written last.

    Raises:
        PipelineError: the folder holds something else.
        BridgeError, OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    if foreign and not path.exists():
        raise PipelineError(
            f"{folder} is not empty and nothing was saved there (found {foreign[0]}); give an "
            "empty or new folder."
        )
    arrays, form = _arrays(state)
    weights = {"parameter": state.weights.params, "buffer": state.weights.buffers}
    groups = weights | {"constant": arrays}
    name = _file_name(groups)
    if not (folder / name).exists():
        pack(Contents(groups, state.weights.provenance, {}), folder / name)
    start = state.linearisation
    content = {
        "format": FORMAT,
        "arrays": name,
        "form": form,
        "precision": start.kernel.precision,
        **{key: getattr(start, key) for key in _PLAIN_OF_START},
        "options": dataclasses.asdict(state.options),
        "labelled": [[index, label] for index, label in state.labelled.items()],
        **{key: getattr(state, key) for key in _PLAIN},
        "events": [list(event) for event in events],
    }
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    for stale in folder.glob("state-*.safetensors"):
        if stale.name != name:
            stale.unlink()


def read(folder: Path) -> tuple[SequentialState, tuple[Event, ...]]:
    """A saved session.

    Raises:
        PipelineError: nothing was saved, or it was changed since.
        BridgeError: the arrays are missing, cut short or changed.
    """
    path = folder / STATE
    if not path.is_file():
        raise PipelineError(f"{folder} holds no saved session: it has no {STATE}.")
    try:
        saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if saved["format"] != FORMAT:
            raise PipelineError(
                f"{path} was written in format {saved['format']!r}; this version reads {FORMAT}."
            )
        check_entries(f"{path}", saved, _SAVED | _PLAIN | _PLAIN_OF_START)
        groups, provenance, _ = unpack(folder / saved["arrays"])
        if _file_name(groups) != saved["arrays"]:
            raise changed(f"{folder / saved['arrays']} holds {_file_name(groups)}")
        arrays = groups["constant"]
        linearisation = Linearisation(
            kernel=_kernel(saved["form"], saved["precision"], arrays),
            **{key: arrays[key] for key in _ARRAYS_OF_START},
            **{key: saved[key] for key in _PLAIN_OF_START},
        )
        state = SequentialState(
            linearisation=linearisation,
            candidates=arrays["indices"],
            labelled={int(index): int(label) for index, label in saved["labelled"]},
            test_labels=arrays["test_labels"],
            options=Options(**saved["options"]),
            weights=Weights(groups["parameter"], groups["buffer"], provenance),
            **{key: saved[key] for key in _PLAIN},
        )
        events = tuple(Event(index, label) for index, label in saved["events"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"{path} is not what was saved ({error!r}): it was changed, or written by another "
            "version. Restore it, or start again."
        ) from error
    return state, events


def _arrays(state: SequentialState) -> tuple[dict[str, np.ndarray], str]:
    """Everything that is an array, and the form of the kernel."""
    start = state.linearisation
    form = next(name for name, kind in _FORMS.items() if isinstance(start.kernel, kind))
    arrays = {key: getattr(start, key) for key in _ARRAYS_OF_START}
    arrays |= {"kernel": np.asarray(start.kernel.values)}
    arrays |= {"indices": state.candidates, "test_labels": state.test_labels}
    if isinstance(start.kernel, Cross):
        arrays["diagonal"] = start.kernel.diagonal
    return arrays, form


def _file_name(groups: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    named = {f"{kind} {name}": array for kind, own in groups.items() for name, array in own.items()}
    return f"state-{digest_arrays(named)}.safetensors"


def _kernel(form: str, precision: Any, arrays: dict[str, np.ndarray]) -> AnyKernel:
    if form == "cross":
        return Cross(arrays["kernel"], arrays["diagonal"], precision)
    return _FORMS[form](arrays["kernel"], precision)


class SequentialData(NamedTuple):
    """Images and labels of a session.

    Attributes:
        network: that takes the images: the trained network, or its tail, which takes rows of the
            frozen prefix.
        images: data-set indices → images as the network takes them.
        labelled: {data-set index: class} that the network was trained on.
        candidates: data-set indices that may be queried.
        test_images: as the network takes them; None without any.
        test_labels: their classes.
        classes: how many there are.
    """

    network: nn.Module
    images: Callable[[np.ndarray], np.ndarray]
    labelled: Mapping[int, int]
    candidates: np.ndarray
    test_images: np.ndarray | Items | Piecewise | None
    test_labels: np.ndarray
    classes: int


def build_state(
    weights: Weights,
    certified: tuple[Mirror, dict[str, Any]],
    data: SequentialData,
    strategy: str,
    options: SequentialOptions,
    stream: tuple[int, int],
    progress: Stages,
    folder: Path | None = None,
) -> SequentialState:
    """Kernel, logits and labels from which a session starts.

    The kernel is between the labelled images, the candidates and the test images; without a sketch
    no entries between test images are computed.

    Args:
        weights: of the trained network.
        certified: the mirror of the network that takes the images, and the certificate.
        data: images and labels.
        strategy: chooses the next image.
        options: of kernel and strategy.
        stream: seed and round of everything random.
        progress: records time and memory, and shows progress.
        folder: of finished chunks of a slow kernel; None keeps none.

    Raises:
        PipelineError, KernelError: as `plan_sequential`.
        NetworkError: logits that are not finite.
    """
    mirror, certificate = certified
    seed, number = stream
    kernel_rng, sample_rng = generator(seed, "kernel", number).spawn(2)
    cluster_seed = int(generator(seed, "clusters", number).integers(2**31))
    labelled = np.fromiter(data.labelled, np.int64, len(data.labelled))
    classes = np.array([data.labelled[int(index)] for index in labelled], np.int64)
    candidates, tests, settings = data.candidates, len(data.test_labels), options.kernel
    sizes = (len(labelled), len(candidates), tests)
    both = np.concatenate([labelled, candidates])

    def read(positions: np.ndarray) -> np.ndarray:
        """Labelled images, candidates, test images."""
        own = positions < len(both)
        found = data.images(both[positions[own]])
        if own.all():
            return found
        assert data.test_images is not None
        every = np.empty((len(positions), *found.shape[1:]), np.float32)
        every[own], every[~own] = found, data.test_images[positions[~own] - len(both)]
        return every

    images = Piecewise(read, np.arange(len(both) + tests))
    plan = plan_sequential(mirror, images[:1][0], *sizes, settings, kernel_rng)
    sample = reference_sample(len(candidates), settings.sample, sample_rng)
    sample = np.arange(len(candidates)) if sample is None else sample
    with progress("predict"):
        every = np.arange(len(images))
        with named_images(labelled):
            labelled_logits = logits(data.network, Piecewise(read, every[: len(labelled)]))
        with named_images(candidates, range(tests)):
            other_logits = logits(data.network, Piecewise(read, every[len(labelled) :]))
    with progress("kernel") as advance, named_images(both, range(tests)):
        kernel = compute_kernel(
            mirror.model(),
            images,
            plan,
            sample=sample,
            rng=kernel_rng,
            progress=advance,
            folder=folder,
        )
    linearisation = Linearisation(
        kernel=kernel,
        targets=np.eye(data.classes)[classes],
        labelled_logits=labelled_logits.astype(np.float64),
        logits=other_logits.astype(np.float64),
        sample=sample,
        candidates=len(candidates),
        keep=plan.keep,
        ridge=settings.ridge,
    )
    squares = [float(np.sum(np.asarray(p, np.float64) ** 2)) for p in mirror.params.values()]
    residual = linearisation.targets - linearisation.labelled_logits
    return SequentialState(
        linearisation=linearisation,
        candidates=candidates,
        labelled=data.labelled,
        test_labels=data.test_labels,
        classes=data.classes,
        norm=float(np.sqrt(sum(squares))),
        strategy=strategy,
        options=criterion_options(strategy, options, cluster_seed),
        loss=options.loss,
        seed=seed,
        round_number=number,
        diagnostics={
            "kind": settings.kind,
            "sketch": plan.request.sketch,
            "sample": settings.sample,
            "held": plan.form if plan.keep else f"{plan.form}, streamed",
            "predicted_gib": round(plan.peak_gib, 3),
            "ridge": settings.ridge,
            "residual_rms": float(np.sqrt(np.mean(residual**2))),
            "certificate": certificate,
        },
        weights=weights,
    )


def plan_sequential(
    mirror: Mirror,
    image: np.ndarray,
    labelled: int,
    candidates: int,
    tests: int,
    settings: KernelConfig,
    rng: np.random.Generator,
) -> Plan:
    """The plan of the kernel between the labelled images, the candidates and the test images.

    Raises:
        PipelineError: a sample of the candidates without a sketch.
        KernelError: it does not fit in the memory; the message says what would.
    """
    some = (settings.sample or candidates) < candidates
    if some and settings.sketch is None and linear_head(mirror.model(), settings) is None:
        raise PipelineError(
            f"kernel.sample is {settings.sample}: absorbing a label needs the kernel between that "
            f"image and all others, and so of all {candidates} candidates. Use a sketch with it "
            "(kernel.sketch), whose features give every entry, or a smaller subset."
        )
    sample = min(settings.sample or candidates, candidates)
    sizes = Sizes(labelled, candidates + tests, sample)
    shape = jax.ShapeDtypeStruct(image.shape, dtype_of(settings.precision))
    try:
        return plan_query(mirror.model(), shape, sizes, settings, rng)
    except KernelError as error:
        raise KernelError(
            f"{error} In the sequential mode the candidates are counted with {tests} test images "
            "(test_subset), and a reference sample is for sketches only."
        ) from error


def start(
    model: nn.Module,
    images: OwnImages,
    labelled: Mapping[int, int],
    strategy: str = "mlmoc",
    options: SequentialOptions | None = None,
    *,
    tests: tuple[OwnImages, np.ndarray] | None = None,
    mirror: Mirror | None = None,
    seed: int = 0,
    progress: Stages | None = None,
) -> SequentialSession:
    """Linearise a trained network, to query labels one at a time.

    Args:
        model: your trained network in eval mode: (batch, channels, height, width) → (batch,
            classes) logits.
        images: as of `pipelines.query.query`.
        labelled: what the network was trained on, {index into images: class from 0}.
        strategy: a look-ahead criterion, or random, entropy, margin or least_confident of the
            linearised network.
        options: of the loss, the candidates, the kernel and look-ahead; the defaults if None.
        tests: images and their classes, on which the linearised network's accuracy is computed.
        mirror: your own mirror of the model; None makes one.
        seed: of everything random, with the number of labels.
        progress: records time and memory, and shows progress.

    Raises:
        UnknownNameError: no such strategy.
        PipelineError: images, labels or sizes that cannot be used.
        NetworkError, DataError: as `pipelines.query.query`.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
        KernelError: the kernel cannot be computed in the memory given, or is singular.
    """
    lookup(dict.fromkeys(STRATEGIES), strategy, "sequential strategy")
    options, seed = options or SequentialOptions(), checked_count("seed", seed, 0)
    options.check_read([strategy], {"kernel"})
    array = checked_images(images)
    indices, labels = checked_labels(labelled, len(array))
    pool = Pool.of(len(array), indices)
    test_images, test_labels = (None, np.empty(0, np.int64)) if tests is None else _checked(*tests)
    number = len(pool.labelled)  # so that successive sessions draw independently
    candidates = pool.candidates(options.subset, generator(seed, "subset", number))
    if not len(candidates):
        raise PipelineError("every image is labelled already: there is nothing to ask.")
    read: Callable[[np.ndarray], np.ndarray] = lambda indices: array[indices]
    frontier = None if mirror else frontier_of(model, array, read, options.frozen)
    prefix, network = (frontier.prefix, frontier.prefix.tail) if frontier else (None, model)
    if prefix is not None:
        mirror = prefix.mirror
    probe = array[:PROBE]
    twin = mirror.with_weights(weights_of(network)) if mirror else trace.mirror(model, probe)
    classes = logits(model, array[:1]).shape[1]
    check_classes([get(strategy)], model, classes)
    check_labels(pool.labelled, labels, classes)
    if len(test_labels) and not 0 <= test_labels.min() <= test_labels.max() < classes:
        raise PipelineError(
            f"the test images have classes {test_labels.min()} to {test_labels.max()} and the "
            f"network has {classes} logits: classes go from 0 to {classes - 1}."
        )
    certificate = certify(model, twin, probe, prefix).summary()
    if prefix is not None and test_images is not None:
        of_tests = FrontierRows(
            prefix, test_images.__getitem__, len(test_labels), "", options.frozen
        )
        test_images = of_tests(np.arange(len(test_labels)))
    state = build_state(
        weights_of(model),
        (twin, certificate),
        SequentialData(
            network=network,
            images=frontier or read,
            labelled=dict(zip(pool.labelled.tolist(), labels.tolist(), strict=True)),
            candidates=candidates,
            test_images=test_images,
            test_labels=test_labels,
            classes=classes,
        ),
        strategy,
        options,
        (seed, number),
        progress=progress or Stages(),
    )
    return SequentialSession(state)


def _checked(images: OwnImages, labels: np.ndarray) -> tuple[np.ndarray | Items | None, np.ndarray]:
    array, classes = checked_images(images), np.asarray(labels)
    if classes.shape != (len(array),) or not np.issubdtype(classes.dtype, np.integer):
        raise PipelineError(
            f"tests are {len(array)} images and labels of shape {classes.shape} and dtype "
            f"{classes.dtype}: one whole number an image is needed."
        )
    return (array if len(array) else None), classes.astype(np.int64)
