"""Gives pages of memory back to the system: those of a mapped file that it can read again. For large models only.

Without this, whoever reads a mapped file once from end to end holds all of it in memory. Linux alone; elsewhere nothing
happens, and the system gives such pages up by itself when memory is short.
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path

from torch import Tensor


def release_pages(tensor: Tensor, file: Path) -> None:
    """Forgets the pages that a tensor fills, if it is mapped from `file`. What was written to them would be lost.

    Memory of any other origin would come back as zeros, so a tensor that is not mapped from there is left alone.
    """
    if sys.platform != "linux" or not tensor.numel():
        return
    size = mmap.PAGESIZE
    storage = tensor.untyped_storage()
    begin = tensor.data_ptr() if tensor.is_contiguous() else storage.data_ptr()
    end = begin + tensor.nbytes if tensor.is_contiguous() else begin + storage.nbytes()
    begin, end = -(-begin // size) * size, end // size * size
    if begin < end and _is_mapped(begin, end, file):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _is_mapped(begin: int, end: int, file: Path) -> bool:
    try:
        stat = file.stat()
        device, inode = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}", str(stat.st_ino)
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
            for line in maps:
                span, _, _, at, number = line.split(maxsplit=5)[:5]
                first, last = (int(part, 16) for part in span.split("-"))
                if first <= begin and end <= last:
                    return at == device and number == inode
    except (OSError, ValueError):
        pass
    return False
