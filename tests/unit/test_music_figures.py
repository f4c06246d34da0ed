"""Figures of music, against counting by hand and by the roll."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData
from gpt2.music.figures import compare, distance, in_c, mean_of, measure, table
from gpt2.music.notes import canonical
from gpt2.music.roll import piano_roll
from tests.music import notes_of, raw_notes

MAJOR = [0, 2, 4, 5, 7, 9, 11]

histograms = (
    st.lists(st.integers(0, 50), min_size=12, max_size=12).filter(any).map(lambda row: np.array(row) / sum(row))
)


def tune(pitches, times=None, length=0.2):
    starts = np.arange(len(pitches)) * 0.25 if times is None else np.asarray(times)
    return canonical(starts, starts + length, pitches, np.full(len(pitches), 80))


def test_a_piece_by_hand():
    # C and E together for a second, half a second of nothing, then A for half a second; it begins at 3 s.
    figures = measure(canonical([3, 3, 4.5], [4, 4, 5], [60, 64, 69], [40, 80, 120]))
    assert figures.notes_a_second == pytest.approx(3 / 2)
    assert figures.polyphony == pytest.approx(2.5 / 1.5)
    assert figures.silence == pytest.approx(0.25)
    assert figures.note_seconds == pytest.approx(2.5 / 3)
    # Velocities are in steps of four, given back as 4 v + 2.
    assert figures.velocity == pytest.approx(82)
    assert figures.velocity_spread == pytest.approx(np.std([42, 82, 122]))
    assert (figures.lowest, figures.highest) == (60, 69)
    assert [round(3 * share) for share in figures.pitch_classes] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert figures.repetition == 0


@settings(deadline=None)
@given(raw_notes.filter(bool))
def test_the_roll_says_the_same(raw):
    notes = notes_of(*raw)
    figures = measure(notes)
    sounding = (piano_roll(notes.from_start()) > 0).sum(axis=0)
    assert figures.polyphony == pytest.approx(sounding[sounding > 0].mean())
    assert figures.silence == pytest.approx((sounding == 0).mean())
    assert figures.notes_a_second == pytest.approx(100 * len(notes) / len(sounding))
    assert sum(figures.pitch_classes) == pytest.approx(1)


def test_what_comes_back_counts_in_any_key_and_what_does_not_does_not():
    rng = np.random.default_rng(0)
    theme = rng.integers(50, 70, 40)
    other = rng.integers(50, 70, 40)
    times = np.arange(80) * 0.25
    assert measure(tune([*theme, *other])).repetition == 0
    again = measure(tune([*theme, *theme], times)).repetition
    # 73 windows of 8; the 33 of the theme come back whole.
    assert again == pytest.approx(33 / 73)
    assert measure(tune([*theme, *(theme + 5)], times)).repetition == pytest.approx(33 / 73)
    # A player's unevenness is no difference; another rhythm is one.
    uneven = np.arange(80) * 0.3 + rng.uniform(-0.02, 0.02, 80)
    assert measure(tune([*theme, *theme], uneven)).repetition == pytest.approx(33 / 73)
    slower = np.concatenate([times[:40], 10 + 2 * times[:40]])
    assert measure(tune([*theme, *theme], slower)).repetition == 0


@pytest.mark.parametrize("count", [1, 7, 8])
def test_pieces_too_short_to_repeat_anything(count):
    assert measure(tune([60] * count)).repetition == 0


@given(histograms, st.integers(0, 11))
def test_transposing_changes_no_distance_and_no_scale(classes, semitones):
    turned = np.roll(classes, semitones)
    assert distance(classes, turned) == pytest.approx(0)
    assert in_c(turned)[0] <= 1
    white = [sum(in_c(row)[pitch] for pitch in MAJOR) for row in (classes, turned)]
    assert white[0] == pytest.approx(white[1])


@given(histograms, histograms)
def test_distances_are_symmetric_shares(one, other):
    assert 0 <= distance(one, other) <= 1
    assert distance(one, other) == pytest.approx(distance(other, one))


def test_distances_by_hand():
    c, c_and_g, even = np.eye(12)[0], (np.eye(12)[0] + np.eye(12)[7]) / 2, np.full(12, 1 / 12)
    assert distance(c, c_and_g) == pytest.approx(0.5)
    assert distance(c, even) == pytest.approx(11 / 12)


@pytest.mark.parametrize("key", [0, 1, 6, 11])
@pytest.mark.parametrize("scale", [MAJOR, [0, 2, 4, 7, 9]])
def test_a_scale_in_any_key_is_turned_to_c(scale, key):
    figures = measure(tune([48 + key + step for step in scale] + [60 + key]))
    assert figures.in_scale == pytest.approx(1)
    assert {pitch for pitch, share in enumerate(in_c(figures.pitch_classes)) if share} == set(scale)


def test_all_twelve_are_in_no_scale():
    assert measure(tune(range(60, 72))).in_scale == pytest.approx(7 / 12)


def test_a_mean_keeps_the_scale_of_pieces_in_different_keys():
    pieces = [measure(tune([48 + key + step for step in MAJOR])) for key in range(12)]
    mean = mean_of(pieces)
    assert mean.in_scale == pytest.approx(1)
    assert mean.lowest == pytest.approx(np.mean([piece.lowest for piece in pieces]))
    assert mean.notes_a_second == pytest.approx(pieces[0].notes_a_second)
    assert mean_of([mean, mean]) == mean


def test_nothing_to_measure():
    with pytest.raises(BadData, match="no notes"):
        measure(notes_of())
    with pytest.raises(BadData, match="no pieces"):
        mean_of([])
    with pytest.raises(BadData, match="no pieces to draw in ours"):
        compare({"theirs": [measure(tune([60]))], "ours": []})
    with pytest.raises(BadData, match="no pieces"):
        compare({})


def test_the_table_has_a_column_for_each_set():
    one, other = measure(tune(range(60, 72))), measure(tune([60] * 12))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table({"a": one, "b": other}).splitlines()
    ]
    assert lines[0] == ["", "a", "b"]
    assert {len(line) for line in lines} == {3}
    rows = {line[0]: line[1:] for line in lines}
    assert rows["lowest to highest, mean of pieces"] == ["C4 to B4", "C4 to C4"]
    # Every note of b's but the first 8 makes a window that was there before.
    assert rows["heard before, % of windows of 8 notes"] == ["80.0", "80.0"]
    assert rows["in one scale, % of the notes"] == ["58", "100"]
    assert rows["distance in pitch classes, 0 to 1"] == ["", "0.917"]


def test_the_picture_shows_each_set():
    sets = {"scale": [measure(tune([60 + s for s in MAJOR]))], "one note": [measure(tune([60] * n)) for n in (9, 20)]}
    figure = compare(sets)
    assert len(figure.axes) == 8
    first, second = figure.axes[0], figure.axes[4]
    assert (first.get_ylabel(), second.get_ylabel()) == ("scale", "one note")
    assert [round(bar.get_height(), 1) for bar in second.patches].count(100.0) == 1
    assert [round(bar.get_height(), 1) for bar in first.patches].count(14.3) == 7
    # Every piece is in every histogram.
    for axes in figure.axes[5:]:
        assert sum(bar.get_height() for bar in axes.patches) == 2
