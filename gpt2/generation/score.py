"""`score`: how likely a model finds given ids behind given contexts, on the engine that generates too.

Items are read in pieces that fill a step, several texts side by side, each in a slot of its own; a beginning that an
item shares with the one before it, or with what lies in a slot already, is not read again. Only wanted positions get
logits, and no more of them exist at once than a step has tokens. The engine's turn is taken for one step at a time, so
generation goes on beside it. Where the runner is batch-invariant, so are the scores, bit for bit.

It knows nothing of windows over longer texts, of tasks or of perplexity (`evaluation/`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2.errors import BadPrompt, ContextOverflow, Error
from gpt2.generation.api import TokenLogprob
from gpt2.generation.engine import Engine
from gpt2.generation.request import checked_prompt, vocabulary
from gpt2.generation.sampling import log_probabilities
from gpt2.generation.shared import engine_of
from gpt2.generation.slots import Slot
from gpt2.runners import Feed

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel

# Tokens that one step reads: as many as the native step takes in one call; a GPU wants more. Beside texts that are
# being generated, as many as the engine reads of their prompts.
_STEP = {"cpu": 512, "cuda": 4096}
_STEP_BESIDE = 256
# Texts side by side.
_MOST_LANES = 32
# Items that follow each other with so many tokens in common (or all of the context) are read in one slot, so many in a
# row: more would leave the other slots idle.
_WORTH_SHARING, _MOST_IN_A_ROW = 16, 16
# Logits that are turned into probabilities at once: few enough for the processor's caches, and to launch on a GPU.
_AT_ONCE = {"cpu": 2**22, "cuda": 2**28}


@dataclass(frozen=True, slots=True)
class Item:
    """What is scored: the ids of `continuation`, behind those of `context`.

    An empty context is read as end of text. All ids but the last must fit in the window; whoever has longer ones cuts.
    """

    context: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True, slots=True)
class Score:
    """What an item got.

    logprobs: (len(continuation),) float64, in nats (natural logarithms): the model's own, computed in float32.
    greedy: every id of the continuation was the likeliest at its place, the lowest where several were.
    """

    logprobs: npt.NDArray[np.float64]
    greedy: bool

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return float(self.logprobs.sum())


@dataclass(slots=True, eq=False)
class _Reading:
    """Ids that are read once, for one item or for several that differ in their last id.

    next: the first place whose logits are still to come. wanted: for each item its number and its continuation.
    found: for each item, pieces of log-probabilities and whether they were the likeliest.
    """

    ids: list[int]
    first: int
    next: int
    wanted: list[tuple[int, list[int]]]
    found: list[list[tuple[npt.NDArray[np.float64], bool]]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Nothing of it is still to come."""
        return self.next == len(self.ids)


@dataclass(slots=True, eq=False)
class _Lane:
    """Readings that take turns in one slot. slot: the one it was lent last."""

    readings: deque[_Reading]
    slot: Slot | None = None

    @property
    def left(self) -> int:
        """About how many tokens of the current reading are still to be read."""
        reading = self.readings[0]
        return len(reading.ids) - (reading.next if self.slot else 0)


