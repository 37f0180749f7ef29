"""The kernel of one logit, `single`, by the ways that others would take on the same network.

From a torch module or its mirror and images to the same (images, images) array: torch.func's
vmap(grad), JAX's vmap(grad), and neural-tangents.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks.measuring import seconds
from kernel.infinite import nt
from kernel.model import Model

CHUNKS = (8, 16, 32)  # images at a time that are tried
TRIED = 32  # images on which the fastest is chosen


def forward(model: Model, images: np.ndarray, chunk: int = 32) -> Callable[[], None]:
    """Logits of all images by the compiled mirror, the yardstick."""
    compiled = jax.jit(model.function)

    def work() -> None:
        for start in range(0, len(images), chunk):
            some = jnp.asarray(images[start : start + chunk])
            compiled(model.params, model.frozen, some).block_until_ready()

    return work


def vmap_grad(model: Model, images: np.ndarray, chunk: int = 32) -> Callable[[], np.ndarray]:
    """JAX's vmap(grad) of the mirror in chunks, and one product by NumPy."""

    def logit(params, frozen, image):
        return model.function(params, frozen, image[None])[0, 0]

    @jax.jit
    def rows(params, frozen, some):
        gradients = jax.vmap(jax.grad(logit), (None, None, 0))(params, frozen, some)
        return jnp.concatenate([g.reshape(len(some), -1) for g in jax.tree.leaves(gradients)], 1)

    columns = sum(leaf.size for leaf in jax.tree.leaves(model.params))

    def work() -> np.ndarray:
        jacobian = np.empty((len(images), columns), images.dtype)
        for start in range(0, len(images), chunk):
            some = jnp.asarray(images[start : start + chunk])
            jacobian[start : start + chunk] = rows(model.params, model.frozen, some)
        return jacobian @ jacobian.T

    return work


def torch_func(network: nn.Module, images: np.ndarray) -> tuple[Callable[[], np.ndarray], int]:
    """torch.func's vmap(grad) of the module in chunks and one product, and the fastest chunk."""
    state = {name: tensor.detach() for name, tensor in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def logit(params, image):
        return torch.func.functional_call(network, (params, buffers), (image[None],))[0, 0]

    rows = torch.func.vmap(torch.func.grad(logit), (None, 0))
    columns = sum(tensor.numel() for tensor in state.values())

    def work(given: torch.Tensor, chunk: int) -> np.ndarray:
        jacobian = torch.empty((len(given), columns))
        for start in range(0, len(given), chunk):
            place = 0
            for gradient in rows(state, given[start : start + chunk]).values():
                width = gradient[0].numel()
                jacobian[start : start + chunk, place : place + width] = gradient.flatten(1)
                place += width
        return (jacobian @ jacobian.T).numpy()

    whole = torch.from_numpy(images)
    fastest = min(CHUNKS, key=lambda chunk: _second(partial(work, whole[:TRIED], chunk)))
    return partial(work, whole, fastest), fastest


def neural_tangents(model: Model, images: np.ndarray) -> tuple[Callable[[], np.ndarray], str]:
    """neural-tangents' empirical kernel by whichever of its ways is fastest, and which that is.

    Jacobian contraction and NTK-vector products, over all images at once or in batches.
    """

    def logit(params, some):
        return model.function(params, model.frozen, some)[:, :1]

    def plain(number: int):
        # a kernel function of its own: what it compiles is kept, as `nt.batch` keeps its own
        return nt.empirical_ntk_fn(logit, trace_axes=(), vmap_axes=0, implementation=number)

    size = math.gcd(8, len(images))  # its batches must be full
    ways = {
        "Jacobian contraction": jax.jit(plain(1), static_argnums=1),
        f"Jacobian contraction, batches of {size}": _batched(plain(1), size),
        "NTK-vector products": jax.jit(plain(2), static_argnums=1),
    }

    def work(kernel: Callable, given: np.ndarray) -> np.ndarray:
        return np.asarray(kernel(jnp.asarray(given), None, model.params)).reshape((len(given),) * 2)

    fastest = min(ways, key=lambda way: _second(partial(work, ways[way], images[:TRIED])))
    return partial(work, ways[fastest], images), fastest


def _batched(kernel: Callable, size: int) -> Callable:
    return nt.batch(kernel, batch_size=size, device_count=0)


def _second(work: Callable[[], object]) -> float:
    """Seconds of the second time, when everything is compiled."""
    return min(seconds(work), seconds(work))
