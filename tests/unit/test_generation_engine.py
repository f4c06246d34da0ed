"""The engine: who runs when, what is read only once, leaving at any stage, guesses, errors of one row, and load."""

import gc
import math
import random
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadOption, BadPrompt, Busy, ContextOverflow, Error, Notice
from gpt2.generation import (
    Engine,
    Event,
    GenerationOptions,
    Request,
    SamplingOptions,
    Text,
    complete,
    decode,
    generate,
    stream,
)
from gpt2.runners import Feed
from gpt2.runners.plain import PlainRunner
from tests.generation_models import model

GREEDY = SamplingOptions(temperature=0)
ENDLESS = {256: -math.inf}
NO_END = SamplingOptions(1.0, 20, logit_bias=ENDLESS)


class Watched(PlainRunner):
    """A plain runner that remembers what it was asked for, and can spoil the logits of slots."""

    def __init__(self, made: LanguageModel, slots: int) -> None:
        super().__init__(made.network, slots)
        self.steps: list[list[tuple[int, int]]] = []  # of every read, each feed's slot and number of tokens
        self.copies: list[tuple[int, int, int]] = []
        self.spoil: Callable[[Feed], bool] = lambda feed: False
        self.before: Callable[[], None] = lambda: None

    def read(self, feeds: Sequence[Feed]) -> torch.Tensor:
        self.before()
        self.steps.append([(feed.slot, len(feed.ids)) for feed in feeds])
        logits = super().read(feeds)
        place = 0
        for feed in feeds:
            if feed.logits and self.spoil(feed):
                logits[place + feed.logits - 1, 3] = math.nan
            place += feed.logits
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        self.copies.append((source, target, length))
        super().copy(source, target, length)


def watched(made: LanguageModel, slots: int = 4, **options: object) -> tuple[Engine, Watched]:
    runner = Watched(made, slots)
    return Engine(made, runner=runner, **options), runner


def run(engine: Engine) -> None:
    while engine.step():
        pass


def options(max_tokens: int = 5, **more: object) -> GenerationOptions:
    return GenerationOptions(**{"max_tokens": max_tokens, "sampling": NO_END, "seed": 1, **more})


def numbers(count: int, start: int = 0) -> list[int]:
    return [(start + 7 * place) % 256 for place in range(count)]


# Joining and leaving.


def test_a_request_tells_what_it_was_asked_and_what_came() -> None:
    made = model()
    engine, _ = watched(made)
    request = engine.submit([1, 2], options(4), seed=9, row=3)
    assert (request.prompt, request.output, request.seed, request.done, engine.waiting) == ([1, 2], [], 9, False, 1)
    run(engine)
    assert (
        request.output == generate(made, [1, 2], max_tokens=4, seed=9, top_k=20, temperature=1, logit_bias=ENDLESS).ids
    )
    events = list(request.events)
    assert [event.id for event in events] == request.output
    assert [event.row for event in events] == [3] * 4
    assert (request.done, request.finish_reason, events[-1].finish_reason) == (True, "length", "length")
    assert (engine.waiting, engine.busy) == (0, 0)


def test_requests_join_and_leave_between_steps() -> None:
    engine, runner = watched(model(), 2)
    first = engine.submit([1, 2, 3], options(3))
    engine.step()
    second = engine.submit([4, 5], options(5))
    third = engine.submit([6], options(2))
    run(engine)
    # The third takes the first one's slot as soon as it has left.
    assert runner.steps[:4] == [[(0, 3)], [(0, 1), (1, 2)], [(0, 1), (1, 1)], [(1, 1), (0, 1)]]
    assert [len(request.output) for request in (first, second, third)] == [3, 5, 2]


def test_a_long_prompt_holds_nobody_up() -> None:
    made = model(n_positions=1024)
    engine, runner = watched(made, 3)
    running = engine.submit([1], options(100))
    engine.step()
    long, other = engine.submit(numbers(1000), options(1)), engine.submit(numbers(300, 9), options(1))
    before = len(running.output)
    run(engine)
    pieces = [[size for _, size in step] for step in runner.steps[1:]]
    assert pieces[:6] == [[1, 256], [1, 256], [1, 256], [1, 232, 24], [1, 256], [1, 20]]
    assert before == 1
    for request, prompt in ((long, numbers(1000)), (other, numbers(300, 9))):
        assert (
            request.output
            == generate(made, prompt, max_tokens=1, seed=1, top_k=20, temperature=1, logit_bias=ENDLESS).ids
        )


