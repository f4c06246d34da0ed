"""The loss on held-out text, every token scored exactly once.

The protocol, which every number carries: documents are joined by the end-of-text id, which is read but not scored;
windows of the model's full context with a stride: each window scores the tokens that the one before did not reach.
A stride of the window means no overlap (quick); half the window gives every token at least half a window to look at.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.model import GPT2
from gpt2.training.data import Ids


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
    ids: Ids,
    end_of_text: int,
    text_bytes: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    autocast: torch.dtype | None = None,
) -> Evaluation:
    """Scores `ids` (documents, each behind `end_of_text`) by the protocol above; `stride` in tokens (None: no overlap).

    `text_bytes` is the length in bytes of the documents that the ids came from.
    """
    training = network.training
    network.eval()
    nats, tokens = 0.0, 0
    device = network.device
    for inputs, targets in _windows(ids, network.config.n_positions, stride or network.config.n_positions, batch_size):
        targets = targets.masked_fill(targets == end_of_text, -100)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            nats += float(network.loss(inputs.to(device), targets.to(device)))
        tokens += int((targets != -100).sum())
    network.train(training)
    return Evaluation(nats, tokens, text_bytes)


def _windows(ids: Ids, context: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs and targets, (B, T) int64; targets that are scored elsewhere are -100."""
    pending: list[tuple[Tensor, Tensor]] = []
    scored = 1  # targets up to here are done; the first id is the end-of-text that everything follows
    start = 0
    while scored < len(ids):
        row = torch.from_numpy(ids[start : start + context + 1].astype(np.int64))
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
