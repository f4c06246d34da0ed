"""What people call: `generate` for whole answers, `stream` for text as it comes, `next_tokens` for what may come next.

All three are thin: the work is in `loop.py` and `sampling.py`, and what the options mean and their defaults are in
`options.py`. Every prompt is a text or a list of token ids; there is no padding, and a row of a batch gets what it
would get alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from gpt2.errors import BadPrompt, ContextOverflow, Error
from gpt2.generation.loop import Event, FinishReason, checked_prompt, decode
from gpt2.generation.options import DEFAULTS, GenerationOptions, Overflow, SamplingOptions, whole_number

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and how likely the model found it.

    token: its text (a token that is part of a character shows as U+FFFD); logprob: nats, the model's own, before
    bias, penalties, temperature and filters; top: the likeliest (token, id, logprob) at that place, likeliest first.
    """

    token: str
    id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated for one prompt.

    text: without the stop string that ended it, and without the prompt.
    ids: every generated id but end of text; those that lie under a trimmed stop string are here too.
    finish_reason: "stop" (a stop string, or end of text) or "length" (max_tokens, or a full window).
    logprobs: one for each of `ids`; None unless asked for.
    prompt_ids: what was read; an empty prompt is read as end of text.
    seed: the one that makes this text again, given or drawn.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next: its text, its id and its probability."""

    token: str
    id: int
    probability: float


def generate(
    model: "LanguageModel",
    prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_tokens: int = DEFAULTS.max_tokens,
    temperature: float = DEFAULTS.sampling.temperature,
    top_k: int | None = DEFAULTS.sampling.top_k,
    top_p: float | None = DEFAULTS.sampling.top_p,
    min_p: float | None = DEFAULTS.sampling.min_p,
    repetition_penalty: float = DEFAULTS.sampling.repetition_penalty,
    presence_penalty: float = DEFAULTS.sampling.presence_penalty,
    frequency_penalty: float = DEFAULTS.sampling.frequency_penalty,
    logit_bias: Mapping[int, float] = DEFAULTS.sampling.logit_bias,
    seed: int | Sequence[int] | None = DEFAULTS.seed,
    stop: str | Sequence[str] = DEFAULTS.stop,
    logprobs: int | None = DEFAULTS.logprobs,
    overflow: Overflow = DEFAULTS.overflow,
    n: int = 1,
) -> Completion | list[Completion]:
    """Completes a prompt, or a batch of them.

    prompt: a text, a list of token ids, or a list of either (a batch). An empty text starts from nothing (from
        <|endoftext|>). A literal "<|endoftext|>" in a text is text.
    n: completions per prompt. Completion j uses seed + j, so n = 1 gives the first of them.
    The other options: `SamplingOptions` and `GenerationOptions`. A given seed is used by every prompt as it is;
    without one, each prompt draws its own.

    Returns one Completion for one prompt with n = 1; otherwise a list, the completions of a prompt side by side.

    Raises BadOption, BadPrompt and ContextOverflow before anything runs, Error if the model's logits are not finite.
    Warns (Notice) once if a text outgrows the window and slides.
    """
    sampling = SamplingOptions(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias
    )
    prompts, is_batch = _prompts(prompt)
    completions = complete(model, prompts, GenerationOptions(max_tokens, stop, seed, logprobs, overflow, sampling), n)
    return completions if is_batch or n > 1 else completions[0]


def complete(
    model: "LanguageModel", prompts: Sequence[Prompt], options: GenerationOptions = DEFAULTS, n: int = 1
) -> list[Completion]:
    """What `generate` does, for options in one piece: `n` completions of each prompt, side by side."""
    completions = dict(as_completed(model, prompts, options, n))
    return [completions[row] for row in sorted(completions)]


def as_completed(
    model: "LanguageModel", prompts: Sequence[Prompt], options: GenerationOptions = DEFAULTS, n: int = 1
) -> Iterator[tuple[int, Completion]]:
    """The completions that `complete` returns, each with its number there, in the order in which they finish.

    Options and prompts are checked at once, not when the first is asked for.
    """
    n = whole_number("n", n, 1)
    ids = [_ids(model, each) for each in prompts for _ in range(n)]
    seeds = [first + sample for first in options.seeds(len(prompts)) for sample in range(n)]
    stream = decode(model, ids, replace(options, seed=seeds))

    def finished() -> Iterator[tuple[int, Completion]]:
        events: list[list[Event]] = [[] for _ in ids]
        for event in stream:
            row = event.row
            events[row].append(event)
            if event.finish_reason is not None:
                with_logprobs = options.logprobs is not None
                yield row, _completion(model, events[row], ids[row], seeds[row], with_logprobs=with_logprobs)
                events[row] = []

    return finished()


def stream(
    model: "LanguageModel",
    prompt: Prompt,
    *,
    max_tokens: int = DEFAULTS.max_tokens,
    temperature: float = DEFAULTS.sampling.temperature,
    top_k: int | None = DEFAULTS.sampling.top_k,
    top_p: float | None = DEFAULTS.sampling.top_p,
    min_p: float | None = DEFAULTS.sampling.min_p,
    repetition_penalty: float = DEFAULTS.sampling.repetition_penalty,
    presence_penalty: float = DEFAULTS.sampling.presence_penalty,
    frequency_penalty: float = DEFAULTS.sampling.frequency_penalty,
    logit_bias: Mapping[int, float] = DEFAULTS.sampling.logit_bias,
    seed: int | Sequence[int] | None = DEFAULTS.seed,
    stop: str | Sequence[str] = DEFAULTS.stop,
    overflow: Overflow = DEFAULTS.overflow,
) -> Iterator[str]:
    """The text that `generate` would give for this prompt, in pieces as they come.

    The pieces joined are that text; none is empty, none ends in half a character or in what could still become a stop
    string. Whoever stops reading stops the generation.

    The options are `generate`'s. They and the prompt are checked at once, not when the first piece is asked for.
    """
    sampling = SamplingOptions(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias
    )
    prompts, is_batch = _prompts(prompt)
    if is_batch:
        raise BadPrompt(f"stream reads one prompt and was given a list of {len(prompts)}; generate reads several.")
    return pieces(model, prompts[0], GenerationOptions(max_tokens, stop, seed, None, overflow, sampling))


def pieces(model: "LanguageModel", prompt: Prompt, options: GenerationOptions = DEFAULTS) -> Iterator[str]:
    """What `stream` does, for options in one piece."""
    events = decode(model, [_ids(model, prompt)], options)
    return (event.text for event in events if event.text)


def next_tokens(model: "LanguageModel", prompt: Prompt, n: int = 10) -> list[Candidate]:
    """The n likeliest next tokens (fewer if the vocabulary is smaller), likeliest first, with their probabilities.

    The probabilities are the model's own: softmax of its logits, no temperature and no filters.

    Raises BadPrompt, BadOption, ContextOverflow for a prompt longer than the window, Error for logits that are not
    finite.
    """
    n = whole_number("n", n, 1)
    prompts, is_batch = _prompts(prompt)
    if is_batch:
        raise BadPrompt(f"next_tokens reads one prompt and was given a list of {len(prompts)}.")
    ids = checked_prompt(model, _ids(model, prompts[0]))
    window = model.config.n_positions
    if len(ids) > window:
        raise ContextOverflow(
            f"The prompt's {len(ids)} tokens do not fit in this model's window of {window}; shorten it."
        )
    with torch.inference_mode():
        last_1C = model.network.hidden(torch.tensor([ids], device=model.network.device))[:, -1]
        probability_V = F.linear(last_1C, model.network.wte.weight)[0].float().softmax(dim=-1)
        if not bool(probability_V.isfinite().all()):
            raise Error(
                "The model's logits hold NaN or infinity; its weights are damaged, or too large for their dtype."
            )
        probability_V = probability_V[: model.tokenizer.vocab_size]
        best = probability_V.topk(min(n, len(probability_V)))
    return [
        Candidate(model.tokenizer.decode([id]), id, probability)
        for id, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _prompts(prompt: Any) -> tuple[list[Prompt], bool]:
    """The prompts, and whether they came as a batch."""
    if isinstance(prompt, str):
        return [prompt], False
    # Arrays and tensors are lists of ids too.
    items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    forms = "a text, a list of token ids, or a list of either"
    if not isinstance(items, Sequence) or isinstance(items, bytes | bytearray | memoryview):
        raise BadPrompt(f"The prompt is a {type(prompt).__name__}; give {forms}.")
    if not items:
        raise BadPrompt("The prompt is an empty list; give '' or [[]] to start from nothing.")
    several = [isinstance(item, str | Sequence) or hasattr(item, "__len__") for item in items]
    if any(several) != all(several):
        raise BadPrompt(f"The prompt mixes token ids with texts or lists; give {forms}.")
    return (list(items), True) if all(several) else ([items], False)


def _ids(model: "LanguageModel", prompt: Prompt) -> list[int]:
    return checked_prompt(model, model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)


def _completion(
    model: "LanguageModel", events: list[Event], prompt_ids: list[int], seed: int, *, with_logprobs: bool
) -> Completion:
    finish_reason = events[-1].finish_reason
    assert finish_reason is not None
    tokens = [event for event in events if event.id is not None]

    def text(id: int) -> str:
        return model.tokenizer.decode([id])

    logprobs = [
        TokenLogprob(text(event.id), event.id, event.logprob, tuple((text(id), id, value) for id, value in event.top))
        for event in tokens
        if event.id is not None and event.logprob is not None
    ]
    return Completion(
        text="".join(event.text for event in events),
        ids=[event.id for event in tokens if event.id is not None],
        finish_reason=finish_reason,
        logprobs=logprobs if with_logprobs else None,
        prompt_ids=prompt_ids,
        seed=seed,
    )
