"""`decode`: windows, ends, refusals before anything runs, and leaving early."""

import gc
import math
import warnings
from collections.abc import Callable

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Error, Notice
from gpt2.generation import Engine, GenerationOptions, SamplingOptions, decode, generate, stream
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from tests.generation_models import byte_tokenizer, model, plain, scripted, small_tokenizer, window_of

GREEDY = SamplingOptions(temperature=0)
NO_END = SamplingOptions(temperature=0, logit_bias={256: -math.inf})


def ids_of(model: LanguageModel, prompts: list[list[int]], options: GenerationOptions) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for event in decode(model, prompts, options):
        if event.id is not None:
            rows[event.row].append(event.id)
    return rows


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every forward pass."""
    seen: list[tuple[int, int]] = []
    original = GPT2.hidden

    def hidden(self: GPT2, ids: torch.Tensor, cache: object = None) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return original(self, ids, cache)

    monkeypatch.setattr(GPT2, "hidden", hidden)
    return seen


def test_prompts_are_read_row_by_row_and_then_rows_step_together(reads: list[tuple[int, int]]) -> None:
    ids_of(model(), [[1, 2, 3], [4], [5, 6]], GenerationOptions(max_tokens=3, sampling=NO_END))
    # The last sampled token is never read: three tokens take two steps.
    assert reads == [(1, 3), (1, 1), (1, 2), (3, 1), (3, 1)]


def test_equal_prompts_are_read_once(reads: list[tuple[int, int]]) -> None:
    results = generate(model(), [1, 2, 3], n=5, max_tokens=2, seed=1, logit_bias={256: -100})
    assert reads == [(1, 3), (5, 1)]
    assert len({tuple(result.ids) for result in results}) > 1


def test_only_the_last_position_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    original = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        shapes.append((x.shape[:-1], weight.shape[0]))
        return original(x, weight, *bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    ids_of(model(), [[1] * 20], GenerationOptions(max_tokens=1, sampling=GREEDY))
    assert [tuple(shape) for shape, size in shapes if size == 257] == [(1,)]


def test_rows_leave_when_they_finish(reads: list[tuple[int, int]]) -> None:
    writer = scripted("ab.defghij")
    # Prompts of 1 and 3 bytes: the second stands two places further in the script, and so meets its full stop earlier.
    options = GenerationOptions(max_tokens=5, stop=".", sampling=GREEDY)
    events = list(decode(writer, [[120], [120, 120], [120] * 4], options))
    assert [(event.row, event.finish_reason) for event in events if event.finish_reason] == [
        (1, "stop"),
        (0, "stop"),
        (2, "length"),
    ]
    assert [shape for shape in reads[3:]] == [(3, 1), (2, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(("slots", "queue"), [(3, 1024), (1, 1024), (2, 1), (1, 1), (64, 2)])
def test_more_prompts_than_slots_and_than_may_wait(slots: int, queue: int) -> None:
    tiny, options = model(), GenerationOptions(max_tokens=4, seed=list(range(7)))
    prompts = [[place, 7, 9] for place in range(7)]
    whole = ids_of(tiny, prompts, options)
    assert ids_of(Engine(tiny, slots=slots, queue=queue), prompts, options) == whole


# Ends.


def test_end_of_text_ends_a_row_and_is_no_part_of_it() -> None:
    writer = scripted("Hello", end=True)
    events = list(decode(writer, [[0]], GenerationOptions(logprobs=0, sampling=GREEDY)))
    assert [event.text for event in events] == ["H", "e", "l", "l", "o", ""]
    assert events[-1].id is None
    assert events[-1].finish_reason == "stop"
    assert [event.finish_reason for event in events[:-1]] == [None] * 5
    result = generate(writer, [0], temperature=0, logprobs=0)
    assert (result.text, len(result.ids), len(result.logprobs), result.finish_reason) == ("Hello", 5, 5, "stop")


def test_end_of_text_can_be_forbidden() -> None:
    result = generate(scripted("Hi", end=True), [0], temperature=0, max_tokens=8, logit_bias={256: -math.inf})
    assert len(result.ids) == 8
    assert result.finish_reason == "length"


def test_max_tokens() -> None:
    writer = scripted("abcdef")
    for count in (1, 2, 5):
        result = generate(writer, [0], temperature=0, max_tokens=count)
        assert (result.text, result.finish_reason) == ("abcdef"[:count], "length")


def test_no_tokens_at_all(reads: list[tuple[int, int]]) -> None:
    result = generate(model(), [1, 2], max_tokens=0, logprobs=3, seed=1)
    assert (result.text, result.ids, result.finish_reason, result.logprobs) == ("", [], "length", [])
    assert [event.finish_reason for event in decode(model(), [[1], [2]], GenerationOptions(max_tokens=0))] == [
        "length"
    ] * 2
    assert reads == []


def test_an_empty_prompt_begins_at_end_of_text() -> None:
    tiny = model()
    unconditional = generate(tiny, "", seed=3, max_tokens=6)
    assert unconditional.prompt_ids == [256]
    assert unconditional.ids == generate(tiny, [256], seed=3, max_tokens=6).ids
    assert generate(tiny, [[], [256]], seed=3, max_tokens=6)[0].ids == unconditional.ids


def test_an_empty_prompt_needs_an_end_of_text() -> None:
    bare = Tokenizer.from_merges([], special_tokens={})
    with pytest.raises(BadPrompt, match="give a prompt"):
        generate(model(bare), "")
    assert len(generate(model(bare), "x", max_tokens=3, seed=1).ids) == 3


def test_broken_characters_at_the_end_are_shown_as_such() -> None:
    writer = scripted("ab🙂".encode())
    for count, text in [(2, "ab"), (3, "ab\ufffd"), (5, "ab\ufffd"), (6, "ab🙂")]:
        assert generate(writer, [0], temperature=0, max_tokens=count).text == text


def test_a_stop_string_can_be_completed_by_what_the_end_brings() -> None:
    result = generate(scripted("ab🙂".encode()), [0], temperature=0, max_tokens=4, stop="b\ufffd")
    assert (result.text, result.finish_reason, len(result.ids)) == ("a", "stop", 4)


# Windows.


def options(overflow: str, max_tokens: int, **more: object) -> GenerationOptions:
    return GenerationOptions(max_tokens=max_tokens, overflow=overflow, sampling=NO_END, **more)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8])
def test_a_full_window_slides_by_half(window: int, reads: list[tuple[int, int]]) -> None:
    tiny = model(n_positions=window)
    with pytest.warns(Notice) as notices:
        [ids] = ids_of(tiny, [[5]], options("slide", 4 * window + 3))
    assert len(notices) == 1
    keep = max(1, window // 2)
    assert f"window of {window}" in str(notices[0].message)
    assert f"first {window + 1 - keep} tokens were dropped and the newest {keep}" in str(notices[0].message)
    # Every pass of more than one token after the prompt is a re-read of the kept half.
    rereads = [tokens for _, tokens in reads[1:] if tokens > 1]
    assert set(rereads) <= {keep}
    if keep > 1:
        assert len(rereads) == math.ceil((4 * window + 2 - (window - 1)) / (window - keep + 1))
    assert ids == plain(tiny, [5], options("slide", 4 * window + 3), 0)


def test_a_window_that_is_just_filled_does_not_slide() -> None:
    """8 positions hold a prompt of 3 and 5 of the 6 new tokens; the sixth is never read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ids_of(model(n_positions=8), [[1, 2, 3]], options("slide", 6))[0]) == 6
    with pytest.warns(Notice):
        assert len(ids_of(model(n_positions=8), [[1, 2, 3]], options("slide", 7))[0]) == 7


