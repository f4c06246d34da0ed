"""Pieces and MIDI files that tests of music make up."""

import io
from collections.abc import Iterable
from pathlib import Path

import mido
import numpy as np
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel
from gpt2.music.events import vocabulary
from gpt2.music.midi import write_midi
from gpt2.music.notes import Notes, canonical
from tests.helpers import tiny_model

# Of a note: start and length in seconds, pitch, velocity.
Raw = tuple[float, float, int, int]


def notes_of(*raw: Raw) -> Notes:
    rows = np.array(raw, dtype=float).reshape(-1, 4)
    return canonical(rows[:, 0], rows[:, 0] + rows[:, 1], rows[:, 2].astype(int), rows[:, 3].astype(int))


raw_notes = st.lists(
    st.tuples(
        st.floats(0, 30, allow_nan=False),
        st.floats(0, 4, allow_nan=False),
        # Few pitches, so that they meet.
        st.integers(58, 64) | st.integers(0, 127),
        st.integers(0, 127),
    ),
    max_size=60,
)


def random_piece(seed: int, notes: int = 40) -> Notes:
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.exponential(0.2, notes))
    return canonical(
        starts, starts + rng.exponential(0.4, notes), rng.integers(40, 80, notes), rng.integers(30, 110, notes)
    )


Timed = tuple[int, mido.Message | mido.MetaMessage]


def midi_bytes(*tracks: Iterable[Timed], kind: int = 1, division: int = 480) -> bytes:
    """A MIDI file of messages at absolute ticks."""
    file = mido.MidiFile(type=kind, ticks_per_beat=division)
    for messages in tracks:
        track = mido.MidiTrack()
        now = 0
        for time, message in messages:
            track.append(message.copy(time=time - now))
            now = time
        file.tracks.append(track)
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue()


def on(time: int, pitch: int, velocity: int = 80, channel: int = 0) -> Timed:
    return time, mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(time: int, pitch: int, channel: int = 0) -> Timed:
    return time, mido.Message("note_off", note=pitch, channel=channel)


def pedal(time: int, value: int, channel: int = 0) -> Timed:
    return time, mido.Message("control_change", control=64, value=value, channel=channel)


def tempo(time: int, microseconds: int) -> Timed:
    return time, mido.MetaMessage("set_tempo", tempo=microseconds)


def tiny_music_model(window: int = 128) -> LanguageModel:
    return tiny_model(window=window, tokenizer=vocabulary())


def write_pieces(folder: Path, count: int) -> Path:
    """A folder of so many files, the piece of seed 3 in 03.mid."""
    folder.mkdir()
    for seed in range(count):
        write_midi(random_piece(seed), folder / f"{seed:02d}.mid")
    return folder
