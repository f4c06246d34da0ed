"""A token for every row of logits that is ready: rows with equal options together, and each row's error its own.

How a token is chosen is in `sampling.py`. Nothing here knows of slots or of text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import BadOption, Error
from gpt2.generation.request import Logprob, Request
from gpt2.generation.sampling import log_probabilities, sample

Choice = tuple[int, Logprob] | Error


def draw(logits_NV: Tensor, places: Sequence[int], requests: Sequence[Request], vocabulary: int) -> list[Choice]:
    """For each request a token from its row of logits (N, V), of the first `vocabulary` ids; or why there is none."""
    groups: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(id(request.sampling), []).append(number)
    if len(groups) == 1:
        return _draw_alike(_rows(logits_NV, places), requests, vocabulary)
    choices: dict[int, Choice] = {}
    for numbers in groups.values():
        logits_BV = _rows(logits_NV, [places[number] for number in numbers])
        choices.update(
            zip(numbers, _draw_alike(logits_BV, [requests[number] for number in numbers], vocabulary), strict=True)
        )
    return [choices[number] for number in range(len(requests))]


def _rows(logits_NV: Tensor, places: Sequence[int]) -> Tensor:
    return logits_NV if list(places) == list(range(len(logits_NV))) else logits_NV[list(places)]


def _draw_alike(logits_BV: Tensor, requests: Sequence[Request], vocabulary: int) -> list[Choice]:
    """As `draw`, for requests with equal sampling options."""
    # A vocabulary may be padded past the tokenizer's last id; those ids have no text and are never drawn.
    drawable_BV = logits_BV if logits_BV.shape[1] == vocabulary else logits_BV[:, :vocabulary]
    try:
        ids = sample(
            _allowed(drawable_BV, requests),
            requests[0].sampling,
            [request.prompt for request in requests],
            [request.output for request in requests],
            [request.seed for request in requests],
        )
    except Error as error:
        if len(requests) == 1:
            return [error]
        rows = enumerate(requests)
        return [_draw_alike(logits_BV[row : row + 1], [request], vocabulary)[0] for row, request in rows]
    if all(request.options.logprobs is None for request in requests):
        return [(id, (None, ())) for id in ids]
    return [
        (id, _logprob(logits_V, id, request.options.logprobs, vocabulary))
        for logits_V, id, request in zip(logits_BV, ids, requests, strict=True)
    ]


def _allowed(logits_BV: Tensor, requests: Sequence[Request]) -> Tensor:
    """The logits, with -inf for what a row's grammar does not allow."""
    if all(request.grammar is None for request in requests):
        return logits_BV
    logits_BV = logits_BV.to("cpu", torch.float32, copy=True)
    for logits_V, request in zip(logits_BV, requests, strict=True):
        if request.grammar is None:
            continue
        try:
            allowed_V = np.asarray(request.grammar.allowed(request.output))
        except Exception as error:  # whatever it does, other texts go on
            raise BadOption(f"The grammar failed: {error!r}") from error
        if allowed_V.shape != logits_V.shape or allowed_V.dtype != bool:
            raise BadOption(
                f"The grammar allows {allowed_V.dtype}{allowed_V.shape}, but it must be bool for a vocabulary of "
                f"{len(logits_V)}."
            )
        logits_V[torch.from_numpy(~allowed_V)] = -torch.inf
    return logits_BV


def _logprob(logits_V: Tensor, id: int, count: int | None, vocabulary: int) -> Logprob:
    """A token's log-probability, and the likeliest tokens with theirs."""
    if count is None:
        return None, ()
    logprobs_V = log_probabilities(logits_V)
    best = logprobs_V[:vocabulary].topk(count)
    return float(logprobs_V[id]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
