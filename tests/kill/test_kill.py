"""Training processes that are killed with SIGKILL, again and again, during saves too: nothing that has a name is ever
half-written, and what comes out is bit for bit what a run that never stopped gives.

`make test-kill`; KILLS=300 kills more often.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.runs import (
    OPTIONS,
    POSIX,
    KillAt,
    arguments,
    assert_same,
    check_whole,
    command,
    litter,
    names,
    wait_for,
    write_text,
)
from tests.runs import shorten_guard as whole_run

pytestmark = [POSIX, pytest.mark.kill, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("KILLS", "26"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_random_moments_again_and_again(tmp_path, optimizer, record_property):
    """Real processes. Half of the kills wait for a save to begin."""
    chance = random.Random(optimizer)
    # Every step is saved, so that most of the time is spent saving; runs follow each other until all kills are done.
    options = replace(OPTIONS, optimizer=optimizer, steps=40, save_every=1, keep=3, n_embd=64, skip_spikes=0.0)
    whole = tmp_path / "whole"
    child = command(tmp_path / "said", *arguments(options, write_text(tmp_path), whole))
    assert child.wait() == 0, child.output

    kills = saving = number = 0
    while kills < KILLS // 2:
        run, number = tmp_path / f"run-{number}", number + 1
        words = arguments(options, tmp_path / "text.txt", run)
        code = None
        while code != 0:
            code, in_save = _life(words, run, chance if kills < KILLS // 2 else None, tmp_path / "said")
            assert code in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
            kills += code != 0
            saving += in_save
            check_whole(run)
            if (run / "recipe.toml").exists():
                words = ["train", "--resume", str(run)]
        assert_same(run, whole)
    print(f"{optimizer}: {kills} kills, {saving} of them during a save, {number} runs")
    assert saving


def _life(words, run, chance, said):
    """One process until it ends or is killed: its exit code, and whether a save was under way when it was killed."""
    before = names(run)
    with said.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-m", "gpt2", *words], stdout=stream, stderr=stream)
    if chance is None:
        return process.wait(120), False
    try:
        kind = chance.choice(["anywhere", "after a save", "in a save", "in a save"])
        if kind == "anywhere":
            # Most of the time that a process has is spent importing.
            time.sleep(chance.uniform(0, 4))
        else:
            # At least one step further than the life before, so that this comes to an end.
            wait_for(lambda: process.poll() is not None or names(run) not in ([], before))
            if kind == "in a save":
                wait_for(lambda: process.poll() is not None or litter(run))
            time.sleep(chance.choice([0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)]))
    finally:
        process.kill()
        code = process.wait(120)
    return code, code != 0 and bool(litter(run))


def test_killed_before_every_single_file_operation(tmp_path):
    """Of a run with three saves, pruning and a new best: each operation in turn is the one that is not done any more.

    Whether the run can go on is tried after every fifth kill; with KILLS=1000 after each.
    """
    options = replace(OPTIONS, steps=3, save_every=1, eval_every=1, keep=1)
    data, whole = write_text(tmp_path), tmp_path / "whole"
    assert command(tmp_path / "said", *arguments(options, data, whole), before=whole_run).wait() == 0

    kills, code = 0, None
    while code != 0:
        run = tmp_path / f"run-{kills}"
        child = command(tmp_path / "said", *arguments(options, data, run), before=KillAt(run, kills + 1))
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.output
        check_whole(run)
        if code and (kills % 5 == 0 or KILLS >= 1000):
            begun = (run / "recipe.toml").exists()
            words = ["train", "--resume", str(run)] if begun else arguments(options, data, run)
            child = command(tmp_path / "said", *words, before=whole_run)
            assert child.wait() == 0, child.output
            assert_same(run, whole)
        kills += 1
    assert kills > 100
    print(f"{kills - 1} file operations")
