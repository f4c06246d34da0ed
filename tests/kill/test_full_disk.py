"""A disk that fills up: one sentence, the last checkpoint whole, nothing half-written; and on, once there is room."""

from dataclasses import replace

import pytest

from tests.runs import (
    OPTIONS,
    POSIX,
    arguments,
    assert_same,
    check_whole,
    command,
    fill,
    litter,
    names,
    small_disk,
    wait_for,
    write_text,
)

pytestmark = [POSIX, pytest.mark.kill]

# A checkpoint is 1.2 or 1.7 MB. The learning rate is the same in a shorter run.
BIG = replace(OPTIONS, n_embd=96, steps=12, skip_spikes=0.0, min_learning_rate=1.0)
LAST = "checkpoints/step-000012"


@pytest.fixture(scope="module", params=["adamw", "muon"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    options = replace(BIG, optimizer=request.param)
    child = command(folder / "said", *arguments(options, write_text(folder), folder / "whole"))
    assert child.wait() == 0, child.output
    return folder, options


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "16m") as place:
        yield place


# So much room is left: for nothing, the small files, a part of the weights, a part of the optimiser's state.
@pytest.mark.parametrize("leave", [0, 20_000, 300_000, 1_000_000])
def test_no_room_for_the_next_checkpoint(whole, tmp_path, disk, leave):
    folder, options = whole
    run = disk / "run"
    child = command(tmp_path / "said", *arguments(replace(options, steps=4), folder / "text.txt", run))
    assert child.wait() == 0, child.output
    kept = names(run)
    filler = fill(disk, leave)
    child = command(tmp_path / "said", "train", "--resume", str(run), "--steps", "12")
    assert child.wait() == 2, child.output

    said = [line for line in child.output.splitlines() if line.startswith("gpt2:")]
    assert len(said) == 1, child.output
    assert "No space left on device" in said[0]
    assert "Traceback" not in child.output
    assert check_whole(run) >= len(kept)
    assert not litter(run)

    filler.unlink()
    child = command(tmp_path / "said", "train", "--resume", str(run), "--steps", "12")
    assert child.wait() == 0, child.output
    assert not litter(run)
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        assert (run / LAST / file).read_bytes() == (folder / "whole" / LAST / file).read_bytes()


def test_a_disk_that_fills_up_during_a_run(whole, tmp_path, disk):
    folder, options = whole
    run = disk / "run"
    child = command(tmp_path / "said", *arguments(options, folder / "text.txt", run))
    wait_for(lambda: names(run))
    filler = fill(disk, 0)
    assert child.wait() == 2, child.output
    assert child.output.count("gpt2:") == 1
    assert check_whole(run) >= 1
    assert not litter(run)

    filler.unlink()
    child = command(tmp_path / "said", "train", "--resume", str(run))
    assert child.wait() == 0, child.output
    assert_same(run, folder / "whole")
