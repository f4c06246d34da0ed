"""The loss on held-out text, every token scored exactly once.

The protocol, which every number carries: documents are joined by the end-of-text id, which is read but not scored;
windows of the model's full context with a stride: each window scores the tokens that the one before did not reach.
A stride of the window means no overlap (quick); half the window gives every token at least half a window to look at.

Windows are read as they are scored, so held-out tokens may be of any number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import BadData, BadOption
from gpt2.model import GPT2
from gpt2.shards import token_lengths
from gpt2.tokenizer import Tokenizer
from gpt2.training.data import Ids, Tokens, as_tokens


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


@torch.inference_mode()
def evaluate(
    network: GPT2,
    ids: Tokens | Ids,
    end_of_text: int,
    text_bytes: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Evaluation:
    """Scores `ids` (documents, each behind `end_of_text`) by the protocol above; `stride` in tokens (None: no overlap).

    `text_bytes` is the length in bytes of the documents that the ids came from (see `count_bytes`). Ids shorter than
    the window are one shorter window. loss: the network's own, unless a faster one is given. Raises BadData if there
    is nothing to score, BadOption for a stride below 1 or above the window, which would leave tokens out.
    """
    window = network.config.n_positions
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise BadOption(f"stride is {stride}; it must be between 1 and the model's window, {window}.")
    loss = loss or network.loss
    training = network.training
    network.eval()
    nats, tokens = 0.0, 0
    device = network.device
    for inputs, targets in _windows(ids, window, stride, batch_size):
        targets = targets.masked_fill(targets == end_of_text, -100)
        nats += float(loss(inputs.to(device), targets.to(device)))
        tokens += int((targets != -100).sum())
    network.train(training)
    if not tokens or not text_bytes:
        raise BadData(
            f"There is nothing to score: none of the {len(ids)} held-out tokens is text behind another token."
        )
    return Evaluation(nats, tokens, text_bytes)


def count_bytes(ids: Tokens | Ids, tokenizer: Tokenizer) -> int:
    """Bytes of text that the ids stand for, without the first, which is read and never scored."""
    tokens, lengths = as_tokens(ids), token_lengths(tokenizer)
    counted = 0
    for start in range(1, len(tokens), _PORTION):
        counted += int(lengths[tokens.read(start, min(_PORTION, len(tokens) - start))].sum(dtype=np.int64))
    return counted


_PORTION = 1 << 20


def _windows(ids: Tokens | Ids, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs and targets, (B, T) int64; targets that are scored elsewhere are -100."""
    tokens = as_tokens(ids)
    pending: list[tuple[Tensor, Tensor]] = []
    scored = 1  # targets up to here are done; the first id is the end-of-text that everything follows
    start = 0
    while scored < len(tokens):
        row = torch.from_numpy(tokens.read(start, min(context + 1, len(tokens) - start)).astype(np.int64))
        inputs, targets = row[:-1], row[1:].clone()
        targets[: scored - start - 1] = -100
        if pending and len(pending[0][0]) != len(inputs):
            yield _stack(pending)
            pending = []
        pending.append((inputs, targets))
        scored = start + len(row)
        start += stride
        if len(pending) == batch_size:
            yield _stack(pending)
            pending = []
    if pending:
        yield _stack(pending)


def _stack(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
