"""Runners that are not what they seem, for tests of `gpt2 doctor`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.config import SIZES, GPT2Config
from gpt2.runners.plain import PlainRunner
from gpt2.runners.runner import Feed


class Lying(PlainRunner):
    """Plain PyTorch, but where a slot holds `at` tokens, one token's logit is off by `by`."""

    name = "lying"

    def __init__(self, network, slots, by: float, at: int, token: int | None = None) -> None:
        super().__init__(network, slots)
        self.by, self.at, self.token = by, at, token

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        logits_NV, row = super().read(feeds).clone(), 0
        for feed in feeds:
            for position in range(self.length(feed.slot) - feed.logits, self.length(feed.slot)):
                if position == self.at:
                    token = int(logits_NV[row].argmax()) if self.token is None else self.token
                    logits_NV[row, token] += self.by
                row += 1
        return logits_NV


class OnlyDecodesWrongly(PlainRunner):
    """Plain PyTorch that is right on prompts, and in steps of one token forgets what the slot holds."""

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        logits_NV, row = super().read(feeds).clone(), 0
        for feed in feeds:
            if len(feed.ids) == 1:
                alone = self.network(torch.tensor([list(feed.ids)]))[0]
                logits_NV[row : row + feed.logits] = alone[: feed.logits]
            row += feed.logits
        return logits_NV


class Oracle:
    """Says what it was told: for a text that was read, the next token and its log-probability."""

    name, dtype, slots, batch_invariant = "oracle", "float32", 2, True

    def __init__(self, config: GPT2Config | None = None) -> None:
        self.config = config or SIZES["gpt2"].config
        self.told: dict[tuple[int, ...], dict[int, float]] = {}
        self._held: list[list[int]] = [[], []]

    def tell(self, context: Sequence[int], continuation: Sequence[int], logprobs: Sequence[float]) -> None:
        read = list(context)
        for id, logprob in zip(continuation, logprobs, strict=True):
            self.told.setdefault(tuple(read), {}).setdefault(id, logprob)
            read.append(id)

    def length(self, slot: int) -> int:
        return len(self._held[slot])

    def rewind(self, slot: int, length: int) -> None:
        del self._held[slot][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        self._held[target] = self._held[source][:length]

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        rows = []
        for feed in feeds:
            held = self._held[feed.slot]
            for number, id in enumerate(feed.ids):
                held.append(id)
                if number >= len(feed.ids) - feed.logits:
                    rows.append(self._logits(tuple(held)))
        return torch.stack(rows)

    def _logits(self, read: tuple[int, ...]) -> Tensor:
        told = self.told.get(read, {})
        V = self.config.vocab_size
        rest = 1 - sum(torch.tensor(value).exp().item() for value in told.values())
        assert rest > 0
        logits_V = torch.full((V,), torch.tensor(rest / (V - len(told))).log().item(), dtype=torch.float64)
        for id, logprob in told.items():
            logits_V[id] = logprob
        return logits_V
