"""What goes wrong between two steps, and what a run has saved by then: evaluations, losses, shards that go away."""

import json
import tomllib
from dataclasses import replace

import pytest

from gpt2.errors import BadData, BadOption, Error
from gpt2.shards import ShardWriter
from gpt2.tokenizer import write_tokenizer
from gpt2.training import resume, train
from gpt2.training.evaluate import Evaluation
from tests.helpers import Recorder, byte_tokenizer
from tests.runs import SHORT, TEXT, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


class Cut(Exception):
    """As a kill: nothing of ours catches it."""


def scored(losses):
    """In the place of `evaluate`: these losses, one after the other; an error is raised."""
    losses = iter(losses)

    def evaluate(*_, **__):
        loss = next(losses)
        if isinstance(loss, Exception):
            raise loss
        return Evaluation(loss, 1, 1)

    return evaluate


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("train_loss"), line.get("validation_loss")) for line in lines]


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_that_is_due_does_not_wait_for_an_evaluation(text, tmp_path, monkeypatch):
    """A run that was cut off in the evaluation makes it up when it goes on, and is the one that never stopped."""
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([3.0, 2.0, 1.0]))
    train(SHORT, [text], tmp_path / "whole", Recorder())
    run = tmp_path / "run"
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([3.0, Cut()]))
    with pytest.raises(Cut):
        train(SHORT, [text], run, Recorder())
    assert (run / "latest").read_text() == "step-000008\n"
    assert (run / "best").read_text() == "step-000004\n"
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([2.0, Cut()]))
    recorder = Recorder()
    with pytest.raises(Cut):
        resume(run, recorder)
    assert list(recorder.evaluations) == [8]
    assert (run / "best").read_text() == "step-000008\n"
    assert (run / "latest").read_text() == "step-000010\n"
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([1.0]))
    result = resume(run, Recorder())
    assert result.validation is not None
    assert result.validation.nats_per_token == 1.0
    assert (run / "best").read_text() == (tmp_path / "whole" / "best").read_text() == "step-000010\n"
    assert losses(run) == losses(tmp_path / "whole")
    assert checkpoints(run) == checkpoints(tmp_path / "whole")
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([]))
    assert resume(run, Recorder()).step == 10, "a finished run is not scored again"


@pytest.mark.parametrize("save_every", [1, 4, 0])
def test_a_validation_that_is_not_finite_ends_a_run_like_a_loss(text, tmp_path, monkeypatch, save_every):
    options = replace(SHORT, eval_every=2, save_every=save_every, keep=0)
    run = tmp_path / "run"
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([3.0, float("inf")]))
    with pytest.raises(Error, match="At step 4 the validation loss is inf") as caught:
        train(options, [text], run, Recorder())
    message = str(caught.value)
    if save_every == 0:
        assert "The checkpoint step-000002 is whole; lower learning_rate" in message  # the better one of step 2
    else:
        older = "step-000003" if save_every == 1 else "step-000002"
        assert f"step-000004 has the same weights: write {older} into {run / 'latest'}, lower learning_rate" in message
        (run / "latest").write_text(older)
    monkeypatch.undo()
    assert resume(run, Recorder()).step == 10


def test_a_checkpoint_of_weights_that_diverge_at_once_is_not_recommended(text, tmp_path):
    """As a learning rate that is far too high makes them: each resumed run would end at its first step."""
    options = replace(SHORT, eval_every=0, save_every=1, keep=0, learning_rate=1e30, warmup_steps=0, grad_clip=0.0)
    with pytest.raises(Error, match=r"is (nan|inf)") as caught:
        train(options, [text], tmp_path / "run", Recorder())
    last = checkpoints(tmp_path / "run")[-1]
    assert f"{last} has the same weights" in str(caught.value)
    assert f"{last} is whole" not in str(caught.value)
    with pytest.raises(Error, match=r"At step .* is (nan|inf)"):
        resume(tmp_path / "run", Recorder())


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "corpus"
    tokenizer = byte_tokenizer()
    for prefix, count in (("train", 60), ("validation", 6)):
        with ShardWriter(folder, prefix, tokenizer, 200, block_tokens=64) as writer:
            for number in range(count):
                writer.add(tokenizer.encode(f"line {number} of a small corpus"))
    write_tokenizer(tokenizer, folder)
    return folder


class Deleting(Recorder):
    """Deletes files when a step has been made."""

    def __init__(self, at, files):
        super().__init__()
        self.at, self.files = at, files

    def step(self, step, loss, tokens_per_second, facts):
        super().step(step, loss, tokens_per_second, facts)
        if step == self.at:
            for file in self.files:
                file.unlink()


@pytest.mark.parametrize("which", ["train", "validation"])
def test_a_shard_that_goes_away_costs_no_step(shards, tmp_path, which):
    files = sorted(shards.glob(f"{which}-*.safetensors"))
    kept = {file: file.read_bytes() for file in files}
    options = replace(SHORT, vocab_size=0, save_every=0, eval_every=9, steps=40)
    with pytest.raises(BadData, match=which) as caught:
        train(options, [shards], tmp_path / "run", Deleting(7, files))
    saved = int((tmp_path / "run" / "latest").read_text()[5:])
    then = f"Step {saved} is saved; restore the file and go on with `gpt2 train --resume {tmp_path / 'run'}`."
    assert str(caught.value).endswith(f". {then}")
    assert saved == 9 if which == "validation" else 7 <= saved < 40
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == saved
    for file, content in kept.items():
        file.write_bytes(content)
    recorder = Recorder()
    assert resume(tmp_path / "run", recorder).step == 40
    assert recorder.first_step == saved


def test_a_shard_that_goes_away_before_a_step_is_saved_says_so(shards, tmp_path, monkeypatch):
    def lost(*_):
        raise BadData("train-00000.safetensors is gone.")

    options = replace(SHORT, vocab_size=0, save_every=0, eval_every=0, steps=4)
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.training.batches.Windows.rows", lost)
        with pytest.raises(BadData, match=r"No step is saved yet; restore the file and begin again with `gpt2 train "):
            train(options, [shards], tmp_path / "run", Recorder())
    assert resume(tmp_path / "run", Recorder()).step == 4


def test_too_few_tokens_to_score_are_refused_before_there_is_a_folder(text, tmp_path):
    with pytest.raises(BadOption, match="eval_tokens is 1"):
        train(replace(SHORT, eval_tokens=1), [text], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()
    train(SHORT, [text], tmp_path / "run", Recorder())
    with pytest.raises(BadOption, match="eval_tokens is 1"):
        resume(tmp_path / "run", Recorder(), changes={"eval_tokens": 1, "steps": 12})
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["steps"] == 10


@pytest.mark.parametrize("what", ["eval_tokens", "data", "nothing"])
def test_losses_of_other_tokens_are_not_compared(text, tmp_path, monkeypatch, what):
    run = tmp_path / "run"
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([3.0, 2.0, 1.0]))
    train(SHORT, [text], run, Recorder())
    monkeypatch.setattr("gpt2.training.validation.evaluate", scored([5.0] * 5))
    if what == "data":
        text.write_text(TEXT.replace("fox", "cat"))
    changes = {"steps": 12} | ({"eval_tokens": 50} if what == "eval_tokens" else {})
    resume(run, Recorder(), changes=changes, allow_changes=what == "data")
    assert (run / "best").read_text() == ("step-000010\n" if what == "nothing" else "step-000012\n")
