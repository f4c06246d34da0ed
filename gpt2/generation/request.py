"""One text that is asked for, on its way: what was read and drawn, the text not shown yet, the events that come out.

Prompts and options are checked here, before anything runs. Who runs a request is `engine.py`; how a token is chosen is
`sampling.py`.
"""

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Error
from gpt2.generation.options import GenerationOptions, Grammar
from gpt2.generation.stops import StopMatcher
from gpt2.tokenizer import IncrementalDecoder, Tokenizer

if TYPE_CHECKING:
    from gpt2.config import GPT2Config

FinishReason = Literal["stop", "length", "error"]
Logprob = tuple[float | None, tuple[tuple[int, float], ...]]  # a token's own, and the likeliest (id, log-probability)


class Reader(Protocol):
    """What a prompt is checked against: a model, or an engine."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def config(self) -> "GPT2Config": ...


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one row.

    row: which prompt, counted from 0.
    id: the generated token; None if the row ended without one (by end of text, an error, or with max_tokens = 0).
    text: what can be shown now: whole characters, and nothing that could still become a stop string. A row's texts
        joined are its text. The last event brings all that was held back.
    logprob: the token's log-probability in nats, the model's own; None unless asked for.
    top: the likeliest (id, log-probability), the likeliest first; as many as were asked for.
    finish_reason: None until the row's last event. "stop": a stop string or end of text; "length": max_tokens, or a
        full window with overflow="stop"; "error": see `error`.
    error: why the row could not go on: its logits are not finite, or its options leave nothing to choose from.
    """

    row: int
    id: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: Error | None = None


