"""`gpt2 train` as processes: stopped by signals, two in one folder, killed while it holds the lock, starved of disk."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.training import train
from tests.helpers import Recorder
from tests.runs import (
    OPTIONS,
    POSIX,
    arguments,
    check_whole,
    command,
    fork,
    litter,
    metrics,
    names,
    small_disk,
    wait_for,
    write_text,
)

pytestmark = POSIX

LONG = replace(OPTIONS, steps=100_000, eval_every=0, save_every=0, skip_spikes=0.0, min_learning_rate=1.0)


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def steps_of(run):
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_leaves(text, tmp_path, number):
    run = tmp_path / "run"
    child = command(tmp_path / "said", *arguments(LONG, text, run))
    wait_for(lambda: steps_of(run) > 2)
    child.signal(number)
    assert child.wait() == 130
    step = metrics(run)[-1]["step"]
    assert f"Stopped at step {step} and saved; go on with: gpt2 train --resume {run}" in child.output
    assert (run / "latest").read_text() == f"step-{step:06d}\n"
    assert check_whole(run) == 1
    child = command(tmp_path / "said", "train", "--resume", str(run), "--steps", str(step + 2), "--json")
    assert child.wait() == 0, child.output
    assert json.loads(child.output.splitlines()[-1])["step"] == step + 2


def no_hangup() -> None:
    """As `nohup` starts a program."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_closed_terminal_is_ignored_if_it_was_before(text, tmp_path):
    run = tmp_path / "run"
    child = command(tmp_path / "said", *arguments(replace(LONG, steps=300), text, run), before=no_hangup)
    wait_for(lambda: steps_of(run) > 2)
    child.signal(signal.SIGHUP)
    assert child.wait() == 0, child.output
    assert (run / "latest").read_text() == "step-000300\n"


def nobody_reads() -> None:
    """As `2>&1 | head` once head has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    sys.stderr = open(writing, "w", buffering=1)  # noqa: PTH123, SIM115 (it stays open)


def full_disk() -> None:
    sys.stderr = open("/dev/full", "w", buffering=1)  # noqa: PTH123, SIM115


@pytest.mark.parametrize("stderr", [nobody_reads, full_disk])
def test_a_view_that_nobody_reads_does_not_end_a_run(text, tmp_path, stderr):
    if stderr is full_disk and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    words = arguments(replace(OPTIONS, steps=12), text, tmp_path / "run")
    child = command(tmp_path / "said", *words, "--json", before=stderr)
    assert child.wait() == 0
    assert json.loads(child.output)["step"] == 12
    assert (tmp_path / "run" / "latest").read_text() == "step-000012\n"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gpt2"]


def test_under_torchrun_a_signal_saves_and_bad_input_is_said_once(text, tmp_path):
    run = tmp_path / "run"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([*TORCHRUN, *arguments(LONG, text, run)], stdout=said, stderr=said)
        try:
            wait_for(lambda: steps_of(run) > 0)
            process.terminate()
            process.wait(120)
        finally:
            process.kill()
    last = metrics(run)[-1]["step"]
    assert (run / "latest").read_text() == f"step-{last:06d}\n", (tmp_path / "said").read_text()
    assert check_whole(run) == 1

    ended = subprocess.run(
        [*TORCHRUN, "train", str(tmp_path / "none.txt")], capture_output=True, text=True, timeout=200
    )
    assert ended.returncode != 0
    assert ended.stderr.count("gpt2: ") == 1, ended.stderr
    assert f"{tmp_path / 'none.txt'} is no file" in ended.stderr


class Hanging(Recorder):
    """Hangs in its third step, and leaves a file when it does, and another when it was asked to stop."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def step(self, step, loss, tokens_per_second, facts):
        if step < 3:
            return
        usual = signal.getsignal(signal.SIGINT)
        (self.folder / "hangs").touch()
        for _ in range(10_000):
            if signal.getsignal(signal.SIGINT) is not usual:
                (self.folder / "asked").touch()
            time.sleep(0.01)


