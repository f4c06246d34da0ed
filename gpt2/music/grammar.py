"""Which events can come next: what a pianist can play, spelt in the one way that `events.to_events` spells it.

It is a `gpt2.generation.Grammar`. No pitch ends that does not sound, none begins that sounds, nothing hangs at the
end, and where a length is asked for the piece lasts exactly so long. It knows nothing of models.
"""

import operator
from collections.abc import Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from gpt2.music.events import END, OFF, ON, SHIFT, SHIFTS, VELOCITY
from gpt2.music.notes import PITCHES, VELOCITIES


class _Moment:
    """Where a piece stands after some of its events."""

    __slots__ = ("last", "lowest_off", "lowest_on", "now", "read", "sounding", "struck", "velocity", "waited")

    def __init__(self) -> None:
        self.sounding = np.zeros(PITCHES, dtype=bool)
        self.now = 0  # ticks since the piece began
        self.struck = False  # whether there was a note at all
        self.velocity: int | None = None
        self.last: int | None = None  # the kind of the last event
        self.waited = 0  # how long the last wait was
        # The lowest pitches that may still end, and begin, now.
        self.lowest_off = self.lowest_on = 0
        self.read = 0  # events of the output so far

    def after(self, events: Sequence[int]) -> "_Moment":
        """Where it stands after more events."""
        moment = copy(self)
        moment.sounding = self.sounding.copy()
        for event in map(operator.index, events):
            if event == END:
                moment = _Moment()
            else:
                moment._take(event)
        moment.read = self.read + len(events)
        return moment

    def _take(self, event: int) -> None:
        if event >= VELOCITY:
            self.velocity, self.last = event - VELOCITY, VELOCITY
        elif event >= SHIFT:
            self.waited, self.last = event - SHIFT + 1, SHIFT
            self.now += self.waited
            self.lowest_off = self.lowest_on = 0
        elif event >= OFF:
            self.sounding[event - OFF] = False
            self.lowest_off, self.last = event - OFF + 1, OFF
        else:
            self.sounding[event - ON] = True
            self.struck, self.last, self.lowest_on = True, ON, event - ON + 1


class EventGrammar:
    """Follows one piece, event by event.

    prompt: the events that were there before, well spelt or not. ticks: how much longer the piece lasts, in ticks of
    10 ms: then what sounds is ended, and the piece; None: as long as it likes. may_end: it may end before that,
    whenever nothing sounds.
    """

    def __init__(self, prompt: Sequence[int], ticks: int | None = None, *, may_end: bool = True) -> None:
        self._moment = _Moment().after(prompt)
        self._moment.read = 0
        self._limit = None if ticks is None else self._moment.now + ticks
        self._may_end = may_end or ticks is None

    @property
    def now(self) -> int:
        """Ticks since the piece began."""
        return self._moment.now

    @property
    def sounding(self) -> list[int]:
        """The pitches that sound, from low to high."""
        return [int(pitch) for pitch in np.flatnonzero(self._moment.sounding)]

    def allowed(self, output: Sequence[int]) -> npt.NDArray[np.bool_]:
        """(389,): which events can follow the prompt and `output`, of which only what is new is looked at."""
        # Put in place in one piece: whoever is stopped within (Ctrl-C) can ask again.
        self._moment = moment = self._moment.after(output[self._moment.read :])
        mask = np.zeros(END + 1, dtype=bool)
        if self._limit is not None and moment.now >= self._limit:
            # The last moment: what sounds ends, from low to high, and then the piece.
            sounding = self.sounding
            mask[OFF + sounding[0] if sounding else END] = True
            return mask
        free = ~moment.sounding
        free[: moment.lowest_on] = False
        if moment.last == VELOCITY and free.any():
            mask[ON : ON + PITCHES] = free
            return mask
        if moment.velocity is not None:
            mask[ON : ON + PITCHES] = free
        if free.any():
            mask[VELOCITY : VELOCITY + VELOCITIES] = True
            if moment.velocity is not None:
                mask[VELOCITY + moment.velocity] = False
        if not moment.lowest_on:
            # In each moment what ends comes before what begins.
            mask[OFF + moment.lowest_off : OFF + PITCHES] = moment.sounding[moment.lowest_off :]
        # A wait of less than a second is the last of its kind, and no piece begins with one.
        if moment.struck and (moment.last != SHIFT or moment.waited == SHIFTS):
            most = SHIFTS if self._limit is None else min(SHIFTS, self._limit - moment.now)
            mask[SHIFT : SHIFT + most] = True
        mask[END] = self._may_end and moment.last == OFF and not moment.sounding.any()
        return mask
