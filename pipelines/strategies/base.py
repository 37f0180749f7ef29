"""The context of a query, complete before a strategy sees it, and the query that it returns.

Indices are those of the whole data set everywhere; positions are those in an array of candidates.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from kernel.simplex import simplex_projection
from pipelines.core.errors import PipelineError
from pipelines.core.progress import Stages, named_images
from pipelines.strategies import Method, methods_of, needs_mirror, needs_of
from pipelines.strategies.options import StrategyOptions
from trainer.config import TrainConfig
from trainer.errors import DataError
from trainer.networks.loss_prediction import LossPrediction
from trainer.predict import (
    NAMED,
    Piecewise,
    Predictions,
    find_head,
    logits,
    predictions,
    refuse_training,
)

if TYPE_CHECKING:
    from bridge.mirror import Mirror
    from bridge.prefix import FrozenPrefix
    from pipelines.strategies.frontier import FrontierRows

ROUNDING = 2e-5  # of scores, relative: float32 through a kernel's linear systems
PROBE = 4  # images on which a mirror is certified, and the layer of the logits is looked for
T = TypeVar("T")
Pair = tuple[np.ndarray, np.ndarray]
Images = Callable[[np.ndarray], np.ndarray]
Oracle = Callable[[np.ndarray], np.ndarray]


class Query(NamedTuple):
    """The images to label next.

    Attributes:
        indices: int64 (batch,), data-set indices, best first.
        scores: float64 (batch,), the score of each; higher = query first.
        candidates: int64 (candidates,), data-set indices of everything that was scored.
        candidate_scores: float64 (candidates,).
        diagnostics: recorded beside them, JSON-able.
    """

    indices: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray
    candidate_scores: np.ndarray
    diagnostics: dict[str, Any]

    def with_ties(self) -> "Query":
        """With `ties` in the diagnostics where picks do not differ in score from other candidates.

        Equal scores are broken at random; where all of them differ by rounding only, by that.
        """
        others = self.candidate_scores[~np.isin(self.candidates, self.indices)]
        tied, scale = int(np.isin(self.scores, others).sum()), np.abs(self.candidate_scores).max()
        if len(others) and np.ptp(self.candidate_scores) <= ROUNDING * scale:
            note = "all candidates have the same score, to rounding: the picks are arbitrary"
        elif tied:
            rest = int(np.isin(others, self.scores).sum())
            note = f"{tied} of {len(self.scores)} picks have the scores of {rest} other candidates"
        else:
            return self
        return self._replace(diagnostics=self.diagnostics | {"ties": note})


class Labelling(NamedTuple):
    """Labelled images, their labels, and the candidates.

    Attributes:
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,), the class of each.
        candidates: int64 (candidates,), data-set indices, in any order.
    """

    labelled: np.ndarray
    labels: np.ndarray
    candidates: np.ndarray


class CertifiedMirror(NamedTuple):
    """A JAX mirror of the network, and the certificate that it agrees with it, JSON-able."""

    mirror: "Mirror"
    certificate: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """Optional inputs of a query, beside network, images and labels.

    Attributes:
        progress: records time and memory of named stages, and shows progress.
        folder: where long computations keep finished parts; None keeps none.
        oracle: data-set indices → true labels, while a batch is being chosen; None where they are
            known only after the batch is complete.
        history: the earlier rounds, first to last: `indices`, `diagnostics` and whatever else the
            record of a run has of them.
        auxiliary_module: the loss prediction module trained along with the network, if there is.
        test_set: test images by position, as the network takes them, and all their labels.
        shared_seed: of random projections and samples that strategies asked together share; None
            where one is asked alone, which may then overwrite its arrays.
        frontier: rows of the network's frozen prefix; None where it has none, or is not split.
    """

    progress: Stages = field(default_factory=Stages)
    folder: Path | None = None
    oracle: Oracle | None = None
    history: Sequence[Mapping[str, Any]] = ()
    auxiliary_module: LossPrediction | None = None
    test_set: tuple[Images, np.ndarray] | None = None
    shared_seed: int | None = None
    frontier: "FrontierRows | None" = None


class RoundCache:
    """Results that several strategies need in a round, the latest of each kind."""

    def __init__(self):
        """Start empty."""
        self._entries: dict[str, tuple[tuple[object, ...], Any]] = {}

    def get_or_compute(self, name: str, of: tuple[object, ...], compute: Callable[[], T]) -> T:
        """The cached result of this name if it is of these very objects, or a new one."""
        entry = self._entries.get(name)
        if entry is None or any(a is not b for a, b in zip(entry[0], of, strict=True)):
            entry = self._entries[name] = (of, compute())
        return entry[1]


@dataclass(frozen=True)
class QueryContext:
    """The state of the labelling that a strategy scores candidates by.

    Attributes:
        network: trained, in eval mode; strategies that train it further train a copy. With a frozen
            prefix it is the tail that follows it.
        images: data-set indices → images as the network takes them, float32; rows of the frontier
            where it is a tail.
        labelled: int64 (labelled,), data-set indices.
        labels: int64 (labelled,), the class of each.
        candidates: int64 (candidates,), data-set indices that may be queried, ascending.
        train: how the network was trained.
        options: of the strategies.
        resources: optional inputs.
        certified: the mirror, where a strategy needs one.
        known_logits: f_L and f_U, float32 (labelled, classes) and (candidates, classes), if they
            are known; None computes them when they are read.
        cache: of what several strategies need; shared by copies (`dataclasses.replace`).
    """

    network: nn.Module
    images: Images
    labelled: np.ndarray
    labels: np.ndarray
    candidates: np.ndarray
    train: TrainConfig
    options: StrategyOptions = StrategyOptions()
    resources: Resources = field(default_factory=Resources)
    certified: CertifiedMirror | None = None
    known_logits: Pair | None = None
    cache: RoundCache = field(default_factory=RoundCache, repr=False, compare=False)

    def __post_init__(self):
        """Refuse logits that no strategy can make scores of.

        Raises:
            PipelineError: some are not finite.
        """
        both, known = (self.labelled, self.candidates), self.known_logits
        for indices, rows in zip(both, known or (), strict=known is not None):
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                raise PipelineError(
                    f"the logits of images {indices[~finite][:5].tolist()} are not finite: train "
                    "the network anew, with a lower learning rate if that is why."
                )

    @property
    def progress(self) -> Stages:
        """Of the query: times, memory and progress of its stages."""
        return self.resources.progress

    @property
    def mirror(self) -> CertifiedMirror:
        """The mirror and its certificate.

        Raises:
            ValueError: the context was built for strategies that need none.
        """
        if self.certified is None:
            raise ValueError("this context has no mirror: name the strategy when it is built.")
        return self.certified

    @property
    def frozen(self) -> dict[str, Any]:
        """Entry `frozen` of the diagnostics, where images are rows of the frozen prefix."""
        rows = self.resources.frontier
        return {} if rows is None or self.images is not rows else {"frozen": rows.summary()}

    def get_or_compute(self, name: str, compute: Callable[[], T]) -> T:
        """The result of this name, computed once for network, labelled images and candidates.

        A copy of the context with others of them computes its own.
        """
        of = (self.network, self.labelled, self.candidates)
        return self.cache.get_or_compute(name, of, compute)

    def logits(self) -> Pair:
        """f_L, float32 (labelled, classes), and f_U, (candidates, classes), eval-mode logits.

        Raises:
            NetworkError: the network does not return one row of finite logits an image.
        """
        return self.labelled_logits, self.candidate_logits

    @property
    def labelled_logits(self) -> np.ndarray:
        """f_L, float32 (labelled, classes)."""
        if self.known_logits is not None:
            return self.known_logits[0]
        return self.get_or_compute("labelled logits", lambda: self._predict(self.labelled))

    @property
    def candidate_logits(self) -> np.ndarray:
        """f_U, float32 (candidates, classes)."""
        if self.known_logits is not None:
            return self.known_logits[1]
        return self.get_or_compute("candidate logits", lambda: self._predict(self.candidates))

    def _predict(self, indices: np.ndarray) -> np.ndarray:
        with self.progress("predict"), named_images(indices):
            return logits(self.network, Piecewise(self.images, indices))

    @property
    def probabilities(self) -> np.ndarray:
        """p, float64 (candidates, classes), by the rule that fits the loss."""
        return probabilities(self.candidate_logits, self.train.loss)

    def query(
        self, positions: np.ndarray, scores: np.ndarray, diagnostics: dict[str, Any] | None = None
    ) -> Query:
        """A batch by its positions among the candidates, best first, with every score.

        Raises:
            PipelineError: a score is not a number.
        """
        scores = np.asarray(scores, np.float64)
        check_numbers(scores, self.candidates)
        indices = self.candidates[positions]
        return Query(indices, scores[positions], self.candidates, scores, diagnostics or {})

    def features(self) -> Pair:
        """Penultimate features h_L, float32 (labelled, width), and h_U, (candidates, width).

        Raises:
            NetworkError: no layer makes the logits (`trainer.predict.find_head`).
        """

        def compute() -> Pair:
            with self.progress("predict"):
                return _predictions(self.network, self.images, self.labelled, self.candidates)[1]

        return self.get_or_compute("features", compute)


# The function `require` of a strategy's module: refuses a network (in eval mode, given a few images
# as it takes them), options or a missing oracle, by PipelineError or NetworkError.
Requirement = Callable[[nn.Module, np.ndarray, StrategyOptions, "Oracle | None"], None]


def require(
    methods: Sequence[Method],
    network: nn.Module,
    probe: np.ndarray,
    options: StrategyOptions,
    oracle: Oracle | None,
) -> int:
    """Check the requirements of strategies, each once, before anything is trained or computed.

    Args:
        methods: the strategies that will be asked.
        network: in eval mode, trained or not.
        probe: a few images, as the network takes them.
        options: of the strategies.
        oracle: as in `Resources`.

    Returns:
        The number of classes, by a pass of the network over the probe.

    Raises:
        PipelineError, NetworkError: saying what is missing.
    """
    trained = [m.name for m in methods if m.needs & {"kernel", "gradients", "training"}]
    if trained and not any(parameter.requires_grad for parameter in network.parameters()):
        raise PipelineError(
            f"{trained[0]} follows changes of the trainable parameters, and this "
            f"{type(network).__name__} has none: set requires_grad on those that are trained."
        )
    for requirement in dict.fromkeys(method.requirement for method in methods):
        if requirement is not None:
            requirement(network, probe, options, oracle)
    classes = logits(network, probe).shape[1]
    check_classes(methods, network, classes)
    if "features" in needs_of(methods):
        find_head(network, probe)
    return classes


def check_classes(methods: Sequence[Method], network: nn.Module, classes: int) -> None:
    """Refuse a network with fewer than two logits where a strategy compares classes.

    Raises:
        PipelineError: naming the strategy.
    """
    comparing = [method.name for method in methods if "classes" in method.needs]
    if classes < 2 and comparing:
        raise PipelineError(
            f"{comparing[0]} compares classes, and this {type(network).__name__} returns "
            f"{classes} logit an image: return one a class. A binary network with one logit z, "
            "trained by its sigmoid, becomes one with two by returning torch.cat([0 * z, z], 1)."
        )


def build_context(
    network: nn.Module,
    images: Images,
    labelling: Labelling,
    methods: Sequence[Method],
    *,
    train: TrainConfig,
    options: StrategyOptions,
    resources: Resources,
    mirror: "Mirror | None" = None,
) -> QueryContext:
    """Check the requirements of strategies, and compute what they share.

    Args:
        network: in eval mode.
        images: data-set indices → images as the network takes them.
        labelling: labelled images and candidates.
        methods: the strategies that will be asked.
        train: how the network was trained; its loss decides how logits become probabilities.
        options: of the strategies.
        resources: optional inputs.
        mirror: of the network, which is given its present weights; None traces one if needed.

    Raises:
        NetworkError: the network is in train mode; features are needed and no layer makes its
            logits.
        PipelineError: a requirement is not met, or labels are no class of the network.
        BridgeError: the network cannot be mirrored, or its mirror disagrees with it.
    """
    refuse_training(network)
    labelled, labels, candidates = labelling
    candidates = np.sort(candidates)  # draws for one do not depend on the order of the others
    probed = np.concatenate([candidates, labelled])[:PROBE]
    probe = images(probed)
    for method in methods:
        options.check(method.name)
    methods = [one for row in methods for one in methods_of(row.name, options.albl.arms)]
    with named_images(probed):
        classes = require(methods, network, probe, options, resources.oracle)
    check_labels(labelled, labels, classes)
    needs = needs_of(methods)
    known_logits = features = certified = None
    whole, prefix = network, None
    frontier = resources.frontier
    if frontier is not None and not reads_rows(needs, network, train):
        frontier = None
    if frontier is not None:
        network, images, prefix = frontier.prefix.tail, frontier, frontier.prefix
        mirror = prefix.mirror
    if needs_mirror(needs):
        with resources.progress("certificate"):
            certified = _certified(whole, probe, mirror, prefix)
    if frontier is not None and needs - {"classes", "draws", "history"}:
        with resources.progress("frozen part") as advance:
            frontier(np.concatenate([labelled, candidates]), advance)
    if "features" in needs:
        with resources.progress("predict"):
            known_logits, features = _predictions(network, images, labelled, candidates)
    context = QueryContext(
        network=network,
        images=images,
        labelled=labelled,
        labels=labels,
        candidates=candidates,
        train=train,
        options=options,
        resources=resources,
        certified=certified,
        known_logits=known_logits,
    )
    if features is not None:
        context.get_or_compute("features", lambda: features)
    return context


def reads_rows(needs: Set[str], network: nn.Module, train: TrainConfig) -> bool:
    """Whether strategies with these needs can start from rows of the network's frozen prefix.

    Not where layers of the prefix are read, run with dropout, or trained as in train mode.
    """
    whole = {"dropout", "hooks", "infinite"} | (set() if trains_rows(train) else {"training"})
    named = "features" in needs and getattr(network, NAMED, None) is not None
    return not (needs & whole or named)


def trains_rows(train: TrainConfig) -> bool:
    """Whether a training can start from rows: in eval mode, on images that are not augmented."""
    return train.recipe == "finetune" and train.augmentation in ("auto", "none")


def _certified(
    network: nn.Module,
    probe: np.ndarray,
    mirror: "Mirror | None",
    prefix: "FrozenPrefix | None" = None,
) -> CertifiedMirror:
    from bridge import (
        module,
        parity,
        trace,  # JAX, which strategies without a mirror do without
    )

    if mirror is None:
        made = trace.mirror(network, probe)
    else:
        made = mirror.with_weights(module.weights_of(prefix.tail if prefix else network))
    return CertifiedMirror(made, parity.certify(network, made, probe, prefix).summary())


def check_labels(labelled: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Refuse labels that are no class of the network.

    Raises:
        PipelineError: there is one.
    """
    outside = np.flatnonzero(labels >= classes)
    if len(outside):
        raise PipelineError(
            f"image {labelled[outside[0]]} is labelled {labels[outside[0]]} and the network has "
            f"{classes} logits: labels go from 0 to {classes - 1}. Either the label is wrong or "
            "the network has the wrong number of classes."
        )


