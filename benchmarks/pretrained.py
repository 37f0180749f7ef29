"""Cost of queries, labels and the frozen part with a pretrained network.

With a frozen backbone and a linear head a query reads rows of features alone, synthetic ones here:
correlated, a few latent directions and noise. Head-only queries, the same features and batches by
scikit-activeml's strategies, a label that is absorbed, a sketch of the last blocks, and the frozen
prefix, each as a ratio to something run in turns beside it. Run it as

    python -m benchmarks.pretrained [--json FILE] [--pools 5000 50000]
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import Badge, CoreSet, MaxHerding
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.kernel_peers import forward
from benchmarks.measuring import Times, apart, load, machine, markdown, read, turns, watched, write
from bridge.mirror import Mirror
from bridge.prefix import FrozenPrefix, split
from bridge.trace import mirror
from kernel.covariance import Features
from kernel.lookahead import acquisition_state
from kernel.ntk import query_kernel
from kernel.options import Request
from kernel.posterior import posterior
from pipelines.core.progress import generator
from pipelines.query import query
from trainer.fit import keep_freed_blocks
from trainer.torchvision_compat import torchvision  # noqa: F401 - before timm

LOOKAHEAD = ("mlmoc", "uherding", "max_herding", "ev_gp")
# Whether a label is absorbed and scored in that many passes over S, and a sketch of 4,096 made in
# that many forward passes; the frozen prefix's time over torch's own.
PASSES, FORWARD, PREFIX = 4.0, 4.0, 1.15


@dataclass(frozen=True)
class Settings:
    """Sizes, turns and output."""

    pools: tuple[int, ...] = (5000, 50_000)
    """Candidates of head-only queries; of pools past 10,000 each is asked once."""
    strategies: tuple[str, ...] = LOOKAHEAD
    width: int = 1280
    latent: int = 40
    """Directions in which features differ, beside noise."""
    classes: int = 101
    labelled: int = 200
    batch: int = 20
    peers: int = 5975
    """Examples of which scikit-activeml chooses; 0 leaves it out."""
    picks: int = 100
    peer_repeats: int = 3
    """Turns against scikit-activeml; its Badge, which takes minutes, has one."""
    candidates: int = 10_000
    """For which a label is absorbed."""
    sample: int = 2000
    answer_classes: int = 10
    network: str = "tf_efficientnet_lite0"
    """Of timm, with random weights; none leaves its rows out."""
    trained: tuple[str, ...] = ("blocks.5.3", "blocks.6", "conv_head", "bn2", "classifier")
    """Names of its last two blocks and its head."""
    images: int = 256
    side: int = 96
    sketch: int = 4096
    repeats: int = 5
    """Turns."""
    threads: int = 2
    """Of torch."""
    seed: int = 0
    json: Path | None = None


def features(settings: Settings, examples: int) -> np.ndarray:
    """Correlated rows as of a network's last activation, float32, none below 0."""
    rng = generator(settings.seed, "features", examples)
    mixed = rng.standard_normal((settings.latent, settings.width), np.float32)
    rows = rng.standard_normal((examples, settings.width), np.float32) / 2
    rows += rng.standard_normal((examples, settings.latent), np.float32) @ mixed / 6
    return np.maximum(rows, 0, out=rows)


class Head(NamedTuple):
    """Features, a head that is fitted to some of their labels, and these labels."""

    rows: np.ndarray
    network: nn.Linear
    labelled: dict[int, int]

    @classmethod
    def made(cls, settings: Settings, examples: int) -> "Head":
        """By ridge regression, so that labels are nearly fitted."""
        rows, count = features(settings, examples), settings.labelled
        classes = np.arange(count) % settings.classes
        given = rows[:count].astype(np.float64)
        gram = given @ given.T
        gram.flat[:: count + 1] += 1e-2 * np.trace(gram) / count
        weight = np.linalg.solve(gram, np.eye(settings.classes)[classes]).T @ given
        network = nn.Linear(settings.width, settings.classes).eval()
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
            network.bias.zero_()
        return cls(rows, network, dict(enumerate(classes.tolist())))

    def asking(self, strategy: str, batch: int) -> Callable[[], np.ndarray]:
        """A whole query, as anybody asks it: certificate, kernel, posterior and picks."""
        return lambda: query(self.network, self.rows, self.labelled, batch, strategy).indices


class Cost(NamedTuple):
    """Of one query in a process of its own, after its imports and features.

    Attributes:
        seconds: on the clock.
        processor: of all threads together.
        grown: GiB that it added to the process.
    """

    seconds: float
    processor: float
    grown: float


