"""What this machine does with a run's steps: how fast they are, how much memory they take, what still runs.

It trains on random tokens for a moment and keeps nothing. What machines elsewhere would do is `training.plan`'s.
"""

import gc
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.memory import no_room
from gpt2.model import GPT2
from gpt2.training.loss import Loss
from gpt2.training.meter import used_memory
from gpt2.training.optimizer import Optimizer
from gpt2.training.options import TrainingOptions

STEPS = 20


@dataclass(frozen=True, slots=True)
class Probe:
    """Medians of `steps` steps of one micro-batch of `rows` sequences: seconds of the pass, and of the update.

    memory: bytes that the probe took at most, all of it; None where that could not be seen.
    """

    rows: int
    steps: int
    pass_seconds: float
    update_seconds: float
    memory: int | None

    def step_seconds(self, batch_size: int) -> float:
        """Seconds of a step with a whole batch: as many passes as that takes, and one update."""
        return self.pass_seconds * batch_size / self.rows + self.update_seconds


def probe(
    options: TrainingOptions,
    vocab_size: int,
    device: torch.device,
    rows: int,
    steps: int = STEPS,
    seconds: float = 60.0,
) -> Probe:
    """Takes `steps` steps with micro-batches of `rows` sequences, fewer when `seconds` have passed; at least two.

    A first step, which compiles and warms up, is not counted. Raises what the allocator raises where there is no room.
    """
    before = _reset_peak(device)
    trial = _Trial(options, vocab_size, device, rows)
    trial.step()
    passes: list[float] = []
    updates: list[float] = []
    end = time.monotonic() + seconds
    while len(passes) < 2 or (len(passes) < steps and time.monotonic() < end):
        one, other = trial.step()
        passes.append(one)
        updates.append(other)
    peak = _peak(device)
    return Probe(
        rows=rows,
        steps=len(passes),
        pass_seconds=statistics.median(passes),
        update_seconds=statistics.median(updates),
        memory=None if peak is None else peak - before,
    )


def largest_that_runs(
    options: TrainingOptions, vocab_size: int, device: torch.device, share: int, estimate: int
) -> int:
    """The most sequences of a pass, a divisor of `share`, with which a step ran; 0: not even one did.

    Begins at `estimate` and goes up while it runs, or down until it does. For CUDA, whose allocator says no; a CPU's
    system would rather kill.
    """
    divisors = [rows for rows in range(1, share + 1) if share % rows == 0]
    place = max((index for index, rows in enumerate(divisors) if rows <= max(estimate, 1)), default=0)
    runs = _runs(options, vocab_size, device, divisors[place])
    while runs and place + 1 < len(divisors) and _runs(options, vocab_size, device, divisors[place + 1]):
        place += 1
    while not runs and place > 0:
        place -= 1
        runs = _runs(options, vocab_size, device, divisors[place])
    return divisors[place] if runs else 0


def _runs(options: TrainingOptions, vocab_size: int, device: torch.device, rows: int) -> bool:
    try:
        trial = _Trial(options, vocab_size, device, rows)
        # The second step has the optimiser's state from the beginning.
        trial.step()
        trial.step()
        del trial
    except (MemoryError, RuntimeError) as error:
        if not no_room(error):
            raise
        return False
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return True


class _Trial:
    """A network and its optimiser, to take steps with that lead nowhere."""

    def __init__(self, options: TrainingOptions, vocab_size: int, device: torch.device, rows: int) -> None:
        options = options.with_rows(rows)
        self._options, self._device = options, device
        self._network = GPT2(options.model_config(vocab_size)).initialise(options.seed).to(device).train()
        self._loss = Loss(self._network, options.dtype, options.compile)
        self._optimizer = Optimizer(self._network, options)
        shape = (rows, options.context)
        self._inputs, self._targets = (torch.randint(vocab_size, shape).to(device) for _ in range(2))

    def step(self) -> tuple[float, float]:
        """Seconds of the pass, forward and backward, and of clipping and the update."""
        started = self._now()
        (self._loss(self._inputs, self._targets) / self._targets.numel()).backward()
        passed = self._now()
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._options.grad_clip or 1.0)
        self._optimizer.step(self._options.learning_rate)
        return passed - started, self._now() - passed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _reset_peak(device: torch.device) -> int:
    """Forgets the most memory that was used so far, where the system lets us; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return used_memory(device)


def _peak(device: torch.device) -> int | None:
    """The most bytes in use since `_reset_peak`; None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
