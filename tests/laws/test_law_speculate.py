"""Law `speculate`: with a proposer and without: greedy ids and seeded samples equal (*), and so the same distribution.

The proposers: prompt look-up, draft models (another network, and the model itself), one that is always right, one that
always lies, one that talks nonsense. The distribution is held to exact ones too, over many seeds."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.checkpoint import LanguageModel, load, shipped
from gpt2.generation import Engine, GenerationOptions, Request, SamplingOptions
from gpt2.generation.speculate import DraftModel, PromptLookup, Proposer, Text
from gpt2.runners.plain import PlainRunner
from tests.generation_models import adjust, assert_same_or_tied, candidates, model, plain
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
    # A likely end of text, so that it is drawn, and drawn behind guesses; or none at all.
    logit_bias=st.sampled_from([{}, {256: 6.0}, {256: -100.0, 7: 1.0}]),
)
# Few different ids, so that look-up finds something.
prompts = st.lists(st.lists(st.integers(0, 3) | st.integers(0, 256), max_size=16), min_size=1, max_size=4)
kinds = st.sampled_from(["lookup", "draft", "itself", "right", "liar", "wild"])


class Told:
    """Was told how the texts go on, and says so, or says something else; counts what it was asked."""

    def __init__(self, results: Sequence[Request], end: int, lie: int) -> None:
        self.answers = {(tuple(each.prompt), each.seed): [*each.output, end] for each in results}
        self.lie, self.asked, self.forgotten = lie, set[int](), set[int]()

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        self.asked |= {text.key for text in texts}
        guesses = []
        for text in texts:
            prompt = tuple(text.ids[: len(text.ids) - text.number])
            right = self.answers[prompt, text.seed][text.number : text.number + most]
            guesses.append([(id + self.lie) % 257 for id in right])
        return guesses

    def forget(self, key: int) -> None:
        self.forgotten.add(key)


class Wild:
    """Says a different number of ids each time, most of them nonsense."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        sizes = torch.randint(0, most + 1, (len(texts),), generator=self.random).tolist()
        return [torch.randint(0, 257, (size,), generator=self.random).tolist() for size in sizes]

    def forget(self, key: int) -> None:
        pass


def run(
    made: LanguageModel,
    batch: Sequence[Sequence[int]],
    options: GenerationOptions,
    proposer: Proposer | None,
    seed: int,
    *,
    best: bool = False,
) -> tuple[list[Request], Engine]:
    """Runs the batch on the plain runner, or on the best for this machine."""
    engine = Engine(made, slots=3, runner=None if best else PlainRunner(made.network, 3), proposer=proposer)
    requests = [engine.submit(prompt, options, seed=seed + row) for row, prompt in enumerate(batch)]
    while engine.step():
        pass
    assert all(request.done for request in requests)
    return requests, engine


def made_proposer(kind: str, made: LanguageModel, results: Sequence[Request]) -> Proposer:
    end = made.tokenizer.end_of_text
    assert end is not None
    match kind:
        case "lookup":
            return PromptLookup()
        case "draft":
            other = model(seed=1, n_positions=made.config.n_positions)
            return DraftModel(other, 2, target=made, runner=PlainRunner(other.network, 2))
        case "itself":
            return DraftModel(made, 3, target=made, runner=PlainRunner(made.network, 3))
        case "right":
            return Told(results, end, lie=0)
        case "liar":
            return Told(results, end, lie=1)
    return Wild()


def text_of(request: Request) -> str:
    return "".join(event.text for event in request.events)


def assert_a_proposer_changes_nothing(
    made: LanguageModel, batch: list[list[int]], options: GenerationOptions, kind: str, seed: int
) -> None:
    without, _ = run(made, batch, options, None, seed)
    proposer = made_proposer(kind, made, without)
    found, engine = run(made, batch, options, proposer, seed)
    for row, (one, other) in enumerate(zip(without, found, strict=True)):
        assert_same_or_tied(made, one.prompt, one.output, other.output, options.sampling, seed + row)
        if one.output == other.output:
            assert (text_of(one), one.finish_reason) == (text_of(other), other.finish_reason)
            assert [event.id for event in one.events] == [event.id for event in other.events]
    assert 0 <= engine.statistics.accepted <= engine.statistics.proposed
    if isinstance(proposer, Told):
        assert proposer.asked <= proposer.forgotten
        if proposer.lie:
            assert engine.statistics.accepted == 0


