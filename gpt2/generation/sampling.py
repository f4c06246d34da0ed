"""From logits to a token: the filters in their written order, and the draw. It knows nothing of text or of caches.

The order, stated here and nowhere else:

    1. logit_bias           added to the logits
    2. repetition penalty   on every token of the prompt and the output
    3. presence and frequency penalties, on every token of the output
    4. temperature          0 ends here: the highest score wins, the lowest id on a tie
    5. top_k                tokens that tie with the k-th stay
    6. top_p                over what is left
    7. min_p                over what is left
    8. the draw

Those that Hugging Face has (1, 2, 4 to 7) compute what its processors compute and stand in its order. Ties too, but for
one that it leaves open: see `keep_top_p`.

The draw is Gumbel's: to each score is added noise, and the highest sum wins, which draws from softmax(scores)
(Gumbel 1954; Maddison, Tarlow and Minka, "A* Sampling", 2014). The noise is a pure function of the request's seed, the
number of the generated token and the token's id. So a seeded sample depends on nothing else: not on the other rows of
a batch, nor on the order of candidates, nor on the device; and a tiny difference in logits changes the outcome
only where two sums lie within that difference, or where it moves a token across a filter's border.

All of it happens on the host: the draw is made in float64, which not every device has. NumPy does it, several times
faster than PyTorch on work of this size; and one thread waits for no other.

Letters: B rows, V vocabulary, K candidates (at most V).
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gpt2.errors import BadOption, Error
from gpt2.generation.options import SamplingOptions
from gpt2.runners.noise import FACTORS, STEP

Histories = Sequence[Sequence[int]]
Scores = NDArray[np.float32]
Ids = NDArray[np.int64]
Whole = NDArray[np.uint64]
Real = NDArray[np.float64]


def sample(
    logits_BV: Tensor, options: SamplingOptions, prompts: Histories, outputs: Histories, seeds: Sequence[int]
) -> list[int]:
    """One token id for each row of the model's logits (B, V).

    prompts, outputs: each row's token ids, for the penalties; the number of ids in `outputs` is the number of the
    token that is drawn. seeds: one for each row.

    Raises Error if the logits are not finite, or if logit_bias forbids every token.
    """
    table_BV: Scores = logits_BV.detach().to("cpu", torch.float32).numpy()
    scores_BV = adjust(table_BV, options, prompts, outputs)
    if options.temperature == 0:
        ids_B = scores_BV.argmax(axis=1)
        _check_scores(table_BV, np.take_along_axis(scores_BV, ids_B[:, None], axis=1)[:, 0])
        return [int(id) for id in ids_B]
    scores_BK, ids_BK, highest_B = _likely(scores_BV, options)
    with np.errstate(over="ignore"):
        scores_BK, highest_B = scores_BK / options.temperature, highest_B / options.temperature
    _check_scores(table_BV, highest_B)
    scores_BK, ids_BK = candidates(scores_BK, ids_BK, options)
    keys_B = _keys(seeds, [len(output) for output in outputs])
    if ids_BK.shape[1] > _MANY:
        ids_BK = np.broadcast_to(ids_BK, scores_BK.shape)
        return [_draw_of_many(*row) for row in zip(scores_BK, ids_BK, keys_B[:, None], strict=True)]
    choice_B = (scores_BK + _noise(keys_B[:, None], ids_BK)).argmax(axis=1)
    return [int(id) for id in np.broadcast_to(ids_BK, scores_BK.shape)[np.arange(len(choice_B)), choice_B]]


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """The model's own log-probabilities (B, V), float32, in nats: before bias, penalties, temperature and filters."""
    return F.log_softmax(logits_BV.float(), dim=-1)


def adjust(scores_BV: Scores, options: SamplingOptions, prompts: Histories, outputs: Histories) -> Scores:
    """Scores (B, V) after logit_bias and the penalties: steps 1 to 3. The argument is left as it is."""
    additive = bool(options.presence_penalty or options.frequency_penalty)
    if not options.logit_bias and options.repetition_penalty == 1 and not additive:
        return scores_BV
    scores_BV = scores_BV.copy()
    if options.logit_bias:
        with np.errstate(invalid="ignore"):  # infinity less infinity: the caller finds the NaN
            scores_BV[:, list(options.logit_bias)] += np.array(list(options.logit_bias.values()), np.float32)
    for row_V, prompt, output in zip(scores_BV, prompts, outputs, strict=True):
        if options.repetition_penalty != 1:
            seen_N = np.array(sorted({*prompt, *output}), np.int64)
            scores_N = row_V[seen_N]
            # Dividing would make a negative score more likely, so the penalty multiplies it.
            row_V[seen_N] = np.where(
                scores_N < 0, scores_N * options.repetition_penalty, scores_N / options.repetition_penalty
            )
        if additive:
            counts = Counter(output)
            penalties = [options.presence_penalty + options.frequency_penalty * count for count in counts.values()]
            row_V[np.array(list(counts), np.int64)] -= np.array(penalties, np.float32)
    return scores_BV


