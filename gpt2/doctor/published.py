"""OpenAI's 124M as lm-evaluation-harness tests it: published log-probabilities and a greedy continuation.

`openai_124m.json` holds the figures, with their source. A runner that says the same has the true weights and computes
truly; one that does not, may have other weights.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.config import SIZES, GPT2Config
from gpt2.runners.runner import Feed, Runner
from gpt2.tokenizer import Tokenizer

FIGURES = Path(__file__).with_name("openai_124m.json")


@dataclass(frozen=True, slots=True)
class Published:
    """How near a runner is to the published figures.

    relative: the largest relative difference of a log-probability (infinite for NaN). text: where it was. greedy: the
    published continuation was the likeliest token after token, and " dog" likelier than " cat". ok: all is as
    published.
    """

    relative: float
    text: str
    greedy: bool
    ok: bool


def applies(config: GPT2Config, tokenizer: Tokenizer) -> bool:
    """Whether a model has the shape and the vocabulary of OpenAI's 124M."""
    shape = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "mlp_width", "activation_function")
    same = all(getattr(config, name) == getattr(SIZES["gpt2"].config, name) for name in shape)
    return same and tokenizer == Tokenizer.gpt2()


def compare(runner: Runner, tokenizer: Tokenizer) -> Published:
    """Reads the published texts in slot 0, which is empty afterwards."""
    data = json.loads(FIGURES.read_text(encoding="utf-8"))
    found: list[tuple[float, float, str]] = []
    for case in data["loglikelihood"]:
        context, continuation = tokenizer.encode(case["context"]), tokenizer.encode(case["continuation"])
        found.append((sum(_logprobs(runner, context, continuation)), case["logprob"], case["continuation"]))
    found += _rolling(runner, tokenizer, data["rolling"])
    worst, text = 0.0, ""
    for ours, theirs, about in found:
        relative = abs(ours - theirs) / abs(theirs)
        if not relative <= worst:
            worst, text = (relative if relative < float("inf") else float("inf")), about
    greedy = _orders(runner, tokenizer, data["orderings"])
    return Published(worst, text, greedy, greedy and worst <= data["tolerance_rel"])


def _rolling(runner: Runner, tokenizer: Tokenizer, data: dict[str, Any]) -> list[tuple[float, float, str]]:
    """A text from its start, once whole and once in windows of 5 tokens; summed, as the source compares them.

    A window is what is read, 5 tokens or fewer, and what is predicted, 5 tokens or what is left; the last one reads
    back so far that it is full.
    """
    ids = tokenizer.encode(data["text"])
    before = [int(tokenizer.end_of_text or 0), *ids]
    whole, windowed = data["logprobs"]
    ours = sum(_logprobs(runner, before[:1], ids))
    in_windows = 0.0
    for start in range(0, len(ids), 5):
        end = min(start + 5, len(ids))
        in_windows += sum(_logprobs(runner, before[max(0, end - 5) : start + 1], ids[start:end]))
    return [(ours, sum(whole), data["text"]), (in_windows, sum(windowed), f"{data['text']} (windows of 5)")]


def _orders(runner: Runner, tokenizer: Tokenizer, data: dict[str, Any]) -> bool:
    context = tokenizer.encode(data["context"])
    (dog,), (cat,) = (_logprobs(runner, context, tokenizer.encode(word)) for word in (" dog", " cat"))
    greedy = all(
        _is_greedy(runner, context, tokenizer.encode(continuation)) == expected
        for continuation, expected in data["is_greedy"].items()
    )
    return greedy and (dog > cat) == data["dog_gt_cat"]


def _logprobs(runner: Runner, context: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """The log-probability of each token of the continuation."""
    logprob_TV = torch.log_softmax(_logits(runner, context, continuation).double(), dim=-1)
    return [float(logprob_V[id]) for logprob_V, id in zip(logprob_TV, continuation, strict=True)]


def _is_greedy(runner: Runner, context: Sequence[int], continuation: Sequence[int]) -> bool:
    return _logits(runner, context, continuation).argmax(dim=-1).tolist() == list(continuation)


def _logits(runner: Runner, context: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
    """Logits (T, V) for the T tokens of the continuation."""
    ids = [*context, *continuation[:-1]]
    runner.rewind(0, 0)
    logits_TV = runner.read([Feed(0, ids, len(continuation))])
    runner.rewind(0, 0)
    return logits_TV.detach().cpu()
