"""The loop and the run folder: what is on disk, what a resumed run does, what bad options say."""

import json
import shutil
import signal
import sys
import tomllib
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from gpt2.checkpoint import load
from gpt2.errors import BadCheckpoint, BadData, BadOption, Busy, Error
from gpt2.model import GPT2
from gpt2.training import TrainingOptions, read_recipe, recipe_names, resume, train
from gpt2.training.evaluate import Evaluation
from gpt2.training.loss import Loss
from tests.helpers import Recorder
from tests.runs import SHORT, TEXT, write_text


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def test_a_run_leaves_what_the_design_says(text, tmp_path):
    recorder = Recorder()
    result = train(SHORT, [text], tmp_path / "run", recorder, lambda model: "a sample")
    run = tmp_path / "run"

    assert (run / "latest").read_text() == "step-000010\n"
    best = min(recorder.evaluations, key=lambda step: recorder.evaluations[step].nats_per_token)
    assert (run / "best").read_text() == f"step-{best:06d}\n"
    assert (run / "checkpoints" / f"step-{best:06d}" / "config.json").is_file()
    assert tomllib.loads((run / "recipe.toml").read_text())["n_embd"] == 16
    assert (run / "samples" / "step-000010.txt").read_text() == "a sample"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train_loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 10]
    assert recorder.samples == {5: "a sample", 10: "a sample"}
    assert result.validation is not None
    assert result.validation.text_bytes == len(TEXT) - int(len(TEXT) * 0.9)
    assert recorder.losses[10] < recorder.losses[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_checkpoint_is_a_model_that_loads(text, tmp_path, optimizer):
    train(replace(SHORT, optimizer=optimizer), [text], tmp_path / "run", Recorder())
    model = load(tmp_path / "run")
    assert model.config.n_embd == 16
    assert model.tokenizer.vocab_size == 270
    assert model.network(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 270)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(text, tmp_path, optimizer, stop):
    options = replace(SHORT, optimizer=optimizer, keep=0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(options, [text], whole, Recorder())
    train(options, [text], stopped, Recorder())
    # As a kill after the save of step `stop` would have left it.
    (stopped / "latest").write_text(f"step-{stop:06d}\n")
    recorder = Recorder()
    resume(stopped, recorder)

    assert recorder.first_step == stop
    assert sorted(recorder.losses) == list(range(stop + 1, 11))
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        ours = load_file(stopped / "checkpoints" / "step-000010" / file)
        expected = load_file(whole / "checkpoints" / "step-000010" / file)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    losses = [json.loads(line).get("train_loss") for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert losses == [json.loads(line).get("train_loss") for line in (whole / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_can_be_made_longer(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    result = resume(tmp_path / "run", Recorder(), changes={"steps": 12})
    assert result.step == 12
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["steps"] == 12


def test_only_the_newest_and_the_best_checkpoints_are_kept(text, tmp_path):
    train(replace(SHORT, save_every=1, keep=2), [text], tmp_path / "run", Recorder())
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"step-000009", "step-000010", (tmp_path / "run" / "best").read_text().strip()}


def test_a_folder_that_is_there_is_not_overwritten(text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.doc").write_text("years of work")
    with pytest.raises(BadOption, match="is there already"):
        train(SHORT, [text], tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "thesis.doc").read_text() == "years of work"


def test_two_processes_do_not_write_one_run(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    with FileLock(tmp_path / "run" / "lock"), pytest.raises(Busy, match="Another process"):
        resume(tmp_path / "run", Recorder())


def test_changed_data_is_refused(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    text.write_text(TEXT + "one more sentence.")
    with pytest.raises(BadData, match="has changed"):
        resume(tmp_path / "run", Recorder(), changes={"steps": 20})


def test_resuming_what_is_no_run(tmp_path):
    with pytest.raises(BadOption, match="is no run folder"):
        resume(tmp_path, Recorder())


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    before = (tmp_path / "run" / "checkpoints/step-000010/model.safetensors").read_bytes()
    (tmp_path / "run" / "latest").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    recorder = Recorder()
    assert resume(tmp_path / "run", recorder).step == 10
    assert recorder.first_step == 0
    assert any("no checkpoint yet: beginning at step 0" in note for note in recorder.notes)
    assert (tmp_path / "run" / "checkpoints/step-000010/model.safetensors").read_bytes() == before


def test_bad_data_leaves_no_folder_behind(tmp_path):
    (tmp_path / "a.txt").write_text("too little text for so many tokens")
    with pytest.raises(BadData, match="give more text"):
        train(replace(SHORT, vocab_size=5000), [tmp_path / "a.txt"], tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_is_the_one_that_was_measured(text, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 5.0, 5.0, 6.0])
    monkeypatch.setattr("gpt2.training.validation.evaluate", lambda *_, **__: Evaluation(next(losses), 1, 1))
    train(replace(SHORT, eval_every=2, save_every=5), [text], tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "best").read_text() == "step-000004\n"
    assert load(tmp_path / "run" / "checkpoints" / "step-000004")


def test_a_stop_while_a_sample_is_written_saves_first(text, tmp_path):
    def stopping(_):
        signal.raise_signal(signal.SIGINT)
        return "a sample"

    result = train(replace(SHORT, save_every=8), [text], tmp_path / "run", Recorder(), stopping)
    assert (result.step, result.interrupted) == (5, True)
    assert (tmp_path / "run" / "latest").read_text() == "step-000005\n"


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(text, tmp_path):
    class Poison(Recorder):
        def step(self, step, loss, tokens_per_second, facts):
            super().step(step, loss, tokens_per_second, facts)
            if step == 7:
                next(iter(self.network.parameters())).register_hook(lambda gradient: gradient * float("inf"))

    poison = Poison()
    real = GPT2.initialise

    def initialise(self, seed):
        poison.network = self
        return real(self, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT2, "initialise", initialise)
        with pytest.raises(Error, match="norm"):
            train(replace(SHORT, eval_every=0), [text], tmp_path / "run", poison)
    assert (tmp_path / "run" / "latest").read_text() == "step-000004\n"
    resume(tmp_path / "run", Recorder())


def test_a_run_cannot_be_made_shorter_than_it_is(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    with pytest.raises(BadOption, match="at step 10 already"):
        resume(tmp_path / "run", Recorder(), changes={"steps": 5})
    with pytest.raises(BadOption, match="at step 10 already, past 1 steps; choose more --steps"):
        resume(tmp_path / "run", Recorder(), changes={"steps": 1})  # nor does the warm-up of 2 fit into it
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["steps"] == 10


def test_a_run_that_is_to_end_in_its_warmup_is_advised_what_a_resumed_run_takes(text, tmp_path):
    options = replace(SHORT, warmup_steps=8, eval_every=0, save_every=2)

    class Stopping(Recorder):
        def step(self, step, *rest):
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, [text], tmp_path / "run", Stopping())
    with pytest.raises(
        BadOption, match="does not fit into a run of 6 steps; choose more --steps, or --warmup-steps 0 "
    ):
        resume(tmp_path / "run", Recorder(), changes={"steps": 6})
    assert resume(tmp_path / "run", Recorder(), changes={"steps": 9}).step == 9


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("recipe.toml", "steps = = 3", BadOption),
        ("recipe.toml", "steps = 3", BadOption),
        ("checkpoints/step-000010/training/state.json", "{", BadCheckpoint),
        ("checkpoints/step-000010/training/optimizer.safetensors", "short", BadCheckpoint),
    ],
)
def test_a_damaged_run_is_named(text, tmp_path, file, content, error):
    train(SHORT, [text], tmp_path / "run", Recorder())
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(error, match="run/"):
        resume(tmp_path / "run", Recorder())


def test_a_kill_during_a_save_leaves_nothing_for_good(text, tmp_path):
    train(SHORT, [text], tmp_path / "run", Recorder())
    stale = tmp_path / "run" / "checkpoints" / ".step-000004.abc.tmp"
    stale.mkdir()
    resume(tmp_path / "run", Recorder(), changes={"steps": 11})
    assert not stale.exists()


def test_a_machine_without_matplotlib_trains(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recorder = Recorder()
    assert train(SHORT, [text], tmp_path / "run", recorder).step == 10
    assert any("matplotlib is not installed" in note for note in recorder.notes)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(text, tmp_path, monkeypatch):
    real = Loss.forward
    calls = []

    def poisoned(self, ids, targets):
        calls.append(1)
        return real(self, ids, targets) * (float("nan") if len(calls) > 14 else 1)

    monkeypatch.setattr(Loss, "forward", poisoned)
    with pytest.raises(Error, match="is nan"):
        train(replace(SHORT, eval_every=0), [text], tmp_path / "run", Recorder())
    assert (tmp_path / "run" / "latest").read_text() == "step-000004\n"


def test_text_shorter_than_the_window_trains(tmp_path):
    (tmp_path / "a.txt").write_text("a short text")
    options = replace(SHORT, vocab_size=257, context=64, validation=0.2, steps=2, warmup_steps=1)
    result = train(options, [tmp_path / "a.txt"], tmp_path / "run", Recorder())
    assert result.validation is not None
    assert load(tmp_path / "run").config.n_positions == 64


def test_bfloat16_trains_in_float32_weights(text, tmp_path):
    train(replace(SHORT, dtype="bfloat16"), [text], tmp_path / "run", Recorder())
    assert (
        load_file(tmp_path / "run/checkpoints/step-000010/model.safetensors")["transformer.wte.weight"].dtype
        == torch.float32
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 0),
        ("steps", -1),
        ("steps", 1.5),
        ("batch_size", True),
        ("dropout", 1),
        ("dropout", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("optimizer", "sgd"),
        ("dtype", "float16"),
        ("schedule", "linear"),
        ("micro_batch_size", 3),
        ("validation", 1),
        ("min_learning_rate", 2),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(BadOption, match=field):
        replace(SHORT, **{field: value})


def test_the_learning_rate_warms_up_and_comes_down():
    for schedule in ("cosine", "wsd"):
        options = TrainingOptions(steps=100, warmup_steps=10, schedule=schedule, learning_rate=1.0, decay_share=0.5)
        rates = [options.learning_rate_at(step) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == pytest.approx(1.0)
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0.1 <= rates[-1] < 0.12
    assert options.learning_rate_at(49) == 1.0


def test_recipes_are_valid_and_read_back(tmp_path):
    for name in recipe_names():
        options = TrainingOptions.from_mapping(read_recipe(name), name)
        (tmp_path / "recipe.toml").write_text(options.to_toml() + '[run]\ndata = ["text.txt"]\n')
        assert TrainingOptions.from_mapping(read_recipe(str(tmp_path / "recipe.toml")), "file") == options


def test_bad_recipes_are_named(tmp_path):
    with pytest.raises(BadOption, match="no recipe called 'nope'"):
        read_recipe("nope")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(BadOption, match="not valid TOML"):
        read_recipe(str(tmp_path / "bad.toml"))
    with pytest.raises(BadOption, match="wings"):
        TrainingOptions.from_mapping({"wings": 2}, "bad.toml")
