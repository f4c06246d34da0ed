"""Law `ranks`, whole runs: evaluation, samples, checkpoints and resuming on two processes and on one, 2 -> 1 -> 2.

Everything goes through the command line, on gloo. `test_law_ranks.py` compares steps, by every recipe.
"""

import dataclasses
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.training.evaluate import Evaluation
from tests.runs import OPTIONS, POSIX, arguments, check_whole, command, litter, metrics, names, write_text

pytestmark = POSIX

# The same learning rate whatever the number of steps.
LONG = replace(
    OPTIONS, steps=18, eval_every=3, save_every=6, sample_every=6, skip_spikes=0.0, min_learning_rate=1.0, keep=0
)


@dataclasses.dataclass
class OneOf:
    """Makes a process one of several, as torchrun would; `upset`: what one of them measures is off by a little."""

    rank: int
    size: int
    port: int
    upset: bool = False

    def __call__(self) -> None:
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(self.size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        if self.upset:
            from gpt2.training import validation

            real, count = validation.evaluate, [0]

            def upset(*values, **named) -> Evaluation:
                scored = real(*values, **named)
                count[0] += 1
                # As another kind of GPU might have it: the second is not better than the first.
                return replace(scored, nats=scored.nats * (1.2 if count[0] == 2 else 1))

            validation.evaluate = upset


def together(folder: Path, *words: str, size: int = 2, upset: int | None = None) -> list[str]:
    """A command line on several processes; what each of them said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        command(folder / f"said-{rank}", *words, before=OneOf(rank, size, port, rank == upset)) for rank in range(size)
    ]
    codes = [child.wait(300) for child in children]
    assert codes == [0] * size, [child.output for child in children]
    return [child.output for child in children]


def measured(run: Path, name: str) -> list[tuple[int, float]]:
    """What was measured on the way: at an end, all held-out tokens are scored besides."""
    first: dict[int, float] = {}
    for line in metrics(run):
        if name in line:
            first.setdefault(line["step"], line[name])
    return sorted(first.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    child = command(folder / "said", *arguments(LONG, write_text(folder), folder / "run"))
    assert child.wait() == 0, child.output
    return folder / "run"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_then_one_then_two_processes_run_as_one(whole, tmp_path, kind):
    run = tmp_path / "run"
    said = together(tmp_path, *arguments(replace(LONG, steps=6, parallel=kind), write_text(tmp_path), run))
    assert "validation" in said[0]
    assert said[1] == "", "of several processes the first alone reports"
    together(tmp_path, "train", "--resume", str(run), "--steps", "12", size=1)
    together(tmp_path, "train", "--resume", str(run), "--steps", "18", "--json")

    for name in ("train_loss", "validation_loss"):
        ours, expected = measured(run, name), measured(whole, name)
        assert [step for step, _ in ours] == [step for step, _ in expected]
        assert [value for _, value in ours] == pytest.approx([value for _, value in expected], abs=1e-4)
    last, last_expected = metrics(run)[-1], metrics(whole)[-1]
    assert last["validation_tokens"] == last_expected["validation_tokens"] > OPTIONS.eval_tokens
    assert last["validation_loss"] == pytest.approx(last_expected["validation_loss"], abs=1e-4)
    assert (run / "best").read_text() == (whole / "best").read_text()
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step-{n:06d}.txt" for n in (6, 12, 18)]
    assert json.loads((run / "checkpoints/step-000018/training/state.json").read_text())["best_step"] is not None
    if kind == "ddp":  # under fsdp the optimiser's files are one a process
        assert check_whole(run) == len(names(whole))
    assert not litter(run)


def test_what_is_better_the_first_decides(whole, tmp_path):
    """Or one process would wait in a save, and the other in the next step, for as long as they have patience."""
    run = tmp_path / "run"
    options = replace(LONG, steps=9, save_every=0, sample_every=0)
    together(tmp_path, *arguments(options, write_text(tmp_path), run), upset=1)
    assert names(run) == ["step-000003", "step-000006", "step-000009"]
