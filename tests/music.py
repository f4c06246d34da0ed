"""Pieces and MIDI files that tests of music make up."""

import io
from collections.abc import Iterable

import mido
import numpy as np
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.music.events import vocabulary
from gpt2.music.notes import Notes, canonical

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


def tiny_music_model(seed: int = 0, window: int = 128) -> LanguageModel:
    config = GPT2Config(
        vocab_size=vocabulary().vocab_size, n_positions=window, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2
    )
    return LanguageModel(GPT2(config).initialise(seed).eval().requires_grad_(False), vocabulary(), "tiny music")
