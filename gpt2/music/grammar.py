"""Which events can come next: what a pianist can play, spelt in the one way that `events.to_events` spells it.

It is a `gpt2.generation.Grammar`. No pitch ends that does not sound, none begins that sounds, nothing hangs at the
end, and where a length is asked for the piece lasts exactly so long. It knows nothing of models.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpt2.music.events import END, OFF, ON, SHIFT, SHIFTS, VELOCITY
from gpt2.music.notes import PITCHES, VELOCITIES


class EventGrammar:
    """Follows one piece, event by event.

    prompt: the events that were there before, well spelt or not. ticks: how much longer the piece lasts, in ticks of
    10 ms: then what sounds is ended, and the piece; None: as long as it likes. may_end: it may end before that,
    whenever nothing sounds.
    """

    def __init__(self, prompt: Sequence[int], ticks: int | None = None, *, may_end: bool = True) -> None:
        self._read = 0
        self._begin()
        for event in prompt:
            self._take(event)
        self._limit = None if ticks is None else self.now + ticks
        self._may_end = may_end or ticks is None

    @property
    def now(self) -> int:
        """Ticks since the piece began."""
        return self._now

    @property
    def sounding(self) -> list[int]:
        """The pitches that sound, from low to high."""
        return [int(pitch) for pitch in np.flatnonzero(self._sounding)]

    def allowed(self, output: Sequence[int]) -> npt.NDArray[np.bool_]:
        """(389,): which events can follow the prompt and `output`, of which only what is new is looked at."""
        for event in output[self._read :]:
            self._take(event)
        self._read = len(output)
        mask = np.zeros(END + 1, dtype=bool)
        if self._limit is not None and self._now >= self._limit:
            # The last moment: what sounds ends, from low to high, and then the piece.
            sounding = self.sounding
            mask[OFF + sounding[0] if sounding else END] = True
            return mask
        free = ~self._sounding
        free[: self._lowest_on] = False
        if self._last == VELOCITY:
            mask[ON : ON + PITCHES] = free
            return mask
        if self._velocity is not None:
            mask[ON : ON + PITCHES] = free
        if free.any():
            mask[VELOCITY : VELOCITY + VELOCITIES] = True
            if self._velocity is not None:
                mask[VELOCITY + self._velocity] = False
        if not self._lowest_on:
            # In each moment what ends comes before what begins.
            mask[OFF + self._lowest_off : OFF + PITCHES] = self._sounding[self._lowest_off :]
        # A wait of less than a second is the last of its kind, and no piece begins with one.
        if self._struck and (self._last != SHIFT or self._waited == SHIFTS):
            most = SHIFTS if self._limit is None else min(SHIFTS, self._limit - self._now)
            mask[SHIFT : SHIFT + most] = True
        mask[END] = self._may_end and self._last == OFF and not self._sounding.any()
        return mask

    def _begin(self) -> None:
        self._sounding = np.zeros(PITCHES, dtype=bool)
        self._now = 0
        self._struck = False
        self._velocity: int | None = None
        self._last: int | None = None  # the kind of the last event
        self._waited = 0
        self._new_moment()

    def _new_moment(self) -> None:
        # The lowest pitches that may still end, and begin, in this moment.
        self._lowest_off = self._lowest_on = 0

    def _take(self, event: int) -> None:
        if event == END:
            self._begin()
        elif event >= VELOCITY:
            self._velocity, self._last = event - VELOCITY, VELOCITY
        elif event >= SHIFT:
            self._waited = event - SHIFT + 1
            self._now, self._last = self._now + self._waited, SHIFT
            self._new_moment()
        elif event >= OFF:
            self._sounding[event - OFF] = False
            self._lowest_off, self._last = event - OFF + 1, OFF
        else:
            self._sounding[event - ON] = True
            self._struck, self._last, self._lowest_on = True, ON, event - ON + 1