def _predictions(
    network: nn.Module, images: Images, labelled: np.ndarray, candidates: np.ndarray
) -> tuple[Pair, Pair]:
    """Logits of the labelled images and the candidates, and penultimate features of the two.

    Raises:
        NetworkError: no layer makes the logits.
    """
    probed = np.concatenate([candidates, labelled])[:PROBE]
    with named_images(probed):
        head = find_head(network, images(probed))

    def of(indices: np.ndarray) -> Predictions:
        with named_images(indices):
            return predictions(network, Piecewise(images, indices), head)

    logits, features = zip(of(labelled), of(candidates), strict=True)
    return logits, features


def probabilities(logits: np.ndarray, loss: str) -> np.ndarray:
    """p(c|x), float64 (examples, classes): simplex projection for `l2`, softmax otherwise."""
    if loss == "l2":
        return simplex_projection(logits)
    return softmax(np.asarray(logits, np.float64), axis=1)


def reference_sample(
    candidates: int, size: int | None, rng: np.random.Generator
) -> np.ndarray | None:
    """Sorted positions of candidates over which changes are summed; None for all of them."""
    if size is None or size >= candidates:
        return None
    return np.sort(rng.choice(candidates, size, replace=False))


def top(
    context: QueryContext,
    scores: np.ndarray,
    batch_size: int,
    rng: np.random.Generator,
    diagnostics: dict[str, Any] | None = None,
) -> Query:
    """The candidates with the highest scores, float (candidates,); `rng` breaks ties.

    Raises:
        PipelineError: a score is not a number.
    """
    with context.progress("select"):
        best = np.lexsort((rng.permutation(len(scores)), -scores))[:batch_size]
        return context.query(best, scores, diagnostics)


