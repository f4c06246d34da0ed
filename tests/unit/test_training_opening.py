"""What a run says before its first step, what it says when nothing is left to do, and where its best checkpoint is."""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from torch._dynamo.exc import InternalTorchDynamoError

from gpt2.errors import Unavailable
from gpt2.training import resume, train
from gpt2.training.compiling import first_line, is_of_compiler
from gpt2.training.opening import reads
from gpt2.training.step import Step
from tests.helpers import Recorder
from tests.runs import POSIX, names, write_text
from tests.runs import SHORT as LONGER

SHORT = replace(LONGER, warmup_steps=1)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def opened(options, text, run):
    recorder = Recorder()
    train(options, [text], run, recorder)
    return recorder.notes


def test_the_first_line_tells_the_folder_the_model_and_how_often_the_data_is_read(text, tmp_path):
    run = tmp_path / "run"
    notes = opened(replace(SHORT, steps=3), text, run)
    tokens = int(next(note for note in notes if "to train on" in note).split()[0].replace(",", ""))
    config = json.loads((run / "checkpoints/step-000003/config.json").read_text())
    parameters = SHORT.model_config(config["vocab_size"]).parameters
    assert (
        f"{run}: {parameters:,} parameters, a vocabulary of 270; 3 steps of 64 tokens, "
        f"which read {100 * 192 / tokens:.2g} % of the data"
    ) in notes
    assert not any("FLOP" in note or "learnt by heart" in note for note in notes)
    recorder = Recorder()
    resume(run, recorder, changes={"steps": 4})
    assert any(note.startswith(f"{run}, at step 3: ") for note in recorder.notes)


@pytest.mark.parametrize(("options", "warned"), [({}, True), ({"dropout": 0.1}, False), ({"patience": 2}, False)])
def test_a_text_that_is_read_often_and_nothing_against_it_is_told_once(tmp_path, options, warned):
    (tmp_path / "text.txt").write_text("a stitch in time saves nine")
    short = replace(SHORT, vocab_size=257, dropout=0.0, steps=12, context=8, eval_every=4, validation=0.3)
    run = tmp_path / "run"
    notes = opened(replace(short, **options), tmp_path / "text.txt", run)
    assert any("which read the data 20 times" in note for note in notes), notes
    assert any("learnt by heart" in note for note in notes) == warned
    recorder = Recorder()
    resume(run, recorder, changes={"steps": 13})
    assert not any("learnt by heart" in note for note in recorder.notes)


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (0.0123, "which read 1.2 % of the data"),
        (0.5, "which read 50 % of the data"),
        (1.26, "which read the data 1.3 times"),
        (12345.6, "which read the data 12,346 times"),
    ],
)
def test_how_often(epochs, said):
    assert reads(epochs) == said


def test_a_run_at_its_end_says_so_and_what_goes_on(text, tmp_path):
    run = tmp_path / "run"
    first = train(replace(SHORT, steps=2), [text], run, Recorder())
    assert (first.first_step, first.step) == (0, 2)
    recorder = Recorder()
    again = resume(run, recorder)
    assert (again.first_step, again.step, again.interrupted) == (2, 2, False)
    assert f"{run} has made its 2 steps already; gpt2 train --resume {run} --steps N goes on" in recorder.notes


def test_the_best_checkpoint_is_in_the_result(text, tmp_path):
    run = tmp_path / "run"
    options = replace(SHORT, learning_rate=0.01, steps=8, eval_every=2, keep=0, grad_clip=0.0)
    result = train(options, [text], run, Recorder())
    assert result.best == run / "checkpoints" / (run / "best").read_text().strip()
    assert train(replace(SHORT, validation=0.0, steps=2), [text], tmp_path / "none", Recorder()).best is None


# A compiler that fails, and one that dies of the signal which asks the run to stop

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


COMPILED = replace(SHORT, compile=True, eval_every=0, save_every=0)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Nothing is compiled for these tests."""
    monkeypatch.setattr("torch.compile", lambda function, **_: function)


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
