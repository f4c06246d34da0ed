"""How a run ends before its last step: asked to by a signal, by a compiler that fails, or by both at once."""

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
import torch
from torch._dynamo.exc import InternalTorchDynamoError

from gpt2.errors import BadOption, Error, Unavailable
from gpt2.training import begin, resume, train
from gpt2.training.failures import first_line, is_of_compiler
from gpt2.training.loop import _Run
from gpt2.training.run import RunFolder
from gpt2.training.step import Step
from tests.helpers import Recorder
from tests.runs import (
    POSIX,
    Rank,
    arguments,
    assert_same,
    check_whole,
    command,
    meeting,
    metrics,
    names,
    write_text,
)
from tests.runs import SHORT as LONGER

SHORT = replace(LONGER, warmup_steps=1)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


LINES = "C++ compile error\n" + "g++ said a lot \u00e9\n" * 5000


def failing(monkeypatch, at, stop=False):
    """Has the step after so many fail as torch.compile does."""
    real = Step.__call__

    def step(self, number, *batch):
        if number == at:
            if stop:
                with suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.1)
            raise InternalTorchDynamoError(LINES)
        return real(self, number, *batch)

    monkeypatch.setattr(Step, "__call__", step)


COMPILED = replace(SHORT, compile=True, eval_every=0, save_every=0, trackers="none")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Nothing is compiled for these tests."""
    nothing_compiles(monkeypatch.setattr)


def nothing_compiles(setattr):
    setattr(torch, "compile", lambda function, **_: function)
    setattr(begin, "_missing_compiler", lambda device: None)


def test_a_compiler_that_fails_is_told_in_a_line_and_kept_in_a_file(text, tmp_path, monkeypatch):
    run = tmp_path / "run"
    failing(monkeypatch, 0)
    with pytest.raises(Unavailable) as caught:
        train(COMPILED, [text], run, Recorder())
    said = str(caught.value)
    assert said == (
        f"torch.compile failed (C++ compile error); all that it said is in {run / 'compiler.txt'}. "
        f"Without it, slower and to the same end: `gpt2 train --resume {run} --no-compile`."
    )
    assert LINES.strip() in (run / "compiler.txt").read_text()
    monkeypatch.undo()
    assert resume(run, Recorder(), changes={"compile": False, "steps": 2}).step == 2


def test_a_compiler_that_fails_late_costs_no_step(text, tmp_path, monkeypatch):
    """As when a shape is new. The run goes on as if nothing had been."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        failing(patch, 3)
        with pytest.raises(Unavailable, match=r"compiler\.txt\. Step 3 is saved\. Without it, slower"):
            train(COMPILED, [text], run, Recorder())
    assert names(run) == ["step-000003"]
    recorder = Recorder()
    assert resume(run, recorder).step == 10
    assert recorder.first_step == 3
    train(COMPILED, [text], whole, Recorder())
    shutil.rmtree(run / "checkpoints" / "step-000003")
    assert_same(run, whole)


def test_what_a_compiler_said_is_told_where_the_step_cannot_be_saved(text, tmp_path, monkeypatch):
    def full(*_):
        raise Error("The disk is full.")

    failing(monkeypatch, 3)
    monkeypatch.setattr(RunFolder, "save", full)
    recorder = Recorder()
    with pytest.raises(Unavailable, match=r"compiler\.txt\. Without it"):
        train(COMPILED, [text], tmp_path / "run", recorder)
    assert "The disk is full." in recorder.notes


def test_what_a_compiler_said_is_told_where_it_cannot_be_kept(text, tmp_path, monkeypatch):
    def full(path, content):
        if path.name == "compiler.txt":
            raise OSError(28, "No space left on device")
        return real(path, content)

    from gpt2.training.run import write_atomically as real

    failing(monkeypatch, 0)
    monkeypatch.setattr("gpt2.training.run.write_atomically", full)
    with pytest.raises(
        Unavailable, match=r"failed \(C\+\+ compile error\); the rest could not be kept: .*No space left"
    ):
        train(COMPILED, [text], tmp_path / "run", Recorder())


