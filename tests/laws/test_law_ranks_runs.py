"""Law `ranks`, whole runs: evaluation, samples, checkpoints and resuming on two processes and on one, 2 -> 1 -> 2.

Everything goes through the command line, on gloo. `test_law_ranks.py` compares steps, by every recipe.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gpt2.training.evaluate import Evaluation
from tests.runs import (
    OPTIONS,
    POSIX,
    Rank,
    arguments,
    check_whole,
    command,
    litter,
    meeting,
    metrics,
    names,
    wait_all,
    write_text,
)

pytestmark = POSIX

# The same learning rate whatever the number of steps.
LONG = replace(
    OPTIONS, steps=18, eval_every=3, save_every=6, sample_every=6, skip_spikes=0.0, min_learning_rate=1.0, keep=0
)


@dataclass(frozen=True)
class Upset(Rank):
    """One whose second measurement is off by a little, as another kind of GPU might have it."""

    def __call__(self) -> None:
        super().__call__()
        from gpt2.training import validation

        real, count = validation.evaluate, [0]

        def upset(*values, **named) -> Evaluation:
            scored = real(*values, **named)  # the second is then no better than the first
            count[0] += 1
            return replace(scored, nats=scored.nats * (1.2 if count[0] == 2 else 1))

        validation.evaluate = upset


def together(folder: Path, *words: str, size: int = 2, upset: int | None = None) -> list[str]:
    """A command line on several processes; what each of them said."""
    store = meeting()
    ranks = [(Upset if rank == upset else Rank)(rank, size, store.port) for rank in range(size)]
    return wait_all([command(folder / f"said-{one.rank}", *words, before=one) for one in ranks])


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


def test_a_notice_of_the_data_is_said_once(tmp_path):
    text = write_text(tmp_path)
    text.write_text(text.read_text() + "<|endoftext|>")
    options = replace(LONG, steps=2, warmup_steps=1, eval_every=0, save_every=0, sample_every=0)
    said = together(tmp_path, *arguments(options, text, tmp_path / "run"))
    assert said[0].count("spells <|endoftext|> in its text") == 1
    assert said[1] == ""
