"""The key-value cache: what attention has already read, so that a new token costs one position and not the whole text.

The cache owns its lengths, and so the positions of what comes next: nobody passes positions by hand. Rows may have
different lengths (a ragged batch needs no padding). It knows nothing of tokens or of sampling.

Positions are learned and absolute, so a cached token cannot be moved: what slides is read again.
"""

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.errors import BadOption, ContextOverflow


class KVCache:
    """Keys and values of every layer for `rows` sequences of up to `capacity` tokens each (default: the window).

    keys, values: (n_layer, rows, n_head, capacity, head_dim), in the model's dtype; lengths: (rows,) int64 on the host.

    Raises BadOption for a capacity that the model has no positions for.
    """

    def __init__(
        self,
        config: GPT2Config,
        rows: int = 1,
        capacity: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        capacity = config.n_positions if capacity is None else capacity
        if not 1 <= capacity <= config.n_positions:
            raise BadOption(
                f"capacity is {capacity}, but this model has positions for 1 to {config.n_positions} tokens."
            )
        shape = (config.n_layer, rows, config.n_head, capacity, config.head_dim)
        # Zeros, not empty memory: attention multiplies unread places by a weight of 0, and 0 times NaN is NaN.
        self.keys = _zeros(shape, dtype, torch.device(device))
        self.values = _zeros(shape, dtype, torch.device(device))
        self.lengths = torch.zeros(rows, dtype=torch.int64)

    @classmethod
    def _of(cls, keys: Tensor, values: Tensor, lengths: Tensor) -> "KVCache":
        cache = cls.__new__(cls)
        cache.keys, cache.values, cache.lengths = keys, values, lengths
        return cache

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Most tokens that a row can hold."""
        return self.keys.shape[3]

    def __len__(self) -> int:
        """Tokens in the longest row."""
        return int(self.lengths.max()) if self.rows else 0

    def row(self, index: int) -> "KVCache":
        """One row as a cache of its own that shares this one's memory: reading a prompt into it fills this row."""
        one = slice(index, index + 1)
        return self._of(self.keys[:, one], self.values[:, one], self.lengths[one])

    def view(self, rows: Sequence[int]) -> "KVCache":
        """These rows, in rising order, as a cache that shares this one's memory: what is read into it fills them."""
        first, last = rows[0], rows[-1]
        if last - first == len(rows) - 1:
            together = slice(first, last + 1)
            return self._of(self.keys[:, together], self.values[:, together], self.lengths[together])
        return _Rows(self, rows)

    def select(self, rows: list[int]) -> "KVCache":
        """A new cache with copies of these rows, in this order; a row may be taken more than once."""
        index = torch.tensor(rows, dtype=torch.int64)
        on_device = index.to(self.keys.device)
        return self._of(self.keys[:, on_device], self.values[:, on_device], self.lengths[index])

    def fork(self) -> "KVCache":
        """A copy that goes its own way."""
        return self._of(self.keys.clone(), self.values.clone(), self.lengths.clone())

    def rewind(self, n: int) -> None:
        """Forgets the newest `n` tokens of every row; raises BadOption if a row has fewer."""
        if n < 0 or bool((self.lengths < n).any()):
            raise BadOption(
                f"rewind({n}) asks for more than the shortest row's {int(self.lengths.min())} tokens, or less than 0."
            )
        self.lengths -= n

    def clear(self) -> None:
        """Forgets everything."""
        self.lengths.zero_()

    def check_room(self, n: int) -> None:
        """Raises ContextOverflow unless every row has room for `n` more tokens."""
        longest = len(self)
        if longest + n > self.capacity:
            raise ContextOverflow(
                f"{longest} tokens read and {n} more do not fit in a cache of {self.capacity}; "
                "shorten the text, or generate with overflow='slide'."
            )

    def write(self, layer: int, keys_BHTD: Tensor, values_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Puts one layer's new keys and values behind what each row has; returns all keys and values up to the longest.

        Lengths do not move yet: every layer writes at the same place, and `advance` follows the last one.
        Returns two (B, H, S, D), S being the longest row's length with the new tokens.
        """
        T = keys_BHTD.shape[2]
        start, end = int(self.lengths.min()), len(self)
        if start == end:
            self.keys[layer, :, :, end : end + T] = keys_BHTD
            self.values[layer, :, :, end : end + T] = values_BHTD
        else:
            device = self.keys.device
            row_B1 = torch.arange(self.rows, device=device)[:, None]
            place_BT = self.lengths.to(device)[:, None] + torch.arange(T, device=device)
            # Indexing (B, H, capacity, D) by rows and places puts both in front: (B, T, H, D).
            self.keys[layer][row_B1, :, place_BT] = keys_BHTD.transpose(1, 2)
            self.values[layer][row_B1, :, place_BT] = values_BHTD.transpose(1, 2)
        return self.keys[layer, :, :, : end + T], self.values[layer, :, :, : end + T]

    def advance(self, n: int) -> None:
        """Counts `n` tokens that every layer has written."""
        self.lengths += n


class _Rows(KVCache):
    """Rows of another cache that do not lie side by side. Writing goes through to it; what attention sees is copied."""

    def __init__(self, whole: KVCache, rows: Sequence[int]) -> None:
        self._whole = whole
        self._rows = torch.tensor(rows, dtype=torch.int64)
        self.keys, self.values, self.lengths = whole.keys, whole.values, whole.lengths[self._rows]

    @property
    def rows(self) -> int:
        return len(self._rows)

    def write(self, layer: int, keys_BHTD: Tensor, values_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        T, device = keys_BHTD.shape[2], self.keys.device
        row_B = self._rows.to(device)
        place_BT = self.lengths.to(device)[:, None] + torch.arange(T, device=device)
        self.keys[layer][row_B[:, None], :, place_BT] = keys_BHTD.transpose(1, 2)
        self.values[layer][row_B[:, None], :, place_BT] = values_BHTD.transpose(1, 2)
        end = len(self) + T
        return self.keys[layer, :, :, :end][row_B], self.values[layer, :, :, :end][row_B]

    def advance(self, n: int) -> None:
        self.lengths += n
        self._whole.lengths[self._rows] = self.lengths


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU, memory that costs nothing until it is written, page by page."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < 2**20:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(zero_pages(size), dtype=dtype).view(shape)


def zero_pages(n_bytes: int) -> mmap.mmap:
    """So many bytes of zeros, 1 or more, that take memory page by page as they are written.

    The process that writes owns them: after a fork, parent and child have each their own.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, n_bytes)
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
