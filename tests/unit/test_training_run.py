"""The run folder when something is wrong with it: what was damaged is named, and what to do."""

import json
import shutil
import time
from dataclasses import replace

import pytest

from gpt2.errors import BadCheckpoint, BadData, BadOption, Error
from gpt2.training import resume, train
from gpt2.training.loss import Loss
from gpt2.training.run import RunFolder
from tests.helpers import Recorder
from tests.runs import SHORT, TEXT, write_text

SMALL = replace(SHORT, eval_every=2, save_every=2, steps=4)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


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
        resume(run, Recorder(), changes={"steps": 6})
    assert message in str(caught.value)
    assert str(state_of(run).parent) in str(caught.value)
    # The advice holds.
    (run / "latest").write_text("step-000002\n")
    assert resume(run, Recorder(), changes={"steps": 6}).step == 6


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"{\n", b"3\n", b'{"loss": 3}\n', b'{"step": "one"}\n'])
def test_a_damaged_line_of_metrics_is_named(run, line):
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(BadData, match=r"metrics.jsonl, line 3 is damaged.*Delete"):
        resume(run, Recorder(), changes={"steps": 6})
    file.unlink()
    assert resume(run, Recorder(), changes={"steps": 6}).step == 6


@pytest.mark.parametrize("content", [b"", b"\n", b"..", b"step-000003\n", b"\xff\xfe"])
def test_a_pointer_to_nothing_is_named_with_what_is_there(run, content):
    (run / "latest").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"run/latest says .*write step-000004 into it"):
        resume(run, Recorder(), changes={"steps": 6})


def test_a_best_checkpoint_that_was_deleted_does_not_end_a_run(run, text):
    (run / "best").write_text("step-000001\n")
    assert resume(run, Recorder(), changes={"steps": 6}).step == 6


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

    monkeypatch.setattr("gpt2.training.data.learn", learn)
    with pytest.raises(BadOption, match=r"run cannot be made: .*Choose another --out"):
        train(SHORT, [text], tmp_path / out, Recorder())


def test_trying_the_folder_leaves_nothing(text, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(BadData):
        train(SHORT, [tmp_path / "a.txt"], tmp_path / "runs" / "one", Recorder())
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "text.txt"}


@pytest.mark.parametrize("saved", [False, True])
def test_a_diverged_run_tells_what_was_saved_and_how_to_go_on(text, tmp_path, saved):
    """The advice is followed to the letter: a lower learning_rate in recipe.toml, then resume."""
    options = replace(SHORT, save_every=2 if saved else 0, eval_every=0)
    real, calls = Loss.forward, []

    def poisoned(self, ids, targets):
        calls.append(1)
        return real(self, ids, targets) * (float("nan") if len(calls) > 7 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loss, "forward", poisoned)
        with pytest.raises(Error, match="At step 4 the loss is nan") as caught:
            train(options, [text], tmp_path / "run", Recorder())
    told = "The checkpoint step-000002 is whole" if saved else "No checkpoint was written yet"
    assert told in str(caught.value)
    assert ("begin again" in str(caught.value)) != saved
    recipe = tmp_path / "run" / "recipe.toml"
    assert f"lower learning_rate in {recipe}" in str(caught.value)
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.001\n", "learning_rate = 0.0001\n"))
    recorder = Recorder()
    assert ("--allow-changes" in str(caught.value)) == saved
    if saved:
        with pytest.raises(BadOption, match=r"learning_rate = 0.0001 \(was 0.001\)"):
            resume(tmp_path / "run", Recorder())
    resume(tmp_path / "run", recorder, allow_changes=saved)
    assert recorder.first_step == (2 if saved else 0)
    rates = [
        json.loads(line).get("learning_rate") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert max(rate for rate in rates[recorder.first_step :] if rate) <= 0.0001


# A recipe that has changed


def edit(run, old, new):
    recipe = run / "recipe.toml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [("dropout = 0.1\n", "dropout = 0.2\n"), ("seed = 1\n", "seed = 2\n"), ("batch_size = 4\n", "batch_size = 8\n")],
)
def test_a_changed_recipe_is_refused_unless_told(run, old, new):
    edit(run, "\n" + old, "\n" + new)
    name, was = old.strip().split(" = ")
    with pytest.raises(BadOption, match=rf"{name} = .* \(was {was}\).*--allow-changes"):
        resume(run, Recorder(), changes={"steps": 6})
    assert resume(run, Recorder(), changes={"steps": 6}, allow_changes=True).step == 6
    # From here on this is the run's recipe.
    assert resume(run, Recorder(), changes={"steps": 8}).step == 8
    state = json.loads((run / "checkpoints" / "step-000008" / "training" / "state.json").read_text())
    assert f"{name} = {state['options'][name]}\n" == new


def test_another_dropout_acts(run):
    edit(run, "\ndropout = 0.1\n", "\ndropout = 0.25\n")
    resume(run, Recorder(), changes={"steps": 6}, allow_changes=True)
    config = json.loads((run / "checkpoints" / "step-000006" / "config.json").read_text())
    assert (config["embd_pdrop"], config["resid_pdrop"], config["attn_pdrop"]) == (0.25, 0.25, 0.1)


@pytest.mark.parametrize(
    ("old", "new"),
    [("n_embd = 16", "n_embd = 32"), ("context = 16", "context = 8"), ('optimizer = "adamw"', 'optimizer = "muon"')],
)
def test_what_the_weights_are_made_for_cannot_change(run, old, new):
    edit(run, old, new)
    with pytest.raises(BadOption, match="cannot go on with"):
        resume(run, Recorder(), changes={"steps": 6}, allow_changes=True)


