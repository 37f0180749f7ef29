"""Keep freed blocks in the process, so that no step asks the operating system for them anew.

glibc hands large blocks back as soon as they are freed, and activations and gradients are large:
every page of theirs is then filled with zeros before it is written.
"""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = (1 << 31) - 1  # the largest that fits into the C int that is asked for


def keep_freed_blocks() -> bool:
    """Raise glibc's thresholds for handing memory back to 2 GiB; call it before anything else.

    Threads that begin to allocate afterwards take their blocks from one heap, as the main thread
    does: those of their own could keep none above 64 MiB.

    Returns:
        Whether it was done: only on Linux with glibc; elsewhere nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wanted = {_M_TRIM_THRESHOLD: _KEPT_BYTES, _M_MMAP_THRESHOLD: _KEPT_BYTES, _M_ARENA_MAX: 1}
    return sum(libc.mallopt(option, value) for option, value in wanted.items()) == len(wanted)