def check_numbers(scores: np.ndarray, candidates: np.ndarray) -> None:
    """Refuse scores that are NaN.

    Raises:
        PipelineError: naming the first images.
    """
    if np.isnan(scores).any():
        bad = candidates[np.isnan(scores)][:5].tolist()
        raise PipelineError(f"the scores of images {bad} are not numbers.")


def whole(value: object) -> int | None:
    """The whole number of a Python or NumPy number, or of an array or tensor without axes.

    None for anything else: truth values, text, NaN, 0.5, and arrays with axes even of one element.
    """
    if isinstance(value, np.ndarray | np.generic | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        return None
    number: Any = value
    return int(number) if number == int(number) else None


def checked_count(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        PipelineError: it is none.
    """
    number = whole(value)
    if number is None or number < least:
        raise PipelineError(f"{name} is {value!r}; it must be a whole number, {least} or more.")
    return number


def checked_index(key: object, examples: int | None = None) -> int:
    """The index of an image, given as a whole number or its digits.

    Raises:
        PipelineError: neither.
        DataError: there is no such image among the examples.
    """
    digits = isinstance(key, str) and key.isascii() and key.isdigit()
    index = int(key) if isinstance(key, str) and digits else whole(key)
    if index is None:
        raise PipelineError(
            f"an image is numbered {key!r}; indices into images are whole numbers from 0."
        )
    if examples is not None and not 0 <= index < examples:
        raise DataError(
            f"image {index} is out of range: there are {examples} images, 0 to {examples - 1}."
        )
    return index


def checked_label(label: object, index: int, classes: int | None = None) -> int:
    """The class of an image.

    Raises:
        PipelineError: it is no whole number from 0, or there are not as many classes.
    """
    number = whole(label)
    most = 2**31 if classes is None else classes
    if number is not None and 0 <= number < most:
        return number
    shown = repr(label.item() if isinstance(label, np.generic) else label)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    needed = "from 0" if classes is None else f"from 0 to {classes - 1}"
    if label is None or (isinstance(label, float) and math.isnan(label)):
        advice = "leave images without a label out"
    elif isinstance(label, str):
        advice = "give the number of the class in the order of the network's logits"
    elif getattr(label, "shape", ()) or isinstance(label, list | tuple):
        advice = "of a row with an entry a class, give the position of the largest, its argmax"
    else:
        advice = "give the class as the network's loss takes it"
    raise PipelineError(
        f"image {index} is labelled {shown}; labels are whole numbers {needed}: {advice}."
    )
