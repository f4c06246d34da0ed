"""Tiny models for the tests of generation, and an independent, slow, plain generation to hold the real one to."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.config import GPT2Config
from gpt2.generation import sampling as real
from gpt2.generation.options import GenerationOptions, SamplingOptions
from gpt2.generation.sampling import gumbel_noise, sample
from gpt2.model import GPT2
from gpt2.runners import Runner, choose
from gpt2.tokenizer import Tokenizer, learn

if TYPE_CHECKING:
    import transformers

# Every runner and width that the laws of generation are held to. compiled and graph, which take long to start or want a
# GPU, have a law of their own.
RUNNERS = [("plain", "float32"), ("native", "float32"), ("native", "bfloat16"), ("native", "int8"), ("aten", "int8")]
# A shape that all of them can run.
SHAPE = {"n_embd": 64, "n_head": 4, "n_layer": 2}

TEXT = (
    "The cat sat on the mat. The dog sat on the cat, and the mat was wet. \n\n"
    "It’s a naïve café: über-größe, 日本語, 🙂🙃 and the end of the story. "
) * 4


@cache
def byte_tokenizer() -> Tokenizer:
    """256 bytes and <|endoftext|>: random ids are mostly broken UTF-8."""
    return Tokenizer.from_merges([])


@cache
def small_tokenizer() -> Tokenizer:
    return learn([TEXT], 320)


def network(seed: int = 0, spread: float = 0.3, **shape: object) -> GPT2:
    """A random GPT-2. A spread above 0.02 gives logits that differ enough for greedy choices to be clear."""
    values = {"vocab_size": 257, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, **shape}
    made = GPT2(GPT2Config(initializer_range=spread, **values)).initialise(seed)
    # Biases and norms that are not 0 and 1, so that leaving one out would show.
    random = torch.Generator().manual_seed(seed + 1)
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or ".ln_" in name or name.startswith("ln_f"):
            parameter.data += torch.empty(parameter.shape).normal_(0, 0.1, generator=random)
    # With the head tied to the embedding, a random model repeats what it reads; a quieter embedding lets it wander.
    made.wte.weight.data *= 0.2
    made.ln_f.weight.data *= 5
    return made.eval().requires_grad_(False)


def model(tokenizer: Tokenizer | None = None, seed: int = 0, **shape: object) -> LanguageModel:
    tokenizer = tokenizer or byte_tokenizer()
    return LanguageModel(network(seed, **{"vocab_size": tokenizer.vocab_size, **shape}), tokenizer, "random", None)


def runner(name: str, dtype: str, made: LanguageModel, slots: int = 8) -> Runner:
    """A runner for the model in this width; skips the test if it cannot run here."""
    same = LanguageModel(made.network, made.tokenizer, dtype=dtype)
    for choice in choose.explain(same):
        if choice.name == name:
            if not choice.possible:
                pytest.skip(f"left out: {name} cannot run {dtype} here: {choice.why}")
            return choose.build(name, same, slots)
    pytest.skip(f"left out: there is no runner {name} for {dtype} on this device")


def scripted(
    text: str | bytes, tokenizer: Tokenizer | None = None, *, window: int = 64, end: bool = False
) -> LanguageModel:
    """A GPT-2 that, from a prompt of one token, greedily writes this text, and then <|endoftext|> if `end`.

    Its blocks add nothing; each position's embedding points at the token that follows.
    """
    tokenizer = tokenizer or byte_tokenizer()
    if isinstance(text, str):
        ids = tokenizer.encode(text)
    else:
        table = {tokenizer.token_bytes(id): id for id in range(256)}
        ids = [table[bytes([byte])] for byte in text]
    if end:
        ids.append(tokenizer.end_of_text)
    size = tokenizer.vocab_size
    made = GPT2(GPT2Config(vocab_size=size, n_positions=window, n_embd=size, n_layer=1, n_head=1)).initialise(0)
    for parameter in made.parameters():
        parameter.data.zero_()
    for norm in (made.h[0].ln_1, made.h[0].ln_2, made.ln_f):
        norm.weight.data.fill_(1)
    made.wte.weight.data = torch.eye(size)
    for place in range(window):
        made.wpe.weight.data[place, ids[place % len(ids)]] = 100.0
    return LanguageModel(made.eval().requires_grad_(False), tokenizer, "scripted", None)


def peer(ours: GPT2, attention: str = "eager") -> "transformers.GPT2LMHeadModel":
    """Hugging Face's model on the very same tensors (no copy), named as its files name them."""
    import transformers

    config = transformers.GPT2Config(**ours.config.to_dict(), attn_implementation=attention)
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(config)
    weights = {f"transformer.{name}": tensor for name, tensor in ours.state_dict().items()}
    missing = theirs.load_state_dict({**weights, "lm_head.weight": ours.wte.weight}, assign=True, strict=True)
    assert not missing.missing_keys
    return theirs.eval()


