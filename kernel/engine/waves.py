"""Images in waves: as many as all devices of a mesh differentiate at a time.

From a range of images to places for each device, padded so that all waves have one shape, and back
to the rows of the kernel that a device's share belongs to.
"""

from typing import NamedTuple

import numpy as np

# A device's share of a wave is a multiple of this fraction of the largest, so that a few images
# more seldom mean another shape.
_FRACTION = 8


class Wave(NamedTuple):
    """Images that the devices differentiate at a time.

    Attributes:
        places: of the images, equally many for each device, padded with repeats of the last.
        start: the place of the first.
        images: how many are no repeats.
        devices: of the mesh.
    """

    places: np.ndarray
    start: int
    images: int
    devices: int

    @property
    def stop(self) -> int:
        """The place after the last image."""
        return self.start + self.images

    def share(self, device: int, each: int) -> slice:
        """Rows of the kernel for the images that a device has, `each` for an image."""
        size = len(self.places) // self.devices
        first = min(self.start + device * size, self.stop)
        return slice(first * each, min(first + size, self.stop) * each)


def waves(start: int, end: int, chunk: int, devices: int) -> list[Wave]:
    """The images from one place to below another, in waves of one size.

    Args:
        start: the first image.
        end: below which.
        chunk: how many one device differentiates at a time at most.
        devices: of the mesh.
    """
    if start == end:
        return []
    turns = -(-(end - start) // (devices * chunk))
    fraction = max(1, chunk // _FRACTION)
    share = -(-(end - start) // (devices * turns * fraction)) * fraction
    step = devices * min(share, chunk)
    return [
        Wave(
            np.minimum(np.arange(first, first + step), end - 1),
            first,
            min(step, end - first),
            devices,
        )
        for first in range(start, end, step)
    ]
