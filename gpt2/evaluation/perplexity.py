"""Perplexity of texts, with its protocol: what is read first, windows and stride, and what the loss is divided by.

By default every document is read by itself behind end of text, every token is scored once, and windows move by half
their length, so that a token sees at least half a window (but for a document's beginning). The other protocol is the
recipe of transformers' documentation. Perplexity is per token; per word, bits per byte and per character divide the
same nats by counts of the text as it was given, so that vocabularies can be compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, BadOption
from gpt2.evaluation.intervals import Floats, interval
from gpt2.evaluation.passages import Passage, hardest_of
from gpt2.shards import token_lengths, window_count, window_span

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.generation.engine import Engine
    from gpt2.generation.score import Item
    from gpt2.tokenizer import Tokenizer

# An interval over fewer units would say little.
_FEWEST_UNITS = 8
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and what to call it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How texts are read.

    window: most tokens that are read at once (None: the model's window). stride: how far windows move; each scores what
        the one before did not reach (None: half the window).
    end_of_text_first: end of text is read before a document, so that its first token is scored too.
    transformers: the recipe on the documentation page "Perplexity of fixed-length models": a window's mean loss counts
        as often as it has labels, less one for the shift, which is one too few for every window but the first. A
        window of W tokens predicts W - 1.
    """

    window: int | None = None
    stride: int | None = None
    end_of_text_first: bool = True
    transformers: bool = False

    def sizes(self, n_positions: int) -> tuple[int, int]:
        """Window and stride for a model's window. Raises BadOption for those that cannot be had."""
        window = n_positions if self.window is None else self.window
        least = 1 + self.transformers
        if not least <= window <= n_positions:
            raise BadOption(f"window is {window}; it must be between {least} and the model's window, {n_positions}.")
        stride = max(1, window // 2) if self.stride is None else self.stride
        if not 1 <= stride <= window:
            raise BadOption(f"stride is {stride}; it must be between 1 and the window, {window}.")
        return window, stride

    def words(self, n_positions: int) -> str:
        """The protocol as a sentence."""
        window, stride = self.sizes(n_positions)
        first = "behind end of text" if self.end_of_text_first else "its first token not scored"
        parts = ["text as given", f"each document by itself, {first}", f"windows of {window} tokens, stride {stride}"]
        if self.transformers:
            parts.append("means of windows weighted as in transformers' strided recipe")
        else:
            parts.append("every token scored once")
        return "; ".join([*parts, "words are what white space separates, bytes are UTF-8"])


# What that page prints for GPT-2: windows of 1,024, stride 512.
TRANSFORMERS = Protocol(end_of_text_first=False, transformers=True)


@dataclass(frozen=True, slots=True)
class Measure:
    """What was scored of a document or of several: summed loss in nats, and what it can be divided by.

    tokens, words, bytes, characters: of the text that was scored. mean: nats and tokens that the loss per token is made
    of; the same as above but in transformers' recipe.
    """

    name: str
    nats: float
    tokens: int
    words: int
    bytes: int
    characters: int
    mean: tuple[float, float]

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a token."""
        return self.mean[0] / self.mean[1] if self.mean[1] else math.nan

    @property
    def perplexity(self) -> float:
        """Per token of the model's own vocabulary."""
        return _exp(self.nats_per_token)

    @property
    def word_perplexity(self) -> float:
        """Per word of the text, whatever the vocabulary; NaN where there is none."""
        return _exp(self.nats / self.words) if self.words else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of UTF-8."""
        return self.nats / math.log(2) / self.bytes

    @property
    def bits_per_character(self) -> float:
        """Bits that the model needs for a character; NaN where there is none (half of one)."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The answer.

    documents: those of which something was scored, in their order. hardest: the passages that cost most, the worst
    first. interval: of the total's perplexity, 95 %, over `units` ("documents", or "windows" where there are few
    documents); None where there are few of both. protocol: in words.
    """

    total: Measure
    documents: list[Measure]
    hardest: list[Passage]
    interval: tuple[float, float] | None
    units: str
    protocol: str


def perplexity(
    model: "LanguageModel | Engine",
    documents: Iterable[Document],
    protocol: Protocol | None = None,
    *,
    hardest: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Scores documents, and says what they cost in all and one by one.

    hardest: how many passages to find. progress: called now and then with how many windows are done, and of how many.

    Raises BadData where there is nothing to score, BadOption for a window or stride that the model does not have, and
    what `score` raises.
    """
    import torch

    from gpt2.generation.shared import engine_of

    protocol = protocol or Protocol()
    engine, documents = engine_of(model), list(documents)
    tokenizer = engine.tokenizer
    sizes = protocol.sizes(engine.config.n_positions)
    encoded = tokenizer.encode_batch([each.text for each in documents], torch.get_num_threads())
    texts = [np.array(_behind(tokenizer, protocol, ids), dtype=np.int32) for ids in encoded]
    del encoded
    lengths = token_lengths(tokenizer)
    measures: list[Measure] = []
    parts_of_all: list[tuple[float, float]] = []
    passages: list[Passage] = []
    for document, ids, parts in zip(documents, texts, _scored(engine, texts, protocol, *sizes, progress), strict=True):
        if not parts:
            continue
        costs = np.concatenate([costs for costs, _ in parts])
        means = [(float(costs.mean()) * weight, weight) for costs, weight in parts]
        data = document.text.encode()
        # What stands before the first scored token: nothing, or the first token.
        data = data[len(data) - int(lengths[ids[1:]].sum()) :]
        if len(costs) < len(ids) - 1:
            # Where windows do not overlap, transformers' recipe scores none of their first tokens.
            is_scored = np.arange(1, len(ids)) % sizes[0] != 0
            data = np.frombuffer(data, np.uint8)[np.repeat(is_scored, lengths[ids[1:]])].tobytes()
        measures.append(
            Measure(
                document.name,
                float(costs.sum()),
                len(costs),
                len(data.decode(errors="ignore").split()),
                len(data),
                sum(byte & 0xC0 != 0x80 for byte in data),
                (sum(nats for nats, _ in means), sum(weight for _, weight in means)),
            )
        )
        parts_of_all += [mean for mean in means if mean[1]]
        if hardest and len(costs) == len(ids) - 1:
            passages += hardest_of(document.name, data, lengths[ids[1:]], costs, hardest)
            passages = sorted(passages, key=lambda passage: -passage.nats)[:hardest]
    if not sum(measure.mean[1] for measure in measures):
        raise BadData(_nothing(documents, protocol))
    units, name = [measure.mean for measure in measures if measure.mean[1]], "documents"
    if len(units) < _FEWEST_UNITS:
        units, name = parts_of_all, "windows"
    found = interval(units) if len(units) >= _FEWEST_UNITS else None
    return Perplexity(
        total(measures),
        measures,
        passages,
        None if found is None else (_exp(found[0]), _exp(found[1])),
        name,
        protocol.words(engine.config.n_positions),
    )


