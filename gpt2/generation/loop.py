"""The loop: prompts in, one event per generated token out, all rows in step on one key-value cache.

A batch is ragged and has no padding: prompts are read row by row, then each step feeds every row its newest token.
The newest token of a row is not fed until the row needs another one. Rows leave when they finish; a row that fills
the model's window slides by itself. Options are checked and ids are looked up before anything runs. How a token is
chosen is in `sampling.py`; whole answers and streams of text are made from the events in `api.py`.
"""

import operator
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.errors import BadOption, BadPrompt, ContextOverflow, Notice
from gpt2.generation.options import DEFAULTS, GenerationOptions
from gpt2.generation.sampling import log_probabilities, sample
from gpt2.generation.stops import StopMatcher
from gpt2.tokenizer import IncrementalDecoder

if TYPE_CHECKING:
    from gpt2.cache import KVCache
    from gpt2.checkpoint import LanguageModel

FinishReason = Literal["stop", "length"]
Logprob = tuple[float | None, tuple[tuple[int, float], ...]]  # a token's own, and the likeliest (id, log-probability)

# Rows beyond these bounds wait until those before them have finished, so that a long list of prompts fits in memory.
# A row's result does not depend on which rows run beside it.
_MOST_ROWS = 64
_MOST_CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one row.

    row: which prompt, counted from 0.
    id: the generated token; None if the row ended without one (by end of text, or with max_tokens = 0).
    text: what can be shown now: whole characters, and nothing that could still become a stop string. A row's texts
        joined are its text. The last event brings all that was held back.
    logprob: the token's log-probability in nats, the model's own; None unless asked for.
    top: the likeliest (id, log-probability), the likeliest first; as many as were asked for.
    finish_reason: None until the row's last event. "stop": a stop string or end of text; "length": max_tokens, or a
        full window with overflow="stop".
    """

    row: int
    id: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class _Row:
    """One prompt on its way: what was read, what was generated, and the text that is not shown yet."""

    number: int
    prompt: Sequence[int]
    seed: int
    decoder: IncrementalDecoder
    stops: StopMatcher
    output: list[int] = field(default_factory=list)
    finished: bool = False


def decode(
    model: "LanguageModel", prompts: Sequence[Sequence[int]], options: GenerationOptions = DEFAULTS
) -> Iterator[Event]:
    """Generates for a ragged batch of token ids; yields events in the order of the steps.

    Every row's result is the one that it would have alone. An empty prompt begins at end of text, as a document does.

    Raises at once, before anything runs: BadPrompt for an id outside the vocabulary, or an empty prompt where the
    tokenizer has no end of text; ContextOverflow for a prompt, or with overflow="error" a prompt and max_tokens, that
    the window does not hold; BadOption for options that this model cannot honour. Raises Error while it runs if the
    logits are not finite. Warns (Notice) once per call if a row slides.
    """
    prompts = [checked_prompt(model, prompt) for prompt in prompts]
    seeds = options.seeds(len(prompts))
    _check_options(model, options)
    for prompt in prompts:
        _check_window(model, prompt, options)
    rows = [
        _Row(number, prompt, seed, IncrementalDecoder(model.tokenizer), StopMatcher(tuple(options.stop)))
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    slide = _Slide(model.config.n_positions)
    for row in rows:
        if options.max_tokens > 0 and len(row.prompt) > slide.window:
            slide.notice(len(row.prompt))
            break
    return _events(model, rows, options, slide)


def _events(model: "LanguageModel", rows: list[_Row], options: GenerationOptions, slide: "_Slide") -> Iterator[Event]:
    if options.max_tokens == 0:
        for row in rows:
            yield Event(row.number, None, "", finish_reason="length")
        return
    # Inference mode is switched on inside the methods and not here: a generator would leave it on in the code that
    # consumes the events.
    while rows:
        batch = _Batch(model, rows, options, slide)
        rows = rows[len(batch.rows) :]
        while batch.rows:
            yield from batch.step()


class _Slide:
    """What is kept when a row outgrows the window, and the notice that says so once per call."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keep = max(1, window // 2)
        self._said = False

    def notice(self, tokens: int) -> None:
        """Says how much of a text of so many tokens is dropped, unless it has been said."""
        if not self._said:
            self._said = True
            warnings.warn(
                f"The text outgrew the model's window of {self.window} tokens: its first {tokens - self.keep} tokens "
                f"were dropped and the newest {self.keep} read again, as will happen whenever the window is full; "
                "overflow='stop' ends the text there instead.",
                Notice,
                stacklevel=_frames_to_caller(),
            )


