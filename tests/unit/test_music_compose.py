"""Music from a model: playable, as long as asked, seed for seed, past the window, on from a primer."""

import numpy as np
import pytest
import torch

from gpt2.errors import BadCheckpoint, BadOption, BadPrompt, Notice
from gpt2.generation import Engine
from gpt2.music import generate
from gpt2.music.events import END, OFF, SHIFT, VELOCITY, to_events
from gpt2.music.notes import Notes
from tests.helpers import tiny_model
from tests.music import notes_of, random_piece, tiny_music_model

MODEL = tiny_music_model(window=1024)


def ticks(events):
    return sum(event - SHIFT + 1 for event in events if SHIFT <= event < VELOCITY)


def test_from_nothing_it_lasts_as_long_as_asked():
    for seconds in (0.01, 2.0):
        piece = generate(MODEL, seconds=seconds, seed=1)
        assert ticks(piece.events) == round(100 * seconds)
        assert piece.primer_ticks == 0
        spelt = to_events(piece.notes)
        assert np.array_equal(spelt, piece.events[: len(spelt)])


def test_on_from_a_primer_which_stays_as_it_is():
    primer = random_piece(1, notes=20)
    piece = generate(MODEL, primer, seconds=1.5, seed=2)
    given = primer.from_start()
    assert piece.primer_ticks == round(100 * given.seconds)
    begun = piece.notes.onsets < piece.primer_ticks
    assert np.array_equal(piece.notes.onsets[begun], given.onsets)
    assert np.array_equal(piece.notes.pitches[begun], given.pitches)
    assert np.array_equal(piece.notes.velocities[begun], given.velocities)
    assert ticks(piece.events) == 150
    assert piece.notes.seconds <= given.seconds + 1.5


def test_part_of_a_primer():
    primer = random_piece(1, notes=20)
    piece = generate(MODEL, primer, seconds=0.5, primer_seconds=1.0, seed=2)
    part = primer.from_start().between(0, 100)
    assert piece.primer_ticks == part.ends.max()
    assert np.array_equal(piece.notes.pitches[piece.notes.onsets < piece.primer_ticks], part.pitches)
    with pytest.raises(BadOption, match="there is none"):
        generate(MODEL, primer_seconds=1.0)


def test_what_the_model_reads_of_a_primer():
    engine = Engine(MODEL)
    read = []
    prepare = engine.prepare
    engine.prepare = lambda prompt, *rest, **more: read.append(list(prompt)) or prepare(prompt, *rest, **more)
    primer = random_piece(1, notes=3)
    generate(engine, primer, seconds=0.1, seed=1)
    assert read == [[END, *to_events(primer.from_start())]]


def test_a_primer_that_is_longer_than_the_window_is_told():
    small = tiny_music_model(window=64)
    with pytest.warns(Notice, match="more than the model's window of 64: the newest 32 of them are read"):
        piece = generate(small, random_piece(1), seconds=1, seed=1)
    assert ticks(piece.events) == 100


def test_a_seed_makes_a_piece_again_and_several_are_as_alone():
    alone = [generate(MODEL, seconds=1, seed=seed) for seed in (5, 6)]
    both = generate(MODEL, seconds=1, seed=5, n=2)
    assert [piece.events for piece in both] == [piece.events for piece in alone]
    assert [piece.seed for piece in both] == [5, 6]
    assert both[0].events != both[1].events
    drawn = generate(MODEL, seconds=1)
    assert generate(MODEL, seconds=1, seed=drawn.seed).events == drawn.events


def test_past_the_window_it_goes_on():
    small = tiny_music_model(window=64)
    piece = generate(small, seconds=20, seed=1)
    assert len(piece.events) > 128
    assert ticks(piece.events) == 2000
    spelt = to_events(piece.notes)
    assert np.array_equal(spelt, piece.events[: len(spelt)])


def test_it_may_end_by_itself():
    eager = tiny_music_model(window=1024)
    with torch.no_grad():
        # A model that likes nothing better than to end: first the notes, then the piece.
        eager.network.wte.weight[OFF:SHIFT] = eager.network.wte.weight[END]
        eager.network.ln_f.bias += 5 * eager.network.wte.weight[END]
    ended = generate(eager, seconds=30, seed=1, n=4, may_end=True)
    assert max(piece.notes.seconds for piece in ended) < 30
    assert all(END not in piece.events for piece in ended)
    kept = generate(eager, seconds=3, seed=1)
    assert ticks(kept.events) == 300


def test_the_text_of_a_piece_is_its_events():
    piece = generate(MODEL, seconds=0.5, seed=1)
    assert MODEL.tokenizer.encode(piece.text) == piece.events


def test_progress_is_told():
    told = []
    pieces = generate(MODEL, random_piece(1, notes=5), seconds=1, seed=1, n=2, progress=told.append)
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert told[0] < 0.5
    # Of the shortest: there are as many tellings below 1 as it takes both to get there.
    assert sum(value < 1 for value in told) > 1.5 * min(len(piece.events) for piece in pieces)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seconds": 0}, "seconds is 0, but"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 1e6}, "3600 at most"),
        ({"primer_seconds": -1, "primer": notes_of((0, 1, 60, 64))}, "primer_seconds is -1"),
        ({"primer_seconds": float("inf"), "primer": notes_of((0, 1, 60, 64))}, "primer_seconds is inf"),
        ({"n": 0}, "n is 0"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused(values, said):
    with pytest.raises(BadOption, match=said):
        generate(MODEL, **values)


def test_a_primer_without_notes_and_a_model_of_text_are_refused():
    empty = np.zeros(0, dtype=np.int64)
    with pytest.raises(BadPrompt, match="no notes"):
        generate(MODEL, Notes(empty, empty, empty, empty))
    for model in (tiny_model(), Engine(tiny_model())):
        with pytest.raises(BadCheckpoint, match="no model of music"):
            generate(model)
