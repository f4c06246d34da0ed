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

Letters: B rows, V vocabulary, K candidates (at most V).
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.errors import BadOption, Error
from gpt2.generation.options import SamplingOptions

Histories = Sequence[Sequence[int]]


def sample(
    logits_BV: Tensor, options: SamplingOptions, prompts: Histories, outputs: Histories, seeds: Sequence[int]
) -> list[int]:
    """One token id for each row of the model's logits (B, V).

    prompts, outputs: each row's token ids, for the penalties; the number of ids in `outputs` is the number of the
    token that is drawn. seeds: one for each row.

    Raises Error if the logits are not finite, or if logit_bias forbids every token.
    """
    scores_BV = adjust(logits_BV.float(), options, prompts, outputs)
    if options.temperature == 0:
        _check_scores(logits_BV, scores_BV)
        return _ids(scores_BV.argmax(dim=-1))
    scores_BV = scores_BV / options.temperature
    _check_scores(logits_BV, scores_BV)
    # The draw is made on the host: a few dozen candidates, in float64, which not every device has.
    scores_BK, ids_BK = (each.cpu() for each in candidates(scores_BV, options))
    noise_BK = gumbel_noise(seeds, [len(output) for output in outputs], ids_BK)
    choice_B1 = (scores_BK.double() + noise_BK).argmax(dim=-1, keepdim=True)
    return _ids(ids_BK.expand(len(seeds), -1).gather(1, choice_B1)[:, 0])


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """The model's own log-probabilities (B, V), float32, in nats: before bias, penalties, temperature and filters."""
    return F.log_softmax(logits_BV.float(), dim=-1)


def adjust(scores_BV: Tensor, options: SamplingOptions, prompts: Histories, outputs: Histories) -> Tensor:
    """Scores (B, V) after logit_bias and the penalties: steps 1 to 3. The argument is left as it is."""
    if options.logit_bias:
        bias_V = torch.zeros(scores_BV.shape[-1])
        bias_V[list(options.logit_bias)] = torch.tensor(list(options.logit_bias.values()))
        scores_BV = scores_BV + bias_V.to(scores_BV.device)
    if options.repetition_penalty != 1:
        scores_BV = scores_BV.clone()
        for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            seen_N = _index(sorted({*prompt, *output}), scores_BV)
            scores_N = scores_BV[row, seen_N]
            # Dividing would make a negative score more likely, so the penalty multiplies it.
            scores_BV[row, seen_N] = torch.where(
                scores_N < 0, scores_N * options.repetition_penalty, scores_N / options.repetition_penalty
            )
    if options.presence_penalty or options.frequency_penalty:
        scores_BV = scores_BV.clone()
        for row, output in enumerate(outputs):
            counts = Counter(output)
            penalty_N = torch.tensor(
                [options.presence_penalty + options.frequency_penalty * count for count in counts.values()]
            )
            scores_BV[row, _index(list(counts), scores_BV)] -= penalty_N.to(scores_BV.device)
    return scores_BV


