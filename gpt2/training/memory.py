"""How much memory a run takes, whether the machine has it, and what would fit: an estimate from the options alone.

Weights, gradients and the optimiser's moments are counted exactly. What a pass keeps for its way back was measured on
the plain model: 16 numbers of the width per token and layer, and 3 of the vocabulary per token. It knows no allocator.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from gpt2.errors import BadOption
from gpt2.memory import total_memory
from gpt2.training.options import TrainingOptions

# What PyTorch and numpy say when there is no room; torch.OutOfMemoryError is a RuntimeError that says it too.
_NO_ROOM = ("out of memory", "can't allocate memory", "not enough memory", "storage size calculation overflowed")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: `state` for weights, gradients and optimiser, `batch` for what a micro-batch keeps."""

    state: int
    batch: int


def need(options: TrainingOptions, vocab_size: int, window: int) -> Need:
    """What a run takes with a vocabulary of this size and micro-batches of `window` tokens a row."""
    config = options.model_config(vocab_size)
    moments = 2 * config.parameters
    if options.optimizer == "muon":
        # One moment for the blocks' matrices.
        moments -= 12 * config.n_layer * config.n_embd**2
    # In bfloat16, autocast makes a narrow copy of the weights besides.
    narrow = options.dtype == "bfloat16"
    width, copy = (2, 2 * config.parameters) if narrow else (4, 0)
    token = 16 * config.n_layer * config.n_embd * width + 3 * vocab_size * 4
    if options.attention_dropout:
        token += 3 * config.n_layer * config.n_head * window * 4
    rows = options.micro_batch_size or options.batch_size
    return Need(4 * (2 * config.parameters + moments) + copy, rows * window * token)


def check_memory(options: TrainingOptions, device: torch.device, vocab_size: int, window: int | None = None) -> None:
    """Raises BadOption, with what would fit, for a run that this machine has no room for.

    window: tokens a row, None before the data is known: then the weights alone are weighed. What a pass keeps is
    counted half, since compiling saves some of it: only what cannot work is refused.
    """
    total = total_memory(device)
    needed = need(options, vocab_size, window or options.context)
    if total is not None and needed.state + (needed.batch // 2 if window else 0) > total:
        raise BadOption(_advice(options, device, vocab_size, window or options.context))


@contextmanager
def explained(
    options: TrainingOptions, device: torch.device, vocab_size: int, window: int, then: str = ""
) -> Iterator[None]:
    """Turns an allocator's error into BadOption: how much is needed, and what would fit. `then` ends the message."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_ROOM):
            raise BadOption(_advice(options, device, vocab_size, window) + then) from error
        raise


def _advice(options: TrainingOptions, device: torch.device, vocab_size: int, window: int) -> str:
    needed, total = need(options, vocab_size, window), total_memory(device)
    whole = needed.state + needed.batch
    # Some is left for others. Where it should have fitted, others have taken it: then half as much might.
    budget = whole // 2 if total is None or whole <= total else total * 4 // 5
    rows = options.micro_batch_size or options.batch_size
    place = "this machine" if device.type == "cpu" else str(device)
    has = f"{place} has {'less' if total is None else f'{_gigabytes(total)} in all'}"
    return (
        f"Training this takes about {_gigabytes(whole)} of memory ({_gigabytes(needed.state)} for weights, gradients "
        f"and optimiser, {_gigabytes(needed.batch)} for {rows:,} x {window:,} tokens at a time), but {has}; "
        f"{_what_fits(options, vocab_size, window, budget)}."
    )


def _what_fits(options: TrainingOptions, vocab_size: int, window: int, budget: int) -> str:
    def fits(candidate: TrainingOptions) -> bool:
        needed = need(candidate, vocab_size, window)
        return needed.state + needed.batch <= budget

    single = replace(options, micro_batch_size=1)
    rows = _largest(options.batch_size, lambda n: fits(replace(options, batch_size=n, micro_batch_size=n)))
    while rows and options.batch_size % rows:
        rows -= 1
    if rows:
        return f"--micro-batch-size {rows} would fit"
    layers = _largest(options.n_layer, lambda n: fits(replace(single, n_layer=n)))
    if layers:
        return f"--n-layer {layers} with --micro-batch-size 1 would fit"
    heads, head_width = options.n_head, options.n_embd // options.n_head
    width = _largest(head_width, lambda n: fits(replace(single, n_embd=n * heads))) * heads
    if width:
        return f"--n-embd {width} with --micro-batch-size 1 would fit"
    return "choose a much smaller model"


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does; what fits must do so with less, too."""
    return bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
