"""Metrics in the programs that people look at: read back from them, after a resume too; and a run without them."""

import os
import sys
from importlib.util import find_spec

import pytest

from gpt2.errors import BadOption, Unavailable
from gpt2.training import trackers
from gpt2.training.trackers import Trackers, check_installed, check_names

RECIPE = {"n_layer": 2, "learning_rate": 0.001, "trackers": "auto"}


def points(folder):
    """What TensorBoard shows of a run: (step, value) by tag, and the texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    read.Reload()
    scalars = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in read.Tensors(tag)]
        for tag in read.Tags()["tensors"]
    }
    return scalars, texts


def run(folder, log, first, last, resumed_at=None, note=pytest.fail):
    with Trackers(folder, log, RECIPE, resumed_at, note) as tracked:
        for step in range(first, last + 1):
            tracked.log(step, {"step": step, "train_loss": 1 / step, "tokens_per_second": 3.0})
            if step % 4 == 0:
                tracked.log(step, {"step": step, "validation_loss": 2 / step})
                tracked.text(step, "Once <b>\nupon *a* time")


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard")


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_shows_what_was_logged(tmp_path):
    run(tmp_path, "auto", 1, 9)
    scalars, texts = points(tmp_path)
    assert scalars["train_loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 10)]
    assert scalars["validation_loss"] == [(4, 0.5), (8, 0.25)]
    assert set(scalars) == {"train_loss", "tokens_per_second", "validation_loss"}
    assert [step for step, _ in texts["sample/text_summary"]] == [4, 8]
    assert "Once <b>" in texts["sample/text_summary"][0][1]
    assert '"learning_rate": 0.001' in texts["recipe/text_summary"][0][1]


@pytest.mark.usefixtures("tensorboard")
def test_a_resumed_run_goes_on_without_points_of_its_earlier_life(tmp_path):
    run(tmp_path, "tensorboard", 1, 9)
    run(tmp_path, "tensorboard", 7, 12, resumed_at=6)
    scalars, _ = points(tmp_path)
    assert [step for step, _ in scalars["train_loss"]] == list(range(1, 13))
    assert [step for step, _ in scalars["validation_loss"]] == [4, 8, 12]
    # A run that begins again in its folder leaves nothing of the first try.
    run(tmp_path, "tensorboard", 1, 3, resumed_at=0)
    assert [step for step, _ in points(tmp_path)[0]["train_loss"]] == [1, 2, 3]


@pytest.mark.usefixtures("tensorboard")
def test_a_tracker_that_fails_says_so_once_and_the_rest_goes_on(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.TensorBoard, "log", fails)
    notes = []
    run(tmp_path, "tensorboard", 1, 9, note=notes.append)
    assert len(notes) == 1
    assert "tensorboard failed (OSError" in notes[0]
    assert "No space left" in notes[0]
    assert "goes on without it" in notes[0]


def test_a_tracker_that_cannot_begin_says_so_and_the_run_goes_on(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no  key\nconfigured")

    monkeypatch.setattr(trackers, "find_spec", lambda _: object())
    monkeypatch.setattr(trackers, "WeightsAndBiases", fails)
    notes = []
    run(tmp_path, "wandb", 1, 3, note=notes.append)
    assert notes == ["wandb failed (RuntimeError: no key configured); the run goes on without it."]


def test_what_is_asked_for_and_not_installed_is_refused_by_its_extra(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    for name in trackers.NAMES:
        with pytest.raises(Unavailable, match=f"{name}: install the extra `log`"):
            check_installed(name)
    # Nobody asked for it.
    assert check_installed("auto") == ()
    assert check_installed("none") == ()


def test_names_are_checked_before_anything_is_imported():
    assert check_names("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    for wrong in ("tensorbord", "auto,wandb", "none,wandb", "", "wandb,"):
        with pytest.raises(BadOption, match="auto, none, or some of tensorboard, wandb, trackio"):
            check_names(wrong)


def test_none_writes_nothing(tmp_path):
    run(tmp_path, "none", 1, 5)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_take_points_back_get_each_step_once(tmp_path):
    place = trackers._Place(tmp_path, "wandb", None)
    assert [place.is_new(step) for step in (1, 2, 2, 3)] == [True] * 4
    again = trackers._Place(tmp_path, "wandb", 1)
    assert again.name == place.name
    assert [again.is_new(step) for step in (2, 3, 4, 4)] == [False, False, True, True]
    # Killed before anything new was logged: still known.
    assert trackers._Place(tmp_path, "wandb", 4).is_new(4) is False
    # A new run in the same folder is another run.
    assert trackers._Place(tmp_path, "wandb", None).name != place.name


def test_a_kill_while_a_place_is_taken_up_keeps_its_name(tmp_path, monkeypatch):
    place = trackers._Place(tmp_path, "wandb", None)
    assert place.is_new(3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        patch.setattr(trackers._Place, "_line", killed)
        with pytest.raises(KeyboardInterrupt):
            trackers._Place(tmp_path, "wandb", 2)
    assert trackers._Place(tmp_path, "wandb", 2).name == place.name


def wandb_records(data):
    """The records of wandb's offline file: LevelDB's log format, behind a header of seven bytes."""
    place, block, parts = 7, 32768, []
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        # Whole (1), or the last part (4) of one that crosses blocks.
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "wandb", 1, 5)
    run(tmp_path, "wandb", 4, 8, resumed_at=3)
    steps, names = [], set()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
                names |= {item.key or item.nested_key[0] for item in record.history.item}
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    assert steps == list(range(1, 9))
    assert {"train_loss", "tokens_per_second", "validation_loss"} <= names


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_on_this_machine(tmp_path, monkeypatch, capfd):
    if "trackio" not in sys.modules:
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    # Another project than people's own, wherever trackio keeps them.
    monkeypatch.setenv("TRACKIO_PROJECT", "gpt2-test")
    run(tmp_path, "trackio", 1, 5)
    run(tmp_path, "trackio", 4, 8, resumed_at=3)
    (name,) = [run.name for run in trackio.Api().runs("gpt2-test") if run.name.startswith(f"{tmp_path.name}-")]
    rows = SQLiteStorage.get_logs("gpt2-test", name)
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, 9))
    assert [row["validation_loss"] for row in rows if "validation_loss" in row] == [0.5, 0.25]
    # stdout belongs to `--json`.
    assert capfd.readouterr().out == ""
