"""Small models and random problems that the kernel's tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from kernel.covariance import AnyKernel, Cross, Features, Kernel
from kernel.model import Model
from kernel.taps import image_gradients


def linear_model(features: int, classes: int, rng: np.random.Generator) -> Model:
    """f(x) = W x: its Jacobian is X itself."""
    weights = {"weight": jnp.asarray(rng.normal(size=(classes, features)))}
    return Model(_linear, weights, {})


def _linear(params, frozen, images):
    return images @ params["weight"].T


def mlp(features: int, hidden: int, classes: int, rng: np.random.Generator) -> Model:
    """Two layers with biases and a frozen scale."""
    params = {
        "first.weight": jnp.asarray(rng.normal(size=(hidden, features)) / np.sqrt(features)),
        "first.bias": jnp.asarray(rng.normal(size=hidden)),
        "second.weight": jnp.asarray(rng.normal(size=(classes, hidden)) / np.sqrt(hidden)),
        "second.bias": jnp.asarray(rng.normal(size=classes)),
    }
    return Model(_mlp, params, {"scale": jnp.asarray(1.7)})


def _mlp(params, frozen, images):
    hidden = jnp.tanh(images @ params["first.weight"].T + params["first.bias"])
    return frozen["scale"] * (hidden @ params["second.weight"].T + params["second.bias"])


def per_example_gradients(model: Model, images, projection) -> np.ndarray:
    """(images, parameters): the gradient of v · f(x) for each image, by the general rule."""
    of = lambda image: image_gradients(*model, image, projection)
    gradients = jax.jit(jax.vmap(of))(jnp.asarray(images))
    rows = [np.asarray(leaf).reshape(len(images), -1) for leaf in gradients]
    return np.concatenate(rows, axis=1)


def scalar_kernel(examples: int, rng: np.random.Generator, rank: int | None = None) -> Kernel:
    """A random positive semi-definite kernel in float64."""
    features = rng.normal(size=(examples, rank or 2 * examples))
    return Kernel(features @ features.T, "float64")


def full_kernel(examples: int, classes: int, rng: np.random.Generator) -> Kernel:
    """A random kernel with C×C blocks."""
    rows = examples * classes
    features = rng.normal(size=(rows, 2 * rows))
    return Kernel((features @ features.T).reshape(examples, classes, examples, classes), "float64")


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[labels]


def random_features(examples: int, dimensions: int, rng: np.random.Generator) -> Features:
    """Features of a random kernel, in float64."""
    return Features(rng.normal(size=(examples, dimensions)), "float64")


def all_forms(
    features: Features, labelled: int, sample: np.ndarray
) -> dict[str, tuple[AnyKernel, bool]]:
    """One kernel in every form that a posterior takes, and whether S is kept."""
    values = np.asarray(features.values) @ np.asarray(features.values).T
    anchors = np.concatenate([np.arange(labelled), labelled + sample])
    cross = Cross(values[anchors], values.diagonal().copy(), features.precision)
    return {
        "dense": (Kernel(values, features.precision), True),
        "features kept": (features, True),
        "features streamed": (features, False),
        "cross": (cross, True),
        "dense streamed": (Kernel(values, features.precision), False),
        "cross streamed": (cross, False),
    }


def random_problem(labelled: int, candidates: int, classes: int, rng: np.random.Generator):
    """Targets and logits of the labelled images, logits of the candidates."""
    targets = one_hot(rng.integers(classes, size=labelled), classes)
    return targets, rng.normal(size=(labelled, classes)), rng.normal(size=(candidates, classes))
