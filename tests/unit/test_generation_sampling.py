"""The filters against Hugging Face's, the draw against exactly enumerated distributions."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2.errors import BadOption, Error
from gpt2.generation import sampling
from gpt2.generation.options import SamplingOptions
from gpt2.generation.sampling import gumbel_noise, log_probabilities, sample
from tests.generation_models import adjust, candidates

VOCABULARY = 300
PLAIN = {"temperature": 1.0, "top_k": None}


def logits(kind: str, rows: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    scores = torch.empty(rows, VOCABULARY).normal_(0, 3, generator=random)
    match kind:
        case "ties":  # about 20 distinct values: every border has ties
            return scores.round()
        case "equal":
            return torch.zeros(rows, VOCABULARY)
        case "peaked":
            return scores * 10
    return scores


def histories(rows: int = 6) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, VOCABULARY, size=20 + row).tolist() for row in range(rows)]


def spread_out(scores_BK: torch.Tensor, ids_BK: torch.Tensor) -> torch.Tensor:
    """Candidates as a full table, as Hugging Face keeps it."""
    full = torch.full((len(scores_BK), VOCABULARY), -torch.inf)
    ids_BK = ids_BK.expand(len(scores_BK), -1)
    for row in range(len(scores_BK)):
        kept = scores_BK[row] > -torch.inf
        full[row, ids_BK[row][kept]] = scores_BK[row][kept]
    return full


def ours(scores: torch.Tensor, options: SamplingOptions, prompts: list[list[int]]) -> torch.Tensor:
    nothing: list[list[int]] = [[] for _ in prompts]
    return spread_out(*candidates(adjust(scores, options, prompts, nothing) / options.temperature, options))


def theirs(scores: torch.Tensor, options: SamplingOptions, prompts: list[list[int]]) -> torch.Tensor:
    processors = []
    if options.logit_bias:
        processors.append(SequenceBiasLogitsProcessor({(id,): bias for id, bias in options.logit_bias.items()}))
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        processors.append(MinPLogitsWarper(options.min_p))
    # Row by row, because theirs takes no ragged histories.
    rows = zip(scores, prompts, strict=True)
    return torch.cat([LogitsProcessorList(processors)(torch.tensor([ids]), row[None]) for row, ids in rows])


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "peaked"])
@pytest.mark.parametrize(
    "options",
    [
        *[{"top_k": k} for k in (1, 7, 40, VOCABULARY, 1000)],
        *[{"top_p": p} for p in (0.0, 0.05, 0.5, 0.9, 0.999)],
        *[{"min_p": p} for p in (0.0, 0.02, 0.5, 1.0)],
        *[{"temperature": t} for t in (0.1, 0.7, 3.0)],
        *[{"repetition_penalty": penalty} for penalty in (0.5, 1.2, 2.0)],
        {"logit_bias": {0: 2.5, 7: -100.0, 299: -math.inf}},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.7, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3, "logit_bias": {3: 4.0, 9: -2.0}},
        {"temperature": 0.5, "top_k": 9, "min_p": 0.2, "repetition_penalty": 0.8, "logit_bias": {11: -math.inf}},
    ],
    ids=str,
)
def test_the_filters_are_hugging_faces(kind: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    made = SamplingOptions(**{**PLAIN, **options})
    mine, other = ours(logits(kind), made, histories()), theirs(logits(kind), made, histories())
    # As many stay, and of the same scores. Which of equals stay at top_p's border is left to an unstable sort there ...
    assert torch.equal(mine.sort().values, other.sort().values)
    monkeypatch.setattr(torch, "sort", sorted_with_the_lowest_ids_last)
    # ... so with that settled, everything is equal, bit for bit.
    assert torch.equal(mine, theirs(logits(kind), made, histories()))


def sorted_with_the_lowest_ids_last(scores: torch.Tensor, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    assert not descending
    values, order = scores.sort(descending=True, stable=True)
    return values.flip(-1), order.flip(-1)


def test_ties_at_the_last_place_of_top_k_stay() -> None:
    scores, ids = candidates(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), SamplingOptions(1.0, 2))
    assert ids.tolist() == [[1, 2, 3, 4]]
    assert scores.tolist() == [[3.0, 2.0, 2.0, 2.0]]


def test_rows_with_different_numbers_of_candidates_stand_side_by_side() -> None:
    table = torch.tensor([[1.0, 3.0, 2.0, 2.0], [5.0, 4.0, 1.0, 0.0]])
    scores, ids = candidates(table, SamplingOptions(1.0, 2))
    assert scores.tolist() == [[3.0, 2.0, 2.0], [5.0, 4.0, -math.inf]]
    assert ids.tolist()[0] == [1, 2, 3]
    assert ids.tolist()[1][:2] == [0, 1]


def test_presence_and_frequency_penalties_are_openais_formula() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over what was generated and not over the prompt."""
    scores, outputs = logits("normal", 2), [[4, 9, 4, 4], []]
    options = SamplingOptions(**PLAIN, presence_penalty=0.5, frequency_penalty=0.25)
    expected = scores.clone()
    expected[0, 4] -= 3 * 0.25 + 0.5
    expected[0, 9] -= 1 * 0.25 + 0.5
    torch.testing.assert_close(adjust(scores, options, [[1, 2], [3]], outputs), expected)


