"""Whatever is drawn under the grammar can be played, is spelt as files are, and lasts as long as was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.music.events import END, SHIFT, VELOCITY, to_events, to_notes, vocabulary
from gpt2.music.grammar import EventGrammar
from tests.music import random_piece

encode = vocabulary().encode


def play(prompt, ticks, seed, *, may_end=False, most=20_000):
    """Events drawn at random from what is allowed, with likings that differ from event to event."""
    rng = np.random.default_rng(seed)
    liking = rng.random(END + 1) ** 4
    grammar, output = EventGrammar(prompt, ticks, may_end=may_end), []
    while len(output) < most:
        chances = grammar.allowed(output) * liking
        event = int(rng.choice(END + 1, p=chances / chances.sum()))
        if event == END:
            return output
        output.append(event)
    raise AssertionError("it never ends")


def waits(events):
    return sum(event - SHIFT + 1 for event in events if SHIFT <= event < VELOCITY)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 600), st.booleans())
def test_from_nothing(seed, ticks, may_end):
    events = play([END], ticks, seed, may_end=may_end)
    notes = to_notes(events)
    assert waits(events) == ticks or (may_end and waits(events) < ticks)
    # One spelling: but for silence at the end, which notes do not have.
    spelt = to_events(notes)
    assert np.array_equal(spelt, events[: len(spelt)])
    assert all(SHIFT <= event < VELOCITY for event in events[len(spelt) :])
    # Nothing hangs: every beginning has its end.
    assert sum(event < 128 for event in events) == sum(128 <= event < 256 for event in events) == len(notes)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(0, 120))
def test_on_from_any_place_of_a_piece(seed, ticks, cut):
    prompt = [END, *to_events(random_piece(seed)).tolist()[:cut]]
    events = play(prompt, ticks, seed)
    whole = to_notes([*prompt, *events])
    assert waits(events) == ticks
    assert whole.ends.max(initial=0) <= waits(prompt) + ticks
    sounding = EventGrammar([*prompt, *events]).sounding
    assert sounding == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, END), max_size=30), st.integers(1, 200), st.integers(0, 10**6))
def test_on_from_events_that_nobody_would_write(prompt, ticks, seed):
    events = play(prompt, ticks, seed)
    assert waits(events) == ticks
    assert EventGrammar([*prompt, *events]).sounding == []


def test_a_velocity_with_no_pitch_left_for_it_is_no_dead_end():
    mask = EventGrammar([END, *encode("v3 G9 v5")]).allowed([])
    assert mask[encode("10ms")].all()
    assert not mask[encode("G9 C4 v5")].any()


def test_an_end_begins_a_new_piece():
    grammar = EventGrammar([END, *encode("v3 C4 1000ms"), END])
    assert (grammar.now, grammar.sounding) == (0, [])
    assert not grammar.allowed([])[encode("10ms C4 /C4")].any()


def test_the_same_output_may_be_asked_about_again():
    grammar = EventGrammar([END], 100)
    output = encode("v3 C4 E4 500ms")
    first = grammar.allowed(output)
    assert np.array_equal(grammar.allowed(output), first)
    assert grammar.now == 50

    class Stopped(list):
        def __getitem__(self, key):
            def items():
                yield from encode("/C4")
                raise KeyboardInterrupt

            return type("Part", (), {"__iter__": lambda _: items(), "__len__": lambda _: 2})()

    with pytest.raises(KeyboardInterrupt):
        grammar.allowed(Stopped())
    assert grammar.sounding == [60, 64]
    assert np.array_equal(grammar.allowed(output), first)


@pytest.mark.parametrize(
    ("prompt", "allowed", "forbidden"),
    [
        ("", "v1 v32", "C4 /C4 10ms"),
        ("v3", "C4 G9", "v4 /C4 10ms"),
        ("v3 C4", "D4 v1 10ms 1000ms", "C4 B3 v3 /C4"),
        ("v3 C4 10ms", "/C4 D4 v4", "C4 /D4 10ms 1000ms v3"),
        ("v3 C4 1000ms", "/C4 10ms 1000ms", "/D4"),
        ("v3 C4 E4 10ms /E4", "E4 D4 10ms", "/C4 /E4 C4"),
        ("v3 C4 10ms /C4", "C4 v1 10ms", "/C4"),
    ],
)
def test_by_hand(prompt, allowed, forbidden):
    mask = EventGrammar([END, *encode(prompt)]).allowed([])
    assert mask[encode(allowed)].all()
    assert not mask[encode(forbidden)].any()


def test_a_piece_ends_when_nothing_sounds():
    for text, ends in (("", False), ("v3 C4 10ms", False), ("v3 C4 10ms /C4", True), ("v3 C4 10ms /C4 10ms", False)):
        assert EventGrammar([END, *encode(text)]).allowed([])[END] == ends
        assert not EventGrammar([END, *encode(text)], 100, may_end=False).allowed([])[END]


def test_the_last_moment_ends_everything_from_low_to_high():
    grammar = EventGrammar([END, *encode("v3 C4 E4 C5 10ms /E4")], 0)
    output = []
    for expected in (*encode("/C4 /C5"), END):
        assert np.flatnonzero(grammar.allowed(output)).tolist() == [expected]
        output.append(expected)