def test_a_long_prompt_alone_is_read_in_one_piece() -> None:
    engine, runner = watched(model(n_positions=1024))
    engine.submit(numbers(1000), options(2))
    run(engine)
    assert runner.steps == [[(0, 1000)], [(0, 1)]]


def test_the_queue_is_bounded_and_callers_feed_themselves_through() -> None:
    made = model()
    engine, _ = watched(made, 1, queue=2)
    engine.submit([1], options())
    engine.submit([2], options())
    with pytest.raises(Busy, match="2 requests are waiting"):
        engine.submit([3], options())
    assert engine.submit([3], options(0)).done  # which needs no slot
    results = generate(engine, [[place] for place in range(9)], seed=1, max_tokens=3)
    assert [result.ids for result in results] == [
        generate(made, [place], seed=1, max_tokens=3).ids for place in range(9)
    ]


# Prefixes.


def test_equal_prompts_are_read_once_and_share_their_logits() -> None:
    engine, runner = watched(model())
    requests = [engine.submit([1, 2, 3], options(2), seed=seed) for seed in range(4)]
    run(engine)
    assert runner.steps == [[(0, 3)], [(0, 1), (1, 1), (2, 1), (3, 1)]]
    assert engine.statistics.reused == 9
    assert len({tuple(request.output) for request in requests}) > 1


def test_the_next_turn_reads_only_what_is_new() -> None:
    made = model(n_positions=64)
    engine, runner = watched(made)
    first = engine.submit(numbers(20), options(5))
    run(engine)
    runner.steps.clear()
    turn = [*first.prompt, *first.output, 7, 8]
    second = engine.submit(turn, options(3))
    run(engine)
    # Everything but the last word of the answer, which was never read, and the two new ones.
    assert runner.steps[0] == [(0, 3)]
    assert engine.statistics.reused == 24
    assert second.output == complete(Engine(made), [turn], options(3))[0].ids


def test_only_an_unmoved_prefix_is_used_again() -> None:
    engine, runner = watched(model(n_positions=64))
    engine.submit(numbers(20), options(1))
    run(engine)
    runner.steps.clear()
    engine.submit(numbers(20)[1:], options(1))  # the same words, one place further to the front
    run(engine)
    assert runner.steps[0] == [(1, 19)]
    assert engine.statistics.reused == 0


def test_a_prefix_in_a_busy_slot_is_copied() -> None:
    made = model(n_positions=64)
    engine, runner = watched(made)
    system = numbers(30)
    first = engine.submit([*system, 1], options(20))
    engine.step()
    second = engine.submit([*system, 2, 3], options(4))
    run(engine)
    assert runner.copies == [(0, 1, 30)]
    assert runner.steps[1] == [(0, 1), (1, 2)]
    for request in (first, second):
        assert request.output == complete(Engine(made), [request.prompt], request.options)[0].ids


def test_a_prefix_that_another_is_reading_is_waited_for() -> None:
    made = model(n_positions=1024)
    engine, runner = watched(made)
    system = numbers(600)
    prompts = [[*system, 1], [*system, 2, 2], [*system, 3]]
    running = engine.submit([9], options(8))
    engine.step()
    requests = [engine.submit(prompt, options(2)) for prompt in prompts]
    run(engine)
    read = sum(size for step in runner.steps for _, size in step)
    assert read < 601 + 3 + 3 + 20
    assert {(source, length) for source, _, length in runner.copies} == {(1, 600)}
    for request in (*requests, running):
        assert request.output == complete(Engine(made), [request.prompt], request.options)[0].ids


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_those_who_wait_for_one_that_leaves_read_for_themselves(steps: int) -> None:
    made = model(n_positions=1024)
    engine, runner = watched(made)
    engine.submit([9], options(12))
    engine.step()
    leader = engine.submit(numbers(600), options(3))
    equal, longer = engine.submit(numbers(600), options(3), seed=2), engine.submit([*numbers(600), 5], options(3))
    for _ in range(steps):
        engine.step()
    engine.cancel(leader)
    run(engine)
    for request in (equal, longer):
        fresh = Engine(made)
        alone = fresh.submit(request.prompt, request.options, seed=request.seed)
        run(fresh)
        assert request.output == alone.output
    # What the leader had read is kept, and the rest is read by one of them for both.
    assert sum(size for step in runner.steps for _, size in step) < 640


