"""Log-probabilities of given ids: against the plain network and transformers, whatever stands beside, and threads."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import gpt2
from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadPrompt, ContextOverflow, Error
from gpt2.generation import Engine, GenerationOptions, SamplingOptions, complete
from gpt2.generation.score import Item, Score, score
from tests.generation_models import RUNNERS, SHAPE, byte_tokenizer, model, network, peer, runner, small_tokenizer

END = 256


def some_items(count: int = 40, seed: int = 0, window: int = 64) -> list[Item]:
    """Contexts with one to five continuations each, some of one token, some filling the window."""
    random = np.random.default_rng(seed)
    items: list[Item] = []
    while len(items) < count:
        context = random.integers(0, 257, random.integers(1, 40)).tolist()
        for _ in range(random.integers(1, 6)):
            size = int(random.choice([1, 2, 7, window - len(context) + 1]))
            items.append(Item(context, random.integers(0, 257, size).tolist()))
    return items[:count]


@torch.inference_mode()
def plainly(made: LanguageModel, item: Item) -> tuple[np.ndarray, bool]:
    """One pass over one item, in transformers."""
    context = list(item.context) or [END]
    ids = [*context, *item.continuation]
    logits = peer(made.network)(torch.tensor([ids[:-1]])).logits[0, len(context) - 1 :]
    places = torch.arange(len(item.continuation))
    wanted = torch.tensor(item.continuation, dtype=torch.int64)
    greedy = bool((logits.argmax(-1) == wanted).all())
    return logits.double().log_softmax(-1)[places, wanted].numpy(), greedy


def likeliest(made: LanguageModel, context: Sequence[int], size: int) -> list[int]:
    options = GenerationOptions(max_tokens=size, sampling=SamplingOptions(0, logit_bias={END: -1e9}))
    return complete(made, [context], options)[0].ids


@pytest.mark.parametrize(("name", "dtype"), [each for each in RUNNERS if each[1] == "float32"])
def test_scores_are_those_of_transformers(name: str, dtype: str) -> None:
    made = model(n_positions=64, **SHAPE)
    items = [*some_items(), Item([1, 2, 3], likeliest(made, [1, 2, 3], 8)), Item([], [5, 6])]
    found = list(score(Engine(made, runner=runner(name, dtype, made)), items))
    assert len(found) == len(items)
    for item, got in zip(items, found, strict=True):
        logprobs, greedy = plainly(made, item)
        np.testing.assert_allclose(got.logprobs, logprobs, rtol=0, atol=1e-4)
        assert got.logprobs.dtype == np.float64
        assert got.greedy == greedy
        assert got.total == pytest.approx(logprobs.sum(), abs=1e-3)
    assert {got.greedy for got in found} == {True, False}


@pytest.mark.parametrize(("name", "dtype"), RUNNERS)
def test_an_item_scores_as_it_does_alone(name: str, dtype: str) -> None:
    made = model(n_positions=64, **SHAPE)
    items = some_items(24, seed=1)
    engine = Engine(made, runner=runner(name, dtype, made))
    together = list(score(engine, items))
    reverse = list(score(engine, items[::-1]))[::-1]
    alone = Engine(made, runner=engine.runner)
    for item, got, again in zip(items, together, reverse, strict=True):
        for slot in range(alone.runner.slots):
            alone.runner.rewind(slot, 0)
        [one] = score(Engine(made, runner=alone.runner), [item])
        if engine.runner.batch_invariant:
            assert got.logprobs.tolist() == again.logprobs.tolist() == one.logprobs.tolist()
        else:
            np.testing.assert_allclose(got.logprobs, one.logprobs, rtol=0, atol=1e-4 if dtype == "float32" else 0.2)
            np.testing.assert_allclose(again.logprobs, one.logprobs, rtol=0, atol=1e-4 if dtype == "float32" else 0.2)


def test_a_shared_context_is_read_once() -> None:
    made = model(n_positions=128)
    context = [(7 * place) % 251 for place in range(100)]
    engine = Engine(made)
    found = list(score(engine, [Item(context, [first, 2, 3]) for first in (9, 8, 7, 6)]))
    # The context's last token is read again for its logits, and a continuation's last one not at all.
    assert engine.statistics.read == 100 + 2 + 3 * 3
    assert len({got.total for got in found}) == 4
    # Candidates that differ in their last token alone are one reading.
    before = engine.statistics.read
    candidates = list(score(engine, [Item(context, [4, id]) for id in range(50)]))
    assert engine.statistics.read == before + 2
    everything = sum(np.exp(got.logprobs[1]) for got in candidates)
    assert 0 < everything < 1


def test_a_beginning_that_many_share_is_read_few_times() -> None:
    """As examples in front of every question are; and one context with very many continuations."""
    made = model(n_positions=128)
    examples = [(5 * place) % 251 for place in range(80)]
    items = [Item([*examples, number, number], [1, 2, number]) for number in range(64)]
    engine = Engine(made)
    found = list(score(engine, items))
    # Four rows of 16 side by side begin at once, before any of them has been read.
    assert engine.statistics.read < 4 * 80 + 64 * 6
    for item, got in list(zip(items, found, strict=True))[::9]:
        np.testing.assert_allclose(got.logprobs, plainly(made, item)[0], rtol=0, atol=1e-4)


def test_long_items_are_read_in_pieces_that_other_texts_fill() -> None:
    made = model(n_positions=1024, n_embd=64, n_head=4)
    random = np.random.default_rng(0)
    items = [Item([END], random.integers(0, 256, 1024).tolist()), *some_items(5), Item([1], [2])]
    engine = Engine(made, runner=runner("native", "float32", made))
    sizes = []
    read = engine.runner.read

    def watched(feeds):
        sizes.append(sum(len(feed.ids) for feed in feeds))
        logits = read(feeds)
        assert len(logits) <= 512
        return logits

    engine.runner.read = watched
    found = list(score(engine, items))
    assert sizes[:2] == [512, 512]
    for item, got in zip(items, found, strict=True):
        np.testing.assert_allclose(got.logprobs, plainly(made, item)[0], rtol=0, atol=1e-4)


def test_items_are_taken_as_they_are_needed_and_scores_come_in_their_order() -> None:
    made, taken, said = model(), [], []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield Item([number % 200], [number % 7] * (1 + number % 20))
            number += 1

    scores = score(made, endless(), progress=said.append)
    assert not taken
    for number in range(100):
        assert len(next(scores).logprobs) == 1 + number % 20
    assert len(taken) < 500
    assert said == sorted(said)
    assert 100 <= said[-1] <= len(taken)


def test_nothing_to_score_is_no_reading() -> None:
    made = model()
    engine = Engine(made)
    [nothing, something] = score(engine, [Item([1, 2], []), Item([1], [2])])
    assert (nothing.logprobs.tolist(), nothing.greedy, nothing.total) == ([], True, 0.0)
    assert isinstance(something, Score)
    assert engine.statistics.read == 1
    assert list(score(engine, [])) == []


def test_texts() -> None:
    made = model(small_tokenizer())
    text = "The cat sat"
    tokens = gpt2.score(made, text)
    assert "".join(each.token for each in tokens) == text
    assert [each.id for each in tokens] == made.tokenizer.encode(text)
    [item] = score(made, [Item([made.tokenizer.end_of_text], made.tokenizer.encode(text))])
    assert [each.logprob for each in tokens] == item.logprobs.tolist()
    assert gpt2.score(made, [text, "", text]) == [tokens, [], tokens]


def test_ids_beyond_the_vocabulary_are_never_the_likeliest() -> None:
    """A padded network may prefer an id that has no text; the log-probability is the network's own all the same."""
    made = LanguageModel(network(vocab_size=300), byte_tokenizer())
    made.network.wte.weight.data[257:] *= 50
    logits = made.network(torch.tensor([[1]]))[0, 0]
    best = int(logits[:257].argmax())
    assert int(logits.argmax()) >= 257
    [found] = score(made, [Item([1], [best])])
    assert found.greedy
    assert found.total == pytest.approx(float(logits.double().log_softmax(-1)[best]), abs=1e-4)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (Item([1] * 20, [2] * 14), ContextOverflow, "20 tokens and 14 to score .* window of 32"),
        (Item([1], [257]), BadPrompt, "Token id 257"),
        (Item([1, -1], [2]), BadPrompt, "Token id -1"),
        (Item(["a"], [2]), BadPrompt, "'a'"),
        (([1], [2]), BadPrompt, "is nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(item: Item, error: type[Error], message: str) -> None:
    with pytest.raises(error, match=message):
        list(score(model(), [Item([1], [2]), item]))


def test_a_full_window_and_one_more_is_all_that_fits() -> None:
    made = model()
    [found] = score(made, [Item([1] * 20, [2] * 13)])
    assert len(found.logprobs) == 13


def test_logits_that_are_not_finite_are_an_error_and_the_engine_goes_on() -> None:
    made = model()
    weights = made.network.ln_f.bias.data
    engine = Engine(made)
    list(score(engine, [Item([1, 2, 3], [4])]))
    weights += float("nan")
    with pytest.raises(Error, match="NaN or infinity"):
        list(score(engine, [Item([1, 2, 3, 4], [5])]))
    weights.zero_()
    [found] = score(engine, [Item([1, 2, 3, 4], [5])])
    np.testing.assert_allclose(found.logprobs, plainly(made, Item([1, 2, 3, 4], [5]))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_scoring_and_generating_go_on_beside_each_other(slots: int) -> None:
    made = model(n_positions=64)
    items = some_items(30, seed=3)
    options = GenerationOptions(max_tokens=12, seed=5)
    prompts = [[number, 3] for number in range(12)]
    alone = [list(score(made, items)), complete(made, prompts, options)]
    engine = Engine(made, runner=runner("plain", "float32", made, slots))
    results: list[object] = [None] * 4

    def run(place: int, work) -> threading.Thread:
        def body() -> None:
            results[place] = work()

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    threads = [run(place, lambda: list(score(engine, items))) for place in (0, 1)]
    threads += [run(place, lambda: complete(engine, prompts, options)) for place in (2, 3)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for found in results[:2]:
        for got, expected in zip(found, alone[0], strict=True):
            np.testing.assert_allclose(got.logprobs, expected.logprobs, rtol=0, atol=1e-4)
    for found in results[2:]:
        assert [each.text for each in found] == [each.text for each in alone[1]]
    assert engine.busy == 0


def test_a_full_engine_gives_a_slot_to_who_scores_before_those_who_wait() -> None:
    made = model()
    engine = Engine(made, runner=runner("plain", "float32", made, 1))
    endless = GenerationOptions(max_tokens=20, sampling=SamplingOptions(0, logit_bias={END: -1e9}))
    requests = [engine.submit([number], endless) for number in range(3)]
    engine.step()
    [found] = score(engine, [Item([1, 2], [3])])
    assert [request.done for request in requests] == [True, False, False]
    np.testing.assert_allclose(found.logprobs, plainly(made, Item([1, 2], [3]))[0], rtol=0, atol=1e-4)
    while engine.step():
        pass
    assert all(request.finish_reason == "length" for request in requests)


def test_who_stops_half_way_holds_nothing() -> None:
    made = model()
    engine = Engine(made, runner=runner("plain", "float32", made, 2))
    scores = score(engine, [Item([number], [1, 2, 3]) for number in range(100)])
    next(scores)
    assert engine.busy == 0
    assert len(complete(engine, [[1], [2], [3]], GenerationOptions(max_tokens=3, seed=1))) == 3
    scores.close()


def test_an_error_while_reading_leaves_the_engine_usable() -> None:
    made = model()
    engine = Engine(made, runner=runner("plain", "float32", made, 2))
    read, engine.runner.read = engine.runner.read, lambda feeds: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(score(engine, [Item([1, 2], [3])]))
    engine.runner.read = read
    [found] = score(engine, [Item([1, 2], [3])])
    np.testing.assert_allclose(found.logprobs, plainly(made, Item([1, 2], [3]))[0], rtol=0, atol=1e-4)