def hang(folder: str, save_every: int) -> int:
    options = replace(LONG, save_every=save_every)
    try:
        train(options, [Path(folder) / "text.txt"], Path(folder) / "run", Hanging(Path(folder)))
    except KeyboardInterrupt:
        return 130
    return 0


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGINT, 130),
        (signal.SIGINT, signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_second_signal_leaves_at_once(text, tmp_path, first, second, code):
    child = fork(tmp_path / "said", hang, str(tmp_path), 2)
    wait_for((tmp_path / "hangs").exists)
    child.signal(first)
    wait_for((tmp_path / "asked").exists)
    assert child.process.is_alive()
    child.signal(second)
    assert child.wait(60) == code
    assert names(tmp_path / "run") == ["step-000002"]
    assert not litter(tmp_path / "run")


def test_one_folder_one_trainer_and_a_killed_one_bars_nobody(text, tmp_path):
    run = tmp_path / "run"
    holder = fork(tmp_path / "holds", hang, str(tmp_path), 2)
    wait_for((tmp_path / "hangs").exists)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (["train", "--resume", str(run)], arguments(LONG, text, run)):
        child = command(tmp_path / "said", *words)
        assert child.wait() == 2
        said = child.output.strip().splitlines()
        assert len(said) == 1
        assert "Another process is training in" in said[0] or "is there already" in said[0]
        if "--resume" in words:
            assert f"(process {holder.process.pid} on " in said[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    holder.signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    assert (run / "lock").exists()
    child = command(tmp_path / "said", "train", "--resume", str(run), "--steps", "4")
    assert child.wait() == 0, child.output


class When:
    """Waits for a file: many processes then start at the same moment."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self) -> None:
        wait_for(self.file.exists)


def test_of_four_that_start_at_the_same_moment_one_gets_the_folder(text, tmp_path):
    options = replace(OPTIONS, steps=4, eval_every=0)
    words = arguments(options, text, tmp_path / "run")
    children = [command(tmp_path / f"said-{n}", *words, before=When(tmp_path / "go")) for n in range(4)]
    (tmp_path / "go").touch()
    codes = [child.wait() for child in children]
    assert sorted(codes) == [0, 2, 2, 2], [child.output for child in children]
    for child, code in zip(children, codes, strict=True):
        if code:
            said = child.output.strip().splitlines()[-1]
            assert "Another process is training in" in said or "is there already; choose another --out" in said
            assert child.output.count("gpt2:") == 1
    assert [line["step"] for line in metrics(tmp_path / "run") if "train_loss" in line] == [1, 2, 3, 4]


def small_files_only() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("saved", [False, True])
def test_a_checkpoint_that_cannot_be_written_is_one_sentence(text, tmp_path, saved):
    """As a quota or a full disk: the system refuses to make a file as large as the optimiser's state."""
    run = tmp_path / "run"
    options = replace(LONG, steps=2 if saved else 8, save_every=2, warmup_steps=1)
    words = arguments(options, text, run)
    if saved:
        assert command(tmp_path / "said", *words).wait() == 0
        words = ["train", "--resume", str(run), "--steps", "8"]
    child = command(tmp_path / "said", *words, before=small_files_only)
    assert child.wait() == 2, child.output
    said = child.output.strip().splitlines()[-1]
    step = "step-000004" if saved else "step-000002"
    assert said.startswith(f"gpt2: The checkpoint {step} could not be written to {run} (File too large); ")
    assert ("step-000002 is whole" if saved else "nothing was saved before") in said
    assert "Traceback" not in child.output
    assert check_whole(run) == saved
    assert not litter(run)
    child = command(tmp_path / "said", "train", "--resume", str(run))
    assert child.wait() == 0, child.output
    assert ("beginning at step 0" in child.output) != saved
    assert (run / "latest").read_text() == "step-000008\n"


def test_a_read_only_disk(text, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        run = disk / "run"
        options = replace(OPTIONS, steps=2, eval_every=0, warmup_steps=1)
        assert command(tmp_path / "said", *arguments(options, text, run)).wait() == 0
        assert os.system(f"mount -o remount,ro {disk}") == 0
        child = command(tmp_path / "said", "train", "--resume", str(run), "--steps", "4")
        assert child.wait() == 2
        assert child.output == (
            f"gpt2: {run} cannot be written to (Read-only file system), so no run can go on there.\n"
        )
        child = command(tmp_path / "said", *arguments(options, text, disk / "other"))
        assert child.wait() == 2
        assert "cannot be made" in child.output
        assert child.output.count("\n") == 1
