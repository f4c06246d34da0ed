"""Law `resume`: a run that was killed anywhere and resumed is bit for bit the one that never stopped.

On the CPU, with both kinds of dropout, micro-batches, validation, the spike guard, the best checkpoint and pruning.
`tests/kill` kills at random moments, and many more times.
"""

import os
import random
import signal
from dataclasses import replace

import pytest

from tests.runs import OPTIONS, POSIX, KillAt, arguments, assert_same, check_whole, command, metrics, names, write_text
from tests.runs import shorten_guard as whole_run

pytestmark = POSIX


@pytest.fixture(scope="module", params=["adamw", "muon"])
def whole(request, tmp_path_factory):
    """A run that never stopped, and its options."""
    folder = tmp_path_factory.mktemp(request.param)
    options = replace(OPTIONS, optimizer=request.param)
    child = command(folder / "said", *arguments(options, write_text(folder), folder / "whole"), before=whole_run)
    assert child.wait() == 0, child.output
    # What the law is about happened: spikes were skipped, and an older checkpoint was the best for a while.
    assert any("skipped" in line for line in metrics(folder / "whole"))
    assert check_whole(folder / "whole") >= 2
    return folder, options


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_resumed_is_never_stopped(whole, tmp_path, seed):
    folder, options = whole
    run, chance = tmp_path / "run", random.Random(seed)
    words = arguments(options, folder / "text.txt", run)
    kills = 0
    while True:
        child = command(tmp_path / "said", *words, before=KillAt(run, chance.randrange(1, 250)))
        code = child.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, child.output
        kills += 1
        check_whole(run)
        if (run / "recipe.toml").exists():
            words = ["train", "--resume", str(run)]
    assert kills >= 2
    assert_same(run, folder / "whole")


def test_every_checkpoint_of_a_run_is_a_place_to_go_on_from(whole, tmp_path):
    folder, options = whole
    run = tmp_path / "run"
    words = arguments(replace(options, keep=0), folder / "text.txt", run)
    assert command(tmp_path / "said", *words, before=whole_run).wait() == 0
    last = {name: (run / "checkpoints" / names(run)[-1] / name).read_bytes() for name in _weights(run)}
    lines = metrics(run)
    for name in names(run)[:-1:4]:
        (run / "latest").write_text(name)
        child = command(tmp_path / "said", "train", "--resume", str(run), before=whole_run)
        assert child.wait() == 0, child.output
        assert {name: (run / "checkpoints" / names(run)[-1] / name).read_bytes() for name in _weights(run)} == last
        assert metrics(run) == lines


def _weights(run):
    return ("model.safetensors", os.path.join("training", "optimizer.safetensors"))  # noqa: PTH118
