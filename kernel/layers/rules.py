"""Layers that multiply by a matrix: their gradients, and what is left of two of them in a kernel.

From a layer's input and the cotangents of its output, for one image, to the rows of its part of the
Jacobian; or to two small factors, patches a_t and cotangents δ_t at the positions t, whose products
Σ_tt' (a_t·a'_t')(δ_t·δ'_t') are the layer's part of a kernel without any gradient being formed
(docs/mathematics.md, 2). Convolutions see their input as patches, by shifted slices.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

# What one multiplication of the T²-form's elementwise part costs, in multiplications of a matrix
# product: it runs at the speed of memory.
ELEMENTWISE = 8


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution, one entry an axis of the image.

    Attributes:
        kernel: sizes of the kernel.
        stride: steps between its places.
        edges: padding before and after.
        dilation: steps between its entries.
        groups: channels are split into so many groups, each with kernels of its own.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def slices(self, padded: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """For each entry of the kernel the pixels that it meets, of an image with its padding."""
        axes = []
        for n, k, s, d in zip(padded, self.kernel, self.stride, self.dilation, strict=True):
            last = (n - d * (k - 1) - 1) // s * s  # where the kernel's last place begins
            axes.append([slice(d * i, d * i + last + 1, s) for i in range(k)])
        return list(itertools.product(*axes))


@dataclass(frozen=True)
class Product:
    """A dense layer, or a convolution if it has a window.

    Attributes:
        weight: name of the trainable matrix (out, in) or kernel (out, in / groups, …).
        bias: name of the trainable bias (out,); None if there is none.
        inputs: channels of the input, those of all groups.
        outputs: channels of the output.
        window: of a convolution.
    """

    weight: str
    bias: str | None
    inputs: int
    outputs: int
    window: Window | None = None

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.window.groups if self.window else 1

    @property
    def features(self) -> int:
        """Entries of a patch in one group."""
        return self.inputs // self.groups * math.prod(self.window.kernel if self.window else ())

    @property
    def width(self) -> int:
        """Columns of the Jacobian for one output channel: its kernel's, and the bias."""
        return self.features + (1 if self.bias else 0)

    def patches(self, x: Array) -> Array:
        """The input of one image as (groups, features, positions), a channel before its window.

        Features come first because a product with the cotangents' channels is then one of matrices
        as they lie: faster on a CPU than patches that lie one after another.
        """
        if self.window is None:
            return x.reshape(-1, self.inputs).T[None]
        padded = jnp.pad(x, ((0, 0), (0, 0), *self.window.edges))
        shifted = [padded[:, :, *place] for place in self.window.slices(padded.shape[2:])]
        columns = jnp.stack(shifted, axis=2)  # (copies, channels, window, …)
        return jnp.moveaxis(columns, 0, 2).reshape(self.groups, self.features, -1)

    def pixels(self, x: Array) -> Array:
        """The padded input of one image as (copies, …, channels)."""
        if self.window is None:
            return x.reshape(1, -1, self.inputs)
        return jnp.pad(jnp.moveaxis(x, 1, -1), ((0, 0), *self.window.edges, (0, 0)))

    def cotangents(self, cotangent: Array) -> Array:
        """(rows, outputs, positions) from the cotangents of one image, one a row."""
        if self.window is None:
            return cotangent.reshape(len(cotangent), -1, self.outputs).swapaxes(1, 2)
        return jnp.moveaxis(cotangent, 2, 1).reshape(len(cotangent), self.outputs, -1)

    def rows(self, x: Array, cotangent: Array, start: Array, outputs: int) -> Array:
        """Columns of the Jacobian for some output channels, kernels first, then biases.

        Args:
            x: the layer's input for one image.
            cotangent: (rows, …), cotangents of its output, one for each row.
            start: the first output channel; all of them if `outputs` is their number.
            outputs: how many; past the last one they count as zeros.

        Returns:
            (rows, outputs · width), in the order of the parameters' own entries.
        """
        delta = self.cotangents(cotangent)
        if outputs < self.outputs:
            delta = jnp.pad(delta, ((0, 0), (0, -self.outputs % outputs), (0, 0)))
            delta = jax.lax.dynamic_slice_in_dim(delta, start, outputs, axis=1)
        patches = self.patches(x)
        if self.groups == 1:
            # one product of two matrices, whose result lies as it is wanted: XLA turns an einsum
            # with groups around, and then takes most of its time to turn the result back
            kernels = delta.reshape(-1, delta.shape[2]) @ patches[0].T
        else:
            grouped = delta.reshape(len(delta), self.groups, -1, delta.shape[2])
            kernels = jnp.einsum("rgot,gft->rgof", grouped, patches)
        kernels = kernels.reshape(len(delta), -1)
        if self.bias is None:
            return kernels
        return jnp.concatenate([kernels, delta.sum(axis=2)], axis=1)

    def products(self, x: Array, weight: Array) -> Array:
        """(images, outputs, positions): V a_t at every position, for other weights V, no bias.

        One product of matrices with the patches of all images: V stays as it lies, where a
        convolution would lay it out anew, which takes longer where positions are few.

        Args:
            x: the layer's inputs, images along axis 0.
            weight: V, in the layout of the parameter.
        """
        patches = jnp.moveaxis(jax.vmap(self.patches)(x), 0, 2)  # (groups, features, images, …)
        matrices = weight.reshape(self.groups, -1, self.features)
        found = matrices @ patches.reshape(self.groups, self.features, -1)
        found = found.reshape(self.outputs, len(x), -1)
        return jnp.moveaxis(found, 0, 1)

    def shaped(self, row: Array) -> dict[str, Array]:
        """The parameters' gradients, each in the layout of the parameter, from a whole row."""
        size = self.outputs * self.features
        kernel = self.window.kernel if self.window else ()
        weight = row[:size].reshape(self.outputs, self.inputs // self.groups, *kernel)
        return {self.weight: weight} | ({} if self.bias is None else {self.bias: row[size:]})


@dataclass(frozen=True)
class Lookup:
    """An embedding: rows of a table, chosen by whole numbers.

    Attributes:
        table: name of the trainable table (entries, width).
        entries: its rows.
        padding: the entry whose row has no gradient; −1 for none.
    """

    table: str
    entries: int
    padding: int


Rule = Product | Lookup
