"""The engine: requests in, tokens out. Requests join and leave between steps, and share one runner's slots.

Requests are taken in the order in which they came, and so many may wait. Threads take turns to step, and each may ask
and cancel while another steps. What a step does is in `rows.py`; a model's own engine is in `shared.py`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from gpt2.errors import BadOption, Busy
from gpt2.generation.options import DEFAULTS, SEEDS, GenerationOptions, whole_number
from gpt2.generation.request import Event, Request, check_options, check_window, checked_prompt, vocabulary
from gpt2.generation.rows import Rows, Statistics
from gpt2.generation.slots import Slot
from gpt2.generation.speculate import Proposer
from gpt2.runners import Runner

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


class Engine:
    """Runs requests on one model: continuous batching on a fixed number of slots.

    model: what runs. slots: how many texts run at once; by default as many as 2 GiB of keys and values hold, at most
    64. queue: how many requests may wait, those included that the next step will take. runner: what runs the network
    (with its own number of slots); by default the best for this machine. proposer: guesses tokens, so that several are
    read at once.

    `submit` and `cancel` may be called from any thread, and so may `step`: one thread steps at a time. The engine does
    not see when the network's weights change under it; make another one then.
    """

    def __init__(
        self,
        model: "LanguageModel",
        *,
        slots: int | None = None,
        queue: int = 1024,
        runner: Runner | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self.tokenizer, self.config = model.tokenizer, model.config
        self.queue = whole_number("queue", queue, 1)
        slots = None if slots is None else whole_number("slots", slots, 1)
        self.runner = _runner(model, slots) if runner is None else runner
        slots = self.runner.slots if slots is None else min(slots, self.runner.slots)
        self._rows = Rows(self.runner, slots, vocabulary(self), proposer)
        self._waiting: deque[Request] = deque()
        # Guards what several threads touch, for moments only: the queue, `cancelled`, and whose turn it is to step.
        self._turn = threading.Condition()
        self._stepping = False
        # How many threads wait for a slot to be lent: one that comes free then is not given to a request.
        self._borrowers = 0

    @property
    def statistics(self) -> Statistics:
        """Tokens read, reused, generated, proposed and accepted so far."""
        return self._rows.statistics

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def submit(
        self,
        prompt: Sequence[int],
        options: GenerationOptions = DEFAULTS,
        *,
        seed: int | None = None,
        row: int = 0,
        listener: Callable[[Event], None] | None = None,
    ) -> Request:
        """Asks for one text: token ids (none: from end of text), and `seed`, or else the options' own.

        row: goes into its events. listener: called with each event by the thread that steps, quickly and without
        errors; otherwise events gather in the request.

        Raises BadPrompt, BadOption and ContextOverflow for what cannot be run, Busy if the queue is full.
        """
        request = self.prepare(prompt, options, seed=seed, row=row, listener=listener)
        self.enter(request)
        return request

    def prepare(
        self,
        prompt: Sequence[int],
        options: GenerationOptions = DEFAULTS,
        *,
        seed: int | None = None,
        row: int = 0,
        listener: Callable[[Event], None] | None = None,
    ) -> Request:
        """The first half of `submit`: a request that has been checked and does not wait yet."""
        ids = checked_prompt(self, prompt)
        check_options(self, options)
        check_window(self, ids, options)
        seed = options.seeds(1)[0] if seed is None else whole_number("seed", seed, *SEEDS)
        if listener is not None and not callable(listener):
            raise BadOption(f"listener is {listener!r}; it must be a function that takes an event.")
        return Request(self.tokenizer, ids, options, seed, row, listener)

    def enter(self, request: Request) -> None:
        """The second half of `submit`: the request waits for a slot. Raises Busy if the queue is full."""
        if request.options.max_tokens == 0:
            request.nothing()
            return
        with self._turn:
            if len(self._waiting) >= self.queue:
                raise Busy(f"{len(self._waiting)} requests are waiting already, as many as this engine lets wait.")
            self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Gives a request up, wherever it stands; its slot is free at once, or when the step that runs has ended.

        Raises BadOption for what is no request.
        """
        if not isinstance(request, Request):
            raise BadOption(f"{request!r} is no request; cancel takes what submit gave.")
        with self._turn:
            if request.done:
                return
            request.cancelled = True
            if request in self._waiting:
                self._waiting.remove(request)
            elif not self._stepping:
                self._stepping = True  # a cancellation from within, by the garbage collector, finds it taken
                self._end_turn()

    def step(self, until: Callable[[], bool] = lambda: False) -> bool:
        """One step, in this thread's turn, unless `until` says that it is not needed any more.

        Returns whether there was anything to do. Every text that is ready gets its next token, or several with a
        proposer.
        """
        with self._turn:
            while self._stepping and not until():
                self._turn.wait()
            if until():
                return True
            self._stepping = True
        try:
            return self._step()
        finally:
            with self._turn:
                self._end_turn()

    @property
    def held(self) -> Sequence[Slot]:
        """All slots and what they hold; for who has been lent some."""
        return self._rows.slots

    @contextmanager
    def lend(self, wanted: Sequence[Slot | None]) -> Iterator[list[Slot | None]]:
        """Lends slots of the runner, in this thread's turn, to who reads without drawing (`score.py`).

        wanted: for each slot that would be of use the one that was lent before, or None for any. The block gets a list
        of the same length in which at least one is a slot; None stands for those that were not free. It may read into
        them by `runner`, and leaves in each slot's `ids` what it then holds. Nobody steps meanwhile.
        """
        with self._turn:
            self._borrowers += 1
        try:
            self._begin_turn()
            while not self._rows.free:
                try:
                    self._step()
                finally:
                    with self._turn:
                        self._end_turn()
                self._begin_turn()
        finally:
            with self._turn:
                self._borrowers -= 1
        lent: list[Slot | None] = []
        damaged = True
        try:
            lent = self._rows.lend(wanted)
            yield lent
            damaged = False
        finally:
            self._rows.take_back([slot for slot in lent if slot is not None], damaged=damaged)
            with self._turn:
                self._end_turn()

    def _begin_turn(self) -> None:
        with self._turn:
            while self._stepping:
                self._turn.wait()
            self._stepping = True

    def _end_turn(self) -> None:
        """Takes out who has left, and lets the next thread step whatever comes of that."""
        try:
            self._rows.sweep()
        finally:
            self._stepping = False
            self._turn.notify_all()

    @torch.inference_mode()
    def _step(self) -> bool:
        self._rows.settle()
        while self._rows.free:
            with self._turn:
                if not self._waiting or (self._borrowers and self._rows.free == 1):
                    break
                request = self._waiting.popleft()
            try:
                self._rows.join(request)
            except BaseException:
                with self._turn:
                    if not request.done:
                        self._waiting.appendleft(request)
                raise
        return self._rows.step()


def _runner(model: "LanguageModel", slots: int | None) -> Runner:
    """The best runner for this machine; by default with as many slots as fit well."""
    from gpt2.runners import choose

    return choose.runner(model, slots or choose.fitting_slots(model.config, model.dtype, choose.device_of(model)))
