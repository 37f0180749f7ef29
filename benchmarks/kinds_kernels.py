"""Every kind of kernel of one network from its `full` one, and how alike two selections are.

From a model and images to the `full` kernel and the folded gradients of every class, of which all
other kinds are contractions: with M the mean of v vᵀ over a kind's projections v of the logits, its
kernel is Σ_cd M_cd J_c J_dᵀ, and the sketch of a projection is the projection of the sketch.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from kernel.jacobian import fold, random_signs
from kernel.model import Frozen, Function, Model, Params
from kernel.ntk import empirical_ntk
from kernel.options import Request
from kernel.taps import image_gradients

CHUNK = 8
PROBES = (1, 2, 4, 8)


class Jacobians(NamedTuple):
    """The Jacobians that all kinds are contracted from.

    Attributes:
        full: float64 (examples, classes, examples, classes), Θ.
        folded: float32 (examples, classes, k), the gradients in the dimensions of a sketch.
    """

    full: np.ndarray
    folded: np.ndarray


def jacobians(
    model: Model,
    images: np.ndarray,
    classes: int,
    sketch: int,
    rng: np.random.Generator,
    gib: float,
) -> Jacobians:
    """Differentiate every logit of every image, in float32.

    Args:
        model: the network, in float32.
        images: as the network takes them.
        classes: its logits.
        sketch: k, dimensions that gradients are folded to, below the number of parameters.
        rng: of the signs of the sketch.
        gib: GiB that Θ may be computed in.
    """
    images = np.asarray(images, np.float32)
    columns = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    signs = jnp.asarray(random_signs(columns, sketch, rng))
    folded = np.empty((len(images), classes, sketch), np.float32)
    for c in range(classes):
        direction = jnp.asarray(np.eye(classes, dtype=np.float32)[c])
        for start in range(0, len(images), CHUNK):
            # the last chunk is padded with repeats, so that one shape is compiled
            places = np.minimum(np.arange(start, start + CHUNK), len(images) - 1)
            rows = per_example_gradients(*model, jnp.asarray(images[places]), direction)
            part = slice(start, min(start + CHUNK, len(images)))
            folded[part, c] = fold(rows, signs, sketch)[: part.stop - start]
    return Jacobians(empirical_ntk(model, images, Request("full", memory_gib=gib)).values, folded)


@partial(jax.jit, static_argnums=0)
def per_example_gradients(
    function: Function, params: Params, frozen: Frozen, images: jax.Array, projection: jax.Array
) -> jax.Array:
    """(images, parameters): the gradient of v · f(x) for each image, by the general rule."""
    of = lambda image: image_gradients(function, params, frozen, image, projection)
    gradients = jax.vmap(of)(images)
    return jnp.concatenate([leaf.reshape(len(images), -1) for leaf in gradients], axis=1)


def projections(classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For each scalar-valued kind its vectors v, (backward passes, classes), scaled by their mean.

    The kinds `rademacher` share their vectors: m of them are the first m of the most.
    """
    signs = rng.choice((-1.0, 1.0), size=(max(PROBES), classes))
    vectors = {
        "single": np.eye(1, classes),
        "sum": np.ones((1, classes)) / np.sqrt(classes),
        "trace": np.eye(classes) / np.sqrt(classes),
    }
    for probes in PROBES:
        vectors[f"rademacher({probes})"] = signs[:probes] / np.sqrt(probes * classes)
    return vectors


def contract(full: np.ndarray, kinds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernel Σ_v vᵀΘv of each kind, (examples, examples), from its vectors."""
    examples, classes = full.shape[:2]
    mixtures = np.stack([(vectors.T @ vectors).ravel() for vectors in kinds.values()])
    # a row for each pair of classes, laid out once: one product then gives every kind
    pairs = full.transpose(1, 3, 0, 2).reshape(classes**2, examples**2)
    values = (mixtures @ pairs).reshape(-1, examples, examples)
    return dict(zip(kinds, values, strict=True))


def sketched(
    folded: np.ndarray, vectors: np.ndarray, sketches: Sequence[int]
) -> dict[int, np.ndarray]:
    """The same kernel in fewer dimensions, each of which divides those of the folded gradients."""
    examples = len(folded)
    rows = np.matmul(vectors.astype(np.float32), folded).transpose(1, 0, 2)
    found = {}
    for size in sorted(sketches, reverse=True):
        # what fell into bucket i of many falls into bucket i mod k of fewer
        rows = rows.reshape(len(vectors), examples, -1, size).sum(axis=2)
        found[size] = sum((_gram(part) for part in rows), np.zeros((examples, examples)))
    return found


def _gram(rows: np.ndarray) -> np.ndarray:
    return (rows @ rows.T).astype(np.float64)


def rank_correlation(scores: np.ndarray, reference: np.ndarray) -> float:
    """Spearman's; 0 where all scores of one side are equal, and so rank nothing."""
    if np.ptp(scores) == 0 or np.ptp(reference) == 0:
        return 0.0
    found: Any = spearmanr(scores, reference)
    return float(found.statistic)


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


def overlap(scores: np.ndarray, reference: np.ndarray, count: int) -> float:
    """Which part of the reference's `count` highest is among the scores' own; by chance count/U."""
    both = np.intersect1d(highest(scores, count), highest(reference, count))
    return len(both) / count


def spread(labels: np.ndarray, classes: int) -> float:
    """Entropy in nats of how often each class occurs; at most ln(classes)."""
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return float(sum(share * np.log(1 / share) for share in shares if share > 0))


def likeness(
    scores: np.ndarray, references: Mapping[str, np.ndarray], counts: tuple[int, ...]
) -> dict[str, float]:
    """Rank correlation and top overlaps with each reference, by `name spearman`, `name top b`."""
    found = {}
    for name, reference in references.items():
        found[f"{name} spearman"] = rank_correlation(scores, reference)
        for count in counts:
            found[f"{name} top {count}"] = overlap(scores, reference, count)
    return found