def first_query(settings: Settings, pool: int, strategy: str) -> Cost:
    """The first query of this process."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    head = Head.made(settings, pool + settings.labelled)
    began, before = time.perf_counter(), time.process_time()
    _, memory = watched(head.asking(strategy, settings.batch))
    seconds = time.perf_counter() - began
    return Cost(seconds, time.process_time() - before, memory.grown)


def head_queries(settings: Settings, pool: int) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row a strategy: its first query of a process, and the following ones where pools are small.

    Ratios are of processor time, to the entropy query of the same turn.
    """
    first = {name: apart(first_query, settings, pool, name) for name in settings.strategies}
    figures: dict[str, Any] = {name: {"first": cost._asdict()} for name, cost in first.items()}
    again: dict[str, Times] = {}
    if pool <= 10_000:
        head = Head.made(settings, pool + settings.labelled)
        names = (*settings.strategies, "entropy")
        again = turns({n: head.asking(n, settings.batch) for n in names}, settings.repeats)
        figures = {n: figures.get(n, {}) | {"again": again[n]._asdict()} for n in names}
    rows = []
    for name, cost in first.items():
        cells = [f"{pool:,}", name, f"{cost.processor:.2f}", f"{cost.seconds:.2f}"]
        cells.append(f"{cost.grown:.2f}")
        if name in again:
            cells.append(f"{np.median(again[name].processor):.2f}")
            cells.append(str(again[name].processor_over(again["entropy"])))
        rows.append((*cells, *[""] * (7 - len(cells))))
    return rows, figures


def against_peers(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row a method: scikit-activeml's time over ours, each choosing the same number of rows.

    Ours are whole calls of `pipelines.query.query`; theirs are calls of `query` of the strategy,
    whose classifier is fitted beforehand.
    """
    head, picks = Head.made(settings, settings.peers), settings.picks
    labels = np.full(settings.peers, np.nan)
    labels[list(head.labelled)] = list(head.labelled.values())
    known = list(range(settings.classes))
    classifier = SklearnClassifier(LogisticRegression(max_iter=200), classes=known)
    classifier.fit(head.rows[list(head.labelled)], labels[list(head.labelled)])
    given = {"X": head.rows, "y": labels, "batch_size": picks}
    theirs: dict[str, Callable[[], object]] = {
        "max_herding": lambda: MaxHerding(random_state=0).query(**given),
        "coreset": lambda: CoreSet(random_state=0).query(**given),
        "badge": lambda: Badge(random_state=0).query(clf=classifier, fit_clf=False, **given),
    }
    rows, figures = [], {}
    for name, own in theirs.items():
        repeats = 1 if name == "badge" else settings.peer_repeats
        works = {"ours": head.asking(name, picks), "theirs": own}
        works["ours"]()  # compiles
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = turns(works, repeats, warm=False)
        ratio = times["theirs"].processor_over(times["ours"])
        spent = [f"{np.median(times[which].processor):.2f}" for which in ("theirs", "ours")]
        rows.append(
            (name, repeats, *spent, ratio, "yes" if ratio and ratio.least > 1 else "**no**")
        )
        figures[name] = {which: one._asdict() for which, one in times.items()}
    return rows, figures


class Answers:
    """A session over a reference sample: each step absorbs the label of the best candidate."""

    def __init__(self, settings: Settings):
        """Condition on the labelled rows."""
        self.rng = generator(settings.seed, "answers")
        self.classes = np.eye(settings.answer_classes)
        count, candidates = settings.labelled, settings.candidates
        kernel = Features(features(settings, count + candidates), "float32")
        targets = self.classes[self.rng.integers(settings.answer_classes, size=count)]
        logits = self.rng.normal(size=(count + candidates, settings.answer_classes))
        sample = np.sort(self.rng.choice(candidates, settings.sample, replace=False))
        made = posterior(kernel, targets, logits[:count], logits[count:], sample=sample)
        self.state = acquisition_state("mlmoc", kernel, made, targets=targets)
        self.matrix = np.array(made.covariance.kept)
        self.vector = self.rng.standard_normal(candidates, np.float32)

    def answer(self) -> None:
        """Absorb a label of the best candidate, and score all of them."""
        best = np.array([int(self.state.scores().argmax())])
        label = self.classes[self.rng.integers(len(self.classes), size=1)]
        self.state = self.state.absorb(best, label)
        self.state.scores()

    def read(self) -> np.ndarray:
        """One pass over a matrix of the size of S."""
        return self.matrix @ self.vector


def absorbing(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row: an answer in passes over S."""
    seen = Answers(settings)
    seen.answer()
    times = turns({"answer": seen.answer, "pass": seen.read}, 5 * settings.repeats)
    ratio = times["answer"].processor_over(times["pass"])
    met = "yes" if ratio and ratio.median <= PASSES else "**no**"
    milliseconds = (f"{1e3 * np.median(times[name].processor):.1f} ms" for name in times)
    row = ("a label absorbed and all scored", *milliseconds, ratio, f"≤ {PASSES:g} passes", met)
    return [row], {name: own._asdict() for name, own in times.items()}


def frozen_network(settings: Settings) -> tuple[nn.Module, torch.Tensor]:
    """The network with all but its last blocks frozen, and images."""
    import timm  # imports torchvision, which is made whole above

    torch.manual_seed(settings.seed)
    network = timm.create_model(settings.network, num_classes=settings.classes).eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(settings.trained))
    return network, torch.randn(settings.images, 3, settings.side, settings.side)


