"""How much memory this machine has in all: one answer for training and for running."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Where Linux says what the container around this process may have (version 2 and version 1 of its control groups).
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# What PyTorch and numpy say when there is no room; torch.OutOfMemoryError is a RuntimeError that says it too.
_NO_ROOM = ("out of memory", "can't allocate memory", "not enough memory", "storage size calculation overflowed")


def total_memory(device: "torch.device | None" = None) -> int | None:
    """Bytes of memory of the device (default: the CPU) in all; None where nobody can tell. Swap does not count."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    bounds = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        try:
            # Without a limit there is the word "max", or a number larger than any memory.
            bounds.append(int(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return min((bound for bound in bounds if 0 < bound < 2**62), default=None)


def no_room(error: BaseException) -> bool:
    """Whether an error says that memory has run out."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_ROOM)
