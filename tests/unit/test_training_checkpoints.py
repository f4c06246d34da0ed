"""Checkpoints on disk: in which order they are written and deleted, which are kept, what a damaged one says."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.errors import BadCheckpoint
from gpt2.training import resume, train
from gpt2.training.checkpoints import Checkpoints
from tests.helpers import Recorder
from tests.runs import OPTIONS, check_whole, litter, metrics, names, write_text

PLAIN = replace(OPTIONS, skip_spikes=0.0, eval_every=0, steps=6)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture
def run(tmp_path, text):
    train(PLAIN, [text], tmp_path / "run", Recorder())
    return tmp_path / "run"


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX alone")
def test_everything_is_synced_before_it_gets_its_name(tmp_path, text, monkeypatch):
    """A power cut after the renaming must not find files without their bytes, or a pointer without its checkpoint."""
    events = []
    sync, rename, replace_file = os.fsync, Path.rename, Path.replace

    def name_of(handle):
        return os.readlink(f"/proc/self/fd/{handle}") if os.path.exists("/proc/self/fd") else ""  # noqa: PTH110, PTH115

    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(("sync", name_of(handle))), sync(handle))[1])
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append(("name", str(a), str(b))), rename(a, b))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append(("name", str(a), str(b))), replace_file(a, b))[1])
    train(replace(PLAIN, steps=2, warmup_steps=0), [text], tmp_path / "run", Recorder())
    if not any(event[1] for event in events if event[0] == "sync"):
        pytest.skip("this system does not tell which file is synced")

    final = str(tmp_path / "run" / "checkpoints" / "step-000002")
    place = next(n for n, event in enumerate(events) if event[0] == "name" and event[2] == final)
    hidden = events[place][1]
    before = {event[1] for event in events[:place] if event[0] == "sync"}
    whole = {str(path.relative_to(final)) for path in Path(final).rglob("*")} | {"."}
    assert whole <= {str(Path(name).relative_to(hidden)) for name in before if name.startswith(hidden)}
    assert str(tmp_path / "run" / "metrics.jsonl") in before
    pointer = next(n for n, event in enumerate(events) if event[0] == "name" and event[2].endswith("latest"))
    assert str(tmp_path / "run" / "checkpoints") in [event[1] for event in events[place:pointer]]


def test_a_checkpoint_loses_its_name_before_it_is_deleted(run, monkeypatch):
    deleted = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: deleted.append(Path(path).name))
    checkpoints = Checkpoints(run)
    assert names(run) == ["step-000004", "step-000006"]
    checkpoints.prune(1, 6)
    assert names(run) == ["step-000006"]
    assert all(name.startswith(".") for name in deleted)


def test_checkpoints_of_a_life_that_was_given_up_do_not_count(tmp_path, text):
    """Somebody goes back to an older checkpoint: the newer ones neither crowd out those that are made now, nor stay."""
    run = tmp_path / "run"
    train(replace(PLAIN, save_every=1, keep=0), [text], run, Recorder())
    (run / "latest").write_text("step-000002\n")
    recipe = run / "recipe.toml"
    recipe.write_text(
        recipe.read_text().replace("save_every = 1\n", "save_every = 2\n").replace("keep = 0", "keep = 2")
    )

    seen = []

    class Watcher(Recorder):
        def step(self, step, loss, tokens_per_second, facts):
            super().step(step, loss, tokens_per_second, facts)
            seen.append(names(run))

    resume(run, Watcher())
    assert seen[0] == [f"step-{step:06d}" for step in (1, 2, 3, 4, 5, 6)]
    assert seen[2] == [f"step-{step:06d}" for step in (3, 4, 5, 6)]
    assert names(run) == ["step-000005", "step-000006"]
    assert [line["step"] for line in metrics(run) if "train_loss" in line] == [1, 2, 3, 4, 5, 6]


def test_going_back_gives_back_the_best_of_that_time(tmp_path, text):
    run = tmp_path / "run"
    options = replace(OPTIONS, skip_spikes=0.0, eval_every=2, keep=0, steps=6, learning_rate=0.001)
    train(options, [text], run, Recorder())
    assert (run / "best").read_text() == "step-000006\n"
    (run / "latest").write_text("step-000002\n")

    class Stop(Recorder):
        def start(self, step, steps):
            assert (run / "best").read_text() == "step-000002\n"
            super().start(step, steps)

    resume(run, Stop())
    assert (run / "best").read_text() == "step-000006\n"


def test_a_best_checkpoint_that_was_deleted_is_not_pointed_at(tmp_path, text):
    run = tmp_path / "run"
    options = replace(OPTIONS, skip_spikes=0.0, eval_every=2, keep=0, steps=4, learning_rate=0.001)
    train(options, [text], run, Recorder())
    shutil.rmtree(run / "checkpoints" / "step-000002")
    state = run / "checkpoints" / "step-000004" / "training" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_step": 2, "best": 0.0}))
    resume(run, Recorder(), changes={"steps": 6})
    assert not (run / "best").exists()
    assert check_whole(run) == 2


def test_without_a_pointer_the_newest_checkpoint_is_the_latest(run):
    """A kill came between the first checkpoint's name and its pointer, or somebody deleted the file."""
    (run / "latest").unlink()
    recorder = Recorder()
    assert resume(run, recorder, changes={"steps": 8}).step == 8
    assert recorder.first_step == 6


