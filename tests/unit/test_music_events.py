"""Notes to events and back, exactly; one spelling; the vocabulary of Performance RNN and Music Transformer."""

import numpy as np
import pytest
from hypothesis import given

from gpt2.errors import BadPrompt
from gpt2.music.events import END, to_events, to_notes, vocabulary
from gpt2.music.grammar import EventGrammar
from gpt2.music.midi import read_midi
from tests.music import notes_of, raw_notes


def spelt(notes):
    return vocabulary().decode(to_events(notes)).strip()


def test_the_vocabulary_has_their_388_events():
    words = vocabulary()
    assert (words.vocab_size, words.end_of_text) == (389, 388)
    names = "C-1 C4 G9 /C-1 /G9 10ms 1000ms v1 v32"
    assert words.encode(names) == [0, 60, 127, 128, 255, 256, 355, 356, 387]


def test_by_hand():
    chord = notes_of((0, 1.23, 64, 80), (0, 1.23, 60, 80), (1.23, 2.0, 60, 81), (1.23, 0.5, 67, 120))
    assert spelt(chord) == "v21 C4 E4 1000ms 230ms /C4 /E4 C4 v31 G4 500ms /G4 1000ms 500ms /C4"
    assert spelt(notes_of((2.5, 0.01, 60, 0))) == "1000ms 1000ms 500ms v1 C4 10ms /C4"
    assert len(to_events(notes_of())) == 0


@given(raw_notes)
def test_events_give_back_the_notes_and_are_playable(raw):
    notes = notes_of(*raw).from_start()
    events = to_events(notes).tolist()
    assert to_notes(events) == notes
    grammar, output = EventGrammar([END]), []
    for event in events:
        assert grammar.allowed(output)[event]
        output.append(event)
    assert not events or grammar.allowed(output)[END]


@pytest.mark.parametrize("folder", ["pop909", "giantmidi", "nottingham"])
def test_every_real_file_comes_back(shared, folder):
    files = sorted((shared / "data" / "midi" / folder).glob("*.mid"))
    assert len(files) > 100
    events = 0
    for file in files:
        notes = read_midi(file)
        ids = to_events(notes)
        events += len(ids)
        back = to_notes(ids.tolist())
        assert back == notes, file
        assert np.array_equal(to_events(back), ids), file
    assert events > 100_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # No velocity yet: the middle one. What still sounds at the end ends there.
        ("C4 100ms", [(0, 10, 60, 16)]),
        # Ends without beginning, and beginnings without time, are not heard.
        ("/C4 v1 C4 /C4 10ms E4 10ms", [(1, 2, 64, 0)]),
        # Struck again.
        ("v2 C4 100ms C4 100ms /C4", [(0, 10, 60, 1), (10, 20, 60, 1)]),
        ("", []),
    ],
)
def test_a_row_that_nobody_would_write_is_read_all_the_same(text, expected):
    notes = to_notes(vocabulary().encode(text))
    assert list(zip(notes.onsets, notes.ends, notes.pitches, notes.velocities, strict=True)) == expected


def test_a_long_piece_needs_more_than_16_bits_of_time():
    notes = notes_of(*((float(start), 0.5, 60 + start % 12, 64) for start in range(1000)))
    events = to_events(notes)
    assert events.dtype == np.uint16
    assert to_notes(events) == notes
    assert EventGrammar(events).now == 99_950


def test_a_piece_ends_at_its_end():
    one = vocabulary().encode("v1 C4 10ms /C4")
    assert len(to_notes([END, *one, END, *one])) == 1
    with pytest.raises(BadPrompt, match="389 is no musical event"):
        to_notes([389])
    with pytest.raises(TypeError):
        to_notes([1.5])
