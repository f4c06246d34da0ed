"""What runs a network for those who generate: slots of static memory, tokens in, logits out.

A runner holds one network and the keys and values of a fixed number of texts, its slots. It knows nothing of text,
sampling or requests. `plain.py` runs `model.py` itself and is what the others are tested equal to; they are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gpt2.config import GPT2Config
from gpt2.errors import BadOption, BadPrompt, ContextOverflow

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.model import GPT2


@dataclass(frozen=True, slots=True)
class Feed:
    """Token ids that are read into a slot, behind what it holds, and for how many of the last ones logits are wanted.

    ids: at least one. logits: 0 to len(ids).
    """

    slot: int
    ids: Sequence[int]
    logits: int = 1


class Runner(Protocol):
    """A network with slots. One thread may use a runner at a time.

    config: the network's shape; a slot holds up to `config.n_positions` tokens.
    name: what `gpt2 doctor` calls it: "plain", "native", "compiled", ...
    slots: how many texts can be held at once, counted from 0. Their memory is taken when it is first written.
    dtype: "float32", "bfloat16", "int8" or "int4".
    batch_invariant: a text's logits do not depend, bit for bit, on what is read beside it or in how many pieces.
    """

    config: GPT2Config
    name: str
    slots: int
    dtype: str
    batch_invariant: bool

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""

    def rewind(self, slot: int, length: int) -> None:
        """Forgets all but the slot's first `length` tokens."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes the target hold the source's first `length` tokens, instead of what it held."""

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        """Reads tokens into different slots, and returns the wanted logits: float32 (sum of `logits`, V), in order.

        Raises ContextOverflow if a slot would be fuller than the window, BadPrompt for an id outside the vocabulary,
        BadOption for feeds that make no sense, all before anything is read. Logits that are not finite are returned as
        they are.
        """


def check_mode(network: GPT2) -> None:
    """Raises BadOption for a network in training mode whose dropout would act."""
    config = network.config
    if network.training and max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) > 0:
        raise BadOption("The network is in training mode and its dropout would act; call network.eval() first.")


def check_fed(config: GPT2Config, lengths: Sequence[int], feeds: Sequence[Feed]) -> None:
    """What every runner checks before it reads: what is fed, and the lengths of all of its slots.

    Raises BadOption, ContextOverflow and BadPrompt as `Runner.read` says.
    """
    fed: set[int] = set()
    for feed in feeds:
        slot, ids = feed.slot, feed.ids
        if not 0 <= slot < len(lengths):
            raise BadOption(f"There is no slot {slot} in a runner with slots 0 to {len(lengths) - 1}.")
        if slot in fed:
            raise BadOption(f"Slot {slot} is fed twice at once; feed it once with all ids.")
        fed.add(slot)
        if not 0 <= feed.logits <= len(ids) or not len(ids):
            raise BadOption(
                f"Slot {slot} is fed {len(ids)} ids and asked for {feed.logits} rows of logits; feed one id or more, "
                "and ask for at most as many rows."
            )
        if lengths[slot] + len(ids) > config.n_positions:
            raise ContextOverflow(
                f"Slot {slot} holds {lengths[slot]} tokens, and {len(ids)} more do not fit in this model's window of "
                f"{config.n_positions}."
            )
        for id in (min(ids), max(ids)):
            if not 0 <= id < config.vocab_size:
                raise BadPrompt(f"Token id {id} is not in this model's vocabulary of {config.vocab_size}.")


def check_held(slot: int, held: int, length: int) -> None:
    """Raises BadOption unless a slot that holds so many tokens has a beginning of this length."""
    if not 0 <= length <= held:
        raise BadOption(
            f"Slot {slot} holds {held} tokens, so there is no beginning of {length} tokens to keep or copy."
        )