def prefix_of(network: nn.Module, images: torch.Tensor) -> FrozenPrefix:
    """The network split at its frontier."""
    made: Mirror = mirror(network, images[:2].numpy())
    found = split(network, made, images[:2])
    if found is None:
        raise ValueError("nothing of the network is frozen before what is trained.")
    return found


def last_blocks(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A sketched kernel of the last blocks, in forward passes of these by mirror and by torch."""
    network, images = frozen_network(settings)
    prefix = prefix_of(network, images)
    rows = prefix.rows(images)
    model, given = prefix.mirror.model(), rows.numpy()
    request = Request(sketch=settings.sketch)

    def by_torch() -> torch.Tensor:
        with torch.no_grad():
            return prefix.tail(rows)

    def kernel() -> object:
        rng = generator(settings.seed, "signs")
        return query_kernel(model, given, len(given) // 4, request, rng=rng)[0].values

    works = {"sketch": kernel, "mirror": forward(model, given), "torch": by_torch}
    times = turns(works, settings.repeats)
    found = []
    for by in ("mirror", "torch"):
        ratio = times["sketch"].processor_over(times[by])
        met = "yes" if ratio and ratio.median <= FORWARD else "**no**"
        seconds = (f"{np.median(times[name].processor):.2f} s" for name in ("sketch", by))
        what = f"a sketch of {settings.sketch:,}, last blocks of {settings.network}, pass by {by}"
        found.append((what, *seconds, ratio, f"≤ {FORWARD:g}", met))
    return found, {name: one._asdict() for name, one in times.items()}


def prefix_ratio(settings: Settings) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """A row: the frozen prefix of a network whose head is trained, over torch's forward pass."""
    network, images = frozen_network(settings)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.get_submodule(settings.trained[-1]).requires_grad_(True)
    prefix = prefix_of(network, images)

    def own() -> list[torch.Tensor]:
        with torch.no_grad():
            return [network(some) for some in images.split(128)]

    times = turns(
        {"prefix": lambda: [prefix.rows(some) for some in images.split(128)], "torch": own},
        settings.repeats,
    )
    ratio = times["prefix"].processor_over(times["torch"])
    met = "yes" if ratio and ratio.median <= PREFIX else "**no**"
    seconds = (f"{np.median(times[name].processor):.2f} s" for name in times)
    what = f"frozen part of {settings.network}, {settings.images} images"
    return [(what, *seconds, ratio, f"≤ {PREFIX:g}", met)], {
        n: t._asdict() for n, t in times.items()
    }


QUERIES = ("candidates", "strategy", "first, processor s", "on the clock", "GiB added")
QUERIES = (*QUERIES, "then, processor s", "entropy queries")
PEERS = ("method", "n", "scikit-activeml, s", "ours, s", "theirs over ours", "faster")
COSTS = ("what", "processor time", "of one pass", "ratio", "target", "met")


def main(settings: Settings) -> None:
    """Print the tables and add the figures to those in the file."""
    keep_freed_blocks()
    torch.set_num_threads(settings.threads)
    figures: dict[str, Any] = read(settings.json)

    def show(head: tuple[str, ...], name: str, found: tuple[list[Any], Mapping[str, Any]]) -> None:
        rows, figures[name] = found
        print(markdown(head, rows), flush=True)
        write(settings.json, asdict(settings), figures)

    for pool in settings.pools:
        show(QUERIES, f"head, {pool}", head_queries(settings, pool))
    if settings.peers:
        show(PEERS, "scikit-activeml", against_peers(settings))
    if settings.candidates:
        show(COSTS, "absorbing", absorbing(settings))
    if settings.network != "none":
        show(COSTS, "last blocks", last_blocks(settings))
        show(COSTS, "prefix", prefix_ratio(settings))
    print(
        f"L = {settings.labelled:,}, {settings.width:,} features, C = {settings.classes}, "
        f"b = {settings.batch}; {settings.picks} picks of {settings.peers:,} against "
        f"scikit-activeml; M = {settings.sample:,}, U = {settings.candidates:,}, "
        f"C = {settings.answer_classes} for labels; n = {settings.repeats} turns, seed "
        f"{settings.seed}. {machine()}; {load()}."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