class _Batch:
    """Rows that step together: their cache, and the logits from which their next tokens are chosen."""

    def __init__(self, model: "LanguageModel", rows: list[_Row], options: GenerationOptions, slide: _Slide) -> None:
        self.model, self.options, self.slide = model, options, slide
        longest = max(len(self._kept(row.prompt)) for row in rows)
        self.capacity = min(slide.window, longest + options.max_tokens - 1)
        config, network = model.config, model.network
        row_bytes = 2 * config.n_layer * config.n_embd * self.capacity * network.dtype.itemsize
        self.rows = rows[: max(1, min(_MOST_ROWS, _MOST_CACHE_BYTES // row_bytes))]
        self.started = False
        self.cache: KVCache  # made when the prompts are read

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One more token for every row; rows that finish with it leave."""
        logits_BV = self._feed() if self.started else self._read_prompts()
        self.started = True
        # A vocabulary may be padded past the tokenizer's last id; those ids have no text and are never drawn.
        drawable_BV = logits_BV[:, : _vocabulary(self.model)]
        prompts, outputs = [row.prompt for row in self.rows], [row.output for row in self.rows]
        ids = sample(drawable_BV, self.options.sampling, prompts, outputs, [row.seed for row in self.rows])
        logprobs = self._logprobs(logits_BV, ids)
        room = (self.cache.lengths < self.slide.window).tolist()
        events = [self._event(*each) for each in zip(self.rows, ids, logprobs, room, strict=True)]
        live = [place for place, row in enumerate(self.rows) if not row.finished]
        if len(live) < len(self.rows):
            self.rows = [self.rows[place] for place in live]
            if live:
                self.cache = self.cache.select(live)
        return events

    def _read_prompts(self) -> Tensor:
        """Logits (B, V) after each row's prompt. Equal prompts are read once."""
        network = self.model.network
        places: dict[tuple[int, ...], int] = {}
        for row in self.rows:
            places.setdefault(tuple(self._kept(row.prompt)), len(places))
        self.cache = network.new_cache(len(places), self.capacity)
        # Only the last position's logits are needed, so the projection onto the vocabulary is left to the end.
        last_UC = torch.cat([self._read(ids, place)[:, -1] for ids, place in places.items()])
        logits_UV = F.linear(last_UC, network.wte.weight)
        if len(places) == len(self.rows):
            return logits_UV
        order = [places[tuple(self._kept(row.prompt))] for row in self.rows]
        self.cache = self.cache.select(order)
        return logits_UV[order]

    def _feed(self) -> Tensor:
        """Logits (B, V) after each row's newest token."""
        for place, length in enumerate(self.cache.lengths.tolist()):
            if length == self.slide.window:
                self._reread(place)
        newest_B1 = torch.tensor([[row.output[-1]] for row in self.rows], device=self.model.network.device)
        logits_B1V: Tensor = self.model.network(newest_B1, self.cache)
        return logits_B1V[:, 0]

    def _reread(self, place: int) -> None:
        """Empties a full row and reads the newest half of the window again, but for the token that is fed next."""
        row = self.rows[place]
        self.slide.notice(len(row.prompt) + len(row.output))
        kept = [*row.prompt, *row.output][-self.slide.keep :]
        self.cache.row(place).clear()
        if len(kept) > 1:
            self._read(kept[:-1], place)

    def _read(self, ids: Sequence[int], place: int) -> Tensor:
        """The last norm's output (1, T, C) for ids that are read into one row of the cache."""
        ids_1T = torch.tensor([ids], device=self.model.network.device)
        return self.model.network.hidden(ids_1T, self.cache.row(place))

    def _kept(self, prompt: Sequence[int]) -> Sequence[int]:
        return prompt if len(prompt) <= self.slide.window else prompt[-self.slide.keep :]

    def _logprobs(self, logits_BV: Tensor, ids: list[int]) -> list[Logprob]:
        """Each row's log-probability of its token, and its likeliest alternatives."""
        count = self.options.logprobs
        if count is None:
            return [(None, ())] * len(ids)
        logprobs_BV = log_probabilities(logits_BV)
        own_B = logprobs_BV.gather(1, torch.tensor(ids, device=logits_BV.device)[:, None])[:, 0].tolist()
        best = logprobs_BV[:, : _vocabulary(self.model)].topk(count)
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(own, tuple(zip(*top, strict=True))) for own, top in zip(own_B, tops, strict=True)]

    def _event(self, row: _Row, id: int, logprob: Logprob, room: bool) -> Event:
        """Takes a row's new token in. `room`: the window can read it."""
        finish_reason: FinishReason | None = None
        if id == self.model.tokenizer.end_of_text:
            text, stopped, finish_reason = "", False, "stop"
        else:
            row.output.append(id)
            text, stopped = row.stops.push(row.decoder.push(id))
            if len(row.output) == self.options.max_tokens or (self.options.overflow == "stop" and not room):
                finish_reason = "length"
        if finish_reason and not stopped:
            rest, stopped = row.stops.push(row.decoder.finish())
            text += rest + row.stops.flush()
        if stopped:
            finish_reason = "stop"
        row.finished = finish_reason is not None
        shown = None if id == self.model.tokenizer.end_of_text else id
        return Event(row.number, shown, text, *logprob, finish_reason)


def _frames_to_caller() -> int:
    """How far up the line is that asked for the text, so that a warning names it and not a line of ours."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].startswith((__package__, "torch.")):
        frame, level = frame.f_back, level + 1
    return level


def _vocabulary(model: "LanguageModel") -> int:
    """Ids below this can be read by the network and by the tokenizer; either may be padded."""
    return min(model.tokenizer.vocab_size, model.config.vocab_size)


def checked_prompt(model: "LanguageModel", prompt: Sequence[int]) -> list[int]:
    """The prompt as a list of ids, or end of text if it is empty; raises BadPrompt for what the model cannot read."""
    vocabulary = _vocabulary(model)
    ids = []
    for id in prompt:
        try:
            ids.append(operator.index(id))
        except TypeError:
            raise BadPrompt(f"The prompt holds {id!r}, which is no token id; ids are whole numbers.") from None
        if not 0 <= ids[-1] < vocabulary:
            raise BadPrompt(f"Token id {id} is not in the vocabulary of {vocabulary} (0 to {vocabulary - 1}).")
    if ids:
        return ids
    if model.tokenizer.end_of_text is None:
        raise BadPrompt("The prompt is empty, and this tokenizer has no <|endoftext|> to begin from; give a prompt.")
    return [model.tokenizer.end_of_text]


def _check_options(model: "LanguageModel", options: GenerationOptions) -> None:
    vocabulary, config = _vocabulary(model), model.config
    for id in options.sampling.logit_bias:
        if id >= vocabulary:
            raise BadOption(f"logit_bias names token {id}, which is not in the vocabulary of {vocabulary}.")
    if options.logprobs is not None and options.logprobs > vocabulary:
        raise BadOption(f"logprobs is {options.logprobs}, but the vocabulary has only {vocabulary} tokens.")
    if model.network.training and max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) > 0:
        raise BadOption("The network is in training mode and its dropout would act; call network.eval() first.")


def _check_window(model: "LanguageModel", prompt: Sequence[int], options: GenerationOptions) -> None:
    window = model.config.n_positions
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