def test_how_a_run_is_computed_may_change(run):
    changes = {"steps": 6, "eval_every": 1, "save_every": 1, "keep": 1, "threads": 2}
    assert resume(run, Recorder(), changes=changes).step == 6
    assert resume(run, Recorder(), changes={"steps": 7}).step == 7


def test_changed_data_is_refused_unless_told(run, text):
    text.write_text(TEXT + "one more sentence.")
    with pytest.raises(BadData, match="--allow-changes"):
        resume(run, Recorder(), changes={"steps": 6})
    assert resume(run, Recorder(), changes={"steps": 6}, allow_changes=True).step == 6
    assert resume(run, Recorder(), changes={"steps": 7}).step == 7


def test_a_run_of_an_earlier_version_goes_on(text, tmp_path):
    """Its state.json says nothing of options, tokenizer and guard, and its recipe lacks the newer fields."""
    whole, old = tmp_path / "whole", tmp_path / "old"
    options = replace(SMALL, steps=6, min_learning_rate=1.0, micro_batch_size=4)
    train(options, [text], whole, Recorder())
    train(replace(options, steps=4), [text], old, Recorder())
    for state in old.glob("checkpoints/*/training/state.json"):
        kept = ("step", "data", "best", "best_step", "seconds")
        state.write_text(
            json.dumps({key: value for key, value in json.loads(state.read_text()).items() if key in kept})
        )
    recipe = (old / "recipe.toml").read_text().splitlines(keepends=True)
    newer = ("init", "batch_tokens", "adamw_share", "skip_spikes", "parallel", "trackers", "micro_batch_size")
    (old / "recipe.toml").write_text("".join(line for line in recipe if line.split(" = ")[0] not in newer))
    assert resume(old, Recorder(), changes={"steps": 6, "trackers": "none"}).step == 6
    last = "checkpoints/step-000006/model.safetensors"
    assert (old / last).read_bytes() == (whole / last).read_bytes()
    read = [
        [line.get("tokens") for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (old, whole)
    ]
    assert [each for each in read[0] if each] == [each for each in read[1] if each]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[run]", "", "sets data"),
        ("data = [", "dates = [", "does not say what data"),
        ("[run]\ndata = [", "run = 3\n#", "does not say what data"),
        ("steps = 4", 'steps = "four"', "steps is 'four'"),
        ("n_layer = 1", "n_layers = 1", "n_layers"),
    ],
)
def test_a_damaged_recipe_is_named(run, old, new, message):
    edit(run, old, new)
    with pytest.raises(BadOption, match=message):
        resume(run, Recorder())


# A folder, or a clock, that changes under a run


class At(Recorder):
    """Does something when a step has been made."""

    def __init__(self, step, act):
        super().__init__()
        self.at, self.act = step, act

    def step(self, step, loss, tokens_per_second, facts):
        super().step(step, loss, tokens_per_second, facts)
        if step == self.at:
            self.act()


def test_deleted_checkpoints_do_not_end_a_run(text, tmp_path):
    run = tmp_path / "run"
    options = replace(SMALL, steps=6)
    assert train(options, [text], run, At(3, lambda: shutil.rmtree(run / "checkpoints"))).step == 6
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000004", "step-000006"}
    assert resume(run, Recorder()).step == 6


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_folder_that_goes_away_ends_the_run(text, tmp_path, moved):
    run = tmp_path / "run"

    def away():
        if moved:
            run.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(run)

    with pytest.raises(Error, match=r"run was deleted, moved or taken over"):
        train(SMALL, [text], run, At(3, away))
    assert not run.exists()
    if moved:
        assert resume(tmp_path / "elsewhere", Recorder()).step == 4


def test_a_run_folder_that_another_run_took_over_is_not_written_to(text, tmp_path):
    run = tmp_path / "run"

    def replaced():
        shutil.rmtree(run)
        run.mkdir()
        (run / "lock").write_text("process 1 on another machine, 12345678")

    with pytest.raises(Error, match="taken over"):
        train(SMALL, [text], run, At(3, replaced))
    assert [path.name for path in run.iterdir()] == ["lock"]


def test_a_clock_that_jumps_changes_no_measured_time(text, tmp_path, monkeypatch):
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 1e6 * next(jumps))
    train(replace(SMALL, trackers="none"), [text], tmp_path / "run", Recorder())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert seconds[-1] < 300
    assert all(line["tokens_per_second"] > 0 for line in lines if "tokens_per_second" in line)


def test_what_a_kill_left_before_a_run_began_is_no_run(text, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").touch()
    (run / ".recipe.toml.abc.tmp").write_text("steps")
    assert train(SMALL, [text], run, Recorder()).step == 4
    assert not (run / ".recipe.toml.abc.tmp").exists()


def test_an_out_that_is_a_file(text, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(BadOption, match="is there already"):
        train(SMALL, [text], tmp_path / "run", Recorder())


def test_a_recipe_holds_any_path_that_is_text_and_refuses_others(tmp_path):
    run = RunFolder.create(tmp_path / "run")
    data = ["/data/ü 🎹.txt", '/data/"quoted"\\.txt']
    run.write_recipe(replace(SMALL, init="./🎹"), data)
    _, options, found = RunFolder.open(tmp_path / "run")
    assert (options.init, found) == ("./🎹", data)
    with pytest.raises(BadOption, match="no UTF-8"):
        run.write_recipe(SMALL, ["/data/\udce9.txt"])