@pytest.mark.parametrize("stop", [False, pytest.param(True, marks=POSIX)])
def test_a_compiler_that_has_no_memory_is_told_as_memory(text, tmp_path, monkeypatch, stop):
    def step(self, number, *batch):
        with suppress(KeyboardInterrupt):
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)
        raise InternalTorchDynamoError("CUDA out of memory")

    monkeypatch.setattr(Step, "__call__", step)
    with pytest.raises(BadOption, match="of memory"):
        train(COMPILED, [text], tmp_path / "run", Recorder())
    assert not (tmp_path / "run" / "compiler.txt").exists()


@POSIX
@pytest.mark.parametrize("at", [0, 3])
def test_a_compiler_that_dies_of_the_signal_is_a_stop(text, tmp_path, monkeypatch, at):
    run = tmp_path / "run"
    failing(monkeypatch, at, stop=True)
    result = train(COMPILED, [text], run, Recorder())
    assert (result.step, result.interrupted) == (at, True)
    assert names(run) == ([f"step-{at:06d}"] if at else [])
    assert not (run / "compiler.txt").exists()


@POSIX
def test_a_stop_does_not_wait_for_a_first_step_that_compiles(text, tmp_path, monkeypatch):
    def step(self, number, *batch):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        pytest.fail("the signal was not heard at once")

    monkeypatch.setattr(Step, "__call__", step)
    result = train(COMPILED, [text], tmp_path / "run", Recorder())
    assert (result.step, result.interrupted) == (0, True)
    assert names(tmp_path / "run") == []


@POSIX
def test_nor_does_it_wait_for_the_first_step_of_a_resumed_run(text, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(replace(COMPILED, steps=2), [text], run, Recorder())
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}

    def step(self, number, *batch):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        pytest.fail("the signal was not heard at once")

    monkeypatch.setattr(Step, "__call__", step)
    result = resume(run, Recorder(), changes={"steps": 4})
    assert (result.step, result.interrupted) == (2, True)
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before


@POSIX
def test_nor_where_it_comes_in_the_moment_before(text, tmp_path, monkeypatch):
    real = _Run._all_stop

    def looked(self, stop):
        found = real(self, stop)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return found

    monkeypatch.setattr(_Run, "_all_stop", looked)
    monkeypatch.setattr(Step, "__call__", lambda *_: pytest.fail("a step was begun"))
    result = train(COMPILED, [text], tmp_path / "run", Recorder())
    assert (result.step, result.interrupted) == (0, True)


@POSIX
def test_a_second_signal_while_it_compiles_is_a_stop_as_well(text, tmp_path, monkeypatch):
    def step(self, number, *batch):
        with suppress(KeyboardInterrupt):  # as in the middle of a compiler's clearing up
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        pytest.fail("the signal was not heard at once")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Step, "__call__", step)
    try:
        result = train(COMPILED, [text], tmp_path / "run", Recorder())
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.step, result.interrupted) == (0, True)


@POSIX
def test_a_first_step_that_compiles_nothing_is_finished_and_saved(text, tmp_path, monkeypatch):
    real = Step.__call__

    def step(self, number, *batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, number, *batch)

    monkeypatch.setattr(Step, "__call__", step)
    result = train(replace(COMPILED, compile=False), [text], tmp_path / "run", Recorder())
    assert (result.step, result.interrupted) == (1, True)
    assert names(tmp_path / "run") == ["step-000001"]


