"""Law `batch`: a row of any ragged batch and that row alone, any sampler, any batch mates: equal ids (*).

The row alone is also held to a plain generation with neither cache nor batch."""

import functools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel, load, shipped
from gpt2.errors import Notice
from gpt2.generation import Engine, GenerationOptions, SamplingOptions, generate
from gpt2.generation.sampling import gumbel_noise
from tests.generation_models import RUNNERS, SHAPE, assert_same_or_tied, model, plain, runner, small_tokenizer
from tests.helpers import in_its_words

samplers = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 5, 40]),
    top_p=st.sampled_from([None, 0.5, 0.95]),
    min_p=st.sampled_from([None, 0.02, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 0.5]),
    # A likely end of text, so that rows finish at different times; or none at all.
    logit_bias=st.sampled_from([{}, {256: 6.0}, {256: -100.0, 7: 1.0}]),
)
prompts = st.lists(st.lists(st.integers(0, 256), max_size=20), min_size=2, max_size=5)


def run(made: LanguageModel, prompt: object, sampling: SamplingOptions, **more: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # sliding is what some of these are about
        return generate(
            made,
            prompt,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            **more,
        )


def assert_rows_are_as_alone(
    made: LanguageModel, batch: list[list[int]], sampling: SamplingOptions, seeds: int | list[int], **more: object
) -> None:
    together = run(made, batch, sampling, seed=seeds, **more)
    for row, (prompt, found) in enumerate(zip(batch, together, strict=True)):
        seed = seeds if isinstance(seeds, int) else seeds[row]
        alone = run(made, [prompt], sampling, seed=seed, **more)[0]
        assert found.seed == alone.seed == seed
        assert_same_or_tied(made, found.prompt_ids, found.ids, alone.ids, sampling, seed)
        if found.ids == alone.ids:
            assert (found.text, found.finish_reason) == (alone.text, alone.finish_reason)


@given(batch=prompts, sampling=samplers, seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_batch_and_any_sampler(batch: list[list[int]], sampling: SamplingOptions, seeds: list[int]) -> None:
    assert_rows_are_as_alone(model(), batch, sampling, seeds[: len(batch)], max_tokens=10)


@given(batch=prompts, sampling=samplers, window=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rows_that_slide_each_by_itself(
    batch: list[list[int]], sampling: SamplingOptions, window: int, seed: int
) -> None:
    made = model(n_positions=window)
    assert_rows_are_as_alone(made, batch, sampling, seed, max_tokens=16)
    alone = run(made, [batch[0]], sampling, seed=seed, max_tokens=16)[0]
    slow = plain(made, alone.prompt_ids, GenerationOptions(max_tokens=16, sampling=sampling), seed)
    assert_same_or_tied(made, alone.prompt_ids, alone.ids, slow, sampling, seed)


@given(batch=prompts, overflow=st.sampled_from(["slide", "stop"]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rows_that_end_at_stop_strings_and_full_windows(batch: list[list[int]], overflow: str, seed: int) -> None:
    made = model(n_positions=24)
    more = {"max_tokens": 12, "overflow": overflow, "stop": ["a", "e ", "\n", "0"]}
    assert_rows_are_as_alone(made, batch, SamplingOptions(1.5, None), seed, **more)


def cut(prompt: list[int]) -> list[int]:
    return prompt[:20] or [256]


@pytest.mark.parametrize(("name", "dtype"), RUNNERS)
@given(
    batch=prompts,
    other=prompts,
    sampling=samplers,
    seeds=st.lists(st.integers(0, 99), min_size=5, max_size=5),
)
@settings(max_examples=15, deadline=None)
def test_every_runner_whatever_stands_beside_a_row_and_whatever_was_read_before(
    name: str, dtype: str, batch: list[list[int]], other: list[list[int]], sampling: SamplingOptions, seeds: list[int]
) -> None:
    """Alone and cold; among batch mates that join and leave; and from a prefix that is still in a slot."""
    made = runner_model()
    cold = Engine(made, runner=runner(name, dtype, made))
    warm = Engine(made, runner=runner(name, dtype, made, 3))
    run(warm, other, sampling, seed=5, max_tokens=7)
    # What the slots hold now is the beginning of what is asked for next, or of what stands beside it.
    batch = [*batch, cut(other[0]) + cut(batch[0]), [*cut(batch[0]), 3, 4]]
    together = run(warm, batch, sampling, seed=[*seeds, 7, 8][: len(batch)], max_tokens=8)
    for prompt, found in zip(batch, together, strict=True):
        fresh = Engine(made, runner=cold.runner)
        for slot in range(cold.runner.slots):
            cold.runner.rewind(slot, 0)
        alone = run(fresh, [prompt], sampling, seed=found.seed, max_tokens=8)[0]
        if warm.runner.batch_invariant:
            assert (found.ids, found.text, found.finish_reason) == (alone.ids, alone.text, alone.finish_reason)
        else:
            assert_same_or_tied(made, found.prompt_ids, found.ids, alone.ids, sampling, found.seed)


@functools.cache
def runner_model() -> LanguageModel:
    return model(n_positions=64, **SHAPE)


def test_equal_prompts_with_one_seed_are_equal() -> None:
    results = generate(model(), [[1, 2, 3]] * 4, seed=11, max_tokens=20)
    assert all(result == results[0] for result in results)


def test_rows_do_finish_at_different_times() -> None:
    """So that the tests above are about something."""
    batch = [[place] for place in range(30)]
    results = generate(
        model(), batch, temperature=2.0, top_k=None, seed=range(30), max_tokens=10, logit_bias={256: 6.0}
    )
    assert len({len(result.ids) for result in results}) > 3
    assert {result.finish_reason for result in results} == {"stop", "length"}


def test_texts_in_a_batch() -> None:
    made = model(small_tokenizer())
    texts = ["The cat", "the dog sat on the mat and", "🙂", "", "naïve"]
    for row, result in zip(texts, generate(made, texts, seed=5, max_tokens=15), strict=True):
        alone = generate(made, row, seed=5, max_tokens=15)
        assert_same_or_tied(made, alone.prompt_ids, result.ids, alone.ids, SamplingOptions(), 5)


@pytest.mark.parametrize("name", shipped() or ["none"])
def test_the_shipped_models(name: str) -> None:
    if name == "none":
        pytest.skip("left out: no model is shipped yet")
    made = load(name)
    texts = in_its_words(made, "The old man", "It was a dark night, and", "", "“No,” said she")
    batch = [made.tokenizer.encode(text) for text in texts]
    for sampling in (SamplingOptions(0), SamplingOptions(), SamplingOptions(1.0, None, 0.95, repetition_penalty=1.2)):
        assert_rows_are_as_alone(made, batch, sampling, 7, max_tokens=20)


# The check of (*) itself: it must refuse a difference that no tie explains, and take one that a tie explains.


def test_a_difference_without_a_tie_is_refused() -> None:
    made, sampling = model(), SamplingOptions(1.0, 20, repetition_penalty=1.1)
    ids = run(made, [[1, 2]], sampling, seed=3, max_tokens=6)[0].ids
    for place in range(6):
        for other in ([*ids[:place], (ids[place] + 1) % 256, *ids[place + 1 :]], ids[:place]):
            with pytest.raises(AssertionError):
                assert_same_or_tied(made, [1, 2], ids, other, sampling, 3)
    with pytest.raises(AssertionError):
        assert_same_or_tied(made, [1, 2], ids, [(ids[0] + 1) % 256], SamplingOptions(0), 3)


def test_a_difference_at_a_tie_is_taken() -> None:
    made = model()
    made.network.wte.weight.data[5] = made.network.wte.weight.data[4] * (1 + 1e-7)
    assert_same_or_tied(made, [1, 2], [4], [5], SamplingOptions(0), 3)
    # Sampled: find a seed where two tokens with equal logits also have the highest sums, by raising both.
    sampling = SamplingOptions(1.0, None, logit_bias={4: 50.0, 5: 50.0})
    noise = gumbel_noise([3], [0], torch.arange(257)[None])[0]
    gap = float(noise[4] - noise[5])
    level = SamplingOptions(1.0, None, logit_bias={4: 50.0, 5: 50.0 + gap})
    assert_same_or_tied(made, [1, 2], [4], [5], level, 3)
    with pytest.raises(AssertionError):
        assert_same_or_tied(made, [1, 2], [4], [5], sampling, 3)
