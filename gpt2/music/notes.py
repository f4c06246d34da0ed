"""`Notes`: what a piano plays, on a grid of 10 ms, in the one canonical form that events can say.

Notes of any times come in through `canonical`: each has a place and a length of whole ticks, a pitch sounds once at a
time, and nothing is shorter than a tick. Nothing here knows of files or of tokens.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData

Numbers = npt.NDArray[np.int64]

TICKS_A_SECOND = 100
PITCHES = 128
VELOCITIES = 32  # steps, each of four MIDI velocities
LONGEST = 24 * 3600  # seconds of a piece


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Notes:
    """Notes in canonical form, in the order of their onsets, and of pitches where those are equal.

    onsets, ends: (N,) int64, ticks of 10 ms, ends > onsets >= 0. pitches: (N,) int64, MIDI's 0 to 127 (60 is middle
    C). velocities: (N,) int64, steps 0 to 31; step v stands for the MIDI velocities 4 v to 4 v + 3.
    """

    onsets: Numbers
    ends: Numbers
    pitches: Numbers
    velocities: Numbers

    def __repr__(self) -> str:
        """In one line, for notebooks."""
        return f"<Notes: {len(self):,}, {self.seconds:.2f} s>"

    def __len__(self) -> int:
        return len(self.onsets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notes) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("onsets", "ends", "pitches", "velocities")
        )

    @property
    def seconds(self) -> float:
        """When the last note ends; 0.0 without notes."""
        return float(self.ends.max(initial=0)) / TICKS_A_SECOND

    @property
    def midi_velocities(self) -> Numbers:
        """(N,) int64, 1 to 127: what a file or a synthesiser is given for each step."""
        return 4 * self.velocities + 2

    def from_start(self) -> "Notes":
        """The same without the silence before the first note."""
        first = self.onsets[0] if len(self) else 0
        return replace(self, onsets=self.onsets - first, ends=self.ends - first)

    def between(self, start: int, end: int) -> "Notes":
        """The notes that begin in the ticks from `start` to before `end`, cut off at `end`, counted from `start`."""
        inside = (self.onsets >= start) & (self.onsets < end)
        return Notes(
            self.onsets[inside] - start,
            np.minimum(self.ends[inside], end) - start,
            self.pitches[inside],
            self.velocities[inside],
        )


def canonical(starts: npt.ArrayLike, stops: npt.ArrayLike, pitches: npt.ArrayLike, velocities: npt.ArrayLike) -> Notes:
    """Notes in canonical form.

    starts, stops: (N,) seconds; pitches: (N,) 0 to 127; velocities: (N,) MIDI's, 0 to 127.

    Times are rounded by themselves, never as differences, so errors do not add up: at most half a tick each. A note
    lasts at least a tick. Where a pitch is struck that still sounds, the former note ends there; of two notes with one
    pitch and one onset the louder stays, with the later end. Raises BadData for numbers out of range, and for music of
    more than a day.
    """
    begins, ends = np.asarray(starts, dtype=np.float64), np.asarray(stops, dtype=np.float64)
    keys, loudness = _whole(pitches, "pitches"), _whole(velocities, "velocities")
    if not begins.shape == ends.shape == keys.shape == loudness.shape == (begins.size,):
        raise BadData("Notes need as many starts, stops, pitches and velocities, each in a flat row.")
    if len(begins):
        for what, values, most in (("pitch", keys, PITCHES - 1), ("velocity", loudness, 127)):
            if values.min() < 0 or values.max() > most:
                bad = int(values.min() if values.min() < 0 else values.max())
                raise BadData(f"A note has the {what} {bad}, but it must be from 0 to {most}.")
        if not (np.isfinite(begins).all() and np.isfinite(ends).all() and begins.min() >= 0):
            raise BadData("A note begins before the music does, or at no time at all.")
        if max(begins.max(), ends.max()) > LONGEST:
            raise BadData("The music lasts more than a day; cut it into pieces.")
    onset = _ticks(begins)
    end = np.maximum(_ticks(ends), onset + 1)
    # By pitch, then onset, then loudness: what is struck at once stands together, the loudest last.
    order = np.lexsort((loudness, onset, keys))
    onset, end, keys, loudness = onset[order], end[order], keys[order], loudness[order]
    first = np.ones(len(onset), dtype=bool)
    first[1:] = (keys[1:] != keys[:-1]) | (onset[1:] != onset[:-1])
    groups = np.flatnonzero(first)
    if len(groups):
        last = np.append(groups[1:], len(onset)) - 1
        end = np.maximum.reduceat(end, groups)
        onset, keys, loudness = onset[groups], keys[groups], loudness[last]
        struck_again = keys[1:] == keys[:-1]
        end[:-1] = np.where(struck_again, np.minimum(end[:-1], onset[1:]), end[:-1])
    order = np.lexsort((keys, onset))
    return Notes(onset[order], end[order], keys[order], loudness[order] // 4)


def _whole(values: npt.ArrayLike, what: str) -> Numbers:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise BadData(f"Notes have {what} of {array.dtype}; they must be whole numbers.")
    return array.astype(np.int64)


def _ticks(seconds: npt.NDArray[np.float64]) -> Numbers:
    # Half a tick goes up, always: numpy's own rounding to even would make equal lengths unequal. And whatever the last
    # bits say, in which ways to work out the same seconds differ: what lacks a nanosecond to half a tick is one.
    return np.floor(seconds * TICKS_A_SECOND + 0.5 + 1e-7).astype(np.int64)
