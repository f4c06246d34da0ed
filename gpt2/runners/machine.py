"""What this machine is and what it can do at most: its memory read rate, its matrix rate, how much memory is left.

These are the limits that speeds are compared with, measured here and not looked up. Nothing in this file knows a
network.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gpt2.errors import Unavailable
from gpt2.memory import total_memory

# Far beyond any cache, so that a larger buffer would read no faster and no slower.
_LARGEST_BUFFER = 2**30
_PASSES = 4

# What Linux calls the processor features that decide how fast a GPT-2 runs, and what people call them.
_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avx512_bf16": "bf16",
    "amx_tile": "amx",
    "asimd": "neon",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}


def describe() -> dict[str, object]:
    """Processor name, cores that this process may use, processor features, memory in bytes, PyTorch and system."""
    return {
        "processor": processor(),
        "cores": cores(),
        "features": sorted({_FEATURES[flag] for flag in _cpuinfo("flags", "Features").split() if flag in _FEATURES}),
        "memory": total_memory() or 0,
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """The processor's name; family and model are told with it, since virtual machines often give a bare brand."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} ({family}/{model})" if family else name


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_rate(n_bytes: int, threads: int | None = None, device: str | torch.device = "cpu") -> float:
    """Bytes a second that this machine reads from a buffer of `n_bytes`, the best of several ways and passes.

    n_bytes: as large as the weights to compare with; small ones come out of the caches, for the weights as for this.
    At most 1 GiB is used, beyond which the rate no longer changes. threads: default, as many as PyTorch takes.
    """
    device = torch.device(device)
    n_bytes = max(2**16, min(n_bytes, _LARGEST_BUFFER)) // 64 * 64
    # Ones, not zeros: zeros may all be one and the same page of memory.
    words = torch.ones(n_bytes // 8, dtype=torch.int64, device=device)
    floats = words.view(torch.float32)
    ways: list[Callable[[], object]] = [words.sum, floats.sum, words.view(torch.int32).amax]
    with _threads(threads):
        # Small buffers are read many times in one measurement, so that starting the clock does not count.
        times = max(1, 2**25 // n_bytes)
        rate = max(n_bytes / _best_seconds(way, device, times) for way in ways)
        if device.type == "cpu":
            rate = max(rate, _native_read_rate(n_bytes, threads or torch.get_num_threads()))
    return rate


def matrix_rate(dtype: str, threads: int | None = None, device: str | torch.device = "cpu") -> float:
    """Floating-point operations a second of this machine's matrix products ("float32" or "bfloat16"), the best of some.

    A product of (M, K) and (K, N) counts as 2·M·N·K operations.
    """
    device, best = torch.device(device), 0.0
    width: torch.dtype = getattr(torch, dtype)
    # The MLP of GPT-2 on a full window, and a square. A GPU needs larger ones to be busy.
    shapes = [(1024, 768, 3072), (2048, 2048, 2048)] if device.type == "cpu" else [(4096, 4096, 4096), (8192,) * 3]
    with _threads(threads):
        for m, k, n in shapes:
            left = torch.full((m, k), 0.5, dtype=width, device=device)
            right = torch.full((k, n), 0.5, dtype=width, device=device)
            seconds = _best_seconds(lambda left=left, right=right: left @ right, device, 1)  # type: ignore[misc]
            best = max(best, 2 * m * k * n / seconds)
    return best


def available_memory(device: str | torch.device = "cpu") -> int:
    """Bytes that this process could hold in all on this device: what is free, and what it holds already.

    On the CPU, memory that a container or a limit of the process forbids does not count. 0 where nobody can tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    bounds = [total_memory() or 0]
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    if free:
        bounds.append(free + _kilobytes("/proc/self/status", "VmRSS"))
    if os.name == "posix":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if soft != resource.RLIM_INFINITY:
            bounds.append(soft)
    return min(bound for bound in bounds if bound) if any(bounds) else 0


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best_seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds that `work` takes once, from the quickest of several measurements."""
    work()
    best = float("inf")
    for _ in range(_PASSES):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(times):
            work()
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / times)
    return best


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _native_read_rate(n_bytes: int, threads: int) -> float:
    """The rate that our own C loop reaches; 0 where it is not built."""
    from gpt2.runners import native

    try:
        return native.read_rate(n_bytes, threads)
    except Unavailable:
        return 0.0


def _cpuinfo(*keys: str) -> str:
    """The first value of one of these keys in Linux's description of the processor; "" elsewhere."""
    return _field("/proc/cpuinfo", *keys)


def _kilobytes(path: str, key: str) -> int:
    """A value that Linux gives in kB, in bytes; 0 where there is none."""
    value = _field(path, key).split()
    return int(value[0]) * 1024 if value else 0


def _field(path: str, *keys: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""
