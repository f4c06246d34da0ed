"""What a row of the paper's table is made of: a `Row` is a named protocol, its `Cell`s are the numbers it gives.

A row's function gets a `Job` (the model, the sets, what was scored before) and yields cells, or `Missing` for what
could not be had. `Job.score`, `Job.first_choices`, `Job.complete` and `Job.ask` do the model's work one item at a time
and keep every result, so that a run that was stopped goes on where it was. Which rows there are is `paper.py`'s
business.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gpt2.errors import ContextOverflow
from gpt2.evaluation.sets import SOURCES, Found, Sets
from gpt2.evaluation.store import Store, key_of

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation import GenerationOptions
    from gpt2.generation.score import Item
    from gpt2.tasks import Way

PERPLEXITY, ACCURACY = "perplexity", "accuracy %"
BITS_PER_BYTE, BITS_PER_CHARACTER = "bits/byte", "bits/character"
LOWER_IS_BETTER = (PERPLEXITY, BITS_PER_BYTE, BITS_PER_CHARACTER)


@dataclass(frozen=True, slots=True)
class Cell:
    """One number: what it measures, by which reading of the protocol, and how sure it is.

    metric: one of the names above, or a row's own ("ROUGE-1 F %"). reading: the protocol in a few words, unlike any
    other's of its metric in the row. protocol: the whole of it, with the denominator. interval: 95 %, by bootstrap over
    the items (exact for an accuracy of 0 or 100 %); None for fewer than two. paper: the column of `published.PAPER`
    that this reading is held against. harness: the task of lm-evaluation-harness whose protocol this is, if it is
    one's. baseline: no model had a part in it.
    """

    metric: str
    reading: str
    protocol: str
    value: float
    interval: tuple[float, float] | None
    items: int
    paper: str | None = None
    harness: str | None = None
    baseline: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """What a row could not score, and why: what to do is in the sentence."""

    reading: str
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: the name that `--only` takes, a title, and the function that fills it.

    columns: the columns of `published.PAPER` that it answers, for rows that could not be filled. scores: the name that
    its scores are kept under, for rows that score the same items ("": its own).
    """

    name: str
    title: str
    cells: Callable[["Job"], Iterator[Cell | Missing]]
    columns: tuple[str, ...] = ()
    scores: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """An item's score as it is kept, in nats. greedy: every id was the likeliest at its place."""

    total: float
    last: float
    greedy: bool


