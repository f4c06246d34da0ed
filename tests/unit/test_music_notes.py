"""The canonical form of notes: on a grid, one pitch at a time, no note shorter than a tick."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

from gpt2.errors import BadData
from gpt2.music.notes import canonical
from tests.music import notes_of, raw_notes


def rows(notes):
    return list(zip(*(getattr(notes, n).tolist() for n in ("onsets", "ends", "pitches", "velocities")), strict=True))


@given(raw_notes)
def test_what_it_promises_holds_for_any_notes(raw):
    notes = notes_of(*raw)
    assert (notes.ends > notes.onsets).all()
    found = rows(notes)
    assert found == sorted(found, key=lambda note: (note[0], note[2]))
    for pitch in set(notes.pitches.tolist()):
        mine = [note for note in found if note[2] == pitch]
        assert all(before[1] <= after[0] for before, after in pairwise(mine))
    # Each note that came in is there, at its own time, or one of the same pitch that began in the same tick.
    onsets = {(onset, pitch) for onset, _, pitch, _ in found}
    assert onsets == {(int(np.floor(start * 100 + 0.5 + 1e-7)), pitch) for start, _, pitch, _ in raw}


@given(raw_notes)
def test_it_is_at_rest(raw):
    notes = notes_of(*raw)
    again = canonical(notes.onsets / 100, notes.ends / 100, notes.pitches, notes.midi_velocities)
    assert again == notes


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # Rounded by itself, a half goes up; a note lasts a tick at least.
        ([(0.004, 0.001, 60, 0)], [(0, 1, 60, 0)]),
        ([(0.005, 0.0, 60, 127)], [(1, 2, 60, 31)]),
        # 100 times 0.285 is 28.499999999999996 in float64, and still half a tick.
        ([(0.285, 0.1 + 0.2, 60, 127)], [(29, 59, 60, 31)]),
        # Struck again: the first ends there, the second keeps its own end.
        ([(0, 1, 60, 64), (0.5, 0.2, 60, 68)], [(0, 50, 60, 16), (50, 70, 60, 17)]),
        # At once: the louder, with the later end.
        ([(0, 1, 60, 64), (0.001, 0.2, 60, 90)], [(0, 100, 60, 22)]),
        # Order of pitches within a moment.
        ([(0, 1, 64, 64), (0, 1, 60, 64)], [(0, 100, 60, 16), (0, 100, 64, 16)]),
        ([], []),
    ],
)
def test_by_hand(raw, expected):
    assert rows(notes_of(*raw)) == expected


def test_errors_of_rounding_do_not_add_up():
    starts = np.arange(10_000) * 0.0133
    notes = canonical(starts, starts + 0.01, np.tile([60, 61], 5000), np.full(10_000, 64))
    assert np.abs(notes.onsets / 100 - starts).max() <= 0.005 + 1e-9


def test_a_cut_keeps_what_begins_in_it():
    notes = notes_of((0, 1, 60, 64), (1, 2, 62, 64), (2.5, 1, 64, 64))
    assert rows(notes.between(100, 200)) == [(0, 100, 62, 16)]
    assert rows(notes_of((0.5, 1, 60, 64)).from_start()) == [(0, 100, 60, 16)]
    assert notes.seconds == 3.5
    assert notes_of().from_start().seconds == 0


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ((0, 1, 128, 64), "pitch 128, but it must be from 0 to 127"),
        ((0, 1, 60, -1), "velocity -1"),
        ((-1, 1, 60, 64), "before the music does"),
        ((float("nan"), 1, 60, 64), "at no time at all"),
        ((0, float("inf"), 60, 64), "at no time at all"),
        ((1e17, 1, 60, 64), "more than a day"),
    ],
)
def test_what_is_no_note_is_refused(raw, said):
    with pytest.raises(BadData, match=said):
        notes_of(raw)
    with pytest.raises(BadData, match="as many starts"):
        canonical([0, 1], [1], [60], [64])
    with pytest.raises(BadData, match="pitches of float64"):
        canonical([0], [1], [60.7], [64])
