"""The loss on held-out text, every token scored exactly once.

The protocol, which every number carries: documents are joined by the end-of-text id, which is read but not scored;
windows of the model's full context with a stride: each window scores the tokens that the one before did not reach.
A stride of the window means no overlap (quick); half the window gives every token at least half a window to look at.

Windows are read as they are scored, so held-out tokens may be of any number. Several processes share them out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import BadData, BadOption
from gpt2.model import GPT2
from gpt2.shards import token_lengths, window_count, window_span
from gpt2.tokenizer import Tokenizer
from gpt2.training.data import Ids, Tokens, as_tokens
from gpt2.training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Summed loss in nats over `tokens` scored tokens, which stand for `text_bytes` bytes of UTF-8."""

    nats: float
    tokens: int
    text_bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a token, in nats."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of text: no vocabulary can flatter it."""
        return self.nats / float(np.log(2)) / self.text_bytes


# Not in inference mode: weights that FSDP gathers in it could not be trained with afterwards.
@torch.no_grad()
def evaluate(
    network: GPT2,
    ids: Tokens | Ids,
    end_of_text: int,
    text_bytes: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Scores `ids` (documents, each behind `end_of_text`) by the protocol above; `stride` in tokens (None: no overlap).

    `text_bytes` is the length in bytes of the documents that the ids came from (see `count_bytes`). Ids shorter than
    the window are one shorter window. loss: the network's own, unless a faster one is given. ranks: processes that all
    call it, and share the batches; each gets the whole result. Raises BadData if there is nothing to score, BadOption
    for a stride below 1 or above the window, which would leave tokens out.
    """
    window = network.config.n_positions
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise BadOption(f"stride is {stride}; it must be between 1 and the model's window, {window}.")
    loss, ranks, device = loss or network.loss, ranks or Ranks(), network.device
    training = network.training
    network.eval()
    nats, tokens = 0.0, 0
    for inputs, targets in _windows(ids, window, stride, batch_size, ranks):
        targets = targets.masked_fill(targets == end_of_text, -100)
        nats += float(loss(inputs.to(device), targets.to(device)))
        tokens += int((targets != -100).sum())
    network.train(training)
    if ranks.size > 1:
        nats, counted = ranks.total(torch.tensor([nats, tokens], dtype=torch.float64, device=device)).tolist()
        tokens = int(counted)
    if not tokens or not text_bytes:
        raise BadData(nothing_to_score(ids))
    return Evaluation(nats, tokens, text_bytes)


def scores_something(ids: Tokens | Ids, end_of_text: int) -> bool:
    """Whether `evaluate` finds a token to score."""
    return any((part != end_of_text).any() for part in _portions(ids))


def nothing_to_score(ids: Tokens | Ids) -> str:
    """What is to be said of ids where `evaluate` finds none."""
    return f"There is nothing to score: none of the {len(ids)} held-out tokens is text behind another token."


def count_bytes(ids: Tokens | Ids, tokenizer: Tokenizer) -> int:
    """Bytes of text that the ids stand for, without the first, which is read and never scored."""
    lengths = token_lengths(tokenizer)
    return sum(int(lengths[part].sum(dtype=np.int64)) for part in _portions(ids))


_PORTION = 1 << 20


def _portions(ids: Tokens | Ids) -> Iterator[Ids]:
    """All ids but the first, some at a time."""
    tokens = as_tokens(ids)
    for start in range(1, len(tokens), _PORTION):
        yield tokens.read(start, min(_PORTION, len(tokens) - start))


def _windows(
    ids: Tokens | Ids, context: int, stride: int, batch_size: int, ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches of inputs and targets, (B, T) int64; targets that are scored elsewhere are -100.

    Every process has as many, since a sharded network takes all of them for each pass: where none is left for one, it
    goes through the last batch without a target.
    """
    tokens = as_tokens(ids)
    count = window_count(len(tokens), context, stride)
    # The last may be shorter, and is a batch of its own.
    last = max(0, count - 1)
    batches = [range(first, min(first + batch_size, last)) for first in range(0, last, batch_size)]
    batches += [range(last, count)] * (count > 0)

    def row(number: int) -> tuple[Tensor, Tensor]:
        start, first, end = window_span(number, len(tokens), context, stride)
        read = torch.from_numpy(tokens.read(start, end - start).astype(np.int64))
        targets = read[1:].clone()
        targets[: first - start - 1] = -100
        return read[:-1], targets

    for turn in range(0, len(batches), ranks.size):
        mine = turn + ranks.rank
        inputs, targets = _stack([row(number) for number in batches[min(mine, len(batches) - 1)]])
        yield inputs, targets if mine < len(batches) else torch.full_like(targets, -100)


def _stack(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
