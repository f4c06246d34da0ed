"""What people call: `generate` for whole answers, `stream` for text as it comes, `next_tokens` for what may come next.

All are thin: `decode` puts prompts into the model's engine (`engine.py`) and gives its events out, and the others make
answers of them. What the options mean and their defaults are in `options.py`. Every prompt is a text or a list of
token ids; there is no padding, and a row of a batch gets what it would get alone. Where a model is asked for, an
`Engine` may be given.
"""

import math
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpt2.errors import BadPrompt, Busy, ContextOverflow, Notice
from gpt2.generation.engine import Engine
from gpt2.generation.options import DEFAULTS, GenerationOptions, Overflow, SamplingOptions, whole_number
from gpt2.generation.request import Event, FinishReason, Reader, Request, checked_prompt, kept, vocabulary
from gpt2.generation.shared import engine_of

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
    finish_reason: "stop" (a stop string, or end of text), "length" (max_tokens, or a full window), or in a batch
        "error": the text ends where its logits were not finite, or left nothing to choose from.
    logprobs: one for each of `ids`; None unless asked for.
    prompt_ids: what was read; an empty prompt is read as end of text.
    seed: the one that makes this text again, given or drawn.
    error: what went wrong, if something did.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    prompt_ids: list[int]
    seed: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next: its text, its id and its probability."""

    token: str
    id: int
    probability: float


def generate(
    model: "LanguageModel | Engine",
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

    Raises BadOption, BadPrompt and ContextOverflow before anything runs. Logits that are not finite, or options that
    leave no token to choose, are an Error for one prompt; in a batch only the rows that they concern end, with
    finish_reason "error".
    Warns (Notice) once if a text outgrows the window and slides.
    """
    sampling = SamplingOptions(
        temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias
    )
    prompts, is_batch = _prompts(prompt)
    completions = complete(model, prompts, GenerationOptions(max_tokens, stop, seed, logprobs, overflow, sampling), n)
    return completions if is_batch or n > 1 else completions[0]


def complete(
    model: "LanguageModel | Engine", prompts: Sequence[Prompt], options: GenerationOptions = DEFAULTS, n: int = 1
) -> list[Completion]:
    """What `generate` does, for options in one piece: `n` completions of each prompt, side by side."""
    completions = dict(as_completed(model, prompts, options, n))
    return [completions[row] for row in sorted(completions)]


def as_completed(
    model: "LanguageModel | Engine", prompts: Sequence[Prompt], options: GenerationOptions = DEFAULTS, n: int = 1
) -> Iterator[tuple[int, Completion]]:
    """The completions that `complete` returns, each with its number there, in the order in which they finish.

    Options and prompts are checked at once, not when the first is asked for.
    """
    n = whole_number("n", n, 1)
    engine = engine_of(model)
    ids = [_ids(engine, each) for each in prompts for _ in range(n)]
    seeds = [first + sample for first in options.seeds(len(prompts)) for sample in range(n)]
    stream = decode(engine, ids, replace(options, seed=seeds))

    def finished() -> Iterator[tuple[int, Completion]]:
        events: list[list[Event]] = [[] for _ in ids]
        for event in stream:
            row = event.row
            if event.error is not None and len(ids) == 1:
                raise event.error
            events[row].append(event)
            if event.finish_reason is not None:
                with_logprobs = options.logprobs is not None
                yield row, _completion(engine, events[row], ids[row], seeds[row], with_logprobs=with_logprobs)
                events[row] = []

    return finished()


