"""Guesses at what comes next, so that the model reads several tokens at once where it would read one.

A proposer guesses; whoever generates feeds the guesses to the model behind the newest token, draws at every place with
that place's own noise, and keeps a guess for as long as it is what was drawn. The draw is a pure function of logits,
seed, number of the token and token id (`sampling.py`), so a guess never changes what is drawn: the output is, seed for
seed, that of plain generation, and a bad proposer costs time and nothing else. (Speculative sampling as in Leviathan
et al. 2023 and Chen et al. 2023 keeps the distribution by a rejection step; here there is nothing to correct.)

Two proposers: `PromptLookup` copies what followed the same words before, `DraftModel` asks a small model of the same
vocabulary. This file verifies nothing and knows nothing of the large model or of the engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from gpt2.errors import BadOption, Error
from gpt2.generation.options import SamplingOptions, whole_number
from gpt2.generation.request import kept, vocabulary
from gpt2.generation.sampling import sample
from gpt2.runners.runner import Feed, Runner

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


@dataclass(frozen=True, slots=True)
class Text:
    """A text that wants to go on.

    key: a number that is the text's own for as long as it grows. ids: prompt and output so far; between two calls a
    text only grows. seed, number, sampling: how its next token will be drawn, `number` being that token's number, and
    so the length of the output.
    """

    key: int
    ids: Sequence[int]
    seed: int
    number: int
    sampling: SamplingOptions


class Proposer(Protocol):
    """Guesses how texts go on. One thread may use a proposer at a time."""

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        """For each text, up to `most` ids that may follow it; none where there is nothing to say."""

    def forget(self, key: int) -> None:
        """The text of this key has ended (or was never known)."""


@dataclass(slots=True)
class _Pace:
    """How many ids to propose for one text, decided by what became of those before.

    hope: a running estimate of how likely a guessed id is to be the one drawn. As many ids are proposed as will
    probably all come true; where hope is small, none, for `pause` calls, and then a single one to see whether the text
    has become one that can be guessed.
    """

    hope: float
    rest: int = 0
    pause: int = 2
    guess: list[int] = field(default_factory=list)
    start: int = 0

    def next(self, ids: Sequence[int], most: int) -> int:
        """How many ids to propose now behind `ids`, at most `most`; first takes in what became of the last guess."""
        if self.guess:
            came = ids[self.start : self.start + len(self.guess)]
            taken = _agreement(self.guess, came)
            # What comes behind the first wrong guess says nothing.
            self._learn(taken, wrong=taken < len(came))
            self.guess = []
        if self.rest:
            self.rest -= 1
            return 0
        return min(max(1, int(math.log(_CONFIDENCE) / math.log(self.hope))), most)

    def propose(self, ids: Sequence[int], guess: list[int]) -> None:
        """Remembers what was proposed behind `ids`."""
        self.guess, self.start = list(guess), len(ids)

    def miss(self) -> None:
        """Counts a guess that came to nothing."""
        self._learn(0, wrong=True)

    def _learn(self, right: int, *, wrong: bool) -> None:
        for outcome in [1] * right + [0] * wrong:
            self.hope += (outcome - self.hope) / _MEMORY
        if right:
            self.pause = 2
        if self.hope < _LEAST:
            self.rest, self.pause = self.pause, min(2 * self.pause, _LONGEST_PAUSE)
        # The lower bound lets a single right guess end the silence.
        self.hope = min(max(self.hope, _LEAST * (1 - 1 / _MEMORY)), 0.98)


_MEMORY = 6  # guesses that the estimate looks back on, roughly
_CONFIDENCE = 0.4  # least chance that all that is proposed comes true
_LEAST = 0.3  # below this a guess costs more than it brings
_LONGEST_PAUSE = 64  # calls


def _agreement(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids the two begin with in common."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


@dataclass(slots=True)
class _Index:
    """Where each run of ids in one text was last followed by another id, and up to where the text has been read."""

    pace: _Pace
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    read: int = 0


class PromptLookup:
    """Finds the text's last `n` ids (failing that n - 1, down to 2) earlier in the text, and proposes what followed.

    The latest such place is taken. Where the copy runs into the end of the text it goes on with itself, so a text that
    repeats is guessed at any length. Each id of a text is indexed once.

    n: 1 or more. most: most ids proposed at once, 1 or more. Raises BadOption.
    """

    def __init__(self, n: int = 3, most: int = 8) -> None:
        self._n, self._most = whole_number("n", n, 1), whole_number("most", most, 1)
        # A single id as the clue is nearly always wrong.
        self._sizes = range(self._n, min(self._n, 2) - 1, -1)
        self._indices: dict[int, _Index] = {}

    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        """See `Proposer`."""
        return [self._one(text, min(most, self._most)) for text in texts]

    def forget(self, key: int) -> None:
        """See `Proposer`."""
        self._indices.pop(key, None)

    def _one(self, text: Text, most: int) -> list[int]:
        index = self._indices.setdefault(text.key, _Index(_Pace(0.8)))
        ids = text.ids
        # Runs that end where the text ends are left for later: nothing has followed them yet.
        for end in range(index.read + 1, len(ids)):
            for size in self._sizes:
                if size <= end:
                    index.places[tuple(ids[end - size : end])] = end
        index.read = max(index.read, len(ids) - 1)
        count = index.pace.next(ids, most)
        guess: list[int] = []
        for size in self._sizes if count else ():
            place = index.places.get(tuple(ids[-size:]))
            if place is not None:
                for here in range(place, place + count):
                    guess.append(ids[here] if here < len(ids) else guess[here - len(ids)])
                break
        index.pace.propose(ids, guess)
        return guess


@dataclass(slots=True)
class _Draft:
    """One text of a draft model: its slot, which holds the text from `start` on, and what was drafted behind `known`
    ids of it (all but the last of which the slot holds too)."""

    slot: int
    pace: _Pace
    start: int = 0
    known: int = 0
    guess: list[int] = field(default_factory=list)


_Writing = tuple[Text, _Draft, list[int], int]  # what is drafted behind a text, and how many ids it is to become


class DraftModel:
    """Lets a small model write on, with the request's own seed, token numbers and sampling options.

    With the same noise the two models agree more often than two draws would: wherever the token that wins in the small
    model's distribution wins in the large one's too.

    model: the small model. slots: how many texts it holds at once; for texts beyond that it says nothing. target: the
    model whose texts they are. runner: what runs the small model; None takes the best for this machine.

    Raises BadOption if the small model's vocabulary is not the target's.
    """

    def __init__(
        self,
        model: "LanguageModel",
        slots: int,
        *,
        target: "LanguageModel | None" = None,
        runner: Runner | None = None,
    ) -> None:
        self._vocabulary = vocabulary(model)
        if target is not None:
            _check_vocabularies(model, target)
        if runner is None:
            from gpt2.runners.choose import runner as choose

            runner = choose(model, slots)
        self._runner = runner
        self._end_of_text = model.tokenizer.end_of_text
        self._window = runner.config.n_positions
        self._free = list(range(min(slots, runner.slots)))
        self._drafts: dict[int, _Draft] = {}

    @torch.inference_mode()
    def propose(self, texts: Sequence[Text], most: int) -> list[list[int]]:
        """See `Proposer`."""
        guesses: list[list[int]] = [[] for _ in texts]
        writing: list[_Writing] = []
        feeds: list[Feed] = []
        for text, guess in zip(texts, guesses, strict=True):
            draft = self._draft(text.key)
            if draft and (count := draft.pace.next(text.ids, most)):
                feeds.append(self._catch_up(draft, text.ids))
                # The last id drafted is never read, so it needs no room.
                room = self._window - (len(text.ids) - draft.start) + 1
                writing.append((text, draft, guess, min(count, room)))
        started = writing
        while writing:
            logits_BV = self._runner.read(feeds)[:, : self._vocabulary]
            drawn = self._draw(logits_BV, [(text, guess) for text, _, guess, _ in writing])
            going: list[_Writing] = []
            feeds = []
            for each, id in zip(writing, drawn, strict=True):
                _, draft, guess, count = each
                if id is None:
                    draft.pace.miss()
                elif id != self._end_of_text:  # which nothing follows: reading that far gains nothing
                    guess.append(id)
                    if len(guess) < count:
                        going.append(each)
                        feeds.append(Feed(draft.slot, [id]))
            writing = going
        for text, draft, guess, _ in started:
            draft.guess = guess
            draft.pace.propose(text.ids, guess)
        return guesses

    def forget(self, key: int) -> None:
        """See `Proposer`."""
        draft = self._drafts.pop(key, None)
        if draft:
            self._free.append(draft.slot)

    def _draft(self, key: int) -> _Draft | None:
        """The text's draft, made if there is a slot for it."""
        if key not in self._drafts and self._free:
            draft = self._drafts[key] = _Draft(self._free.pop(), _Pace(0.6))
            self._runner.rewind(draft.slot, 0)
        return self._drafts.get(key)

    def _catch_up(self, draft: _Draft, ids: Sequence[int]) -> Feed:
        """Takes back what the slot holds and did not come true; returns what it has to read to stand behind `ids`."""
        right = draft.known + _agreement(draft.guess, ids[draft.known :]) - draft.start
        if len(ids) - draft.start > self._window:
            # As whoever generates does: the newest half of the window is read again.
            draft.start, right = len(ids) - kept(self._window), 0
        right = min(right, self._runner.length(draft.slot), len(ids) - draft.start - 1)
        self._runner.rewind(draft.slot, right)
        draft.known, draft.guess = len(ids), []
        return Feed(draft.slot, ids[draft.start + right :])

    def _draw(self, logits_BV: torch.Tensor, rows: Sequence[tuple[Text, list[int]]]) -> list[int | None]:
        """The next id of each text behind what was drafted for it; None if it cannot be drawn."""
        drawn: list[int | None] = [None] * len(rows)
        places: dict[SamplingOptions, list[int]] = {}
        for place, (text, _) in enumerate(rows):
            places.setdefault(text.sampling, []).append(place)
        for sampling, group in places.items():
            prompts, outputs, seeds = [], [], []
            for text, guess in (rows[place] for place in group):
                end = len(text.ids) - text.number
                prompts.append(text.ids[:end])
                outputs.append([*text.ids[end:], *guess])
                seeds.append(text.seed)
            try:
                ids = sample(logits_BV[group], sampling, prompts, outputs, seeds)
            except Error:  # a damaged draft, or options that leave nothing: the large model's own draw will say so
                continue
            for place, id in zip(group, ids, strict=True):
                drawn[place] = id
        return drawn


def _check_vocabularies(draft: "LanguageModel", target: "LanguageModel") -> None:
    same = draft.tokenizer.fingerprint() == target.tokenizer.fingerprint()
    if not same or vocabulary(draft) < vocabulary(target):
        raise BadOption(
            f"The draft model {draft.source} has another vocabulary than {target.source}, so it cannot guess its "
            "tokens; use a draft model that was trained with the same tokenizer."
        )
