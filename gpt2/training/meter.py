"""How fast a run goes, how much longer, and with how much memory: numbers for its reporter and its metrics.

Only monotonic clocks are read, so a system clock that is set, or jumps, changes neither speed nor the time left.
It knows nothing of losses.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.config import GPT2Config
from gpt2.training import devices
from gpt2.training.flops import explain, flops_per_token

if TYPE_CHECKING:
    import torch


class Meter:
    """Tells speed, FLOP rate, memory and time left of a run of `ranks` processes, each on a device like this one.

    window: tokens in a row. tokens_per_step: of all processes together. dtype: "float32" or "bfloat16".
    """

    def __init__(
        self,
        config: GPT2Config,
        window: int,
        tokens_per_step: int,
        device: "torch.device",
        dtype: str,
        ranks: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens_per_step
        self._device, self._ranks, self._clock = device, ranks, clock
        self._flops, self._formula = flops_per_token(config, window), explain(config, window)
        known = devices.find(device_name(device)) if device.type == "cuda" else None
        # What float32 reaches on a GPU depends on whether TF32 is allowed: no share is told then.
        self._peak = known.peak * ranks if known and dtype == "bfloat16" else None
        self._source = known.source if known else ""
        self._steps = self._counted = 0
        self._last = self._begun = 0.0

    def describe(self) -> str:
        """One line: by which formula FLOPs are counted, and of which peak a share is told, if one is."""
        if self._peak is None:
            return f"{self._formula}; peak not known"
        many = f" x {self._ranks}" if self._ranks > 1 else ""
        return f"{self._formula}; peak {self._peak / self._ranks / 1e12:,.4g} TFLOP/s{many} ({self._source})"

    def start(self, step: int, steps: int) -> None:
        """The run stands after `step` steps of `steps`, and its next one begins now."""
        self._steps, self._counted = steps, 0
        self._last = self._begun = self._clock()

    def step(self, step: int) -> dict[str, float]:
        """Facts of the step that has just ended, the run's `step`-th.

        tokens_per_second and flops_per_second (all processes), memory (bytes), mfu (share of the known peak), and
        from the second step on seconds_left, pauses included at the rate that there were any.
        """
        now = self._clock()
        speed = self._tokens / max(now - self._last, 1e-9)
        self._last = now
        facts = {
            "tokens_per_second": speed,
            "flops_per_second": speed * self._flops,
            "memory": float(used_memory(self._device)),
        }
        if self._peak is not None:
            facts["mfu"] = speed * self._flops / self._peak
        if self._counted:
            facts["seconds_left"] = (self._steps - step) * (now - self._begun) / self._counted
        else:
            # The first step compiles and warms up, and says nothing of the others.
            self._begun = now
        self._counted += 1
        return facts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training (evaluation, saving, samples): the next step's speed does not count it."""
        yield
        self._last = self._clock()


def device_name(device: "torch.device") -> str:
    """What PyTorch calls a CUDA device, and the type of any other."""
    if device.type != "cuda":
        return f"this {device.type.upper()}"
    import torch

    return torch.cuda.get_device_name(device)


def used_memory(device: "torch.device") -> int:
    """Bytes: on CUDA the most that PyTorch had allocated so far, elsewhere what of this process is in memory now.

    Where the system does not tell that (all but Linux), the most that it was so far; 0 where it tells nothing.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        import sys

        # Kilobytes, but bytes on a Mac.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize()
