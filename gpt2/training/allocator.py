"""What the C library does with the memory that a step has used: it keeps it for the next one.

glibc gives large pieces back to the system as soon as they are free, and every step gets them anew, page by page, with
zeros in them. That took a sixth of the time of a training step of 8,192 tokens (docs/log.md). It knows nothing of
training, and does nothing elsewhere than on Linux with glibc.
"""

import ctypes
import sys

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees; returns whether the C library could be told so."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Large pieces from the heap and not by mmap, and a heap that never shrinks.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
