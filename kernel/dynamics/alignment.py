"""What the images of a set do to each other in training: G_MSE and alignment, of any sets at once.

From a kernel and one vector over the classes for each image to the matrix M_ij = v_iᵀΘ_ij v_j, over
which both are sums: with residuals f − y, G_MSE; with labels y, the alignment A. Or, without
a kernel, from the network itself for one set ([D]; docs/mathematics.md, 6).
"""

import numpy as np
from jaxtyping import Bool, Float, Float64

from kernel.dynamics import gradients
from kernel.engine.progress import Report
from kernel.errors import KernelError
from kernel.model import Model
from kernel.ntk import Kernel


def interactions(
    kernel: Kernel, vectors: Float[np.ndarray, "images classes"]
) -> Float64[np.ndarray, "images images"]:
    """M_ij = v_iᵀ Θ_ij v_j, with Θ_ij = K_ij I for a scalar-valued kernel.

    With the kind `full` and v = ∂ℓ/∂f it is the inner product of the loss gradients of i and j.

    Args:
        kernel: between the images.
        vectors: v, one for each image: f − y for G_MSE, y for the alignment.

    Raises:
        KernelError: vectors that are not of the images, or not of the classes, of the kernel.
    """
    values = kernel.values
    own = (len(values), *values.shape[1:2]) if values.ndim == 4 else (len(values),)
    if vectors.shape[: len(own)] != own:
        raise KernelError(
            f"there are vectors of shape {vectors.shape} for a kernel of "
            f"{' × '.join(map(str, own))} (images, then classes): give one row for each image of "
            "the kernel, in its order."
        )
    v = np.asarray(vectors, np.float64)
    if values.ndim == 2:
        return values * (v @ v.T)
    images, classes = v.shape
    # Θ_ij v_j as one product for each j, then v_iᵀ of it
    turned = np.einsum("xjd,jd->xj", values.reshape(images * classes, images, classes), v)
    return np.einsum("icj,ic->ij", turned.reshape(images, classes, images), v)


def energies(
    matrix: Float64[np.ndarray, "images images"], sets: Bool[np.ndarray, "sets images"]
) -> Float64[np.ndarray, " sets"]:
    """Σ_{i,j ∈ S} M_ij for each set S: G_MSE(S) or A(S), all sets by one product."""
    members = sets.astype(np.float64)
    return np.einsum("si,si->s", members @ matrix, members)


def energy_of(
    model: Model,
    images: Float[np.ndarray, "images ..."],
    vectors: Float[np.ndarray, "images classes"],
    *,
    chunk: int | None = None,
    progress: Report | None = None,
) -> float:
    """‖Σ_i J_iᵀ v_i‖² = Tr[VᵀΘV] with the full kernel, by one vjp and without any kernel.

    With v = ∂ℓ/∂f this is the training dynamics G(S), the rate at which the summed loss of S falls
    under gradient flow.

    Args:
        model: the network.
        images: of the set.
        vectors: v, one for each image.
        chunk: images differentiated at a time; None chooses for the machine.
        progress: called with images done and all images.
    """
    summed = gradients.total(model, images, vectors, chunk=chunk, progress=progress)
    return gradients.squared_length(summed)