def test_a_prompt_longer_than_the_window_keeps_its_newest_half() -> None:
    tiny, prompt = model(n_positions=8), list(range(20))
    with pytest.warns(Notice, match="first 16 tokens were dropped and the newest 4") as notices:
        [ids, same] = ids_of(tiny, [prompt, prompt[-4:]], options("slide", 12))
    assert len(notices) == 1
    assert ids == same == plain(tiny, prompt, options("slide", 12), 0)


def test_penalties_remember_what_slid_away() -> None:
    tiny, prompt = model(n_positions=8), list(range(20))
    made = GenerationOptions(max_tokens=20, sampling=SamplingOptions(0, repetition_penalty=5.0))
    with pytest.warns(Notice):
        [ids] = ids_of(tiny, [prompt], made)
    assert ids == plain(tiny, prompt, made, 0)
    assert len(set(ids)) > 15
    assert not set(ids) & set(prompt)


def test_the_notice_names_the_callers_line() -> None:
    tiny = model(n_positions=4)
    calls = [
        lambda: generate(tiny, [1], max_tokens=9, seed=1),  # slides while it runs
        lambda: list(stream(tiny, [1], max_tokens=9, seed=1)),
        lambda: generate(tiny, [1] * 5, max_tokens=1, seed=1),  # slides before it runs
        lambda: stream(tiny, [1] * 5, max_tokens=1, seed=1),
    ]
    for call in calls:
        with pytest.warns(Notice) as notices:
            call()
        assert [notice.filename for notice in notices] == [__file__]