def test_the_repetition_penalty_reads_prompt_and_output() -> None:
    scores = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    adjusted = adjust(scores, SamplingOptions(**PLAIN, repetition_penalty=2.0), [[0, 1, 0]], [[3, 3]])
    assert adjusted.tolist() == [[1.0, -4.0, 2.0, -4.0, 1.0]]


def test_the_logits_are_left_as_they_are() -> None:
    scores = logits("normal", 1)
    before = scores.clone()
    options = SamplingOptions(0.5, 5, 0.9, 0.1, 1.5, 0.5, 0.5, {3: 1.0})
    sample(scores, options, [[1, 2]], [[3, 4]], [0])
    assert torch.equal(scores, before)


def test_log_probabilities_are_the_models_own() -> None:
    scores = logits("normal").bfloat16()
    expected = scipy.special.log_softmax(scores.double().numpy(), axis=-1)
    np.testing.assert_allclose(log_probabilities(scores).numpy(), expected, atol=1e-5)


# The draw.

DICE = [1.0, 1.0, 0.5, 0.25, 0.25, -0.5, -1.0, 2.0, -3.0, 0.25, -8.0, 1.5]
PROMPT, OUTPUT = [0, 7, 7], [2, 2, 11]


def enumerated(options: SamplingOptions) -> np.ndarray:
    """The exact distribution over DICE, worked out one token at a time in float64."""
    scores = dict(enumerate(DICE))
    for id, bias in options.logit_bias.items():
        scores[id] += bias
    for id in {*PROMPT, *OUTPUT}:
        scores[id] *= options.repetition_penalty if scores[id] < 0 else 1 / options.repetition_penalty
    for id in set(OUTPUT):
        scores[id] -= options.presence_penalty + options.frequency_penalty * OUTPUT.count(id)
    scores = {id: score / options.temperature for id, score in scores.items()}
    if options.top_k:
        kth = sorted(scores.values(), reverse=True)[min(options.top_k, len(scores)) - 1]
        scores = {id: score for id, score in scores.items() if score >= kth}

    def probabilities() -> dict[int, float]:
        total = sum(math.exp(score) for score in scores.values())
        return {id: math.exp(score) / total for id, score in scores.items()}

    if options.top_p is not None:
        order = sorted(scores, key=lambda id: (scores[id], -id))
        sums = itertools.accumulate(probabilities()[id] for id in order)
        gone = {id for id, total in zip(order, sums, strict=True) if total <= 1 - options.top_p + 1e-12} - {order[-1]}
        scores = {id: score for id, score in scores.items() if id not in gone}
    if options.min_p:
        known = probabilities()
        scores = {id: scores[id] for id in scores if known[id] >= options.min_p * max(known.values()) - 1e-12}
    result = np.zeros(len(DICE))
    for id, probability in probabilities().items():
        result[id] = probability
    return result


EVERY_FILTER = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 6},
    {"top_k": 7, "temperature": 1.5},
    {"top_p": 0.0},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.0},
    {"frequency_penalty": 0.7},
    {"logit_bias": {10: 9.0, 7: -math.inf, 3: 1.0}},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.3, "top_p": 0.85, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": -0.4},
    {"top_k": 9, "min_p": 0.1, "repetition_penalty": 0.7, "logit_bias": {5: 2.0, 2: -1.0}},
]