def _likely(scores_BV: Scores, options: SamplingOptions) -> tuple[Scores, Ids, Scores]:
    """What top_k may leave, and some more: scores and ids (B, K), before temperature, and each row's highest (B,)."""
    B, V = scores_BV.shape
    ids_1V, parts = np.arange(V)[None], V // _STRIDE
    if not options.top_k or options.top_k >= parts or options.temperature > _HOT:
        return scores_BV, ids_1V, scores_BV.max(axis=1)
    # The k-th highest of the maxima of many parts is a lower bound: at least k tokens are as high, and few more.
    highest_BP = scores_BV[:, : parts * _STRIDE].reshape(B, _STRIDE, parts).max(axis=1)
    bound_B = np.partition(highest_BP, parts - options.top_k, axis=1)[:, parts - options.top_k]
    # And a little below it, for what a division by the temperature makes tie with the k-th.
    with np.errstate(invalid="ignore"):  # infinity less infinity: the caller refuses the row
        bound_B = bound_B - np.abs(bound_B) * np.float32(1e-5) - np.float32(1e-20)
    highest_B = np.maximum(highest_BP.max(axis=1), scores_BV[:, parts * _STRIDE - 1 :].max(axis=1))
    # A row that holds NaN is above no bound; the caller refuses it.
    scores_BK, ids_BK = narrow(scores_BV, ids_1V, scores_BV >= bound_B[:, None])
    return scores_BK, ids_BK, highest_B


def candidates(scores_BK: Scores, ids_BK: Ids, options: SamplingOptions) -> tuple[Scores, Ids]:
    """What top_k, top_p and min_p leave, from scores (B, K) after temperature: steps 5 to 7.

    Returns fewer scores, with -inf for what was filtered out, and their ids, of which `ids_BK` are (B, K) or (1, K).
    """
    K = scores_BK.shape[1]
    if options.top_k and options.top_k < K:
        kth_B = np.partition(scores_BK, K - options.top_k, axis=1)[:, K - options.top_k]
        # Forbidden tokens, and what fills shorter rows, are -inf, and so may the k-th be.
        inside_BK = (scores_BK >= kth_B[:, None]) & (scores_BK > -np.inf)
        scores_BK, ids_BK = narrow(scores_BK, ids_BK, inside_BK)
    if options.top_p is not None and options.top_p < 1:
        scores_BK, ids_BK = narrow(scores_BK, ids_BK, in_top_p(scores_BK, options.top_p))
    if options.min_p:
        scores_BK, ids_BK = narrow(scores_BK, ids_BK, in_min_p(scores_BK, options.min_p))
    return scores_BK, ids_BK


def in_top_p(scores_BK: Scores, p: float) -> NDArray[np.bool_]:
    """Which of each row's candidates stay (B, K): not the least likely that together have a probability of 1 - p."""
    inside_BK = np.zeros(scores_BK.shape, bool)
    # Rows with equally many candidates together, so that no sum depends on how many another row has.
    counts_B = (scores_BK > -np.inf).sum(axis=1)
    for count in sorted(set(counts_B.tolist())):
        rows_N = np.flatnonzero(counts_B == count)
        # One by one where they are long: PyTorch would share them out, and wait.
        for part_N in rows_N[:, None] if count > _MANY else (rows_N,):
            inside_BK[part_N] = _in_top_p(scores_BK[part_N], count, p)
    return inside_BK


def _in_top_p(scores_NK: Scores, count: int, p: float) -> NDArray[np.bool_]:
    """As above, for rows with so many candidates each; the rest is -inf."""
    # Rising order, as Hugging Face has it: the small probabilities are summed first.
    rising_NK = np.sort(scores_NK, axis=1)[:, -count:]
    sums_NK = torch.from_numpy(rising_NK).softmax(dim=-1).cumsum(dim=-1).numpy()
    gone_N1 = np.minimum((sums_NK <= np.float32(1 - p)).sum(axis=1, keepdims=True), count - 1)
    border_N1 = np.take_along_axis(rising_NK, gone_N1, axis=1)
    above_NK, equal_NK = scores_NK > border_N1, scores_NK == border_N1
    # Where equals stand at the border, Hugging Face's unstable sort decides which of them stay; here those with the
    # lowest ids do, as with temperature 0.
    room_N1 = count - gone_N1 - above_NK.sum(axis=1, keepdims=True)
    if (equal_NK.sum(axis=1, keepdims=True) > room_N1).any():
        equal_NK &= equal_NK.cumsum(axis=1) <= room_N1
    inside_NK: NDArray[np.bool_] = above_NK | equal_NK
    return inside_NK


def in_min_p(scores_BK: Scores, p: float) -> NDArray[np.bool_]:
    """Which of each row's candidates stay (B, K): those at least `p` times as likely as the most likely."""
    # exp(score - highest) >= p, with the exponential left to those near the border or above it.
    below_BK = scores_BK - scores_BK.max(axis=1, keepdims=True)
    inside_BK: NDArray[np.bool_] = below_BK >= np.float32(math.log(p) - 1e-3)
    inside_BK[inside_BK] = np.exp(below_BK[inside_BK]) >= np.float32(p)
    return inside_BK