def test_a_long_text_is_not_given_up_for_a_short_prefix() -> None:
    engine, runner = watched(model(n_positions=64))
    engine.submit(numbers(40), options(1))
    run(engine)
    engine.submit([*numbers(4), 99], options(1))
    run(engine)
    assert runner.copies == [(0, 1, 4)]
    engine.submit([*numbers(40), 5], options(1))
    run(engine)
    assert runner.steps[-1] == [(0, 1)]


def test_many_texts_in_a_row_use_few_slots() -> None:
    engine, runner = watched(model(), 20)
    for start in range(30):
        engine.submit(numbers(9, start), options(2))
        run(engine)
    assert {slot for step in runner.steps for slot, _ in step} == {0, 1}


def test_weights_that_change_are_noticed() -> None:
    made, prompt = model(), numbers(12)
    before = generate(made, prompt, max_tokens=6, temperature=0, seed=1)
    kept = made.memo["engine"]
    assert generate(made, prompt, max_tokens=6, temperature=0, seed=1) == before
    assert made.memo["engine"] is kept
    with torch.no_grad():
        made.network.h[0].attn.c_attn.weight.neg_()
    after = generate(made, prompt, max_tokens=6, temperature=0)
    assert made.memo["engine"] is not kept
    assert after.ids == generate(LanguageModel(made.network, made.tokenizer), prompt, max_tokens=6, temperature=0).ids
    assert after.ids != before.ids


# Leaving.


@pytest.mark.parametrize("stage", ["queued", "reading", "following", "decoding"])
def test_cancelling_frees_the_slot_at_once(stage: str) -> None:
    engine, _ = watched(model(n_positions=1024), 2)
    running = engine.submit([1], options(30))
    engine.step()
    reader = engine.submit(numbers(600), options(5))
    if stage == "following":
        engine.cancel(running)
        follower = engine.submit(numbers(600), options(5), seed=3)
        again = engine.submit([2], options(100))
        engine.step()
        target = follower
        del again
    elif stage == "queued":
        engine.step()
        target = engine.submit([5], options(5))
    else:
        engine.step()
        target = running if stage == "decoding" else reader
    waiting = engine.submit([7, 8], options(3))
    busy, count = engine.busy, len(target.events)
    engine.cancel(target)
    assert target.done
    assert target.cancelled
    assert target.finish_reason is None
    assert engine.busy == busy - (stage != "queued")
    run(engine)
    assert len(target.events) == count
    assert waiting.finish_reason == "length"
    assert engine.busy == engine.waiting == 0
    engine.cancel(target)  # once more is no error
    engine.cancel(waiting)
    assert not waiting.cancelled


def test_a_stream_that_is_not_read_to_its_end_frees_its_slot() -> None:
    made = model()
    engine, _ = watched(made)
    pieces = stream(engine, [1], max_tokens=20, seed=1)
    next(pieces)
    assert engine.busy == 1
    pieces.close()
    assert engine.busy == 0
    events = decode(engine, [[1], [2]], options(20))
    next(events)
    assert engine.busy == 2
    del events
    gc.collect()
    assert engine.busy == 0


def test_a_cancellation_while_a_step_runs_takes_effect_when_it_ends() -> None:
    engine, runner = watched(model())
    first, second = engine.submit([1], options(9)), engine.submit([2], options(9))
    engine.step()
    runner.before = lambda: engine.cancel(first)
    engine.step()
    assert (engine.busy, len(first.events)) == (1, 1)
    run(engine)
    assert len(second.output) == 9


# One row's errors.


