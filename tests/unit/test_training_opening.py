"""What a run says before its first step, what it says when nothing is left to do, and where its best checkpoint is."""

import json
from dataclasses import replace

import pytest

from gpt2.training import resume, train
from gpt2.training.evaluate import Evaluation
from gpt2.training.words import figure, of_the_data
from tests.helpers import Recorder
from tests.runs import SHORT as LONGER
from tests.runs import write_text

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
        f"which read {100 * 192 / tokens:.3g} % of the data"
    ) in notes
    assert sum("GFLOP a token by 6 N + 12 L T C: N = " in note for note in notes) == 1
    assert any(note.endswith("L = 1 block, T = 16 tokens, C = width 16; peak not known") for note in notes)
    assert not any("learnt by heart" in note for note in notes)
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


def test_one_step_reads(text, tmp_path):
    notes = opened(replace(SHORT, steps=1, warmup_steps=0), text, tmp_path / "run")
    assert any("; 1 step of 64 tokens, which reads " in note for note in notes), notes


@pytest.mark.parametrize(
    ("epochs", "said"),
    [
        (1e-7, "0.00001 % of the data"),
        (0.0123, "1.23 % of the data"),
        (0.5, "50 % of the data"),
        (0.996, "99.6 % of the data"),
        (0.99999, "100 % of the data"),
        (1, "the data once"),
        (1.26, "the data 1.3 times"),
        (1234.5, "the data 1,234 times"),
        (1e9, "the data 1,000,000,000 times"),
    ],
)
def test_how_often(epochs, said):
    assert of_the_data(epochs) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (3.2e-9, "0.0000000032"), (0.5, "0.5"), (10, "10"), (100.0, "100"), (98765.4, "98,765")],
)
def test_a_figure_has_no_exponent(value, said):
    assert figure(value) == said


@pytest.mark.parametrize("validation", [0.3, 0.0])
def test_patience_is_advised_where_something_is_held_out(tmp_path, validation):
    (tmp_path / "text.txt").write_text("a stitch in time saves nine")
    options = replace(SHORT, vocab_size=257, dropout=0.0, steps=20, context=8, eval_every=0, validation=validation)
    (said,) = [note for note in opened(options, tmp_path / "text.txt", tmp_path / "run") if "by heart" in note]
    assert said.endswith("stops when validation gets no better" if validation else "fewer --steps, or --dropout 0.2")


def test_a_run_that_patience_has_ended_says_so_and_does_not_begin(text, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("gpt2.training.validation.evaluate", lambda *_, **__: Evaluation(3.0, 1, 1))
    recorder = Recorder()
    assert train(replace(SHORT, eval_every=2, patience=2), [text], run, recorder).step == 6
    assert any("no better validation since step 2 (patience)" in note for note in recorder.notes)
    recorder = Recorder()
    again = resume(run, recorder)
    assert (again.first_step, again.step, again.interrupted) == (6, 6, False)
    assert recorder.notes[-1] == (
        f"{run} was ended at step 6 by --patience 2; gpt2 train --resume {run} --patience N, with more, or 0 for all "
        "of its 10 steps, goes on"
    )
    assert not any("no better validation" in note or "FLOP" in note for note in recorder.notes)
    assert resume(run, Recorder(), changes={"patience": 0}).step == 10


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