def total(measures: Sequence[Measure], name: str = "all") -> Measure:
    """The sum of several."""
    return Measure(
        name,
        math.fsum(each.nats for each in measures),
        sum(each.tokens for each in measures),
        sum(each.words for each in measures),
        sum(each.bytes for each in measures),
        sum(each.characters for each in measures),
        (math.fsum(each.mean[0] for each in measures), sum(each.mean[1] for each in measures)),
    )


def token_nats(
    model: "LanguageModel | Engine",
    texts: Iterable[Ids | Sequence[int]],
    protocol: Protocol | None = None,
) -> Iterator[Floats]:
    """The cost in nats of every id but the first of each text of ids, (len(ids) - 1,) float64, in windows.

    The ids are taken as they are: whoever wants end of text first puts it there. Texts are taken as they are needed.
    Raises as `perplexity` does.
    """
    from gpt2.generation.shared import engine_of

    engine, protocol = engine_of(model), protocol or Protocol()
    arrays = (np.asarray(ids, dtype=np.int32) for ids in texts)
    for parts in _scored(engine, arrays, protocol, *protocol.sizes(engine.config.n_positions)):
        yield np.concatenate([costs for costs, _ in parts]) if parts else np.zeros(0)


def _scored(
    engine: "Engine",
    texts: Iterable[Ids],
    protocol: Protocol,
    window: int,
    stride: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[tuple[Floats, int]]]:
    """For each text its windows: the costs of the tokens that each scores, and how often its mean counts."""

    from gpt2.generation.score import score

    def cut(ids: Ids) -> "Iterator[tuple[Item, int]]":
        if protocol.transformers:
            return _recipe(ids, window, stride)
        return ((item, len(item.continuation)) for item in windows(ids, window, stride))

    pending: list[list[int]] = []  # of texts that are not done, the weights of their windows

    def items() -> "Iterator[Item]":
        for ids in texts:
            weights: list[int] = []
            pending.append(weights)
            # Counted before the first is read, so that a text is known to be whole when its windows are there.
            weights += (weight for _, weight in cut(ids))
            yield from (item for item, _ in cut(ids))

    said = None
    if progress is not None and isinstance(texts, Sequence):
        count, told = sum(sum(1 for _ in cut(ids)) for ids in texts), progress

        def said(done: int) -> None:
            told(done, count)

    scores = score(engine, items(), progress=said)
    while True:
        first = next(scores, None)
        # Texts without a window end where the next one begins.
        while pending and not pending[0]:
            yield []
            pending.pop(0)
        if first is None:
            return
        weights = pending.pop(0)
        parts = [first, *islice(scores, len(weights) - 1)]
        yield [(-part.logprobs, weight) for part, weight in zip(parts, weights, strict=True)]


def windows(ids: Ids | Sequence[int], window: int, stride: int) -> "Iterator[Item]":
    """Windows over ids that score every one but the first once: each what the one before it did not reach."""
    from gpt2.generation.score import Item

    ids = np.asarray(ids, dtype=np.int32)
    for number in range(window_count(len(ids), window, stride)):
        start, first, end = window_span(number, len(ids), window, stride)
        yield Item(ids[start:first].tolist(), ids[first:end].tolist())


def _recipe(ids: Ids, window: int, stride: int) -> "Iterator[tuple[Item, int]]":
    """The windows of transformers' recipe, and what each one's mean is multiplied with there."""
    from gpt2.generation.score import Item

    reached = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        # With no overlap a window's first id has nothing before it.
        first = max(reached, begin + 1)
        if first < end:
            yield Item(ids[begin:first].tolist(), ids[first:end].tolist()), end - reached - 1
        reached = end
        if end == len(ids):
            return


def _behind(tokenizer: "Tokenizer", protocol: Protocol, ids: list[int]) -> list[int]:
    if not protocol.end_of_text_first or not ids:
        return ids
    if tokenizer.end_of_text is None:
        raise BadOption(
            "This tokenizer has no <|endoftext|> to read first; leave it out (end_of_text_first, "
            "--no-end-of-text-first), and documents' first tokens are not scored."
        )
    return [tokenizer.end_of_text, *ids]


def _nothing(documents: Sequence[Document], protocol: Protocol) -> str:
    if not any(document.text for document in documents):
        return "There is no text to score."
    if protocol.end_of_text_first:
        return "There is nothing to score."
    return "There is nothing to score: no document has a second token, and the first one is not scored."


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
