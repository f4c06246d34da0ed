"""What an engine survives: Ctrl-C anywhere in a step, proposers and listeners that fail, slow makers of engines."""

import math
import random
import threading
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gpt2.errors import Error, Notice
from gpt2.generation import Engine, Request, SamplingOptions, Text, complete, rows, shared
from gpt2.generation.sampling import sample
from gpt2.generation.shared import engine_of
from gpt2.runners import Feed
from tests.generation_models import model
from tests.unit.test_generation_engine import Oracle, Watched, numbers, options, run, watched


class Unlucky(Watched):
    """Is interrupted now and then, before or after it has done what it was asked for."""

    chance = 0.0
    luck = random.Random(7)

    def _perhaps(self) -> None:
        if self.luck.random() < self.chance:
            raise KeyboardInterrupt

    def read(self, feeds: Sequence[Feed]) -> torch.Tensor:
        self._perhaps()
        logits = super().read(feeds)
        self._perhaps()
        return logits

    def copy(self, source: int, target: int, length: int) -> None:
        self._perhaps()
        super().copy(source, target, length)
        self._perhaps()


@pytest.mark.parametrize("guessing", [False, True])
def test_whatever_is_interrupted_goes_on_as_if_nothing_had_been(
    guessing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model(n_positions=64)
    system = numbers(20)
    prompts = [system, system, [*system, 1], [4], [*system, 1, 2], [*system, 9], [*system, 1], numbers(70, 3)]
    asked = options(12, overflow="slide")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        expected = [complete(made, [prompt], asked)[0].ids for prompt in prompts]
    oracle = Oracle(made, wrong=5)
    for prompt in prompts:
        oracle.ask(prompt, options())
    runner = Unlucky(made, 4)
    engine = Engine(made, runner=runner, proposer=oracle if guessing else None)
    original = rows.draw

    def unlucky_draw(*arguments: object) -> list:
        runner._perhaps()
        return original(*arguments)

    monkeypatch.setattr(rows, "draw", unlucky_draw)
    interrupted = 0
    for _ in range(10):
        requests: list[Request] = []
        left = list(prompts)
        while left or not all(request.done for request in requests):
            if left:
                requests.append(engine.submit(left.pop(0), asked))
            runner.chance = 0.2
            try:
                engine.step()
            except KeyboardInterrupt:
                interrupted += 1
            runner.chance = 0
        assert [request.output for request in requests] == expected
        assert [len(request.events) for request in requests] == [12] * len(prompts)
        assert (engine.busy, engine.waiting) == (0, 0)
    assert interrupted > 50
    assert runner.copies


def test_a_request_that_was_joining_when_it_was_interrupted_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(n_positions=64)
    engine, runner = watched(made)
    engine.submit([*numbers(30), 1], options(20))
    engine.step()
    second, third = engine.submit([*numbers(30), 2], options(3)), engine.submit([*numbers(30), 2], options(3))

    def interrupted(source: int, target: int, length: int) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert (engine.busy, engine.waiting) == (1, 2)
    run(engine)
    expected = complete(made, [second.prompt], options(3))[0].ids
    assert second.output == third.output == expected
    assert engine.busy == 0


def test_followers_that_cannot_be_copied_read_for_themselves_or_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    engine, runner = watched(made)
    requests = [engine.submit([1, 2, 3], options(4), seed=seed) for seed in range(4)]
    copy, calls = runner.copy, []

    def second_fails(source: int, target: int, length: int) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        copy(source, target, length)

    monkeypatch.setattr(runner, "copy", second_fails)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    run(engine)
    for seed, request in enumerate(requests):
        assert request.output == complete(made, [[1, 2, 3]], options(4, seed=seed))[0].ids


def test_a_sweep_that_fails_leaves_the_turn_free(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = watched(model())

    def fail() -> None:
        raise KeyboardInterrupt

    for call in (engine.cancel, lambda request: engine.step()):
        request = engine.submit([1], options())
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr(engine._rows, "sweep", fail)
            with pytest.raises(KeyboardInterrupt):
                call(request)
        stepper = threading.Thread(target=run, args=(engine,), daemon=True)
        stepper.start()
        stepper.join(20)
        assert not stepper.is_alive(), "nobody may step any more"
        assert engine.busy == 0


def test_a_listener_that_fails_costs_no_token() -> None:
    made = model()
    engine, _ = watched(made)
    came: list[int | None] = []

    def listen(event: object) -> None:
        came.append(event.id)
        if len(came) in (2, 5):
            raise ZeroDivisionError

    first, second = engine.submit([1], options(5), listener=listen), engine.submit([2], options(5))
    failed = 0
    while not (first.done and second.done):
        try:
            engine.step()
        except ZeroDivisionError:
            failed += 1
    assert failed == 2
    assert came == first.output == complete(made, [[1]], options(5))[0].ids
    assert second.output == complete(made, [[2]], options(5))[0].ids
    assert engine.busy == 0


def test_a_request_that_was_given_up_says_nothing_more() -> None:
    engine, _ = watched(model())
    request = engine.prepare([1], options(0))
    engine.cancel(request)
    engine.enter(request)
    assert not request.events


# Proposers.


class Faulty:
    """A proposer that does whatever it is told to."""

    def __init__(self, guess: object) -> None:
        self._guess = guess

    def propose(self, texts: Sequence[Text], most: int) -> list:
        if isinstance(self._guess, Exception):
            raise self._guess
        return [self._guess for _ in texts]

    def forget(self, key: int) -> None:
        raise RuntimeError("I never knew it.")


@pytest.mark.parametrize("guess", [Error("no"), ValueError("no"), None, ["a"]], ids=repr)
def test_a_proposer_that_fails_costs_time_and_nothing_else(guess: object) -> None:
    made = model()
    engine, _ = watched(made, proposer=Faulty(guess))
    with pytest.warns(Notice, match="proposer failed") as caught:
        results = complete(engine, [[1, 2], [3]], options(6))
    assert len(caught) == 1
    assert results == complete(made, [[1, 2], [3]], options(6))
    assert (engine.busy, engine.statistics.proposed) == (0, 0)


@pytest.mark.parametrize("wrong", [257, -1, 10**9])
def test_a_guess_ends_before_the_first_id_outside_the_vocabulary(wrong: int) -> None:
    made = model()
    engine, runner = watched(made, proposer=Faulty([5, wrong, 7]))
    results = complete(engine, [[1, 2]], options(4))
    assert results == complete(made, [[1, 2]], options(4))
    assert runner.steps[1] == [(0, 2)]


# The rest.


def test_a_piece_without_logits_is_not_drawn_where_it_runs() -> None:
    made = model()

    class Drawing(Watched):
        drawable = 0

        def draw(self, slots: Sequence[int], *rest: object) -> list[int]:
            return [7] * len(slots)

    engine = Engine(made, runner=Drawing(made, 2))
    plain = options(3, sampling=SamplingOptions(1.0, 20))
    request = engine.submit([1, 2], plain)
    engine.step()
    fed = list(engine._rows._rows)
    assert fed[0].request is request
    assert engine._rows._draw_where_it_runs([Feed(0, [3], 1)], fed) == [(7, (None, ()))]
    assert engine._rows._draw_where_it_runs([Feed(0, [3], 0)], fed) == []


def test_one_model_does_not_wait_for_anothers_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick, known = model(), model(seed=1), model(seed=2)
    there = engine_of(known)
    started, go = threading.Event(), threading.Event()

    class Slow(Engine):
        def __init__(self, made: object) -> None:
            if made is slow:
                started.set()
                assert go.wait(60)
            super().__init__(made)

    monkeypatch.setattr(shared, "Engine", Slow)
    found: list[Engine] = []
    makers = [threading.Thread(target=lambda: found.append(engine_of(slow)), daemon=True) for _ in range(2)]
    for maker in makers:
        maker.start()
    assert started.wait(60)
    others = threading.Thread(target=lambda: found.extend([engine_of(quick), engine_of(known)]), daemon=True)
    others.start()
    others.join(20)
    assert len(found) == 2
    assert found[1] is there
    go.set()
    for maker in makers:
        maker.join(60)
    assert found[2] is found[3]


def test_infinite_logits_are_an_error_and_no_warning_of_numpy() -> None:
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        for value in (math.inf, -math.inf):
            logits = torch.full((1, 640), value)
            with pytest.raises(Error):
                sample(logits, SamplingOptions(1.0, 3), [[1]], [[]], [1])
