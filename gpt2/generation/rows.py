"""The texts in slots: what each reads next, and what becomes of the tokens that are drawn. One step of an engine.

A step feeds the newest token of every text that is being written, and beside them a bounded piece of the prompts that
are being read, so that a long prompt holds nobody up; then it draws a token for each that is ready. A prompt's
beginning that a slot holds already is not read again (`slots.py`). With a proposer, texts are fed guesses behind their
newest token, and the draws decide how many of them hold; what comes out is the same, seed for seed.

Nothing here knows of threads or of those who wait (`engine.py`), nor how a runner runs, or how text is made from
tokens (`request.py`).
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Protocol, runtime_checkable

from gpt2.errors import Error, Notice
from gpt2.generation.draw import Choice, draw
from gpt2.generation.request import Request, kept
from gpt2.generation.slots import Slot, Slots
from gpt2.generation.speculate import Proposer, Text
from gpt2.runners import Feed, Runner

# Prompt tokens that a step reads beside the texts that are being written.
_PIECE = 256
# Most tokens that are guessed for one text at once, and for all of them together.
_MOST_GUESSES, _MOST_GUESSES_A_STEP = 16, 64


@dataclass(slots=True)
class Statistics:
    """Tokens so far. read: fed to the network; reused: of prompts, and not read because a slot held them.

    proposed, accepted: guesses that were fed, and those that were then drawn.
    """

    read: int = 0
    reused: int = 0
    generated: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(slots=True, eq=False)
class _Row:
    """A request in a slot.

    todo: what is read before its next token is drawn, from `done` on. key: what the proposer knows it by.
    source, shared: it reads nothing until that row has read so many tokens, which it then copies; if these are all of
    `todo`, it takes the logits behind them too.
    """

    request: Request
    slot: Slot
    key: int
    todo: list[int]
    done: int = 0
    source: "_Row | None" = None
    shared: int = 0


@dataclass(slots=True, eq=False)
class _Ready:
    """A row whose next token can be drawn.

    first: its first row of logits. guess: ids that were fed behind its newest token. length: tokens in its slot but
    for the guesses.
    """

    row: _Row
    first: int
    guess: Sequence[int]
    length: int


class _Found:
    """How a step found a row. size: how many tokens it is going to read or copy, guesses not counted."""

    __slots__ = ("done", "length", "output", "row", "size", "source")

    def __init__(self, row: _Row, fed: int) -> None:
        self.row, self.done, self.source = row, row.done, row.source
        self.length, self.output = len(row.slot.ids), len(row.request.output)
        self.size = len(row.todo) if row.source and row.shared == len(row.todo) else fed


@runtime_checkable
class Drawer(Protocol):
    """A runner that can read a token into each of several slots and draw what follows in one go, as `sampling.py` does.

    drawable: ids below this are drawn.
    """

    drawable: int

    def draw(
        self,
        slots: Sequence[int],
        ids: Sequence[int],
        seeds: Sequence[int],
        numbers: Sequence[int],
        temperatures: Sequence[float],
        top_ks: Sequence[int | None],
    ) -> list[int]:
        """The next ids; -1 where there are no finite scores."""


class Rows:
    """Requests in a runner's slots. vocabulary: ids below this are drawn.

    One thread at a time may use it.
    """

    def __init__(self, runner: Runner, slots: int, vocabulary: int, proposer: Proposer | None) -> None:
        self.runner, self.proposer = runner, proposer
        self.statistics = Statistics()
        self._vocabulary, self._window = vocabulary, runner.config.n_positions
        self._drawer = runner if isinstance(runner, Drawer) else None
        if self._drawer is not None:
            self._drawer.drawable = vocabulary
        self._slots = Slots(slots)
        self._rows: list[_Row] = []  # in the order in which they came
        self._keys = count()
        self._said = False  # that the proposer fails

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def free(self) -> int:
        """Slots that are free."""
        return self._slots.free

    def step(self) -> bool:
        """Reads and draws once. Returns whether there was anything to read."""
        feeds, fed, guesses = self._plan()
        if not feeds:
            return False
        sizes = {id(row): len(feed.ids) - len(guess) for row, feed, guess in zip(fed, feeds, guesses, strict=True)}
        found = [_Found(row, sizes.get(id(row), 0)) for row in self._rows]
        try:
            drawn = self._draw_where_it_runs(feeds, fed)
            logits_NV = None if drawn else self.runner.read(feeds)
            ready, first = [], 0
            for row, feed, guess in zip(fed, feeds, guesses, strict=True):
                self.statistics.read += len(feed.ids)
                row.slot.ids.extend(feed.ids)
                row.done += len(feed.ids) - len(guess)
                if feed.logits:
                    ready.append(_Ready(row, first, guess, len(row.slot.ids) - len(guess)))
                    first += feed.logits
            if any(row.source for row in self._rows):
                ready = self._with_followers(ready)

            def choose(ready: list[_Ready], place: int) -> list[Choice]:
                if logits_NV is None:
                    return drawn
                places, requests = [each.first + place for each in ready], [each.row.request for each in ready]
                return draw(logits_NV, places, requests, self._vocabulary)

            self._draw(ready, choose)
        except BaseException:
            # Ctrl-C, mostly. Each row goes back to where its request stands, and another step may try again.
            for each in found:
                if each.row in self._rows:
                    self._put_back(each)
            raise
        return True

    def _put_back(self, found: _Found) -> None:
        """Makes a row what the step found, but for what is known to have been read and the tokens that were taken."""
        row, output = found.row, found.row.request.output
        taken, read = len(output) - found.output, found.length + found.size
        if taken:
            row.todo, row.done, row.source = [output[-1]], 0, None
            self._trim(row.slot, read + taken - 1)
        elif found.size and len(row.slot.ids) >= read:
            # Its draw is lost: the last token is read again.
            row.done, row.source = found.done + found.size - 1, None
            self._trim(row.slot, read - 1)
        else:
            row.done, row.source = found.done, found.source
            self._trim(row.slot, found.length)

    def _draw_where_it_runs(self, feeds: Sequence[Feed], fed: Sequence[_Row]) -> list[Choice]:
        """Tokens for all rows at once from a runner that reads and draws in one go; none if this step is not for it."""
        requests = [row.request for row in fed]
        if (
            self._drawer is None
            or any(len(feed.ids) > 1 or not feed.logits for feed in feeds)
            or any(row.source for row in self._rows)  # it would want logits
            or not all(request.is_plain for request in requests)
        ):
            return []
        ids = self._drawer.draw(
            [feed.slot for feed in feeds],
            [feed.ids[0] for feed in feeds],
            [request.seed for request in requests],
            [len(request.output) for request in requests],
            [request.sampling.temperature for request in requests],
            [request.sampling.top_k for request in requests],
        )
        broken = "The model's logits hold NaN or infinity, so there is nothing to choose from; its weights are damaged."
        return [(id, (None, ())) if id >= 0 else Error(broken) for id in ids]

    # Requests and slots.

    def join(self, request: Request) -> None:
        """Gives a request a free slot (there must be one); after an exception it has none."""
        todo = request.prompt
        if len(todo) > self._window:
            request.slid, todo = len(todo), todo[-kept(self._window) :]
        # The same object for all that have equal options, so that they draw together.
        same = (row.request.sampling for row in self._rows if row.request.sampling == request.sampling)
        request.sampling = next(same, request.sampling)
        place = self._slots.take(todo)
        row = _Row(request, place.slot, next(self._keys), list(todo))
        try:
            self._rows.append(row)
            self._share(row, place.source, place.shared)
        except BaseException:
            self._leave(row, damaged=True)
            raise

    @property
    def slots(self) -> Sequence[Slot]:
        """All slots, in use or free."""
        return self._slots.all

    def lend(self, wanted: Sequence[Slot | None]) -> list[Slot | None]:
        """Free slots for who reads without drawing, as `Slots.lend`; `take_back` them before the next step."""
        return self._slots.lend(wanted)

    def take_back(self, slots: Sequence[Slot], *, damaged: bool) -> None:
        """Frees slots that were lent. What they hold may be shared later, unless nobody knows what that is."""
        for slot in slots:
            if damaged:
                self.runner.rewind(slot.index, 0)
            self._slots.release(slot, damaged=damaged)

    def sweep(self) -> None:
        """Takes out the requests that were cancelled, and those whose last step was stopped in the middle."""
        for row in [row for row in self._rows if row.request.done]:
            self._leave(row, damaged=row.request.error is not None)

    def settle(self) -> None:
        """Lets texts go on that waited for what another one has read by now, or will never read."""
        for row in self._rows:
            source = row.source
            if source is None:
                continue
            if source.request.done:
                self._share(row, *self._slots.seek(row.slot))
            elif row.shared < len(row.todo) and len(source.slot.ids) >= row.shared:
                self._share(row, source.slot, row.shared)

    def _share(self, row: _Row, source: Slot | None, shared: int) -> None:
        """Puts the first `shared` tokens into a row's slot, or has it wait for them."""
        slot, row.source = row.slot, None
        if source is slot:
            self._trim(slot, shared)
        else:
            self._trim(slot, 0)
            if source is None:
                return
            if shared > len(source.ids) or shared == len(row.todo):
                row.source, row.shared = next(other for other in self._rows if other.slot is source), shared
                return
            try:
                self.runner.copy(source.index, slot.index, shared)
                slot.ids = row.todo[:shared]
            except BaseException:
                # It reads all by itself then.
                self._trim(slot, 0)
                raise
        row.done = shared
        self.statistics.reused += shared

    def _with_followers(self, ready: list[_Ready]) -> list[_Ready]:
        """With the rows that waited for the whole of a prompt that has been read now, in the order of the rows."""
        found = {id(each.row): each for each in ready}
        for row in self._rows:
            leader = found.get(id(row.source))
            if leader is not None and row.shared == len(row.todo):
                self.runner.copy(leader.row.slot.index, row.slot.index, row.shared)
                row.slot.ids, row.done, row.source = list(row.todo), row.shared, None
                self.statistics.reused += row.shared
                found[id(row)] = _Ready(row, leader.first, (), leader.length)
        return [found[id(row)] for row in self._rows if id(row) in found]

    def _leave(self, row: _Row, *, damaged: bool = False) -> None:
        # The row goes last: what is stopped before then is done again by `sweep`.
        if damaged:
            self.runner.rewind(row.slot.index, 0)
        self._slots.release(row.slot, damaged=damaged)
        if row in self._rows:
            self._rows.remove(row)
        if self.proposer is not None:
            with suppress(Exception):  # whatever a proposer does, it must not hold the engine up
                self.proposer.forget(row.key)

    def _trim(self, slot: Slot, length: int) -> None:
        """Forgets all but a slot's first tokens."""
        if length < self.runner.length(slot.index):
            self.runner.rewind(slot.index, length)
        del slot.ids[length:]

    # Reading.

    def _plan(self) -> tuple[list[Feed], list[_Row], list[Sequence[int]]]:
        """What this step reads: feeds, whose they are, and the guesses at the end of each."""
        rows = [row for row in self._rows if row.source is None]
        for row in rows:
            if len(row.slot.ids) == self._window:
                self._slide(row)
        guesses = self._guess(rows)
        left = [len(row.todo) - row.done for row in rows]
        # With nothing being written there is nothing to hold up.
        budget = _PIECE if 1 in left or not left else max(_PIECE, left[0])
        feeds, fed, fed_guesses = [], [], []
        for row, size, guess in zip(rows, left, guesses, strict=True):
            piece = size
            if size > 1:
                piece = min(size, budget)
                budget -= piece
                if not piece:
                    continue
            ids = row.todo[row.done : row.done + piece]
            feeds.append(Feed(row.slot.index, [*ids, *guess], len(guess) + 1 if piece == size else 0))
            fed.append(row)
            fed_guesses.append(guess)
        return feeds, fed, fed_guesses

    def _slide(self, row: _Row) -> None:
        """Has a full row read the newest half of the window again."""
        request = row.request
        request.slid = request.slid or len(request.prompt) + len(request.output)
        row.todo, row.done = [*request.prompt, *request.output][-kept(self._window) :], 0
        self._slots.replan(row.slot, row.todo)
        self._trim(row.slot, 0)

    def _guess(self, rows: Sequence[_Row]) -> list[Sequence[int]]:
        """What the proposer thinks comes next, for each row that is being written."""
        guesses: list[Sequence[int]] = [()] * len(rows)
        if self.proposer is None:
            return guesses
        places, texts, rooms = [], [], []
        for place, row in enumerate(rows):
            request = row.request
            # The last token is drawn and never read.
            room = min(self._window - len(row.slot.ids) - 1, request.options.max_tokens - len(request.output) - 1)
            if len(row.todo) == 1 and request.output and room > 0:
                ids = [*request.prompt, *request.output]
                places.append(place)
                rooms.append(room)
                texts.append(Text(row.key, ids, request.seed, len(request.output), request.sampling))
        most = min(_MOST_GUESSES, _MOST_GUESSES_A_STEP // max(1, len(texts)))
        if texts and most:
            # Whatever a proposer does costs time and nothing else.
            try:
                proposed = self.proposer.propose(texts, min(most, max(rooms)))
                found = [self._readable(guess[:room]) for room, guess in zip(rooms, proposed, strict=True)]
            except Exception as error:
                if not self._said:
                    self._said = True
                    warnings.warn(f"The proposer failed, and nothing is guessed: {error!r}", Notice, stacklevel=2)
                return guesses
            for place, guess in zip(places, found, strict=True):
                guesses[place] = guess
        return guesses

    def _readable(self, guess: Sequence[int]) -> list[int]:
        """A guess up to the first id that the vocabulary does not have."""
        return list(takewhile(lambda id: 0 <= id < self._vocabulary, map(operator.index, guess)))

    # Drawing.

    def _draw(self, ready: list[_Ready], choose: Callable[[list[_Ready], int], list[Choice]]) -> None:
        """Draws each row's next token, and goes on for as long as a row's guesses are what is drawn."""
        place = 0
        while ready:
            choices = choose(ready, place)
            ready = [each for each, choice in zip(ready, choices, strict=True) if self._take(each, place, choice)]
            place += 1

    def _take(self, each: _Ready, place: int, choice: Choice) -> bool:
        """Takes a row's drawn token in; returns whether it is what was guessed, so that the next can be drawn too."""
        row = each.row
        if row.request.cancelled:
            return False
        if isinstance(choice, Error):
            row.request.fail(choice)
            self._leave(row, damaged=True)
            return False
        held = each.length + place
        last = row.request.take(*choice, held < self._window)
        row.todo, row.done = [choice[0]], 0
        self.statistics.generated += 1
        accepted = place < len(each.guess) and each.guess[place] == choice[0]
        self.statistics.accepted += accepted
        if accepted and not last:
            return True
        if each.guess:
            self.statistics.proposed += len(each.guess)
            self._trim(row.slot, held)
        if last:
            self._leave(row)
        return False
