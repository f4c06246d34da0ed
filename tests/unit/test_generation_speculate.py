"""The proposers by themselves: what they guess, how they follow a text that went another way, when they fall silent."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadOption
from gpt2.generation import GenerationOptions, SamplingOptions
from gpt2.generation.speculate import DraftModel, PromptLookup, Proposer, Text
from gpt2.runners.plain import PlainRunner
from tests.generation_models import model, plain, scripted, small_tokenizer

GREEDY = SamplingOptions(temperature=0)


def text(ids: Sequence[int], key: int = 0, number: int = 0, seed: int = 0, sampling: SamplingOptions = GREEDY) -> Text:
    return Text(key, list(ids), seed, number, sampling)


def one(proposer: Proposer, each: Text, most: int = 4) -> list[int]:
    [guess] = proposer.propose([each], most)
    return guess


def draft(made: LanguageModel, slots: int = 2) -> DraftModel:
    return DraftModel(made, slots, runner=PlainRunner(made.network, slots))


# Prompt look-up


def test_what_followed_the_same_ids_is_proposed() -> None:
    assert one(PromptLookup(), text([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])) == [4, 5, 6, 7]


def test_the_longest_run_wins_and_then_the_latest() -> None:
    # 8 9 was followed by 1 last, but 7 8 9 by 2.
    assert one(PromptLookup(), text([7, 8, 9, 2, 0, 8, 9, 1, 0, 7, 8, 9]), 1) == [2]
    assert one(PromptLookup(), text([8, 9, 2, 0, 8, 9, 1, 0, 7, 8, 9]), 1) == [1]


@pytest.mark.parametrize("ids", [[1], [1, 2, 3], [1, 2, 3, 2], [], [5, 1, 2, 6, 1, 3, 1]])
def test_without_an_earlier_place_there_is_nothing_to_propose(ids: list[int]) -> None:
    assert one(PromptLookup(), text(ids)) == []


def test_a_single_id_is_a_clue_only_if_that_is_asked_for() -> None:
    assert one(PromptLookup(n=1), text([4, 5, 6, 4]), 2) == [5, 6]


def test_a_copy_that_reaches_the_end_goes_on_with_itself() -> None:
    assert one(PromptLookup(), text([1, 2, 9, 1, 2, 9, 1])) == [2, 9, 1, 2]


def test_no_more_than_most_are_proposed() -> None:
    assert len(one(PromptLookup(), text([1, 2] * 9), 2)) == 2
    assert len(one(PromptLookup(most=3), text([1, 2] * 9), 100)) == 3
    assert one(PromptLookup(), text([1, 2] * 9), 0) == []


def test_texts_are_kept_apart_and_forgotten() -> None:
    lookup = PromptLookup()
    assert lookup.propose([text([1, 2, 3, 1, 2], 0), text([1, 2, 4, 1, 2], 1)], 1) == [[3], [4]]
    lookup.forget(0)
    lookup.forget(0)
    lookup.forget(77)
    assert lookup.propose([text([5, 1, 2], 0), text([1, 2, 4, 1, 2, 4], 1)], 1) == [[], [1]]


@pytest.mark.parametrize("values", [{"n": 0}, {"most": 0}, {"n": 1.5}])
def test_senseless_options_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(BadOption, match=next(iter(values))):
        PromptLookup(**values)


def found(ids: list[int], n: int) -> int | None:
    """By rescanning: where what follows the latest earlier place of the longest of the last n to 2 ids begins."""
    for size in range(n, 1, -1):
        for end in range(len(ids) - 1, size - 1, -1):
            if ids[end - size : end] == ids[-size:]:
                return end
    return None


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8), st.integers(2, 4))
def test_a_growing_text_gives_what_a_rescan_gives(pieces: list[list[int]], n: int) -> None:
    lookup, ids = PromptLookup(n), []
    for call, piece in enumerate(pieces):
        ids += piece
        guess = one(lookup, text(ids))
        place = found(ids, n)
        if place is None:
            assert guess == []
        else:
            whole = [*ids]
            for here in range(place, place + len(guess)):
                whole.append(whole[here])
            assert guess == whole[len(ids) :]
            assert guess or call >= 4  # it may have fallen silent


# Pace


def test_what_comes_true_makes_it_bolder() -> None:
    lookup, ids = PromptLookup(most=32), [1, 2, 3] * 2
    lengths = []
    for _ in range(4):
        guess = one(lookup, text(ids), 32)
        lengths.append(len(guess))
        ids += guess
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[1] < lengths[-1] == 32


def test_what_never_comes_true_is_proposed_less_and_less_and_never_quite_given_up() -> None:
    lookup, ids, calls = PromptLookup(), [], []
    for place in range(600):
        ids += [1, 2, 3 + place]  # what follows 1 2 is new every time
        calls.append(len(one(lookup, text([*ids, 1, 2]))))
    assert sum(calls[:4]) > 0
    assert max(calls[4:]) <= 1
    assert 1 <= sum(calls[300:]) <= 10


def test_one_that_fell_silent_recovers() -> None:
    lookup, ids = PromptLookup(), []
    for place in range(30):
        ids += [1, 2, 3 + place]
        one(lookup, text([*ids, 1, 2]))
    taken = 0
    for _ in range(200):
        ids += [7, 8, 9, 10]
        guess = one(lookup, text(ids), 8)
        taken += len(guess)
    assert taken > 400


# Draft model


SAMPLERS = [
    GREEDY,
    SamplingOptions(),
    SamplingOptions(1.5, None, 0.9, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3),
]


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("seed", [0, 5])
def test_it_proposes_what_it_would_write_itself_with_the_requests_seed_and_numbers(
    sampling: SamplingOptions, seed: int
) -> None:
    made = model(seed=3)
    prompt = [5, 6, 7]
    written = plain(made, prompt, GenerationOptions(max_tokens=24, sampling=sampling), seed)
    assert len(written) == 24
    drafts = draft(made)
    done = 0
    while done < 16:
        guess = one(drafts, text([*prompt, *written[:done]], number=done, seed=seed, sampling=sampling))
        assert guess == written[done : done + len(guess)]
        assert guess
        # As if all of them had been taken, and one more drawn.
        done += len(guess) + 1


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255)), min_size=1, max_size=9),
    st.sampled_from(SAMPLERS),
    st.integers(3, 24),
)
@settings(max_examples=40, deadline=None)
def test_it_follows_a_text_that_went_another_way_and_out_of_the_window(
    steps: list[tuple[int, int]], sampling: SamplingOptions, window: int
) -> None:
    """Whatever was taken of its guesses, it guesses what one that comes new to the text guesses."""
    made = model(seed=3, n_positions=window)
    prompt = [5, 6]
    old, output = draft(made), []
    for taken, other in steps:
        each = text([*prompt, *output], number=len(output), seed=9, sampling=sampling)
        guess = one(old, each)
        fresh = one(draft(made), each)
        assert fresh
        # Past the window, one that comes new and one that slid on its way hold different parts of the text.
        if len(each.ids) <= window:
            assert all(ours == theirs for ours, theirs in zip(guess, fresh, strict=False))
        output += [*guess[:taken], other]


def test_after_the_window_it_reads_what_plain_generation_reads() -> None:
    made = model(seed=3, n_positions=8)
    prompt = [5, 6, 7]
    written = plain(made, prompt, GenerationOptions(max_tokens=40, sampling=GREEDY), 0)
    drafts = draft(made)
    for done in range(len(written)):
        guess = one(drafts, text([*prompt, *written[:done]], number=done), 1)
        assert guess == written[done : done + 1]


def test_several_texts_at_once_are_guessed_as_each_alone() -> None:
    made = model(seed=3)
    texts = [
        text(range(start, start + 4 * start + 3), start, start % 3, seed=start, sampling=SAMPLERS[start % 3])
        for start in range(5)
    ]
    together = draft(made, 5).propose(texts, 2)
    assert together == [one(draft(made), each, 2) for each in texts]
    assert all(together)


def test_texts_beyond_its_slots_get_nothing_until_one_is_free() -> None:
    drafts = draft(model(seed=3), 2)
    texts = [text([5, 6, key], key) for key in range(3)]
    first = drafts.propose(texts, 1)
    assert [len(guess) for guess in first] == [1, 1, 0]
    drafts.forget(0)
    drafts.forget(99)
    assert len(one(drafts, texts[2], 1)) == 1


def test_end_of_text_is_not_proposed() -> None:
    made = scripted("ab", end=True)
    start = made.tokenizer.encode("x")
    a, b = made.tokenizer.encode("ab")
    drafts = draft(made)
    assert one(drafts, text(start)) == [a]
    assert one(drafts, text([*start, a])) == [b]  # it would have proposed two by now
    assert one(drafts, text([*start, a, b])) == []


def test_a_damaged_draft_proposes_nothing_and_is_asked_less_and_less() -> None:
    made = model(seed=3)
    made.network.ln_f.weight.data[0] = torch.nan
    reads: list[int] = []
    runner = PlainRunner(made.network, 1)
    drafts = DraftModel(made, 1, runner=runner)
    read = runner.read
    runner.read = lambda feeds: reads.append(1) or read(feeds)  # type: ignore[method-assign]
    for length in range(1, 21):
        assert one(drafts, text(range(length))) == []
    assert 4 <= len(reads) < 12


def test_another_vocabulary_is_refused_in_one_sentence() -> None:
    with pytest.raises(BadOption, match="another vocabulary") as caught:
        DraftModel(model(), 1, target=model(small_tokenizer()))
    assert str(caught.value).count(". ") == 0


def test_a_smaller_head_than_the_targets_is_refused() -> None:
    with pytest.raises(BadOption, match="another vocabulary"):
        DraftModel(model(vocab_size=5), 1, target=model())