def test_nan_in_one_row_ends_that_row_alone() -> None:
    made = model()
    engine, runner = watched(made)
    prompts = [[1, 2], [3, 4], [5, 6]]
    whole = [complete(Engine(made), [prompt], options(8))[0] for prompt in prompts]
    runner.spoil = lambda feed: feed.slot == 1 and runner.length(1) == 5
    results = complete(engine, prompts, options(8))
    assert [result.finish_reason for result in results] == ["length", "error", "length"]
    assert "NaN" in results[1].error
    assert results[1].ids == whole[1].ids[:3]
    assert results[1].text == made.tokenizer.decode(results[1].ids)
    assert [results[0], results[2]] == [whole[0], whole[2]]
    # Nothing of it is kept: the next text in that slot is as good as any.
    runner.spoil = lambda feed: False
    assert complete(engine, prompts, options(8)) == whole
    # Alone, it is an error.
    runner.spoil = lambda feed: True
    with pytest.raises(Error, match="NaN"):
        generate(engine, [1, 2], seed=1)
    with pytest.raises(Error, match="NaN"):
        list(stream(engine, [1, 2], seed=1))
    assert engine.busy == 0


def test_an_error_of_many_rows_is_each_ones_own() -> None:
    engine, runner = watched(model())
    runner.spoil = lambda feed: True
    results = generate(engine, [1, 2, 3], n=3, seed=1)
    assert [result.finish_reason for result in results] == ["error"] * 3
    nothing = generate(engine, [[1], [2]], logit_bias=dict.fromkeys(range(257), -math.inf), seed=1)
    assert [result.finish_reason for result in nothing] == ["error"] * 2


