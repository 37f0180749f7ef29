"""Rows of a network's frozen prefix (`bridge.prefix`), computed once an image and kept.

They are keyed by the prefix's arrays and operations, the images with their preprocessing, and the
dtype that they are kept in. A folder keeps them for later rounds and runs, as parts that are
flushed to the disk and checked by SHA-256 (`kernel.scratch`); beyond `memory_gib` they stay there
and are read through a memory map.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from bridge.mirror import Mirror
from bridge.parity import Certificate, certify
from bridge.prefix import FrozenPrefix, split
from bridge.trace import mirror as trace
from kernel.scratch import Scratch, key_of
from pipelines.core.progress import Advance, named_images
from pipelines.strategies.base import PROBE
from pipelines.strategies.options import FrozenConfig
from trainer.predict import NotFiniteError, forward, placement, to_tensor

GIB = 2**30
_BATCH = 128  # images that go through the prefix at once
_PART_BYTES = 2**26  # of rows: an interruption loses one part


class FrontierRows:
    """Frontier rows by the index of an image; called with indices, as a strategy calls images.

    Attributes:
        prefix: of the network, whose frozen arrays may be given other values in place.
        images: data-set indices → images as the network takes them.
        error: largest error by the dtype that rows are kept in, relative to the largest value.
    """

    def __init__(
        self,
        prefix: FrozenPrefix,
        images: Callable[[np.ndarray], np.ndarray],
        examples: int,
        of: str,
        config: FrozenConfig,
        folder: Path | None = None,
    ):
        """Nothing is computed or read yet.

        Args:
            prefix: of the network.
            images: data-set indices → images as the network takes them.
            examples: how many there are.
            of: identifies the images and their preprocessing.
            config: how rows are kept.
            folder: where they are kept for later runs; None keeps what does not fit in memory in a
                temporary one.
        """
        self.prefix, self.images, self.error = prefix, images, 0.0
        self._examples, self._of, self._config, self._folder = examples, of, config, folder
        self._version: tuple[int, ...] | None = None
        self._key = ""
        self._forget()

    def __call__(self, indices: np.ndarray, advance: Advance | None = None) -> np.ndarray:
        """The rows of images, float32 (indices, width); those not known yet are computed.

        Raises:
            NotFiniteError: a row is not finite, or too large for the dtype that it is kept in.
            KernelError: the disk is full.
        """
        self._follow_weights()
        indices = np.asarray(indices, np.int64)
        missing = np.unique(indices[self._part[indices] < 0])
        done = 0
        for some in self._pieces(missing):
            self._keep(some, self._computed(some))
            done += len(some)
            if advance is not None:
                advance(done, len(missing))
        rows = np.empty((len(indices), self.prefix.frontier.width), np.float32)
        parts = self._part[indices]
        for part in np.unique(parts):
            here = parts == part
            rows[here] = self._rows[part][self._position[indices[here]]]
        return rows

    def is_of(self, of: str, config: FrozenConfig) -> bool:
        """Whether these are rows of the same images, kept in the same way."""
        return (self._of, self._config) == (of, config)

    def summary(self) -> dict[str, Any]:
        """Width, dtype and error of the rows, JSON-able."""
        width, dtype = self.prefix.frontier.width, self._config.dtype
        return {"width": width, "dtype": dtype} | (
            {"error": self.error} if dtype == "float16" else {}
        )

    def _follow_weights(self) -> None:
        """Forget rows of other weights; read what the folder has of these."""
        version = self.prefix.version
        if version == self._version:
            return
        device, _ = placement(self.prefix.tail)
        made_by = (torch.__version__, device.type, self._config.dtype)
        key = key_of((), (self.prefix.digest(), self._of, made_by))
        self._version = version
        if key == self._key:
            return
        self._key = key
        self._forget()
        if self._folder is None:
            return
        self._scratch = Scratch(self._folder / key[:16], key, shared=True)
        for name in self._scratch.names("rows-"):
            count = int(name.split("-")[1])
            indices = np.zeros(count, np.int64)
            rows = np.zeros((count, self.prefix.frontier.width), self._config.dtype)
            if self._scratch.load(name, indices, rows) and indices.max() < self._examples:
                self._add(indices, rows, name)

    def _forget(self) -> None:
        self._part = np.full(self._examples, -1, np.int32)
        self._position = np.zeros(self._examples, np.int32)
        self._rows: list[np.ndarray] = []
        self._held = 0
        self._scratch: Scratch | None = None

    def _pieces(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        width = self.prefix.frontier.width * np.dtype(self._config.dtype).itemsize
        each = max(_BATCH, _PART_BYTES // width // _BATCH * _BATCH)
        for start in range(0, len(indices), each):
            yield indices[start : start + each]

    def _computed(self, indices: np.ndarray) -> np.ndarray:
        """Rows in the dtype that they are kept in, computed by torch on the network's device."""
        dtype = self._config.dtype
        result = np.empty((len(indices), self.prefix.frontier.width), dtype)
        for start in range(0, len(indices), _BATCH):
            some = indices[start : start + _BATCH]
            images = to_tensor(self.images(some), self.prefix.tail).float()
            exact = self.prefix.rows(images).cpu().numpy()
            with np.errstate(over="ignore"):
                kept = exact.astype(dtype)
            bad = ~np.isfinite(kept).all(axis=1)
            if bad.any():
                finite = np.isfinite(exact[bad]).all()
                cause = (
                    f"they reach {np.abs(exact[bad]).max():.3g}, beyond {dtype}: keep them in "
                    "float32 (frozen.dtype)"
                    if finite
                    else "look at that image, or at the frozen weights"
                )
                with named_images(some):
                    raise NotFiniteError("values of the frozen part", int(np.argmax(bad)), cause)
            if dtype == "float16":
                largest = max(float(np.abs(exact).max()), np.finfo(np.float32).tiny)
                gap = float(np.abs(kept.astype(np.float32) - exact).max())
                self.error = max(self.error, gap / largest)
            result[start : start + len(some)] = kept
        return result

    def _keep(self, indices: np.ndarray, rows: np.ndarray) -> None:
        if self._scratch is None and self._held + rows.nbytes > self._config.memory_gib * GIB:
            folder = tempfile.mkdtemp(prefix="frontier-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._scratch = Scratch(Path(folder), self._key)
        name = f"rows-{len(indices)}-{key_of((indices,), '')[:16]}"
        if self._scratch is not None:
            self._scratch.save(name, indices, rows)
        self._add(indices, rows, name)

    def _add(self, indices: np.ndarray, rows: np.ndarray, name: str) -> None:
        self._part[indices] = len(self._rows)
        self._position[indices] = np.arange(len(indices))
        if self._scratch is not None and self._held + rows.nbytes > self._config.memory_gib * GIB:
            rows = self._scratch.map(name, indices, rows)
        else:
            self._held += rows.nbytes
        self._rows.append(rows)


def frozen_prefix(network: nn.Module, mirror: Mirror, probe: np.ndarray) -> FrozenPrefix | None:
    """The network split at the frontier of its frozen prefix; None where there is none.

    Args:
        network: in eval mode.
        mirror: of it.
        probe: two or more images, as the network takes them.
    """
    if all(parameter.requires_grad for parameter in network.parameters()):
        return None
    return split(network, mirror, to_tensor(probe, network).float())


def certified(
    network: nn.Module, mirror: Mirror, probe: np.ndarray
) -> tuple[FrozenPrefix | None, Certificate]:
    """The frozen prefix of a network and the certificate of its tail's mirror, or of the whole.

    Raises:
        BridgeError: the mirror disagrees with the network.
    """
    prefix = frozen_prefix(network, mirror, probe)
    of = mirror if prefix is None else prefix.mirror
    return prefix, certify(network, of, probe, prefix)


class _Known(NamedTuple):
    """The split of a network, and rows of the images that it was last asked about."""

    prefix: FrozenPrefix
    rows: FrontierRows | None = None


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def frontier_of(
    network: nn.Module,
    images: Sized,
    read: Callable[[np.ndarray], np.ndarray],
    config: FrozenConfig,
) -> FrontierRows | None:
    """Rows of a network's frozen prefix in this process, known from an earlier call where they are.

    Args:
        network: in eval mode.
        images: float32 array (examples, ...), by whose bytes rows are known again, or anything
            else with a length, whose rows are computed anew.
        read: indices → images.
        config: how rows are kept.

    Returns:
        None where the network has no frozen prefix.

    Raises:
        BridgeError: the network cannot be mirrored, or the mirror disagrees with it.
    """
    if all(parameter.requires_grad for parameter in network.parameters()):
        return None
    probe = read(np.arange(min(len(images), PROBE)))
    known = _KNOWN.get(network)
    if known is None or not _agrees(known.prefix, network, probe):
        prefix = frozen_prefix(network, trace(network, probe), probe)
        if prefix is None:
            return None
        known = _Known(prefix)
    of = key_of([images], "") if isinstance(images, np.ndarray) else ""
    rows = known.rows
    if rows is None or not rows.is_of(of, config):
        rows = FrontierRows(known.prefix, read, len(images), of, config)
    _KNOWN[network] = known._replace(rows=rows if of else None)
    rows.images = read
    return rows


def _agrees(prefix: FrozenPrefix, network: nn.Module, probe: np.ndarray) -> bool:
    """Whether a split is still of the network: its tensors are, and so are its logits."""
    if not prefix.is_of(network):
        return False
    images = to_tensor(probe, network).float()
    with torch.no_grad():
        ours, theirs = prefix.tail(prefix.rows(images)), forward(network, images)
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
