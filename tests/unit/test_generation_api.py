"""What people call, and the shape of what they get."""

import math

import numpy as np
import pytest
import torch

from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Error
from gpt2.generation import Candidate, Completion, generate, next_tokens, stream
from tests.generation_models import model, scripted, small_tokenizer


def test_one_prompt_gives_one_completion_and_more_give_a_list() -> None:
    tiny, options = model(small_tokenizer()), {"max_tokens": 4, "seed": 5}
    one = generate(tiny, "the cat", **options)
    assert isinstance(one, Completion)
    ids = tiny.tokenizer.encode("the cat")
    assert one.prompt_ids == ids
    assert one.seed == 5
    assert one.logprobs is None
    for form in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert generate(tiny, form, **options) == one
    for batch in (["the cat"], ("the cat",), [ids], [tuple(ids)], [np.array(ids)], torch.tensor([ids])):
        assert generate(tiny, batch, **options) == [one]
    assert generate(tiny, "the cat", n=2, **options)[0] == one


def test_n_completions_stand_prompt_by_prompt_and_count_seeds_up() -> None:
    tiny = model()
    options = {"max_tokens": 5, "logit_bias": {256: -100}}
    several = generate(tiny, ["ab", "cd"], n=3, seed=[10, 20], **options)
    assert [result.seed for result in several] == [10, 11, 12, 20, 21, 22]
    assert [bytes(result.prompt_ids) == bytes(several[0].prompt_ids) for result in several] == [True] * 3 + [False] * 3
    for result in several:
        assert result == generate(tiny, result.prompt_ids, seed=result.seed, **options)
    assert [result.seed for result in generate(tiny, ["ab", "cd"], n=2, seed=7, **options)] == [7, 8, 7, 8]


def test_a_drawn_seed_is_reported_and_makes_the_text_again() -> None:
    tiny = model()
    twins = generate(tiny, ["ab", "ab"], max_tokens=12)
    assert twins[0].seed != twins[1].seed
    assert twins[0].ids != twins[1].ids
    for twin in twins:
        assert generate(tiny, "ab", max_tokens=12, seed=twin.seed) == twin


def test_logprobs_are_the_models_own() -> None:
    """As a plain forward pass has them, whatever the sampler does to the logits."""
    tiny = model()
    result = generate(
        tiny, [1, 2, 3], max_tokens=8, seed=3, logprobs=4, temperature=2.0, top_k=5, repetition_penalty=1.5,
        presence_penalty=0.5, logit_bias={256: -100, 9: 2.0},
    )  # fmt: skip
    assert [token.id for token in result.logprobs] == result.ids
    with torch.no_grad():
        expected = tiny.network(torch.tensor([[1, 2, 3, *result.ids]]))[0].log_softmax(-1)
    for place, token in enumerate(result.logprobs, 2):
        assert token.token == tiny.tokenizer.decode([token.id])
        assert math.isclose(token.logprob, expected[place, token.id], abs_tol=1e-4)
        best = expected[place].topk(4)
        assert [id for _, id, _ in token.top] == best.indices.tolist()
        np.testing.assert_allclose([value for _, _, value in token.top], best.values, atol=1e-4)
        assert [text for text, _, _ in token.top] == [tiny.tokenizer.decode([id]) for _, id, _ in token.top]


def test_no_alternatives_but_the_tokens_own() -> None:
    result = generate(model(), "ab", max_tokens=3, seed=3, logprobs=0, logit_bias={256: -100})
    assert [token.top for token in result.logprobs] == [(), (), ()]
    assert all(token.logprob < 0 for token in result.logprobs)


def test_ids_under_a_trimmed_stop_string_are_kept() -> None:
    result = generate(scripted("one. two"), [0], temperature=0, stop=[". t", "zzz"])
    assert result.text == "one"
    assert bytes(ord(c) for c in "one. t") == scripted("x").tokenizer.decode_bytes(result.ids)
    assert result.finish_reason == "stop"


def test_a_stop_string_wins_over_max_tokens_at_the_same_token() -> None:
    assert generate(scripted("ab."), [0], temperature=0, stop=".", max_tokens=3).finish_reason == "stop"
    assert generate(scripted("ab."), [0], temperature=0, stop=".", max_tokens=2).finish_reason == "length"


def test_text_held_back_comes_when_the_end_shows_that_it_was_no_stop_string() -> None:
    assert generate(scripted("ab E"), [0], temperature=0, stop="END", max_tokens=4).text == "ab E"
    assert generate(scripted("ab EN", end=True), [0], temperature=0, stop="END").text == "ab EN"


def test_the_literal_end_of_text_in_a_prompt_is_text() -> None:
    tiny = model(small_tokenizer())
    assert tiny.tokenizer.end_of_text not in generate(tiny, "<|endoftext|>", max_tokens=1, seed=1).prompt_ids


def test_stream_checks_when_it_is_called() -> None:
    with pytest.raises(BadOption, match="top_p"):
        stream(model(), "a", top_p=3)
    with pytest.raises(BadPrompt, match="one prompt"):
        stream(model(), ["a", "b"])
    with pytest.raises(ContextOverflow):
        stream(model(n_positions=4), "abcde", overflow="error")


def test_stream_is_lazy_and_gives_no_empty_pieces() -> None:
    pieces = stream(scripted("🙂ab".encode()), [0], temperature=0, max_tokens=12)
    assert iter(pieces) is pieces
    assert list(pieces) == ["🙂", "a", "b", "🙂", "a", "b"]


def test_next_tokens_are_the_softmax_of_the_logits() -> None:
    tiny = model(small_tokenizer())
    ids = tiny.tokenizer.encode("the cat sat on the")
    with torch.no_grad():
        expected = tiny.network(torch.tensor([ids]))[0, -1].double().softmax(-1)
    found = next_tokens(tiny, "the cat sat on the", 7)
    assert isinstance(found[0], Candidate)
    assert [candidate.id for candidate in found] == expected.topk(7).indices.tolist()
    np.testing.assert_allclose([candidate.probability for candidate in found], expected.topk(7).values, rtol=1e-4)
    again = next_tokens(tiny, ids, 7)
    assert [candidate.token for candidate in again] == [candidate.token for candidate in found]
    everything = next_tokens(tiny, ids, 10**6)
    assert len(everything) == 320
    assert math.isclose(sum(candidate.probability for candidate in everything), 1, rel_tol=1e-5)


def test_next_tokens_refuses_what_it_cannot_answer() -> None:
    tiny = model(n_positions=4)
    with pytest.raises(ContextOverflow, match="5 tokens"):
        next_tokens(tiny, "abcde")
    with pytest.raises(BadOption, match="n is 0"):
        next_tokens(tiny, "a", 0)
    with pytest.raises(BadPrompt, match="one prompt"):
        next_tokens(tiny, ["a", "b"])
    assert len(next_tokens(tiny, "")) == 10
    tiny.network.ln_f.bias.data[0] = math.nan
    with pytest.raises(Error, match="NaN"):
        next_tokens(tiny, "a")
