"""Which slot reads a prompt, and what of it need not be read: a prefix that some slot holds already.

Positions are learned and absolute, so only an unmoved prefix can be used again: what two texts have in common from
their first token on. It is taken where it lies, or copied. This file knows nothing of requests or of sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# Waiting for another slot to read what is shared is worth it from so many tokens on.
_WORTH_WAITING = 16
# So many texts that have ended are kept before one of them makes room for the next; more only if more ran at once,
# because every slot that was ever used keeps its memory.
_KEPT_TEXTS = 2


@dataclass(slots=True, eq=False)
class Slot:
    """One of the runner's slots.

    ids: what it holds. plan: for a busy slot the prompt that is in it or being read, for a free one what it holds.
    used: when it was last taken, 0 for never.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    plan: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    busy: bool = False
    used: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt goes: the slot, and the first `shared` tokens, that `source` (perhaps itself) holds or will."""

    slot: Slot
    source: Slot | None
    shared: int


class Slots:
    """A fixed number of slots, and who shares what with whom."""

    def __init__(self, count: int) -> None:
        self.all = [Slot(index) for index in range(count)]
        self._clock = 0

    @property
    def free(self) -> int:
        """How many slots are free."""
        return sum(not slot.busy for slot in self.all)

    def take(self, prompt: Sequence[int]) -> Place:
        """Takes a free slot (there must be one) for a prompt; the slot's `ids` are left for the caller to put right.

        `shared` reaches the whole prompt only where another slot is still reading an equal one.
        """
        ids = np.array(prompt, dtype=np.int64)
        free = [slot for slot in self.all if not slot.busy]
        source, shared = self._best(ids)
        # In place, unless that would cost the source most of what it holds and another slot can be had.
        if source in free and (2 * shared >= len(source.ids) or len(free) == 1):
            slot = source
        else:
            slot = self._cheapest([each for each in free if each is not source])
        self._clock += 1
        slot.busy, slot.used, slot.plan = True, self._clock, ids
        return Place(slot, source, shared)

    def replan(self, slot: Slot, prompt: Sequence[int]) -> None:
        """Says that a busy slot is going to read this instead."""
        slot.plan = np.array(prompt, dtype=np.int64)

    def seek(self, slot: Slot) -> tuple[Slot | None, int]:
        """For a busy slot that lost its source: another source, and how much of the slot's plan it shares."""
        return self._best(slot.plan, slot)

    def release(self, slot: Slot, *, damaged: bool = False) -> None:
        """Frees a slot. What it holds may be shared later, unless it is damaged."""
        if damaged:
            slot.ids = []
        slot.plan, slot.busy = np.array(slot.ids, dtype=np.int64), False

    def lend(self, wanted: Sequence[Slot | None]) -> list[Slot | None]:
        """A free slot for each, the wanted one where it is free; None for the last ones where there are not so many.

        They are busy until they are released; `ids` is left for the caller to put right.
        """
        given = [slot if slot is not None and not slot.busy else None for slot in wanted]
        for known in filter(None, given):
            known.busy = True
        for place, slot in enumerate(given):
            free = [each for each in self.all if not each.busy]
            chosen = self._cheapest(free) if slot is None and free else slot
            if chosen is not None:
                self._clock += 1
                chosen.busy, chosen.used, given[place] = True, self._clock, chosen
        return given

    def _best(self, prompt: Ids, taker: Slot | None = None) -> tuple[Slot | None, int]:
        """The slot that shares most with a prompt, and how much. Only later ones wait for earlier ones."""
        source, best = None, 0
        for slot in self.all:
            if slot is taker:
                continue
            shared = self._held(slot, prompt)
            earlier = taker is None or slot.used < taker.used
            if slot.busy and earlier and len(slot.ids) < len(slot.plan):
                planned = _common(slot.plan, prompt)
                if planned == len(prompt) == len(slot.plan):
                    shared = planned  # an equal prompt: even the logits behind it can be shared
                elif min(planned, len(prompt) - 1) - shared >= _WORTH_WAITING:
                    shared = min(planned, len(prompt) - 1)
            if shared > best or (shared == best and shared and not slot.busy):
                source, best = slot, shared
        return source, best

    def _held(self, slot: Slot, prompt: Ids) -> int:
        """Tokens of the prompt that the slot holds, but for the last, which is read for its logits."""
        if not slot.ids or slot.ids[0] != prompt[0]:
            return 0
        return min(_common(slot.plan, prompt), len(slot.ids), len(prompt) - 1)

    def _cheapest(self, free: list[Slot]) -> Slot:
        """The slot to give away: one never used while few texts are kept, else the one that was used longest ago."""
        used = [slot for slot in free if slot.used]
        fresh = [slot for slot in free if not slot.used]
        if fresh and len(used) < _KEPT_TEXTS:
            return fresh[0]
        return min(used, key=lambda slot: slot.used)


def _common(first: Ids, second: Ids) -> int:
    """How many tokens two texts begin with in common."""
    size = min(len(first), len(second))
    if not size or first[0] != second[0]:
        return 0
    differ = first[:size] != second[:size]
    place = int(differ.argmax())
    return place if differ[place] else size
