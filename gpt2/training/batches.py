"""Which tokens a step reads: a pure function of (seed, step), so resuming needs no replay.

`Batches` is all that a run asks of whoever answers that; `Windows` answers it for tokens that lie in one long row. It
knows nothing of files (`data.py` has those) or of models.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import BadData
from gpt2.training.data import Ids, Tokens, as_tokens


class Batches(Protocol):
    """What a run reads."""

    @property
    def window(self) -> int:
        """Tokens in a row."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that a step reads, or on average; padding is none."""
        ...

    def epochs(self, steps: int) -> float:
        """How many times so many steps read all there is."""
        ...

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows of a step's batch: two (len(rows), window) int64.

        A target of -100 is not learnt. The same step gives the same rows, whoever asks for whichever of them.
        """
        ...


# Up to so many windows an epoch's order is a shuffled array (32 MB, 0.2 s); beyond, it is computed place by place.
_LISTED = 2**22


@dataclass(frozen=True, slots=True)
class Windows:
    """Batches of `batch_size` windows of `context` tokens from one row of ids, in an order that the seed decides.

    Each epoch cuts the row into windows at an offset of its own and shuffles them; every window is read once an
    epoch. A row shorter than the window gives shorter windows. Raises BadData for fewer than two ids.
    """

    ids: Tokens | Ids
    context: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.ids) < 2:
            raise BadData(f"The training text has {len(self.ids)} tokens; at least 2 are needed.")

    @property
    def window(self) -> int:
        """Tokens in a window."""
        return min(self.context, len(self.ids) - 1)

    @property
    def tokens(self) -> int:
        """Tokens that a step reads."""
        return self.batch_size * self.window

    def epochs(self, steps: int) -> float:
        """How many times so many steps read the ids."""
        return steps * self.tokens / len(self.ids)

    @property
    def windows(self) -> int:
        """Windows in an epoch. One is given up so that every epoch can start at an offset of its own."""
        return max(1, (len(self.ids) - 1) // self.window - 1)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step: two (batch_size, window) int64; the targets are the inputs' next tokens."""
        return self.rows(step, range(self.batch_size))

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Some rows of `at(step)`, and no other is read: two (len(rows), window) int64. For one process of many."""
        tokens, window = as_tokens(self.ids), self.window
        ids = np.empty((len(rows), window + 1), dtype=np.int64)
        for place, row in enumerate(rows):
            if not 0 <= row < self.batch_size:
                raise IndexError(f"row {row} of a batch of {self.batch_size}")
            ids[place] = tokens.read(self._start(step * self.batch_size + row), window + 1)
        both = torch.from_numpy(ids)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        offsets = min(self.window, len(self.ids) - self.windows * self.window)
        offset, order = _epoch(self.seed, epoch, self.windows, offsets)
        return offset + order(place) * self.window


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, Callable[[int], int]]:
    """Offset and order of an epoch: a pure function, kept because every row asks for it."""
    random = np.random.default_rng([seed, epoch])
    offset = int(random.integers(offsets))
    if windows <= _LISTED:
        order = random.permutation(windows)
        return offset, lambda place: int(order[place])
    keys: list[int] = random.integers(2**64, size=6, dtype=np.uint64).tolist()
    return offset, lambda place: scattered(place, windows, keys)


def scattered(place: int, size: int, keys: Sequence[int]) -> int:
    """Where `place` goes in a permutation of range(size) that the keys decide: a Feistel network, without a list.

    It permutes the smallest even number of bits that holds `size`, and goes on until it is back inside.
    """
    half = -(-(size - 1).bit_length() // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            # A multiplicative mix of 64 bits, whose upper half depends on all of the right side.
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & (2**64 - 1)
            mixed = ((mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93) & (2**64 - 1)
            left, right = right, left ^ (mixed >> 32 & mask)
        place = left << half | right
        if place < size:
            return place