def assert_distributed(ids: list[int], expected: np.ndarray) -> None:
    counts = np.bincount(ids, minlength=len(expected))
    assert counts[expected == 0].sum() == 0, "a token that was filtered out was drawn"
    counts, share = counts[expected > 0], expected[expected > 0]
    # Chi-square needs some five expected in each cell; the rarest share one.
    order = np.argsort(share)
    few = order[: max(1, int(np.searchsorted(np.cumsum(share[order]) * len(ids), 10)))]
    rest = np.setdiff1d(order, few)
    cells = np.array([counts[few].sum(), *counts[rest]]), np.array([share[few].sum(), *share[rest]]) * len(ids)
    if len(cells[0]) > 1:
        assert scipy.stats.chisquare(*cells).pvalue > 1e-4
    else:
        assert cells[0][0] == len(ids)


@pytest.mark.parametrize("options", EVERY_FILTER, ids=str)
@pytest.mark.parametrize("source", ["seeds", "numbers"])
def test_draws_follow_the_enumerated_distribution(options: dict, source: str) -> None:
    made, draws = SamplingOptions(**{**PLAIN, **options}), 10_000
    # Steps 1 to 3 first, on one row: then rows may stand for any seed, or for any number of the token.
    adjusted = adjust(torch.tensor([DICE]), made, [PROMPT], [OUTPUT]).expand(draws, -1)
    rest = SamplingOptions(made.temperature, made.top_k, made.top_p, made.min_p)
    seeds = range(draws) if source == "seeds" else [123] * draws
    outputs = [OUTPUT] * draws if source == "seeds" else [range(number) for number in range(draws)]
    assert_distributed(sample(adjusted, rest, [PROMPT] * draws, outputs, seeds), enumerated(made))


def test_sample_uses_the_histories_it_is_given() -> None:
    """As above, but with bias and penalties inside `sample`."""
    options, draws = SamplingOptions(**{**PLAIN, **EVERY_FILTER[-1]}), 1500
    ids = sample(torch.tensor([DICE]).expand(draws, -1), options, [PROMPT] * draws, [OUTPUT] * draws, range(draws))
    assert_distributed(ids, enumerated(options))


@pytest.mark.parametrize("step", ["number", "seed"])
def test_neighbouring_draws_are_independent(step: str) -> None:
    draws, options = 12_000, SamplingOptions(**PLAIN)
    table = torch.tensor([[0.5, 0.0, 0.3, -0.5]]).expand(draws, -1)
    seeds, numbers = [77] * draws, [0] * draws
    if step == "number":
        numbers = list(range(draws))
    else:
        seeds = list(range(draws))
    ids = sample(table, options, [[]] * draws, [range(number) for number in numbers], seeds)
    for lag in (1, 2, 256):
        pairs = np.zeros((4, 4))
        np.add.at(pairs, (ids[:-lag], ids[lag:]), 1)
        assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4


def test_the_noise_is_gumbels() -> None:
    ids = torch.arange(50257)[None]
    for seed, number in [(0, 0), (0, 1), (1, 0), (2**63 - 1, 5), (-(2**63), 0), (-1, 10**6)]:
        noise = gumbel_noise([seed], [number], ids)[0].numpy()
        assert scipy.stats.kstest(noise, "gumbel_r").pvalue > 1e-4
        assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02
    # Neighbours of every kind: the samples of one prompt use seed, seed + 1, ... and tokens 0, 1, ...
    near = [gumbel_noise([seed], [number], ids)[0].numpy() for seed in range(3) for number in range(3)]
    correlations = np.corrcoef(near) - np.eye(len(near))
    assert np.abs(correlations).max() < 0.03


def test_the_noise_depends_on_nothing_else() -> None:
    ids = torch.arange(1000)
    alone = gumbel_noise([9], [4], ids[None])[0]
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    beside = gumbel_noise([1, 9, 5], [0, 4, 4], shuffled[None])[1]
    assert torch.equal(beside, alone[shuffled])
    assert not torch.equal(beside, gumbel_noise([5], [4], shuffled[None])[0])


def test_the_hash_is_splitmix64() -> None:
    """The first numbers of the published generator from state 0."""
    state = np.array([1, 2, 3], np.uint64) * sampling._STEP
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert sampling._mixed(state).tolist() == published


def test_the_noise_stays_finite_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 2**64 - 1):
        monkeypatch.setattr(sampling, "_mixed", lambda x, bits=bits: np.full_like(x, bits))
        noise = gumbel_noise([0], [0], torch.arange(3)[None])
        assert noise.isfinite().all()
        assert -4 < noise[0, 0] < 37


