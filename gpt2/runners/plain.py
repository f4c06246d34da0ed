"""`PlainRunner`: `model.py` itself on one key-value cache. The oracle that the faster runners are tested equal to.

Feeds of one token step together in one pass, as a batch decodes; longer feeds are read one after the other, without
padding. Nothing here is for speed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model import GPT2
from gpt2.runners.runner import Feed, check_fed, check_held, check_mode


class PlainRunner:
    """Runs a network as it is, on its device and in its dtype (float32 or bfloat16), with `slots` rows of a cache.

    Raises BadOption for a network in training mode whose dropout would act.
    """

    name = "plain"
    # Matrix products of other shapes may add in another order.
    batch_invariant = False

    def __init__(self, network: GPT2, slots: int) -> None:
        check_mode(network)
        self.config, self.slots, self.network = network.config, slots, network
        self.dtype = str(network.dtype).removeprefix("torch.")
        self._cache = network.new_cache(slots)
        self._damaged: set[int] = set()  # slots whose memory holds NaN or infinity

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return int(self._cache.lengths[slot])

    def rewind(self, slot: int, length: int) -> None:
        """Forgets all but the slot's first `length` tokens; raises BadOption if it holds fewer."""
        check_held(slot, self.length(slot), length)
        self._cache.lengths[slot] = length
        if slot in self._damaged:
            # Attention multiplies unread places by 0, and 0 times NaN is NaN.
            self._damaged.discard(slot)
            for memory in (self._cache.keys, self._cache.values):
                memory[:, slot, :, length:] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes the target hold the source's first `length` tokens; raises BadOption if the source holds fewer."""
        check_held(source, self.length(source), length)
        if source == target:
            return self.rewind(target, length)
        self.rewind(target, 0)
        for memory in (self._cache.keys, self._cache.values):
            memory[:, target, :, :length] = memory[:, source, :, :length]
        self._cache.lengths[target] = length
        if source in self._damaged:
            self._damaged.add(target)

    @torch.inference_mode()
    def read(self, feeds: Sequence[Feed]) -> Tensor:
        """Reads tokens into different slots; float32 logits (sum of `logits`, V), in order. Errors: see `Runner`."""
        check_fed(self.config, self._cache.lengths.tolist(), feeds)
        steps = [place for place, feed in enumerate(feeds) if len(feed.ids) == 1]
        steps.sort(key=lambda place: feeds[place].slot)
        hidden: dict[int, Tensor] = {}  # of each feed, the last `logits` positions: (N, C)
        for place, feed in enumerate(feeds):
            if len(feed.ids) > 1:
                read_1TC = self._hidden([feed.ids], [feed.slot])
                hidden[place] = read_1TC[0, len(feed.ids) - feed.logits :]
            elif place not in hidden:
                read_B1C = self._hidden([feeds[each].ids for each in steps], [feeds[each].slot for each in steps])
                hidden.update(
                    (each, read_1C[: feeds[each].logits]) for each, read_1C in zip(steps, read_B1C, strict=True)
                )
        wanted_NC = torch.cat([hidden[place] for place in range(len(feeds))])
        return self._logits(wanted_NC)

    def _logits(self, hidden_NC: Tensor) -> Tensor:
        return F.linear(hidden_NC, self.network.wte.weight).float()

    def _hidden(self, ids: Sequence[Sequence[int]], slots: list[int]) -> Tensor:
        """The last norm's output (B, T, C) for ids (B, T) that are read into these slots, in rising order."""
        ids_BT = torch.tensor(ids, device=self.network.device)
        hidden_BTC = self.network.hidden(ids_BT, self._cache.view(slots))
        # Attention reads whatever a slot holds, so what is not finite there shows at the last position.
        fine_B = hidden_BTC[:, -1].isfinite().all(dim=-1)
        if not bool(fine_B.all()):
            self._damaged.update(slot for slot, fine in zip(slots, fine_B.tolist(), strict=True) if not fine)
        return hidden_BTC