@dataclass(slots=True)
class Job:
    """What a row is given. limit: most items (or windows) per reading; stride: tokens from one window to the next.

    progress: called with what is being scored, how many of its items are done, and how many there are.
    """

    model: "LanguageModel"
    sets: Sets
    store: Store
    limit: int | None = None
    stride: int | None = None
    progress: Callable[[str, int, int], None] = field(default=lambda *_: None)

    @property
    def window(self) -> int:
        """The model's window in tokens."""
        return self.model.config.n_positions

    def read(self, source: str) -> Found:
        """A set by its name in `SOURCES`. Raises Unavailable, with what to do, where it is not to be had."""
        return self.sets.get(SOURCES[source])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.model.tokenizer.encode(text)

    def score(self, items: Sequence["Item"], what: str) -> list[Scored]:
        """The items' scores, in order; only those are computed that were not kept before."""
        from gpt2.generation.score import score

        keys = [key_of("score", item.context, item.continuation) for item in items]
        # An item may be there twice, and is scored once.
        waiting = {key: item for key, item in zip(keys, items, strict=True) if self.store.done(key) is None}
        done = len(items) - len(waiting)
        self.progress(what, done, len(items))
        for key, found in zip(waiting, score(self.model, iter(waiting.values())), strict=True):
            last = float(found.logprobs[-1]) if len(found.logprobs) else 0.0
            self.store.put(key, {"total": found.total, "last": last, "greedy": found.greedy})
            done += 1
            self.progress(what, done, len(items))
        return [Scored(**value) for key in keys if (value := self.store.done(key)) is not None]

    def first_choices(self, contexts: Sequence[Sequence[int]], banned: Collection[int], what: str) -> list[int | None]:
        """For each context the likeliest next id that is not banned; None where that is end of text."""
        from gpt2.generation import GenerationOptions, SamplingOptions

        sampling = SamplingOptions(temperature=0, logit_bias=dict.fromkeys(sorted(banned), -math.inf))
        answers = self.complete(contexts, GenerationOptions(max_tokens=1, sampling=sampling), what)
        return [ids[0] if ids else None for ids in answers]

    def complete(self, prompts: Sequence[Sequence[int]], options: "GenerationOptions", what: str) -> list[list[int]]:
        """The ids that the model writes behind each prompt (token ids), in order, kept as scores are.

        options: with a seed unless greedy, since every prompt draws by it alone.
        """
        from gpt2.generation.api import as_completed

        how = repr(options)
        keys = [key_of("complete", how, prompt) for prompt in prompts]
        waiting = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self.store.done(key) is None}
        done = len(prompts) - len(waiting)
        self.progress(what, done, len(prompts))
        names = list(waiting)
        if waiting:
            for number, answer in as_completed(self.model, list(waiting.values()), options):
                self.store.put(names[number], {"ids": answer.ids})
                done += 1
                self.progress(what, done, len(prompts))
        return [value["ids"] for key in keys if (value := self.store.done(key)) is not None]

    def ask(self, asked: Sequence[tuple["Way", Mapping[str, str]]], what: str) -> "Written":
        """What the model writes when it is asked so, each way (all with the same options) with its fields.

        Prompts are cut as `tasks` cuts them, and an answer takes no more than half of the window. Drawn with seed 1.
        """
        from gpt2.tasks.asking import fitted

        options = self._shortened(asked[0][0].options)
        room = self.window - options.max_tokens
        made = [fitted(way, values, self.model.tokenizer, room) for way, values in asked]
        return self._written([ids for ids, _ in made], options, sum(cut > 0 for _, cut in made), what)

    def ask_as_harness(self, prompts: Sequence[str], options: "GenerationOptions", what: str) -> "Written":
        """What the model writes behind prompts that are cut as lm-evaluation-harness cuts: at their beginning."""
        options = self._shortened(options)
        room = self.window - options.max_tokens
        made = [self.encode(prompt) for prompt in prompts]
        return self._written([ids[-room:] for ids in made], options, sum(len(ids) > room for ids in made), what)

    def _shortened(self, options: "GenerationOptions") -> "GenerationOptions":
        return replace(options, max_tokens=max(1, min(options.max_tokens, self.window // 2)), seed=1)

    def _written(self, prompts: list[list[int]], options: "GenerationOptions", cut: int, what: str) -> "Written":
        written = self.complete(prompts, options, what)
        texts = [self.model.tokenizer.decode(ids) for ids in written]
        return Written(prompts, written, texts, options.max_tokens, cut)


@dataclass(frozen=True, slots=True)
class Written:
    """What a model was asked and wrote: ids of both, its text, the most tokens of it, and how many prompts were cut."""

    prompts: list[list[int]]
    ids: list[list[int]]
    texts: list[str]
    most: int
    cut: int


def item(context: Sequence[int], continuation: Sequence[int], window: int) -> "Item":
    """An item that fits the window: what is too much is cut from the context's beginning.

    Raises ContextOverflow for a continuation that the window cannot hold behind one token.
    """
    from gpt2.generation.score import Item

    room = min(window, window + 1 - len(continuation))
    if room < 1:
        raise ContextOverflow(
            f"An item has {len(continuation)} tokens to score, more than this model's window of {window} can hold."
        )
    return Item(list(context[-room:]), list(continuation))


def accuracy(right: Sequence[bool]) -> tuple[float, tuple[float, float] | None]:
    """The share that is right in %, and its interval. Denominator: all items.

    Where all are right or none is, resampling would say that this is certain: there it is Clopper and Pearson's.
    """
    share, drawn = average([100.0 * each for each in right])
    if drawn is None or 0 < share < 100:
        return share, drawn
    beyond = 100 * 0.025 ** (1 / len(right))
    return share, (beyond, 100.0) if share else (0.0, 100.0 - beyond)


def average(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of a value for each item, and its interval."""
    return _ratio([(value, 1.0) for value in values], lambda mean: mean)


def perplexity(units: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float] | None]:
    """exp(sum of nats / sum of the denominator) over units of (nats, denominator), and its interval."""
    return _ratio(units, lambda mean: math.exp(min(mean, 700.0)))


def bits(units: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float] | None]:
    """Sum of nats / sum of the denominator, in bits, and its interval."""
    return _ratio(units, lambda mean: mean / math.log(2))


def _ratio(
    units: Sequence[tuple[float, float]], change: Callable[[float], float]
) -> tuple[float, tuple[float, float] | None]:
    from gpt2.evaluation.intervals import interval

    value = change(math.fsum(top for top, _ in units) / math.fsum(bottom for _, bottom in units))
    if len(units) < 2:
        return value, None
    low, high = interval(units)
    return value, (change(low), change(high))