class Request:
    """A prompt in an engine. Made by `Engine.submit`; read it from any thread, change nothing.

    prompt, output: token ids; the output grows, and has no end of text. seed: whole number.
    events: what has come and was not taken yet, if `submit` was given no listener: take them with `popleft`.
    finish_reason, error: as in the last event; None before it.
    grammar: says which tokens may come next; None: all.
    cancelled: it was given up; no events come any more, but for one that another thread is giving out just then.
    slid: 0, or how many tokens the text had when it first outgrew the window.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: list[int],
        options: GenerationOptions,
        seed: int,
        row: int,
        listener: Callable[[Event], None] | None,
    ) -> None:
        self.prompt, self.options, self.seed, self.row = prompt, options, seed, row
        self.sampling = options.sampling
        self.output: list[int] = []
        self.events: deque[Event] = deque()
        self.finish_reason: FinishReason | None = None
        self.error: Error | None = None
        self.cancelled = False
        self.slid = 0
        self.grammar = None if options.grammar is None else _grammar_of(options.grammar, prompt)
        self._listener = self.events.append if listener is None else listener
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopMatcher(tuple(options.stop))
        self._end_of_text = tokenizer.end_of_text

    @property
    def done(self) -> bool:
        """No event comes after those that have come."""
        return self.cancelled or self.finish_reason is not None

    @property
    def is_plain(self) -> bool:
        """Nothing but temperature and top_k decides what is drawn, and nothing but the token is asked for."""
        sampling = self.sampling
        filtered = sampling.top_p is not None or sampling.min_p or sampling.logit_bias
        penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        return not (filtered or penalised or self.grammar is not None or self.options.logprobs is not None)

    def take(self, id: int, logprob: Logprob, room: bool) -> bool:
        """Takes in the next token and says so; returns whether it was the last. `room`: the window can read it."""
        options, finish_reason, stopped, shown = self.options, None, False, None
        if id == self._end_of_text:
            text, finish_reason = "", "stop"
        else:
            shown = id
            self.output.append(id)
            text = self._decoder.push(id)
            if options.stop:
                text, stopped = self._stops.push(text)
            if len(self.output) == options.max_tokens or (options.overflow == "stop" and not room):
                finish_reason = "length"
        if finish_reason and not stopped:
            rest, stopped = self._stops.push(self._decoder.finish())
            text += rest + self._stops.flush()
        self.finish_reason = "stop" if stopped else finish_reason  # type: ignore[assignment]
        self._tell(Event(self.row, shown, text, *logprob, self.finish_reason))
        return self.finish_reason is not None

    def fail(self, error: Error) -> None:
        """Ends the text here, with what was held back of it."""
        text, _ = self._stops.push(self._decoder.finish())
        self.finish_reason, self.error = "error", error
        self._tell(Event(self.row, None, text + self._stops.flush(), finish_reason="error", error=error))

    def nothing(self) -> None:
        """Ends a request for no tokens at all."""
        self.finish_reason = "length"
        self._tell(Event(self.row, None, "", finish_reason="length"))

    def _tell(self, event: Event) -> None:
        if not self.cancelled:
            self._listener(event)


def _grammar_of(make: Callable[[Sequence[int]], Grammar], prompt: Sequence[int]) -> Grammar:
    try:
        grammar = make(tuple(prompt))
    except Exception as error:
        raise BadOption(f"The grammar failed: {error!r}") from error
    if not callable(getattr(grammar, "allowed", None)):
        raise BadOption(f"The grammar is {grammar!r:.80}, but it must have `allowed`; see gpt2.generation.Grammar.")
    return grammar


def vocabulary(reader: Reader) -> int:
    """Ids below this can be read by the network and by the tokenizer; either may be padded."""
    return min(reader.tokenizer.vocab_size, reader.config.vocab_size)


def kept(window: int) -> int:
    """How many of its newest tokens are read again when a text outgrows the window."""
    return max(1, window // 2)


def checked_prompt(reader: Reader, prompt: Sequence[int]) -> list[int]:
    """The prompt as a list of ids, or end of text if it is empty; raises BadPrompt for what the model cannot read."""
    size = vocabulary(reader)
    ids = []
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Iterable):
        raise BadPrompt(f"The prompt is {prompt!r:.80}; a request takes a list of token ids.")
    for id in prompt:
        try:
            if isinstance(id, bool):
                raise TypeError
            ids.append(operator.index(id))
        except TypeError:
            raise BadPrompt(f"The prompt holds {id!r}, which is no token id; ids are whole numbers.") from None
    if ids and not 0 <= min(ids) <= max(ids) < size:
        bad = next(id for id in ids if not 0 <= id < size)
        raise BadPrompt(f"Token id {bad} is not in the vocabulary of {size} (0 to {size - 1}).")
    if ids:
        return ids
    if reader.tokenizer.end_of_text is None:
        raise BadPrompt("The prompt is empty, and this tokenizer has no <|endoftext|> to begin from; give a prompt.")
    return [reader.tokenizer.end_of_text]


def check_options(reader: Reader, options: GenerationOptions) -> None:
    """Raises BadOption for options that the model cannot honour, and for what is none."""
    if not isinstance(options, GenerationOptions):
        raise BadOption(f"The options are {options!r:.80}; they must be a gpt2.GenerationOptions.")
    size = vocabulary(reader)
    for id in options.sampling.logit_bias:
        if id >= size:
            raise BadOption(f"logit_bias names token {id}, which is not in the vocabulary of {size}.")
    if options.logprobs is not None and options.logprobs > size:
        raise BadOption(f"logprobs is {options.logprobs}, but the vocabulary has only {size} tokens.")


def check_window(reader: Reader, prompt: Sequence[int], options: GenerationOptions) -> None:
    """Raises ContextOverflow for a prompt that the options do not let outgrow the window, and that could."""
    window = reader.config.n_positions
    if options.overflow == "error" and len(prompt) + max(0, options.max_tokens - 1) > window:
        # The last token is generated and never read, so it needs no room.
        raise ContextOverflow(
            f"A prompt of {len(prompt)} tokens and {options.max_tokens} new ones do not fit in this model's window of "
            f"{window}; shorten the prompt, ask for fewer, or use overflow='slide'."
        )
    if options.overflow == "stop" and len(prompt) > window:
        raise ContextOverflow(
            f"The prompt's {len(prompt)} tokens do not fit in this model's window of {window}; shorten it, or use "
            "overflow='slide'."
        )