@pytest.mark.parametrize("guessing", [False, True])
def test_an_interrupted_step_can_be_taken_again(guessing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops a step in the middle, those whom it was not about go on as if nothing had been."""
    made = model(n_positions=16)
    prompts = [[1, 2, 3], [1, 2, 3], [4], numbers(9)]
    expected = [complete(made, [prompt], options(40, overflow="stop"))[0].ids for prompt in prompts]
    oracle = Oracle(made, wrong=5)
    for prompt in prompts:
        oracle.ask(prompt, options())
    engine, _ = watched(made, proposer=oracle if guessing else None)
    requests = [engine.submit(prompt, options(40, overflow="stop")) for prompt in prompts]
    luck = random.Random(3)
    original = torch.nn.functional.linear

    def unlucky(*arguments: object) -> torch.Tensor:
        if luck.random() < 0.02:
            raise KeyboardInterrupt
        return original(*arguments)

    from gpt2.generation import rows

    original_draw = rows.draw

    def unlucky_draw(*arguments: object) -> list:
        if luck.random() < 0.2:
            raise KeyboardInterrupt
        return original_draw(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", unlucky)
    monkeypatch.setattr(rows, "draw", unlucky_draw)
    interrupted = 0
    while not all(request.done for request in requests):
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted > 5
    assert [request.output for request in requests] == expected


# Guesses.


class Oracle:
    """Proposes what plain generation gives, but for every `wrong`-th token; or nonsense."""

    def __init__(self, made: LanguageModel, wrong: int = 0) -> None:
        self._made, self._wrong, self._known = made, wrong, {}
        self.calls: list[list[Text]] = []
        self.forgotten: list[int] = []

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        self.calls.append(list(texts))
        return [self._one(text, most) for text in texts]

    def _one(self, text: Text, most: int) -> list[int]:
        prompt, output = list(text.ids[: len(text.ids) - text.number]), list(text.ids[len(text.ids) - text.number :])
        answer = self.ask(prompt, GenerationOptions(sampling=text.sampling, seed=text.seed))
        rest = answer[len(output) : len(output) + most]
        if self._wrong:
            rest = [(id + 1) % 256 if (text.number + place) % self._wrong == 0 else id for place, id in enumerate(rest)]
        return rest

    def ask(self, prompt: list[int], asked: GenerationOptions) -> list[int]:
        key = (tuple(prompt), asked.seed)
        if key not in self._known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Notice)
                self._known[key] = complete(self._made, [prompt], replace(asked, max_tokens=60))[0].ids
        return self._known[key]

    def forget(self, key: int) -> None:
        self.forgotten.append(key)


class Nonsense(Oracle):
    def _one(self, text: Text, most: int) -> list[int]:
        return [(text.ids[-1] * 31 + place) % 257 for place in range(most)]


def samplers() -> list[SamplingOptions]:
    return [
        GREEDY,
        SamplingOptions(1.0, 20),
        SamplingOptions(1.2, None, 0.9, repetition_penalty=1.3),
        SamplingOptions(0.9, None, None, 0.02, presence_penalty=0.5, frequency_penalty=0.4),
        SamplingOptions(1.5, None, logit_bias={256: 3.0}),
    ]


@pytest.mark.parametrize("proposer", [lambda m: Oracle(m), lambda m: Oracle(m, 3), lambda m: Nonsense(m)])
@pytest.mark.parametrize("sampling", samplers(), ids=str)
@pytest.mark.parametrize("overflow", ["slide", "stop"])
@pytest.mark.filterwarnings("ignore::gpt2.errors.Notice")
def test_guesses_change_nothing_but_the_number_of_steps(
    proposer: Callable, sampling: SamplingOptions, overflow: str
) -> None:
    made = model(n_positions=24)
    asked = GenerationOptions(
        max_tokens=40, seed=[3, 4, 5], logprobs=2, overflow=overflow, sampling=sampling, stop=["\x07", "a\n"]
    )
    prompts = [[1, 2, 3], [40], numbers(15)]
    plain, plain_runner = watched(made)
    guessing, runner = watched(made, proposer=proposer(made))
    expected, found = complete(plain, prompts, asked), complete(guessing, prompts, asked)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.ids, ours.text, ours.finish_reason) == (theirs.ids, theirs.text, theirs.finish_reason)
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert math.isclose(one.logprob, other.logprob, abs_tol=1e-4)
            assert [id for _, id, _ in one.top] == [id for _, id, _ in other.top]
    assert len(runner.steps) <= len(plain_runner.steps)
    counts = guessing.statistics
    assert counts.generated == plain.statistics.generated
    assert 0 <= counts.accepted <= counts.proposed


def test_right_guesses_save_steps_and_are_counted() -> None:
    made = model(n_positions=64)
    oracle = Oracle(made)
    engine, runner = watched(made, proposer=oracle)
    request = engine.submit([1, 2], options(41))
    run(engine)
    assert request.output == complete(made, [[1, 2]], options(41))[0].ids
    # One for the prompt, and then seventeen tokens a step: sixteen guesses and the draw behind them.
    assert [size for [(_, size)] in runner.steps] == [2, 17, 17, 6]
    assert (engine.statistics.proposed, engine.statistics.accepted) == (37, 37)
    assert oracle.forgotten == [oracle.calls[0][0].key]
    assert [text.number for [text] in oracle.calls] == [1, 18, 35]


def test_no_guess_goes_past_what_is_asked_for() -> None:
    made = model(n_positions=16)
    engine, runner = watched(made, proposer=Nonsense(made))
    engine.submit([1, 2], options(100, overflow="stop"))
    engine.submit([3, 4], options(3))
    run(engine)
    assert max(size for step in runner.steps for _, size in step) <= 14
    assert runner.steps[1] == [(0, 14), (1, 2)]


# Threads.


def test_two_threads_may_generate_with_one_model() -> None:
    made = model()
    expected = [generate(made, [place], max_tokens=20, seed=place).ids for place in range(8)]
    engine, runner = watched(made)
    found: list[list[int]] = [[]] * 8

    def work(place: int) -> None:
        for _ in range(3):
            found[place] = generate(engine, [place], max_tokens=20, seed=place).ids

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected
    assert engine.busy == 0
    assert max(len(step) for step in runner.steps) > 1, "they never ran side by side"


def test_one_thread_steps_while_others_ask_and_cancel() -> None:
    made = model()
    engine, _ = watched(made, 3)
    stop = threading.Event()

    def drive() -> None:
        while not stop.is_set():
            if not engine.step():
                stop.wait(0.001)

    driver = threading.Thread(target=drive)
    driver.start()
    kept: list[Request] = []
    lock = threading.Lock()

    def ask(start: int) -> None:
        for place in range(10):
            request = engine.submit([start, place], options(6), seed=place)
            if place % 3 == 0:
                engine.cancel(request)
            else:
                with lock:
                    kept.append(request)

    askers = [threading.Thread(target=ask, args=(start,)) for start in range(5)]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join(60)
    while engine.busy or engine.waiting:
        stop.wait(0.001)
    stop.set()
    driver.join(60)
    assert len(kept) == 30
    for request in kept:
        assert request.output == complete(made, [request.prompt], options(6, seed=request.seed))[0].ids


# Load.


def test_a_thousand_requests_at_once() -> None:
    made = model(n_positions=1024, n_layer=1, n_head=1)
    engine, runner = watched(made, 32)
    luck = random.Random(5)
    lengths = [1, 1024, *(int(2 ** luck.uniform(0, 10)) for _ in range(998))]
    ended: list[int] = []
    requests = []
    for row, length in enumerate(lengths):
        prompt = [luck.randrange(256) for _ in range(length)]

        def listen(event: Event, row: int = row) -> None:
            if event.finish_reason:
                ended.append(row)

        asked = options(min(4, 1025 - length), overflow="error", seed=row)
        requests.append(engine.submit(prompt, asked, row=row, listener=listen))
    assert engine.waiting == 1000
    run(engine)
    assert sorted(ended) == list(range(1000)), "none is lost, and none ends twice"
    assert all(len(request.output) == request.options.max_tokens for request in requests)
    # First come, first served: nobody is overtaken by more than those beside whom it ran.
    assert max(abs(place - row) for place, row in enumerate(ended)) < 64
    assert engine.statistics.generated == sum(request.options.max_tokens for request in requests)
    assert max(len(step) for step in runner.steps) > 16
    for row in (0, 1, 500, 999):
        request = requests[row]
        assert request.output == complete(Engine(made, slots=1), [request.prompt], request.options)[0].ids


def test_a_thousand_calls_leave_memory_as_it_was() -> None:
    made, status = model(n_layer=1), Path("/proc/self/statm")

    def measure() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), int(status.read_text().split()[1]) * 4096 if status.exists() else 0

    for count in (100, 1000):
        before = measure()
        for seed in range(count):
            generate(made, numbers(1 + seed % 9, seed), max_tokens=2, seed=seed, top_k=3)
        after = measure()
    assert after[0] - before[0] < 50
    assert after[1] - before[1] < 5 * 2**20


def test_bad_requests_are_refused_when_they_are_made() -> None:
    engine, _ = watched(model(n_positions=8))
    for call, error in [
        (lambda: engine.submit([300]), "300"),
        (lambda: engine.submit([1] * 9, options(overflow="stop")), "9 tokens"),
        (lambda: engine.submit([1], options(sampling=SamplingOptions(logit_bias={400: 1}))), "400"),
    ]:
        with pytest.raises((Error, ContextOverflow), match=error):
            call()
    assert engine.waiting == 0


@pytest.mark.parametrize(
    ("prompt", "options", "more", "error"),
    [
        ([1], None, {"seed": "x"}, BadOption),
        ([1], None, {"seed": 2**70}, BadOption),
        ([1], None, {"seed": 1.5}, BadOption),
        ([1], None, {"listener": 5}, BadOption),
        ([1], {"max_tokens": 3}, {}, BadOption),
        ([True], None, {}, BadPrompt),
        (b"ab", None, {}, BadPrompt),
        ("ab", None, {}, BadPrompt),
        (5, None, {}, BadPrompt),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_can_hurt_others(prompt, options, more, error) -> None:  # type: ignore[no-untyped-def]
    engine = Engine(model(), slots=2)
    good = engine.submit([1, 2], GenerationOptions(max_tokens=4), seed=1)
    with pytest.raises(error):
        engine.submit(prompt, options or GenerationOptions(max_tokens=2), **more)
    while not good.done:
        engine.step()
    assert len(good.output) == 4
    with pytest.raises(BadOption, match="no request"):
        engine.cancel(None)  # type: ignore[arg-type]
