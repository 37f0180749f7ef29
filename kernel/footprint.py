"""What a posterior takes in memory, before one is made.

From the sizes of a query to bytes: of the kernel given, of what a posterior holds, and of the
working arrays of conditioning and of a sweep over S, each counted as the code allocates it.
"""

from typing import NamedTuple

import numpy as np

from kernel.covariance import CANDIDATES, LABELLED, capacity, on_host, padded, tile_rows
from kernel.errors import KernelError
from kernel.model import dtype_of
from kernel.options import Precision
from kernel.posterior import SOLVED

FORMS = ("dense", "full", "features", "cross")
_WIDE = 8  # bytes of float64
# Of the kernel, that a criterion beside S holds at a time: anchors of clusters.
COLUMNS = 256


class Footprint(NamedTuple):
    """Bytes.

    Attributes:
        given: the kernel that a posterior is given.
        held: what the posterior holds besides; an S in the memory of the kernel counts as 0.
        conditioning: the most that is allocated while it is made, what it holds included.
        sweeping: working arrays of one sweep over S, such as MLMOC.
    """

    given: int
    held: int
    conditioning: int
    sweeping: int

    @property
    def peak(self) -> int:
        """The most that is allocated at a time, the kernel included."""
        return self.given + max(self.conditioning, self.held + self.sweeping)


class _Sizes(NamedTuple):
    """Rows of the arrays as they lie in memory, and bytes of an entry of the kernel."""

    labelled: int
    candidates: int
    sample: int
    dimensions: int
    item: int