@POSIX
@pytest.mark.parametrize("where", ["save", "sample"])
def test_a_signal_after_the_first_compiled_step_waits_for_what_is_under_way(text, tmp_path, monkeypatch, where):
    def stopping(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return "a sample"

    real = RunFolder.save

    def save(self, *values):
        if self.checkpoints.pointed() is None:
            stopping()
        real(self, *values)

    if where == "save":
        monkeypatch.setattr(RunFolder, "save", save)
    options = replace(COMPILED, **{f"{where}_every": 1})
    result = train(options, [text], tmp_path / "run", Recorder(), stopping if where == "sample" else None)
    assert (result.step, result.interrupted) == (1, True)
    assert names(tmp_path / "run") == ["step-000001"]
    assert check_whole(tmp_path / "run") == 1


@POSIX
def test_a_signal_while_a_compilers_failure_is_written_down_does_not_cut_it_short(text, tmp_path, monkeypatch):
    real = RunFolder.write_compiler

    def write(self, *values):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return real(self, *values)

    failing(monkeypatch, 0)
    monkeypatch.setattr(RunFolder, "write_compiler", write)
    with pytest.raises(Unavailable, match=r"torch\.compile failed"):
        train(COMPILED, [text], tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "compiler.txt").is_file()


@POSIX
def test_another_error_is_none_of_the_compilers_even_when_a_stop_was_asked_for(text, tmp_path, monkeypatch):
    def step(self, number, *batch):
        if number < 1:
            return real(self, number, *batch)
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("ours")

    real = Step.__call__
    monkeypatch.setattr(Step, "__call__", step)
    with pytest.raises(ValueError, match="ours"):
        train(COMPILED, [text], tmp_path / "run", Recorder())


def test_what_is_told_of_a_compilers_error():
    assert is_of_compiler(InternalTorchDynamoError("x"))
    assert not is_of_compiler(RuntimeError("x"))
    assert first_line(RuntimeError("\n  two words\nmore")) == "two words"
    assert first_line(RuntimeError("")) == "RuntimeError"
    assert len(first_line(RuntimeError("x" * 1000))) == 201


# Two processes


@dataclass(frozen=True)
class Failing(Rank):
    """A process that is asked to stop in the step after `at` others, or fails there, or both."""

    at: int = 0
    stop: bool = False
    error: Exception | None = None

    def __call__(self) -> None:
        super().__call__()
        nothing_compiles(setattr)
        real = Step.__call__

        def step(this, number, *batch):
            if number == self.at:
                if self.stop:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.01)
                if self.error is not None:
                    raise self.error
            return real(this, number, *batch)

        Step.__call__ = step


def two(folder, at, stop, error):
    """A run on two processes, the second of which may fail; their exit codes, and what each said."""
    options = replace(COMPILED, save_every=1, keep=0, parallel="ddp", sample_every=0)
    words = arguments(options, write_text(folder), folder / "run")
    store = meeting()
    ranks = [Failing(rank, 2, store.port, at, stop, error if rank else None) for rank in range(2)]
    children = [command(folder / f"said-{one.rank}", *words, before=one) for one in ranks]
    return [child.wait() for child in children], [child.output for child in children]


@POSIX
def test_of_two_processes_none_leaves_the_other_in_the_step(tmp_path):
    """Or it would wait for half an hour."""
    codes, said = two(tmp_path, 0, stop=True, error=None)
    assert codes == [130, 130], said
    assert "Stopped at step 1 and saved; go on with: gpt2 train --resume " in said[0]
    assert names(tmp_path / "run") == ["step-000001"]


@POSIX
@pytest.mark.parametrize("at", [0, 2])
def test_of_two_processes_one_whose_compiler_dies_of_the_signal_stops_both(tmp_path, at):
    codes, said = two(tmp_path, at, stop=True, error=InternalTorchDynamoError("killed"))
    assert codes == [130, 130], said
    saved = "Step 2 is saved" if at else "No step is saved yet"
    assert f"stopped in the middle of a step. {saved}; go on with: gpt2 train --resume {tmp_path / 'run'}" in said[0]
    assert "Traceback" not in said[0] + said[1]
    assert check_whole(tmp_path / "run") == at
    assert not list((tmp_path / "run").glob("compiler*"))


@POSIX
@pytest.mark.parametrize("at", [0, 2])
def test_a_compiler_that_fails_on_the_second_process_alone_is_told_and_kept(tmp_path, at):
    codes, said = two(tmp_path, at, stop=False, error=InternalTorchDynamoError(LINES))
    assert codes == [2, 2], said
    file = tmp_path / "run" / "compiler-1.txt"
    saved = "Step 2 is saved. " if at else ""
    assert f"torch.compile failed (C++ compile error); all that it said is in {file}. {saved}Without it" in said[1]
    assert LINES.strip() in file.read_text()
    assert "Process 0 lost the others: one of them has ended, and its own message says why" in said[0]
    assert len(metrics(tmp_path / "run")) == at if at else True
    if not at:
        # What is left bars nobody.
        train(replace(SHORT, steps=1, warmup_steps=0), [tmp_path / "text.txt"], tmp_path / "run", Recorder())


@POSIX
@pytest.mark.parametrize(
    ("error", "code", "said"), [("ours", 1, "RuntimeError: ours"), ("out of memory", 2, "of memory")]
)
def test_an_error_of_its_own_is_told_even_when_a_stop_was_asked_for(tmp_path, error, code, said):
    codes, outputs = two(tmp_path, 0, stop=True, error=RuntimeError(error))
    assert codes == [130, code], outputs
    assert said in outputs[1]