def candidates(scores_BV: Tensor, options: SamplingOptions) -> tuple[Tensor, Tensor]:
    """What top_k, top_p and min_p leave, from scores (B, V) after temperature: steps 5 to 7.

    Returns scores (B, K) with -inf for what was filtered out, and the candidates' ids, (B, K) or (1, K), int64.
    """
    ids_BK = torch.arange(scores_BV.shape[-1], device=scores_BV.device)[None]
    scores_BK = scores_BV
    if options.top_k and options.top_k < scores_BV.shape[-1]:
        scores_BK, ids_BK = narrow(keep_top_k(scores_BK, options.top_k), ids_BK)
    if options.top_p is not None and options.top_p < 1:
        scores_BK, ids_BK = narrow(keep_top_p(scores_BK, options.top_p), ids_BK)
    if options.min_p:
        scores_BK, ids_BK = narrow(keep_min_p(scores_BK, options.min_p), ids_BK)
    return scores_BK, ids_BK


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Scores with -inf for all that are below the k-th highest of their row."""
    kth_B1 = scores_BV.topk(min(k, scores_BV.shape[-1]), dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < kth_B1, -torch.inf)


def keep_top_p(scores_BK: Tensor, p: float) -> Tensor:
    """Scores with -inf for the least likely of each row that together have a probability of at most 1 - p."""
    # Rising order, as Hugging Face has it: the small probabilities are summed first. Where equals stand at the border,
    # its unstable sort decides which of them stay; here those with the lowest ids do, as with temperature 0.
    falling_BK, order_BK = scores_BK.sort(dim=-1, descending=True, stable=True)
    order_BK = order_BK.flip(-1)
    remove_BK = falling_BK.flip(-1).softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    remove_BK[:, -1] = False
    return scores_BK.masked_fill(remove_BK.scatter(1, order_BK, remove_BK), -torch.inf)


def keep_min_p(scores_BK: Tensor, p: float) -> Tensor:
    """Scores with -inf for all that are less than `p` times as likely as the most likely of their row."""
    probability_BK = scores_BK.softmax(dim=-1)
    return scores_BK.masked_fill(probability_BK < p * probability_BK.amax(dim=-1, keepdim=True), -torch.inf)


def narrow(scores_BK: Tensor, ids_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Only the scores above -inf of each row, and their ids, in the same order; shorter rows end in -inf.

    This makes what follows cheap: after top_k, a few dozen candidates instead of 50,257.
    """
    row_N, from_N = (scores_BK > -torch.inf).nonzero(as_tuple=True)
    counts_B = torch.bincount(row_N, minlength=scores_BK.shape[0])
    # The place of each in its row: its place among all, less those of the rows above.
    to_N = torch.arange(len(row_N), device=row_N.device) - (counts_B.cumsum(0) - counts_B)[row_N]
    shape = (scores_BK.shape[0], int(counts_B.max()))
    narrow_scores_BK, narrow_ids_BK = scores_BK.new_full(shape, -torch.inf), ids_BK.new_zeros(shape)
    narrow_scores_BK[row_N, to_N] = scores_BK[row_N, from_N]
    narrow_ids_BK[row_N, to_N] = ids_BK.expand(scores_BK.shape)[row_N, from_N]
    return narrow_scores_BK, narrow_ids_BK


def gumbel_noise(seeds: Sequence[int], numbers: Sequence[int], ids_BK: Tensor) -> Tensor:
    """Standard Gumbel noise (B, K), float64, for each row's seed, number of the token and candidates' ids.

    ids_BK: (B, K) or (1, K), int64. The same three whole numbers give the same noise, whatever stands beside them.
    """
    keys = [_mixed(_mixed(seed) + number * _STEP) for seed, number in zip(seeds, numbers, strict=True)]
    key_B1 = torch.tensor([_signed(key) for key in keys], device=ids_BK.device)[:, None]
    bits_BK = _mixed_tensor(_mixed_tensor(key_B1 + (ids_BK + 1) * _signed(_STEP)))
    # An odd multiple of 2^-53: uniform, never 0 and never 1.
    uniform_BK = (_shifted(bits_BK, 12).double() + 0.5) * 2.0**-52
    noise_BK: Tensor = -((-uniform_BK.log()).log())
    return noise_BK


# The hash is splitmix64's (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), twice. It is
# here once for Python's whole numbers and once for tensors, whose int64 wraps around.
_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1


def _mixed(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _FACTORS[0]) & _MASK
    x = ((x ^ (x >> 27)) * _FACTORS[1]) & _MASK
    return x ^ (x >> 31)


def _mixed_tensor(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(_FACTORS[0])
    x = (x ^ _shifted(x, 27)) * _signed(_FACTORS[1])
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """A shift to the right that fills with zeros; int64's own copies the sign."""
    shifted: Tensor = (x >> places) & ((1 << (64 - places)) - 1)
    return shifted


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x


def _index(ids: list[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def _ids(ids_B: Tensor) -> list[int]:
    return [int(id) for id in ids_B.tolist()]


def _check_scores(logits_BV: Tensor, scores_BV: Tensor) -> None:
    """Raises unless every row has a finite highest score and no NaN. The maximum of a row with a NaN is NaN."""
    highest = scores_BV.amax(dim=-1).tolist()
    for row, score in enumerate(highest):
        if math.isfinite(score):
            continue
        if not bool((logits_BV[row] < torch.inf).all()):
            raise Error(
                f"The model's logits hold NaN or infinity (row {row}), so there is nothing to choose from; "
                "its weights are damaged, or too large for this dtype."
            )
        if score == -torch.inf:
            raise BadOption("logit_bias forbids every token, so there is nothing to choose from; forbid fewer.")
        raise BadOption(
            f"The scores overflowed to {score} (row {row}) after bias, penalties and temperature; use smaller ones."
        )
