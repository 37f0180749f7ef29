"""Keep freed blocks in the process, so that every training step does not ask the kernel anew.

glibc hands large blocks back to the kernel as soon as they are freed, and activations are large.
"""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30


def keep_freed_blocks() -> bool:
    """Raise glibc's thresholds for handing memory back to 1 GiB; call it before training starts.

    Returns:
        Whether it was done: only on Linux with glibc; elsewhere nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(
        libc.mallopt(option, _KEPT_BYTES) == 1 for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)
    )
