"""Piano rolls: what is drawn is what is played."""

import numpy as np
import pytest
from hypothesis import given, settings

from gpt2.errors import BadData
from gpt2.music.notes import canonical
from gpt2.music.roll import draw, piano_roll, write_png
from tests.music import notes_of, raw_notes


def rectangles(figure):
    """Left, right, bottom, top of each note drawn, by onset and pitch."""
    (notes,) = [group for group in figure.axes[0].collections if type(group).__name__ == "PolyCollection"]
    rows = []
    for path in notes.get_paths():
        (left, bottom), (right, top) = path.vertices.min(axis=0), path.vertices.max(axis=0)
        rows.append((left, right, bottom, top))
    return sorted(rows, key=lambda row: (round(row[0], 6), row[2]))


@settings(deadline=None)
@given(raw_notes)
def test_each_tick_of_each_note_is_in_the_roll_and_nothing_else(raw):
    notes = notes_of(*raw)
    roll = piano_roll(notes)
    assert roll.shape == (128, notes.ends.max(initial=0))
    assert roll.dtype == np.uint8
    for pitch, onset, end, velocity in zip(notes.pitches, notes.onsets, notes.ends, notes.midi_velocities, strict=True):
        assert (roll[pitch, onset:end] == velocity).all()
    assert np.count_nonzero(roll) == (notes.ends - notes.onsets).sum()


def test_no_notes_are_an_empty_roll_and_no_picture():
    assert piano_roll(notes_of()).shape == (128, 0)
    with pytest.raises(BadData, match="no notes"):
        draw(notes_of())


@settings(max_examples=5, deadline=None)
@given(raw_notes.filter(bool))
def test_every_note_is_a_rectangle_at_its_time_and_pitch(raw):
    notes = notes_of(*raw)
    figure = draw(notes)
    axes = figure.axes[0]
    drawn = rectangles(figure)
    assert len(drawn) == len(notes)
    for (left, right, bottom, top), onset, end, pitch in zip(
        drawn, notes.onsets, notes.ends, notes.pitches, strict=True
    ):
        assert left == pytest.approx(onset / 100)
        # Some of the end may be left open, never more than a third.
        assert onset + 0.6 * (end - onset) < 100 * right <= end + 1e-6
        assert (bottom + top) / 2 == pytest.approx(pitch)
        assert top - bottom < 1
    low, high = axes.get_ylim()
    assert low <= notes.pitches.min()
    assert notes.pitches.max() <= high
    assert high - low >= 24
    assert low >= -0.5
    assert high <= 127.5
    assert axes.get_xlim() == (0, max(notes.seconds, 1))


@pytest.mark.parametrize("pitch", [0, 60, 127])
def test_one_note_has_names_of_octaves_beside_it(pitch):
    axes = draw(canonical([0], [0.01], [pitch], [64])).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    places = axes.get_yticks()
    assert len(names) >= 2
    assert all(name == f"C{int(place) // 12 - 1}" for name, place in zip(names, places, strict=True))


def test_louder_notes_are_darker():
    (group,) = draw(canonical([0, 1, 2], [1, 2, 3], [60, 60, 60], [20, 70, 120])).axes[0].collections
    # Drawn from soft to loud.
    lightness = group.get_facecolor()[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) < -0.1).all()


@pytest.mark.parametrize(
    ("seconds", "axis", "last"),
    [
        (0.5, "seconds", "1"),
        (30, "seconds", "30"),
        (180, "minutes:seconds", "3:00"),
        (3600, "minutes:seconds", "60:00"),
    ],
)
def test_time_is_written_as_people_read_it(seconds, axis, last):
    axes = draw(canonical([0], [seconds], [60], [64])).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_xlabel() == axis
    assert labels[-1] == last
    assert 2 < len(labels) <= 14
    assert len(set(labels)) == len(labels)


def test_the_primer_is_marked_where_it_ends():
    notes = canonical([0, 10], [10, 20], [60, 62], [64, 64])
    plain, marked = draw(notes).axes[0], draw(notes, "A title", 800).axes[0]
    assert not plain.texts
    assert [text.get_text() for text in marked.texts] == ["primer ends"]
    assert 8.0 in [line.get_xdata()[0] for line in marked.get_lines()]
    assert marked.get_title("left") == "A title"


def test_an_hour_of_notes_is_written(tmp_path):
    starts = np.arange(0, 3600, 0.4)
    notes = canonical(starts, starts + 0.5, 40 + np.arange(len(starts)) % 40, np.full(len(starts), 80))
    write_png(notes, tmp_path / "new" / "hour.png", "An hour")
    assert (tmp_path / "new" / "hour.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["hour.png"]