def test_stop_ends_at_the_full_window() -> None:
    tiny = model(n_positions=8)
    events = list(decode(tiny, [[1, 2, 3], [1] * 8, [1]], options("stop", 100)))
    counts = [sum(event.row == row for event in events) for row in range(3)]
    # One token more than there is room to read: the last is never read.
    assert counts == [6, 1, 8]
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"] * 3
    assert ids_of(tiny, [[1, 2, 3]], options("stop", 100)) == ids_of(tiny, [[1, 2, 3]], options("slide", 6))


def test_a_prompt_beyond_the_window_is_refused_by_stop() -> None:
    with pytest.raises(ContextOverflow, match="9 tokens do not fit in this model's window of 8"):
        decode(model(n_positions=8), [[1], [1] * 9], options("stop", 1))


@pytest.mark.parametrize(
    ("length", "count", "fits"), [(3, 6, True), (3, 7, False), (8, 1, True), (9, 1, False), (8, 0, True), (9, 0, False)]
)
def test_error_refuses_what_could_overflow(length: int, count: int, fits: bool, reads: list[tuple[int, int]]) -> None:
    tiny = model(n_positions=8)
    if fits:
        assert len(ids_of(tiny, [[1] * length], options("error", count))[0]) == count
    else:
        with pytest.raises(ContextOverflow, match=f"prompt of {length} tokens and {count} new"):
            decode(tiny, [[1] * length], options("error", count))
        assert reads == []


# Refusals, before anything runs.


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: generate(m, [1, 257]), BadPrompt, "257 is not in the vocabulary of 257"),
        (lambda m: generate(m, [1, -1]), BadPrompt, "-1 is not"),
        (lambda m: generate(m, [1, 2.5]), BadPrompt, "2.5"),
        (lambda m: generate(m, "a\ud800"), BadPrompt, "surrogate"),
        (lambda m: generate(m, ["fine", "a\ud800"]), BadPrompt, "surrogate"),
        (lambda m: generate(m, []), BadPrompt, "empty list"),
        (lambda m: generate(m, ["a", 1]), BadPrompt, "mixes"),
        (lambda m: generate(m, [[1], 1]), BadPrompt, "mixes"),
        (lambda m: generate(m, b"bytes"), BadPrompt, "bytes"),
        (lambda m: generate(m, None), BadPrompt, "NoneType"),
        (lambda m: generate(m, 5), BadPrompt, "int"),
        (lambda m: generate(m, "a", n=0), BadOption, "n is 0"),
        (lambda m: generate(m, "a", top_p=2), BadOption, "top_p is 2"),
        (lambda m: generate(m, "a", logprobs=258), BadOption, "logprobs is 258"),
        (lambda m: generate(m, "a", logit_bias={257: 1}), BadOption, "token 257"),
        (lambda m: generate(m, ["a", "b"], seed=[1]), BadOption, "1 seeds for 2 prompts"),
        (lambda m: generate(m, "a", seed=2**63 - 1, n=2), BadOption, "seed"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    call: Callable, error: type[Error], message: str, reads: list[tuple[int, int]]
) -> None:
    with pytest.raises(error, match=message):
        call(model())
    assert reads == []


