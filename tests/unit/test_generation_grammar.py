"""A grammar decides which tokens can come next, for each text by itself, and changes nothing else."""

import numpy as np
import pytest

from gpt2.errors import BadOption
from gpt2.generation import Engine, GenerationOptions, PromptLookup, SamplingOptions, complete, decode
from gpt2.runners.plain import PlainRunner
from tests.helpers import tiny_model

MODEL = tiny_model(window=64)
V = MODEL.tokenizer.vocab_size
SAMPLING = SamplingOptions(temperature=1.0, top_k=None)


class Stairs:
    """Only the ids above the last one, up to the highest, and then from the first again."""

    def __init__(self, prompt):
        self.last = prompt[-1]
        self.asked = []

    def allowed(self, output):
        self.asked.append(len(output))
        last = output[-1] if output else self.last
        mask = np.zeros(V, dtype=bool)
        mask[last + 1 : V - 1] = True
        if not mask.any():
            mask[0] = True
        return mask


def write(prompts, grammar=None, engine=MODEL, **options):
    options = GenerationOptions(20, seed=3, sampling=SAMPLING, grammar=grammar, **options)
    return complete(engine, prompts, options)


def steps_up(start, ids):
    return all(after > before or after == 0 for before, after in zip([start, *ids], ids, strict=False))


A, B = MODEL.tokenizer.encode("ab")


def test_nothing_else_is_drawn():
    free, held = write(["a"])[0], write(["a"], Stairs)[0]
    assert len(held.ids) == 20
    assert steps_up(A, held.ids)
    assert not steps_up(A, free.ids)


def test_each_text_has_its_own_and_gets_what_it_gets_alone():
    both = write(["a", "zz"], Stairs)
    assert [each.ids for each in both] == [write(["a"], Stairs)[0].ids, write(["zz"], Stairs)[0].ids]


def test_texts_without_one_are_as_they_were():
    engine = Engine(MODEL, slots=4)
    alone = write(["a"])[0].ids
    held = GenerationOptions(20, sampling=SAMPLING, grammar=Stairs)
    requests = [
        engine.submit([A], GenerationOptions(20, sampling=SAMPLING), seed=3),
        engine.submit([A], held, seed=3),
    ]
    while engine.busy or engine.waiting:
        engine.step()
    assert requests[0].output == alone
    assert requests[1].output == write(["a"], Stairs)[0].ids


def test_guesses_change_nothing():
    guessing = Engine(MODEL, proposer=PromptLookup())
    assert write(["abcabc"], Stairs, guessing)[0].ids == write(["abcabc"], Stairs)[0].ids


def test_log_probabilities_stay_the_models_own():
    [held] = write(["a"], Stairs, logprobs=1)
    first = held.logprobs[0]
    from gpt2.generation import next_tokens

    whole = {each.id: each.probability for each in next_tokens(MODEL, "a", V)}
    assert np.isclose(np.exp(first.logprob), whole[first.id], rtol=1e-5)
    assert first.top[0][1] == max(whole, key=whole.get)


def broken(prompt):
    class Broken:
        def allowed(self, output):
            raise KeyError("out of it")

    return Broken()


def small(prompt):
    class Small:
        def allowed(self, output):
            return np.ones(3, dtype=bool)

    return Small()


def shut(prompt):
    class Shut:
        def allowed(self, output):
            return np.zeros(V, dtype=bool)

    return Shut()


@pytest.mark.parametrize(
    ("grammar", "said"),
    [(broken, "The grammar failed: KeyError"), (small, "allows bool\\(3,\\), but"), (shut, "forbids every token")],
)
def test_one_that_fails_ends_its_own_text_alone(grammar, said):
    with pytest.raises(BadOption, match=said):
        write(["a"], grammar)

    def sometimes(prompt):
        return grammar(prompt) if prompt[0] == B else Stairs(prompt)

    a, b = write(["a", "b"], sometimes)
    assert a.ids == write(["a"], Stairs)[0].ids
    assert b.finish_reason == "error"
    assert not b.ids


def test_what_is_no_grammar_is_refused():
    with pytest.raises(BadOption, match="grammar is 3, but it must be a function"):
        GenerationOptions(grammar=3)
    with pytest.raises(BadOption, match="The grammar is None, but it must have `allowed`"):
        write(["a"], lambda prompt: None)
    with pytest.raises(BadOption, match="The grammar failed: ZeroDivisionError"):
        write(["a"], lambda prompt: 1 / 0)


def test_scores_are_no_mask():
    class Scores:
        def allowed(self, output):
            return np.where(np.arange(V) == 5, 0.0, -np.inf)

    with pytest.raises(BadOption, match="allows float64"):
        write(["a"], lambda prompt: Scores())


class EmptyStairs(Stairs, list):
    """Nothing in it, and so false."""

    def __init__(self, prompt):
        Stairs.__init__(self, prompt)


def test_a_runner_that_draws_by_itself_is_not_asked():
    class Drawing(PlainRunner):
        drawable = 0
        asked = 0

        def draw(self, *arguments):
            self.asked += 1
            raise AssertionError

    for grammar in (Stairs, EmptyStairs):
        engine = Engine(MODEL, runner=Drawing(MODEL.network, 2))
        assert write(["a"], grammar, engine)[0].ids == write(["a"], Stairs)[0].ids
        assert engine.runner.asked == 0


def test_it_is_asked_once_a_token():
    made = []

    def grammar(prompt):
        made.append(Stairs(prompt))
        return made[-1]

    list(decode(MODEL, [[A]], GenerationOptions(5, seed=1, sampling=SAMPLING, grammar=grammar)))
    assert made[0].asked == [0, 1, 2, 3, 4]
