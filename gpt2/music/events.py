"""The vocabulary of musical events, and notes as rows of them: Performance RNN's and Music Transformer's.

388 events (Oore et al. 2018, section 3.2; Huang et al. 2018, section 4.2), in this order of ids:

      0 to 127   a pitch begins        C4
    128 to 255   a pitch ends          /C4
    256 to 355   time goes on          10ms to 1000ms
    356 to 387   the velocity of the notes that follow, of 32      v1 to v32

and <|endoftext|>, id 388, which stands before a piece and behind it, as between the documents of a text.

Every piece has one spelling, which `to_events` writes: at each moment first the notes that end, then those that begin,
both from low to high; a velocity only where it changes; time in whole seconds and then the rest. `to_notes` reads any
row of events, also one that a model left unfinished.
"""

import operator
from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadPrompt
from gpt2.music.notes import PITCHES, VELOCITIES, Notes
from gpt2.tokenizer import Tokenizer, WordTokenizer

ON, OFF, SHIFT, VELOCITY = 0, 128, 256, 356
END = 388
SHIFTS = 100  # the longest time shift, in ticks of 10 ms

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def pitch_name(pitch: int) -> str:
    """MIDI's 60 as C4, the middle C; 0 is C-1."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


@cache
def vocabulary() -> Tokenizer:
    """The events as a tokenizer of 389 words. Built once."""
    names = [pitch_name(pitch) for pitch in range(PITCHES)]
    return WordTokenizer(
        [
            *names,
            *(f"/{name}" for name in names),
            *(f"{10 * ticks}ms" for ticks in range(1, SHIFTS + 1)),
            *(f"v{step + 1}" for step in range(VELOCITIES)),
        ]
    )


def to_events(notes: Notes) -> npt.NDArray[np.uint16]:
    """The one spelling of a piece, (events,) uint16, without <|endoftext|>."""
    times = np.concatenate([notes.ends, notes.onsets])
    begins = np.repeat((False, True), len(notes))
    pitches = np.concatenate([notes.pitches, notes.pitches])
    order = np.lexsort((pitches, begins, times))
    begins, pitches = begins[order], pitches[order]
    seconds, rest = np.divmod(np.diff(times[order], prepend=0), SHIFTS)
    velocities = np.concatenate([np.full(len(notes), -1), notes.velocities])[order]
    # What was last said of a velocity, at each note that begins.
    louder = np.zeros(len(order), dtype=bool)
    louder[begins] = np.diff(velocities[begins], prepend=-1) != 0
    # Each beginning or end is written as seconds, the rest of the time, a velocity, the pitch: mostly not all of them.
    sizes = seconds + (rest > 0) + louder + 1
    last = np.cumsum(sizes) - 1
    events = np.full(int(sizes.sum()), SHIFT + SHIFTS - 1, dtype=np.uint16)
    events[last] = np.where(begins, ON, OFF) + pitches
    events[last[louder] - 1] = VELOCITY + velocities[louder]
    waits = rest > 0
    events[(last - louder - 1)[waits]] = SHIFT + rest[waits] - 1
    return events


def to_notes(events: Iterable[int]) -> Notes:
    """The notes that events play, up to the first <|endoftext|> that comes behind any of them.

    What no pianist could do is forgiven: a pitch that begins again ends the note before, one that ends and does not
    sound is left out, and what still sounds at the end ends there. Notes before any velocity get the middle one.

    Raises BadPrompt for an id that is no event.
    """
    found: list[tuple[int, int, int, int]] = []
    sounding: dict[int, tuple[int, int]] = {}
    now, velocity = 0, VELOCITIES // 2

    def end(pitch: int) -> None:
        onset, loudness = sounding.pop(pitch)
        # Begun and ended in one moment: it is not heard.
        if now > onset:
            found.append((onset, now, pitch, loudness))

    some = False
    for each in events:
        # Python's own number: sums of numpy's 16 bits would wrap.
        event = operator.index(each)
        if not 0 <= event <= END:
            raise BadPrompt(f"{event} is no musical event; events have the ids 0 to {END}.")
        if event == END:
            if some:
                break
            continue
        some = True
        if event >= VELOCITY:
            velocity = event - VELOCITY
        elif event >= SHIFT:
            now += event - SHIFT + 1
        else:
            pitch = event % PITCHES
            if pitch in sounding:
                end(pitch)
            if event < OFF:
                sounding[pitch] = (now, velocity)
    for pitch in list(sounding):
        end(pitch)
    rows = np.array(sorted(found, key=lambda note: (note[0], note[2])), dtype=np.int64).reshape(-1, 4)
    return Notes(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])