def test_what_is_no_checkpoint_is_left_alone(run):
    for name in ("step-000002.bak", "step-one", "notes"):
        (run / "checkpoints" / name).mkdir()
    resume(run, Recorder(), changes={"steps": 12})
    assert {"step-000002.bak", "step-one", "notes"} <= {path.name for path in (run / "checkpoints").iterdir()}


@pytest.mark.parametrize(
    "file",
    ["config.json", "model.safetensors", "tokenizer.json", "training/optimizer.safetensors", "training/state.json"],
)
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "garbage"])
def test_whatever_is_damaged_is_named_with_what_to_do(run, file, how):
    path = run / "checkpoints" / "step-000006" / file
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\xff" * 100}[how])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    if file == "tokenizer.json" and how == "gone":
        # vocab.json and merges.txt say the same.
        assert resume(run, Recorder()).step == 6
        return
    with pytest.raises(BadCheckpoint, match=r"step-000006.*write step-000004 into .*latest") as caught:
        resume(run, Recorder(), changes={"steps": 8})
    assert str(caught.value).count(". ") <= 2
    # Nothing was touched, and the advice holds.
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"} == before
    (run / "latest").write_text("step-000004\n")
    assert resume(run, Recorder(), changes={"steps": 8}).step == 8


def test_another_tokenizer_in_a_checkpoint_is_refused(run, tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("zebras vex jumping wolves " * 200)
    train(replace(PLAIN, steps=2, warmup_steps=0), [other], tmp_path / "other", Recorder())
    for file in (tmp_path / "other" / "checkpoints" / "step-000002").glob("*"):
        if file.name in ("tokenizer.json", "vocab.json", "merges.txt"):
            shutil.copy(file, run / "checkpoints" / "step-000006")
    with pytest.raises(BadCheckpoint, match=r"tokenizer in .* is not the one"):
        resume(run, Recorder(), changes={"steps": 8})


def test_a_state_of_another_step_is_damaged(run):
    state = run / "checkpoints" / "step-000006" / "training" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 5}))
    with pytest.raises(BadCheckpoint, match="is of step 5"):
        resume(run, Recorder(), changes={"steps": 8})


def test_what_a_kill_left_half_written_is_cleared_away(run):
    left = (
        "checkpoints/.step-000008.abc.tmp",
        "checkpoints/.step-000008.training.tmp",
        "checkpoints/.step-000004.old.tmp",
    )
    for name in left:
        (run / name).mkdir()
        (run / name / "model.safetensors").write_bytes(b"half")
    for name in (".latest.xyz.tmp", ".metrics.jsonl.xyz.tmp", "samples/.step-000006.txt.xyz.tmp"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"half")
    resume(run, Recorder(), changes={"steps": 7})
    assert not litter(run)


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, text, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt2.training.work.write_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(PLAIN, [text], tmp_path / "run", Recorder())
    assert not litter(tmp_path / "run")
    assert names(tmp_path / "run") == []


def test_a_kill_while_a_state_is_replaced_leaves_nothing_for_good(run):
    stale = run / "checkpoints" / "step-000006" / "training" / ".state.json.abc.tmp"
    stale.write_text("{")
    resume(run, Recorder(), changes={"steps": 7})
    assert not stale.exists()