def in_full(scores: torch.Tensor, options: SamplingOptions, seed: int, number: int) -> int:
    """The token that the written order gives, with every filter and every token's noise worked out plainly."""
    scores = scores / options.temperature
    if options.top_k:
        scores = scores.masked_fill(scores < scores.topk(options.top_k).values[-1], -torch.inf)
    if options.top_p is not None:
        falling, order = scores.sort(descending=True, stable=True)
        gone = falling.flip(-1).softmax(-1).cumsum(-1) <= 1 - options.top_p
        gone[-1] = False
        scores = scores.masked_fill(gone.scatter(0, order.flip(-1), gone), -torch.inf)
    if options.min_p:
        probability = scores.softmax(-1)
        scores = scores.masked_fill(probability < options.min_p * probability.max(), -torch.inf)
    noise = gumbel_noise([seed], [number], torch.arange(len(scores))[None])[0]
    return int((scores.double() + noise).argmax())


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.02}, {"temperature": 40.0}, {"top_k": 40}, {"top_k": 3000}, {"top_p": 0.9}, {"top_p": 1e-6},
     {"min_p": 0.001}, {"top_k": 200, "top_p": 0.8, "min_p": 0.01}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("spread", [0.01, 4.0, 1000.0, "ties"])
def test_the_short_ways_lead_where_the_long_ones_do(options: dict, spread: float | str) -> None:
    """With a vocabulary of GPT-2's size, where most tokens are passed over without a closer look."""
    made = SamplingOptions(**{**PLAIN, **options})
    table = torch.empty(6, 50257).normal_(
        -30, 4.0 if spread == "ties" else spread, generator=torch.Generator().manual_seed(1)
    )
    if spread == "ties":
        table = table.round()
    outputs = [range(3 * row) for row in range(6)]
    found = sample(table, made, [[]] * 6, outputs, range(6))
    assert found == [in_full(row, made, seed, 3 * seed) for seed, row in enumerate(table)]
    assert [sample(row[None], made, [[]], [outputs[seed]], [seed])[0] for seed, row in enumerate(table)] == found


def test_a_filtered_token_is_never_drawn_however_high_its_noise() -> None:
    table = torch.tensor([[0.0, 0.1, 0.2, 0.3]]).expand(5000, -1)
    ids = sample(table, SamplingOptions(5.0, 2), [[]] * 5000, [[]] * 5000, range(5000))
    assert set(ids) == {2, 3}


def test_greedy_takes_the_highest_and_the_lowest_id_on_a_tie() -> None:
    greedy = SamplingOptions(temperature=0, top_k=1, top_p=0.1)
    assert sample(torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 5.0]]), greedy, [[]] * 2, [[]] * 2, [1, 2]) == [1, 0]
    biased = SamplingOptions(temperature=0, logit_bias={0: 10.0})
    assert sample(torch.tensor([[1.0, 3.0, 3.0]]), biased, [[]], [[]], [1]) == [0]


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(temperature: float, value: float) -> None:
    table = torch.zeros(2, 5)
    table[1, 3] = value
    with pytest.raises(Error, match=r"NaN or infinity \(row 1\)"):
        sample(table, SamplingOptions(temperature), [[]] * 2, [[]] * 2, [0, 0])
    # A bias of -inf on the bad token does not hide it.
    with pytest.raises(Error, match="NaN or infinity"):
        sample(table, SamplingOptions(temperature, logit_bias={3: -math.inf}), [[]] * 2, [[]] * 2, [0, 0])


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_forbidding_everything_is_an_error(temperature: float) -> None:
    options = SamplingOptions(temperature, logit_bias=dict.fromkeys(range(5), -math.inf))
    with pytest.raises(BadOption, match="forbids every token"):
        sample(torch.zeros(1, 5), options, [[]], [[]], [0])


def test_scores_that_overflow_are_an_error() -> None:
    with pytest.raises(BadOption, match="overflowed"):
        sample(torch.zeros(1, 5), SamplingOptions(1e-6, logit_bias={2: 1e35}), [[]], [[]], [0])


def test_a_tiny_temperature_is_greedy() -> None:
    table = torch.tensor([[900.0, 901.0, -900.0]])
    assert sample(table, SamplingOptions(1e-6, None), [[]], [[]], [0]) == [1]