def test_a_network_that_would_drop_out_is_refused() -> None:
    tiny = model(resid_pdrop=0.1)
    tiny.network.train()
    with pytest.raises(BadOption, match="training mode"):
        generate(tiny, "a")
    tiny.network.eval()
    generate(tiny, "a", max_tokens=1)


def test_weights_that_are_nan_are_an_error_and_no_sample() -> None:
    tiny = model()
    tiny.network.ln_f.weight.data[3] = math.nan
    for temperature in (0, 1):
        with pytest.raises(Error, match="NaN"):
            generate(tiny, "a", temperature=temperature)


def test_ids_without_a_text_are_never_drawn() -> None:
    """An embedding may be padded, as nanoGPT's is, past the tokenizer's last id."""
    padded = model(vocab_size=300)
    padded.network.wte.weight.data[257:] *= 50
    result = generate(
        padded, "a", max_tokens=25, temperature=5.0, top_k=None, logprobs=257, seed=1, logit_bias={256: -100}
    )
    assert max(result.ids) < 257
    assert all(len(token.top) == 257 for token in result.logprobs)
    with pytest.raises(BadPrompt, match="257"):
        generate(padded, [257])


# Leaving early, and leaving nothing behind.


def test_inference_mode_is_on_in_the_steps_and_off_where_events_are_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    original, inside = GPT2.hidden, []

    def hidden(self: GPT2, *rest: object) -> torch.Tensor:
        inside.append(torch.is_inference_mode_enabled())
        return original(self, *rest)

    monkeypatch.setattr(GPT2, "hidden", hidden)
    for _ in decode(model(), [[1]], GenerationOptions(max_tokens=3, sampling=NO_END)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    assert inside == [True] * 3


def test_closing_ends_the_work(reads: list[tuple[int, int]]) -> None:
    events = decode(model(), [[1], [2]], GenerationOptions(max_tokens=20, sampling=NO_END))
    assert reads == []  # nothing runs until the first event is asked for
    next(events)
    events.close()
    assert reads == [(2, 1)]
    with pytest.raises(StopIteration):
        next(events)


def test_ctrl_c_passes_through_with_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, calls = scripted("abcdefgh"), []
    original = GPT2.hidden

    def hidden(self: GPT2, *rest: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(GPT2, "hidden", hidden)
    text = ""

    def consume() -> None:
        nonlocal text
        for event in decode(writer, [[0]], GenerationOptions(sampling=GREEDY)):
            text += event.text

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert text == "abcd"
    assert generate(writer, [0], temperature=0, max_tokens=3).text == "abc"


def test_many_calls_leave_no_tensors_behind() -> None:
    tiny = model()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    generate(tiny, "ab", max_tokens=3, seed=0)
    before = tensors()
    for seed in range(200):
        generate(tiny, ["ab", "c"], max_tokens=3, seed=seed, logprobs=2, repetition_penalty=1.1)
        next(decode(tiny, [[1]], GenerationOptions(max_tokens=5)))
    # Fewer: what other tests of this process had left may have gone meanwhile.
    assert tensors() <= before


def test_a_narrow_network_generates() -> None:
    tiny = model()
    tiny.network.bfloat16()
    result = generate(tiny, "ab", max_tokens=5, seed=1, logprobs=1, logit_bias={256: -100})
    assert len(result.ids) == 5


def test_the_reference_reads_what_the_rule_says() -> None:
    """The plain generation that other tests compare with, held to an example worked by hand."""
    assert window_of([1, 2, 3], [], 4) == [1, 2, 3]
    assert window_of([1, 2, 3], [4], 4) == [1, 2, 3, 4]
    assert window_of([1, 2, 3], [4, 5], 4) == [4, 5]
    assert window_of([1, 2, 3], [4, 5, 6, 7], 4) == [4, 5, 6, 7]
    assert window_of([1, 2, 3], [4, 5, 6, 7, 8], 4) == [7, 8]
    assert window_of([1, 2, 3, 4, 5], [6], 4) == [4, 5, 6]
    assert byte_tokenizer().vocab_size == 257
    assert small_tokenizer().vocab_size == 320