def window_of(prompt: Sequence[int], output: Sequence[int], size: int) -> list[int]:
    """What has been read when the token after `output` is chosen, by the rule that overflow="slide" states."""
    keep = max(1, size // 2)
    read = list(prompt) if len(prompt) <= size else list(prompt[-keep:])
    for place, id in enumerate(output):
        read = [*prompt, *output[: place + 1]][-keep:] if len(read) == size else [*read, id]
    return read


def adjust(
    scores: torch.Tensor, options: SamplingOptions, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> torch.Tensor:
    """`sampling.adjust` on tensors."""
    return torch.from_numpy(real.adjust(scores.numpy(), options, prompts, outputs))


def candidates(scores: torch.Tensor, options: SamplingOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """`sampling.candidates` on tensors, from the whole vocabulary."""
    kept, ids = real.candidates(scores.numpy(), np.arange(scores.shape[1])[None], options)
    return torch.from_numpy(kept), torch.from_numpy(ids)


@torch.inference_mode()
def plain(model: LanguageModel, prompt: Sequence[int], options: GenerationOptions, seed: int) -> list[int]:
    """Generation with no cache, no batch and no stop strings: every step reads the whole window again."""
    output: list[int] = []
    while len(output) < options.max_tokens:
        read = window_of(prompt, output, model.config.n_positions)
        logits = model.network(torch.tensor([read]))[:, -1]
        [id] = sample(logits, options.sampling, [prompt], [output], [seed])
        if id == model.tokenizer.end_of_text:
            break
        output.append(id)
    return output


@torch.inference_mode()
def assert_same_or_tied(
    model: LanguageModel, prompt: Sequence[int], ours: list[int], other: list[int], sampling: SamplingOptions, seed: int
) -> None:
    """Law (*): equal, unless at the first difference the choice hung on less than 1e-4 of logit; checks that it did."""
    if ours == other:
        return
    end = model.tokenizer.end_of_text
    place = next(i for i, (a, b) in enumerate(zip([*ours, end], [*other, end], strict=False)) if a != b)
    pair = [[*ours, end][place], [*other, end][place]]
    output = ours[:place]
    logits = model.network(torch.tensor([window_of(prompt, output, model.config.n_positions)]))[:, -1]
    scores = adjust(logits, sampling, [prompt], [output])
    # A logit moves by at most 1e-4; penalties and temperature stretch that.
    stretch = max(sampling.repetition_penalty, 1 / sampling.repetition_penalty) / (sampling.temperature or 1)
    slack = 2e-4 * stretch
    if sampling.temperature == 0:
        assert abs(float(scores[0, pair[0]] - scores[0, pair[1]])) <= slack
        return
    scores = scores / sampling.temperature
    noise = gumbel_noise([seed], [place], torch.arange(scores.shape[-1])[None])
    sums = scores.double() + noise
    close = abs(float(sums[0, pair[0]] - sums[0, pair[1]])) <= slack
    assert close or any(_on_border(scores, id, sampling, slack) for id in pair), (
        f"token {place} is {pair[0]} here and {pair[1]} there, and neither their sums nor a filter's border are close"
    )


def _on_border(scores: torch.Tensor, id: int, sampling: SamplingOptions, slack: float) -> bool:
    """Whether moving this token's score by the slack takes it in or out of what the filters leave."""
    inside = set()
    for move in (-slack, slack):
        moved = scores.clone()
        moved[0, id] += move
        kept, ids = candidates(moved, sampling)
        inside.add(id in ids[kept > -torch.inf].tolist())
    return len(inside) == 2