def narrow(scores_BK: Scores, ids_BK: Ids, inside_BK: NDArray[np.bool_]) -> tuple[Scores, Ids]:
    """Only what is inside (B, K), with ids, in the same order; shorter rows end in -inf.

    This makes what follows cheap: after top_k, a few dozen candidates instead of 50,257.
    """
    B, K = scores_BK.shape
    place_N = np.flatnonzero(inside_BK)
    row_N = place_N // K
    counts_B = np.bincount(row_N, minlength=B)
    most = int(counts_B.max())
    # The place of each in its row: its place among all, less those of the rows above.
    to_N = np.arange(len(place_N)) - (counts_B.cumsum() - counts_B)[row_N]
    narrow_scores_BK = np.full((B, most), -np.inf, np.float32)
    narrow_ids_BK = np.zeros((B, most), np.int64)
    narrow_scores_BK[row_N, to_N] = scores_BK.reshape(-1)[place_N]
    narrow_ids_BK[row_N, to_N] = np.broadcast_to(ids_BK, (B, K))[row_N, place_N - row_N * K]
    return narrow_scores_BK, narrow_ids_BK


_HOT = 1e6  # temperatures above this may press different scores into one
_STRIDE = 32  # so many scores share a maximum when the k highest are looked for
_MANY = 2048  # candidates from which on it pays to look who can win before working noise out


def _draw_of_many(scores_K: Scores, ids_K: Ids, key_1: Whole) -> int:
    """The id with the highest sum of score and noise, of so many that working out each one's noise would be slow.

    Noise is -log(-log(u)) for a uniform u. A token can beat a sum s only if -log(u) <= exp(score - s), and since
    1 - u <= -log(u), only if 1 - u <= exp(score - s). Those few are then worked out exactly.
    """
    best = int(scores_K.argmax())
    beaten = scores_K[best] + _noise(key_1, ids_K[best : best + 1])[0]
    rest_K = 1 - _uniform(key_1, ids_K)
    # A little more than the formula says, for what float32 rounds.
    slack = 1e-3 + 1e-6 * abs(beaten)
    few_N = np.flatnonzero(rest_K <= np.exp(scores_K - np.float32(beaten - slack)))
    sums_N = scores_K[few_N] + _noise(key_1, ids_K[few_N])
    return int(ids_K[few_N[sums_N.argmax()]])


def gumbel_noise(seeds: Sequence[int], numbers: Sequence[int], ids_BK: Tensor) -> Tensor:
    """Standard Gumbel noise (B, K), float64, for each row's seed, number of the token and candidates' ids.

    ids_BK: (B, K) or (1, K), int64. The same three whole numbers give the same noise, whatever stands beside them.
    """
    return torch.from_numpy(_noise(_keys(seeds, numbers)[:, None], ids_BK.numpy()))


# The hash of `runners/noise.py`, which makes the same noise on a GPU.
_STEP = np.uint64(STEP)
_FACTORS = np.uint64(FACTORS[0]), np.uint64(FACTORS[1])


def _keys(seeds: Sequence[int], numbers: Sequence[int]) -> Whole:
    """What a row's noise depends on beside the token's id, (B,)."""
    seeds_B, numbers_B = np.array(seeds, np.int64).view(np.uint64), np.array(numbers, np.uint64)
    return _mixed(_mixed(seeds_B) + numbers_B * _STEP)


def _uniform(keys: Whole, ids: Ids) -> Real:
    """Odd multiples of 2^-53: uniform, never 0 and never 1."""
    bits = _mixed(_mixed(keys + (ids.astype(np.uint64) + np.uint64(1)) * _STEP))
    uniform: Real = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return uniform


def _noise(keys: Whole, ids: Ids) -> Real:
    noise: Real = -np.log(-np.log(_uniform(keys, ids)))
    return noise


def _mixed(x: Whole) -> Whole:
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[1]
    return x ^ (x >> np.uint64(31))


def _check_scores(logits_BV: Scores, highest_B: Scores) -> None:
    """Raises unless every row has a finite highest score and no NaN. The highest of a row with a NaN is NaN."""
    if np.isfinite(highest_B).all():
        return
    for row, score in enumerate(highest_B.tolist()):
        if math.isfinite(score):
            continue
        where = f" (row {row})" if len(highest_B) > 1 else ""
        if not bool((logits_BV[row] < np.inf).all()):
            raise Error(
                f"The model's logits hold NaN or infinity{where}, so there is nothing to choose from; "
                "its weights are damaged, or too large for this dtype."
            )
        if score == -math.inf:
            raise BadOption(
                "logit_bias or the grammar forbids every token, so there is nothing to choose from; forbid fewer."
            )
        raise BadOption(
            f"The scores overflowed to {score}{where} after bias, penalties and temperature; use smaller ones."
        )