def stream(
    model: "LanguageModel | Engine",
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


def pieces(model: "LanguageModel | Engine", prompt: Prompt, options: GenerationOptions = DEFAULTS) -> Iterator[str]:
    """What `stream` does, for options in one piece."""
    engine = engine_of(model)
    events = decode(engine, [_ids(engine, prompt)], options)

    def texts() -> Iterator[str]:
        for event in events:
            if event.text:
                yield event.text
            if event.error is not None:
                raise event.error

    return texts()


def next_tokens(model: "LanguageModel | Engine", prompt: Prompt, n: int = 10) -> list[Candidate]:
    """The n likeliest next tokens (fewer if the vocabulary is smaller), likeliest first, with their probabilities.

    The probabilities are the model's own: softmax of its logits, no temperature and no filters.

    Raises BadPrompt, BadOption, ContextOverflow for a prompt longer than the window, Error for logits that are not
    finite.
    """
    n = whole_number("n", n, 1)
    prompts, is_batch = _prompts(prompt)
    if is_batch:
        raise BadPrompt(f"next_tokens reads one prompt and was given a list of {len(prompts)}.")
    engine = engine_of(model)
    ids = _ids(engine, prompts[0])
    window = engine.config.n_positions
    if len(ids) > window:
        raise ContextOverflow(
            f"The prompt's {len(ids)} tokens do not fit in this model's window of {window}; shorten it."
        )
    greedy = SamplingOptions(temperature=0)
    options = GenerationOptions(max_tokens=1, logprobs=min(n, vocabulary(engine)), sampling=greedy)
    [event] = decode(engine, [ids], options)
    if event.error is not None:
        raise event.error
    return [Candidate(engine.tokenizer.decode([id]), id, math.exp(logprob)) for id, logprob in event.top]


def decode(
    model: "LanguageModel | Engine", prompts: Sequence[Sequence[int]], options: GenerationOptions = DEFAULTS
) -> Generator[Event]:
    """Generates for a ragged batch of token ids; yields events in the order of the steps.

    Every row's result is the one that it would have alone. An empty prompt begins at end of text, as a document does.
    Nothing runs until the first event is asked for; whoever closes the generator gives the rest up.

    Raises at once, before anything runs: BadPrompt for an id outside the vocabulary, or an empty prompt where the
    tokenizer has no end of text; ContextOverflow for a prompt, or with overflow="error" a prompt and max_tokens, that
    the window does not hold; BadOption for options that this model cannot honour. A row whose logits are not finite
    ends with an event that says so. Warns (Notice) once per call if a row slides.
    """
    engine = engine_of(model)
    seeds = options.seeds(len(prompts))
    arrived: deque[Event] = deque()
    requests = [
        engine.prepare(prompt, options, seed=seed, row=row, listener=arrived.append)
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    window = engine.config.n_positions
    longest = next((len(each.prompt) for each in requests if len(each.prompt) > window), 0)
    if longest and options.max_tokens:
        _say_slid(longest, window)
    return _events(engine, requests, arrived, said=bool(longest))


def _events(engine: Engine, requests: list[Request], arrived: deque[Event], *, said: bool) -> Generator[Event]:
    """Feeds requests through the engine's bounded queue, steps it, and yields what comes."""
    waiting, live = deque(requests), dict[int, Request]()
    del requests  # those that have finished are dropped
    try:
        while waiting or live or arrived:
            while waiting:
                try:
                    engine.enter(waiting[0])
                except Busy:
                    break
                request = waiting.popleft()
                live[request.row] = request
            if not arrived:
                engine.step(until=lambda: bool(arrived))
            if not said and (slid := next((each.slid for each in live.values() if each.slid), 0)):
                _say_slid(slid, engine.config.n_positions)
                said = True
            while arrived:
                event = arrived.popleft()
                if event.finish_reason is not None:
                    del live[event.row]
                yield event
    finally:
        for request in live.values():
            engine.cancel(request)


def _say_slid(tokens: int, window: int) -> None:
    """Says how much of a text of so many tokens is dropped."""
    keep = kept(window)
    warnings.warn(
        f"The text outgrew the model's window of {window} tokens: its first {tokens - keep} tokens were dropped and "
        f"the newest {keep} read again, as will happen whenever the window is full; overflow='stop' ends the text "
        "there instead.",
        Notice,
        stacklevel=_frames_to_caller(),
    )


def _frames_to_caller() -> int:
    """How far up the line is that asked for the text, so that a warning names it and not a line of ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].startswith((__package__, "torch.")):
        frame, level = frame.f_back, level + 1
    return level


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


def _ids(engine: Reader, prompt: Prompt) -> list[int]:
    return checked_prompt(engine, engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)


def _completion(
    engine: Reader, events: list[Event], prompt_ids: list[int], seed: int, *, with_logprobs: bool
) -> Completion:
    last = events[-1]
    assert last.finish_reason is not None
    tokens = [event for event in events if event.id is not None]

    def text(id: int) -> str:
        return engine.tokenizer.decode([id])

    logprobs = [
        TokenLogprob(text(event.id), event.id, event.logprob, tuple((text(id), id, value) for id, value in event.top))
        for event in tokens
        if event.id is not None and event.logprob is not None
    ]
    return Completion(
        text="".join(event.text for event in events),
        ids=[event.id for event in tokens if event.id is not None],
        finish_reason=last.finish_reason,
        logprobs=logprobs if with_logprobs else None,
        prompt_ids=prompt_ids,
        seed=seed,
        error=None if last.error is None else str(last.error),
    )