@overload
def score(  # type: ignore[overload-overlap]  # a text is a sequence of texts to Python
    model: "LanguageModel | Engine", what: str, *, progress: Callable[[int], None] | None = None
) -> list[TokenLogprob]: ...
@overload
def score(
    model: "LanguageModel | Engine", what: Sequence[str], *, progress: Callable[[int], None] | None = None
) -> list[list[TokenLogprob]]: ...
@overload
def score(
    model: "LanguageModel | Engine", what: Iterable[Item], *, progress: Callable[[int], None] | None = None
) -> Iterator[Score]: ...
def score(
    model: "LanguageModel | Engine",
    what: str | Sequence[str] | Iterable[Item],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[TokenLogprob] | list[list[TokenLogprob]] | Iterator[Score]:
    """The log-probabilities of a text's tokens; of several texts; or of items of token ids.

    what: a text, which is read behind end of text and gives a `TokenLogprob` for each of its tokens; a list of texts,
        which gives a list for each; or items, which give an iterator of `Score`, in their order. Items are taken as
        they are needed, and may be of any number.
    progress: called now and then with how many items have been scored.

    Raises BadPrompt for what the model cannot read, ContextOverflow for what its window does not hold (longer texts are
    scored in windows by `gpt2.evaluation`), Error for logits that are not finite; of items, when they are reached.
    """
    engine = engine_of(model)
    if isinstance(what, str):
        return _of_texts(engine, [what], progress)[0]
    if isinstance(what, Sequence) and all(isinstance(each, str) for each in what):
        return _of_texts(engine, [str(each) for each in what], progress)
    return _scores(engine, what, progress)  # type: ignore[arg-type]


def _of_texts(engine: Engine, texts: Sequence[str], progress: Callable[[int], None] | None) -> list[list[TokenLogprob]]:
    tokenizer = engine.tokenizer
    items = [Item((), tokenizer.encode(text)) for text in texts]
    return [
        [
            TokenLogprob(tokenizer.decode([id]), id, logprob, ())
            for id, logprob in zip(item.continuation, found.logprobs.tolist(), strict=True)
        ]
        for item, found in zip(items, _scores(engine, items, progress), strict=True)
    ]


def _scores(engine: Engine, items: Iterable[Item], progress: Callable[[int], None] | None) -> Iterator[Score]:
    rows = _in_rows(_readings(engine, items))
    lanes: list[_Lane] = []
    finished: dict[int, Score] = {}
    given, step = 0, _STEP["cpu"]
    while True:
        while len(lanes) < min(_MOST_LANES, engine.runner.slots) and sum(lane.left for lane in lanes) < step:
            row = next(rows, None)
            if row is None:
                break
            lanes.append(_Lane(deque(row)))
        if not lanes:
            return
        step = _step(engine, lanes, step)
        for lane in lanes:
            if lane.readings[0].is_done:
                finished.update(_finished(lane.readings.popleft()))
        lanes = [lane for lane in lanes if lane.readings]
        if progress is not None:
            progress(given + len(finished))
        while given in finished:
            yield finished.pop(given)
            given += 1


def _readings(engine: Engine, items: Iterable[Item]) -> Iterator[_Reading]:
    """What is to be read, in order; items that follow each other and differ in their last id alone are one."""
    window, last = engine.config.n_positions, None
    for number, item in enumerate(items):
        if not isinstance(item, Item):
            raise BadPrompt(f"{item!r:.80} is nothing to score; give a text, a list of texts, or items of token ids.")
        context = checked_prompt(engine, item.context)
        continuation = checked_prompt(engine, item.continuation) if len(item.continuation) else []
        ids = [*context, *continuation[:-1]]
        if len(ids) > window:
            raise ContextOverflow(
                f"A context of {len(context)} tokens and {len(continuation)} to score do not fit in this model's "
                f"window of {window}; cut the context's beginning, or score in windows (gpt2.evaluation, `gpt2 eval`)."
            )
        first = len(context) - 1 if continuation else len(ids)
        if last is not None and last.ids == ids and last.first == first:
            last.wanted.append((number, continuation))
            continue
        if last is not None:
            yield last
        last = _Reading(ids, first, first, [(number, continuation)])
    if last is not None:
        yield last


def _in_rows(readings: Iterator[_Reading]) -> Iterator[list[_Reading]]:
    """Readings that follow each other and share a beginning, together."""
    row: list[_Reading] = []
    for reading in readings:
        if row:
            shared = _common(row[-1].ids, reading.ids)
            if len(row) == _MOST_IN_A_ROW or not (shared >= _WORTH_SHARING or shared > reading.first):
                yield row
                row = []
        row.append(reading)
    if row:
        yield row


@torch.inference_mode()
def _step(engine: Engine, lanes: Sequence[_Lane], most: int) -> int:
    """Reads one step's tokens of the lanes, the first ones first; returns how many the next step should read."""
    runner = engine.runner
    if engine.busy or engine.waiting:
        most = min(most, _STEP_BESIDE)
    with engine.lend([lane.slot for lane in lanes]) as slots:
        feeds: list[Feed] = []
        fed: list[tuple[_Reading, Slot]] = []
        for lane, slot in zip(lanes, slots, strict=True):
            reading, room = lane.readings[0], most - sum(len(feed.ids) for feed in feeds)
            if room <= 0:
                break
            if slot is None or reading.is_done:
                continue
            start = _prepare(engine, reading, slot, is_new=lane.slot is not slot)
            lane.slot = slot
            end = min(len(reading.ids), start + room)
            if end < len(reading.ids) and feeds and not runner.batch_invariant:
                # Such runners like texts whole, of which they make batches.
                break
            feeds.append(Feed(slot.index, reading.ids[start:end], max(0, end - reading.next)))
            fed.append((reading, slot))
        if not feeds:
            return most
        logits_NV = runner.read(feeds)
        for feed, (_, slot) in zip(feeds, fed, strict=True):
            slot.ids.extend(feed.ids)
            engine.statistics.read += len(feed.ids)
        _take(logits_NV, [(reading, feed.logits) for feed, (reading, _) in zip(feeds, fed, strict=True)], engine)
    return _STEP.get(logits_NV.device.type, most)


def _prepare(engine: Engine, reading: _Reading, slot: Slot, *, is_new: bool) -> int:
    """Makes a slot hold as much of a reading's beginning as it does, or if it `is_new` any other; returns how much."""
    runner = engine.runner
    held = min(_common(slot.ids, reading.ids), reading.next)
    best = max(engine.held, key=lambda other: _common(other.ids, reading.ids)) if is_new else slot
    shared = min(_common(best.ids, reading.ids), reading.next)
    if shared >= held + _WORTH_SHARING:
        runner.copy(best.index, slot.index, shared)
        held = shared
    elif held < runner.length(slot.index):
        runner.rewind(slot.index, held)
    slot.ids = reading.ids[:held]
    return held


def _take(logits_NV: Tensor, wanted: Sequence[tuple[_Reading, int]], engine: Engine) -> None:
    """Looks the readings' next ids up in their rows of logits (N, V), so many for each."""
    rows: list[int] = []
    ids: list[int] = []
    places: list[tuple[_Reading, int, int]] = []  # whose, which of its items, and how many
    row = 0
    for reading, count in wanted:
        begin = reading.next - reading.first
        for number, (_, continuation) in enumerate(reading.wanted):
            rows += range(row, row + count)
            ids += continuation[begin : begin + count]
            places.append((reading, number, count))
        row += count
    logprobs, likeliest = _looked_up(logits_NV, np.array(rows), np.array(ids), vocabulary(engine))
    if not np.isfinite(logprobs).all():
        raise Error("The model's logits hold NaN or infinity; its weights are damaged, or too large for this dtype.")
    start = 0
    for reading, number, count in places:
        if not reading.found:
            reading.found = [[] for _ in reading.wanted]
        end = start + count
        reading.found[number].append((logprobs[start:end], bool(likeliest[start:end].all())))
        start = end
    for reading, count in wanted:
        reading.next += count


def _looked_up(
    logits_NV: Tensor, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], vocabulary: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probabilities of ids in rows of logits, and whether each is the likeliest of the first `vocabulary`.

    rows, ids: of the same length, in any order.
    """
    logprobs, likeliest = np.zeros(len(ids)), np.zeros(len(ids), dtype=bool)
    at_once = max(1, _AT_ONCE.get(logits_NV.device.type, _AT_ONCE["cpu"]) // logits_NV.shape[1])
    for first in range(0, len(logits_NV), at_once):
        here = np.flatnonzero((rows >= first) & (rows < first + at_once))
        part_RV = logits_NV[first : first + at_once]
        row_K, id_K = (torch.from_numpy(each[here]).to(part_RV.device) for each in (rows - first, ids))
        logprobs[here] = log_probabilities(part_RV)[row_K, id_K].double().cpu().numpy()
        likeliest[here] = (part_RV[:, :vocabulary].argmax(dim=1)[row_K] == id_K).cpu().numpy()
    return logprobs, likeliest


def _finished(reading: _Reading) -> Iterator[tuple[int, Score]]:
    for place, (number, _) in enumerate(reading.wanted):
        pieces = reading.found[place] if reading.found else []
        logprobs = np.concatenate([piece for piece, _ in pieces]) if pieces else np.zeros(0)
        yield number, Score(logprobs, all(likeliest for _, likeliest in pieces))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with in common."""
    if first == second[: len(first)]:
        return len(first)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
