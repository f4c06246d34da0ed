"""The run folder when something is wrong with it: what was damaged is named, and what to do."""

import json
from dataclasses import replace

import pytest

from gpt2.errors import BadCheckpoint, BadData, BadOption, Error
from gpt2.model import GPT2
from gpt2.training import resume, train
from tests.helpers import Recorder
from tests.unit.test_training_loop import OPTIONS, TEXT

SMALL = replace(OPTIONS, eval_every=2, save_every=2, steps=4)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def run(text, tmp_path):
    train(SMALL, [text], tmp_path / "run", Recorder())
    return tmp_path / "run"


def state_of(run):
    return run / "checkpoints" / "step-000004" / "training" / "state.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "lacks step"),
        ("[]", "list"),
        ('{"step": "four"}', "step = 'four'"),
        ('{"step": 4, "data": "x", "seconds": 1.0, "best": null}', "lacks best_step"),
    ],
)
def test_a_state_without_its_keys_is_named_and_the_older_checkpoint_too(run, content, message):
    state_of(run).write_text(content)
    with pytest.raises(BadCheckpoint, match=r"write step-000002 into .*latest") as caught:
        resume(run, Recorder(), steps=6)
    assert message in str(caught.value)
    assert str(state_of(run).parent) in str(caught.value)
    # The advice holds.
    (run / "latest").write_text("step-000002\n")
    assert resume(run, Recorder(), steps=6).step == 6


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"{\n", b"3\n", b'{"loss": 3}\n', b'{"step": "one"}\n'])
def test_a_damaged_line_of_metrics_is_named(run, line):
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(BadData, match=r"metrics.jsonl, line 3 is damaged.*Delete"):
        resume(run, Recorder(), steps=6)
    file.unlink()
    assert resume(run, Recorder(), steps=6).step == 6


@pytest.mark.parametrize("content", [b"", b"\n", b"..", b"step-000003\n", b"\xff\xfe"])
def test_a_pointer_to_nothing_is_named_with_what_is_there(run, content):
    (run / "latest").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"run/latest says .*write step-000004 into it"):
        resume(run, Recorder(), steps=6)


def test_a_best_checkpoint_that_was_deleted_does_not_end_a_run(run, text):
    (run / "best").write_text("step-000001\n")
    assert resume(run, Recorder(), steps=6).step == 6


def test_resuming_a_finished_run_tells_its_last_losses(text, tmp_path):
    whole = train(SMALL, [text], tmp_path / "run", Recorder())
    again = resume(tmp_path / "run", Recorder())
    assert (again.step, again.train_loss, again.interrupted) == (4, whole.train_loss, False)
    assert again.validation is not None
    assert whole.validation is not None
    assert again.validation.nats_per_token == pytest.approx(whole.validation.nats_per_token)
    assert again.validation.bits_per_byte == pytest.approx(whole.validation.bits_per_byte)
    assert again.validation.text_bytes == whole.validation.text_bytes


@pytest.mark.parametrize("out", ["file.txt/run", "file.txt/deeper/run"])
def test_a_folder_that_cannot_be_made_costs_no_work(text, tmp_path, monkeypatch, out):
    (tmp_path / "file.txt").write_text("a file")

    def learn(*_):
        raise AssertionError("the vocabulary was learnt first")

    monkeypatch.setattr("gpt2.training.loop.learn", learn)
    with pytest.raises(BadOption, match=r"run cannot be made: .*Choose another --out"):
        train(OPTIONS, [text], tmp_path / out, Recorder())


def test_trying_the_folder_leaves_nothing(text, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(BadData):
        train(OPTIONS, [tmp_path / "a.txt"], tmp_path / "runs" / "one", Recorder())
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "text.txt"}


@pytest.mark.parametrize("saved", [False, True])
def test_a_diverged_run_tells_what_was_saved_and_how_to_go_on(text, tmp_path, saved):
    """The advice is followed to the letter: a lower learning_rate in recipe.toml, then resume."""
    options = replace(OPTIONS, save_every=2 if saved else 0, eval_every=0)
    real, calls = GPT2.loss, []

    def poisoned(self, ids, targets):
        calls.append(1)
        return real(self, ids, targets) * (float("nan") if len(calls) > 7 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT2, "loss", poisoned)
        with pytest.raises(Error, match="At step 4 the loss is nan") as caught:
            train(options, [text], tmp_path / "run", Recorder())
    told = "The checkpoint step-000002 is whole" if saved else "No checkpoint was written yet"
    assert told in str(caught.value)
    assert ("begin again" in str(caught.value)) != saved
    recipe = tmp_path / "run" / "recipe.toml"
    assert f"lower learning_rate in {recipe}" in str(caught.value)
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.001\n", "learning_rate = 0.0001\n"))
    recorder = Recorder()
    resume(tmp_path / "run", recorder)
    assert recorder.first_step == (2 if saved else 0)
    rates = [
        json.loads(line).get("learning_rate") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert max(rate for rate in rates[recorder.first_step :] if rate) <= 0.0001