def posterior_bytes(
    form: str,
    labelled: int,
    candidates: int,
    *,
    classes: int,
    sample: int | None = None,
    dimensions: int | None = None,
    precision: Precision = "float32",
    keep: bool = True,
    consume: bool = False,
    beside: bool = False,
    host: bool | None = None,
) -> Footprint:
    """Memory of `posterior` with the same arguments, and of one criterion on it.

    Args:
        form: of the kernel: `dense` or `full` (in float64), `features` or `cross`.
        labelled: L.
        candidates: U.
        classes: C.
        sample: M; all candidates if None.
        dimensions: k, of features.
        precision: of features, or of a kernel between anchors.
        keep: S is held; `full` cannot do without.
        consume: S takes the memory of a dense kernel, where it can.
        beside: the criterion reads the kernel between labelled images and candidates again.
        host: everything lies in NumPy arrays; as the default device has it if None. Else `given`
            lies on the host and the rest on the device.

    Raises:
        KernelError: unknown form; features without dimensions.
    """
    if form not in FORMS:
        raise KernelError(f"unknown form {form!r}; known: {', '.join(FORMS)}.")
    if form == "features" and dimensions is None:
        raise KernelError("the memory of features depends on their dimensions: give them.")
    host = on_host() if host is None else host
    item = np.dtype(dtype_of(precision)).itemsize if form in ("features", "cross") else _WIDE
    each = classes if form == "full" else 1
    whole = sample is None or form == "full"
    chosen = candidates if sample is None or whole else sample
    sizes = _Sizes(labelled * each, candidates * each, chosen * each, dimensions or 0, item)
    given = _given(form, sizes)
    small = 4 * sizes.candidates * (classes // each + 1) * _WIDE  # D, f_U, s, floor, temporaries
    if not host:
        sizes = sizes._replace(
            labelled=padded(sizes.labelled, LABELLED),
            candidates=padded(sizes.candidates, CANDIDATES),
            sample=padded(sizes.sample, CANDIDATES),
        )
    tile = tile_rows(padded(sizes.candidates, CANDIDATES)) * padded(sizes.candidates, CANDIDATES)
    # a block of S, twice what becomes of it, and D, R, G, p and the like, padded
    sweeping = 3 * tile * _WIDE + 8 * padded(sizes.candidates, CANDIDATES) * classes * _WIDE
    if form == "full":
        sweeping = 2 * sizes.candidates**2 * _WIDE
    if form == "features":
        held, conditioning = _of_features(sizes, keep, host)
        sweeping += 0 if keep else _streaming(sizes, tile_rows(sizes.candidates))
    else:
        in_place = consume and host and whole and form != "cross" and sample is None
        gathering = whole and form != "cross"
        held, conditioning = _of_kernel(sizes, gathering, in_place, host, keep or form == "full")
        sweeping += 0 if keep or form == "full" else _reading(sizes, tile_rows(sizes.candidates))
    if beside:
        sweeping += _solving(sizes) + 3 * sizes.labelled**2 * _WIDE
        sweeping += 2 * COLUMNS * (sizes.labelled + sizes.candidates) * _WIDE
    return Footprint(given, held + small, conditioning + small, sweeping)


def _given(form: str, sizes: _Sizes) -> int:
    examples = sizes.labelled + sizes.candidates
    if form == "features":
        return examples * sizes.dimensions * sizes.item
    if form == "cross":
        return ((sizes.labelled + sizes.sample) * examples * sizes.item) + examples * _WIDE
    return examples**2 * _WIDE


def _of_features(sizes: _Sizes, keep: bool, host: bool) -> tuple[int, int]:
    """Held, and the most while it is made."""
    a = capacity(sizes.labelled) * sizes.candidates * sizes.item
    s = sizes.sample * sizes.candidates * _WIDE if keep else 0
    square = sizes.labelled**2 * _WIDE
    if host:
        building = _streaming(sizes, tile_rows(sizes.candidates)) if keep else 0
        return a + s, a + 2 * square + max(2 * square, _solving(sizes), s + building)
    features = sizes.candidates * sizes.dimensions * sizes.item
    building = _streaming(sizes, sizes.sample) if keep else 0
    solving = 3 * sizes.labelled * sizes.candidates * _WIDE
    return features + a + s, features + square + max(solving + a, a + s + building)


def _of_kernel(
    sizes: _Sizes, whole: bool, in_place: bool, host: bool, keep: bool
) -> tuple[int, int]:
    """Held, and the most while it is made."""
    a = sizes.labelled * sizes.candidates * _WIDE
    if not keep:
        a = capacity(sizes.labelled) * sizes.candidates * _WIDE
        square = sizes.labelled**2 * _WIDE
        if not host:
            return a, square + a + 2 * sizes.labelled * sizes.candidates * _WIDE
        return a, a + square + max(2 * square, _solving(sizes))
    s = sizes.sample * sizes.candidates * _WIDE
    square = sizes.labelled**2 * _WIDE
    gathered = 0 if whole else sizes.labelled * sizes.sample * _WIDE
    if not host:
        return s, square + a + max(2 * a, 3 * s + sizes.labelled * sizes.sample * _WIDE)
    rows = min(tile_rows(sizes.candidates), sizes.sample) * sizes.candidates * _WIDE
    if whole and not in_place:  # AᵀA becomes S in one piece
        rows = 0
    held = 0 if in_place else s
    return held, a + square + max(2 * square, _solving(sizes), held + max(rows, gathered))


def _solving(sizes: _Sizes) -> int:
    """A block of K_LU and of A, and the block of A before it."""
    blocks = 2 if sizes.candidates <= SOLVED else 3
    return blocks * sizes.labelled * min(sizes.candidates, SOLVED) * _WIDE


def _reading(sizes: _Sizes, rows: int) -> int:
    """Some rows of K, what A takes from them, and the columns of A for it."""
    return min(rows, sizes.sample) * (2 * sizes.candidates + sizes.labelled) * _WIDE


def _streaming(sizes: _Sizes, rows: int) -> int:
    """Features and A of some rows, and their two products with all candidates."""
    rows = min(rows, sizes.sample)
    own = sizes.dimensions + sizes.labelled
    return rows * (own + 2 * sizes.candidates) * sizes.item