@given(batch=prompts, sampling=samplers, kind=kinds, seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_any_sampler_and_any_proposer(batch: list[list[int]], sampling: SamplingOptions, kind: str, seed: int) -> None:
    made = model()
    options = GenerationOptions(max_tokens=12, sampling=sampling)
    assert_a_proposer_changes_nothing(made, batch, options, kind, seed)


@given(batch=prompts, sampling=samplers, kind=kinds, window=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_texts_that_slide(batch: list[list[int]], sampling: SamplingOptions, kind: str, window: int, seed: int) -> None:
    made = model(n_positions=window)
    options = GenerationOptions(max_tokens=20, sampling=sampling)
    assert_a_proposer_changes_nothing(made, batch, options, kind, seed)
    # And what both give is what a generation without cache, batch or proposer gives.
    [found], _ = run(made, batch[:1], options, PromptLookup(), seed)
    slow = plain(made, found.prompt, options, seed)
    assert_same_or_tied(made, found.prompt, found.output, slow, sampling, seed)


@given(batch=prompts, kind=kinds, overflow=st.sampled_from(["slide", "stop"]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_stop_strings_and_full_windows(batch: list[list[int]], kind: str, overflow: str, seed: int) -> None:
    made = model(n_positions=24)
    options = GenerationOptions(14, ["a", "e ", "\n", "0"], overflow=overflow, sampling=SamplingOptions(1.5, None))
    assert_a_proposer_changes_nothing(made, batch, options, kind, seed)


@pytest.mark.parametrize("kind", ["lookup", "draft", "itself", "right", "liar"])
@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_no_more_tokens_than_were_asked_for(kind: str, most: int) -> None:
    options = GenerationOptions(most, sampling=SamplingOptions(0, logit_bias={256: -1000.0}))
    assert_a_proposer_changes_nothing(model(), [[1, 2, 1, 2, 1, 2]], options, kind, 0)


@pytest.mark.parametrize("kind", ["right", "wild"])
def test_log_probabilities(kind: str) -> None:
    made, options = model(), GenerationOptions(20, logprobs=3, sampling=SamplingOptions(1.0))
    without, _ = run(made, [[1, 2, 3]], options, None, 5)
    found, _ = run(made, [[1, 2, 3]], options, made_proposer(kind, made, without), 5)
    assert without[0].output == found[0].output
    for one, other in zip(without[0].events, found[0].events, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [id for id, _ in one.top] == [id for id, _ in other.top]


def test_what_is_right_saves_steps_and_what_lies_does_not() -> None:
    """So that the tests above are about something."""
    made = model()
    options = GenerationOptions(24, sampling=SamplingOptions(1.0, logit_bias={256: -1000.0}))
    steps: dict[str, int] = {}
    for kind in ("none", "right", "itself", "liar"):
        without, _ = run(made, [[1, 2, 3]], options, None, 5)
        engine = Engine(
            made,
            runner=PlainRunner(made.network, 1),
            proposer=None if kind == "none" else made_proposer(kind, made, without),
        )
        request = engine.submit([1, 2, 3], options, seed=5)
        steps[kind] = 0
        while engine.step():
            steps[kind] += 1
        assert request.output == without[0].output
        statistics = engine.statistics
        assert statistics.generated == 24
        if kind in ("right", "itself"):
            assert statistics.accepted == statistics.proposed > 12
        if kind == "liar":
            assert statistics.accepted == 0 < statistics.proposed
    assert steps["right"] <= 4
    assert steps["itself"] <= 10
    assert steps["none"] == steps["liar"] == 24


TEXTS = ("The old man", "one, two, one, two, one,", "It was a dark night")


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        *((name, "") for name in shipped()),
        *((name, f"{name}-draft") for name in shipped() if f"{name}-draft" in shipped()),
    ],
)
def test_the_shipped_models_on_this_machines_best_runner(name: str, draft: str) -> None:
    made = load(name)
    batch = [made.tokenizer.encode(text) for text in in_its_words(made, *TEXTS)]
    proposer: Proposer = DraftModel(load(draft), 3, target=made) if draft else PromptLookup(n=2)
    proposed = 0
    for sampling in (SamplingOptions(0), SamplingOptions(), SamplingOptions(1.0, None, 0.95, repetition_penalty=1.2)):
        options = GenerationOptions(24, sampling=sampling)
        without, _ = run(made, batch, options, None, 7, best=True)
        found, engine = run(made, batch, options, proposer, 7, best=True)
        for row, (one, other) in enumerate(zip(without, found, strict=True)):
            assert_same_or_tied(made, one.prompt, one.output, other.output, sampling, 7 + row)
        proposed += engine.statistics.proposed
        assert not draft or engine.statistics.accepted > 0
    assert proposed > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_narrow_widths_where_the_runner_is_batch_invariant(dtype: str) -> None:
    made = load(dtype=dtype)
    batch = [made.tokenizer.encode(text) for text in TEXTS]
    options = GenerationOptions(40)
    without, engine = run(made, batch, options, None, 7, best=True)
    if not engine.runner.batch_invariant:
        pytest.skip(f"left out: the runner {engine.runner.name} in {dtype} does not promise batch invariance")
    found, engine = run(made, batch, options, PromptLookup(n=2), 7, best=True)
    assert [each.output for each in found] == [each.output for each in without]
    assert engine.statistics.proposed > 0


# The distribution, of two tokens from a vocabulary of five, against exact probabilities.


SMALL = {"vocab_size": 5, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
SEEDS = 1500


def exact(made: LanguageModel, prompt: list[int], sampling: SamplingOptions) -> torch.Tensor:
    """The probability (5, 5) of each pair of next tokens."""

    def next_token(output: list[int]) -> torch.Tensor:
        logits = made.network(torch.tensor([[*prompt, *output]]))[:, -1]
        scores = adjust(logits, sampling, [prompt], [output]) / sampling.temperature
        kept, ids = candidates(scores, sampling)
        return torch.zeros(5, dtype=torch.float64).scatter(0, ids.expand(kept.shape)[0], kept[0].double().softmax(-1))

    first = next_token([])
    return torch.stack([first[id] * next_token([id]) for id in range(5)])


def chance(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """How likely a chi-square at least as large is, if these are draws from this distribution."""
    assert not counts[probability == 0].any(), "something was drawn that cannot be"
    expected = probability[probability > 0] * counts.sum()
    statistic = float(((counts[probability > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2)))


def pairs(made: LanguageModel, prompt: list[int], sampling: SamplingOptions, proposer: Proposer | None) -> torch.Tensor:
    """How often each pair of tokens came, (5, 5), and checks that a proposer was heard."""
    engine = Engine(made, runner=PlainRunner(made.network, 50), queue=SEEDS, proposer=proposer)
    options = GenerationOptions(3, sampling=sampling)
    requests = [engine.submit(prompt, options, seed=seed) for seed in range(SEEDS)]
    while engine.step():
        pass
    counts = torch.zeros(5, 5)
    for request in requests:
        counts[request.output[0], request.output[1]] += 1
    if proposer is not None:
        assert engine.statistics.proposed > SEEDS / 4
        assert 0 < engine.statistics.accepted < engine.statistics.proposed
    return counts


@pytest.mark.parametrize("kind", ["none", "lookup", "draft"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(1.0, None),
        SamplingOptions(1.6, 4, 0.9, repetition_penalty=1.4, presence_penalty=0.3),
    ],
)
def test_the_distribution_is_the_exact_one(kind: str, sampling: SamplingOptions) -> None:
    made, prompt = model(**SMALL), [0, 1, 0, 2, 0, 3]
    small = model(seed=8, **SMALL)
    proposers: dict[str, Proposer | None] = {
        "none": None,
        "lookup": PromptLookup(n=1),
        "draft": DraftModel(small, 50, target=made, runner=PlainRunner(small.network, 50)),
    }
    probability = exact(made, prompt, sampling)
    assert probability.sum() == pytest.approx(1)
    counts = pairs(made, prompt, sampling, proposers[kind])
    assert chance(counts, probability) > 1e-3
    # The same test refuses the draft's own distribution: this is what keeping guesses unseen would give.
    assert chance(counts, exact(small, prompt, SamplingOptions(1.0, None))) < 1e-6
