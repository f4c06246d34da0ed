"""What `gpt2 train` says: how a short run of a long recipe begins, what is done at the end, and of mistyped words."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.training import Result, read_recipe
from tests.helpers import byte_tokenizer
from tests.runs import SHORT, arguments, metrics, write_text

TINY = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context", "16", "--vocab-size", "270", "--threads", "1"]
TINY += ["--batch-size", "4", "--dtype", "float32", "--trackers", "none", "--no-compile"]


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


def test_a_short_run_of_a_long_recipe_just_works_and_its_warmup_is_told(gpt2, text, tmp_path):
    run = tmp_path / "run"
    own = read_recipe("fast")["warmup_steps"]
    words = ["train", text, "--recipe", "fast", "--steps", "20", "--out", run, *TINY]
    answer = gpt2(*words, "--sample-every", "0", "--json")
    assert answer.code == 0, answer.err
    assert f"note: the recipe's warm-up of {own} steps is long for a run of 20: it is 2 here" in answer.err
    assert read_recipe(str(run / "recipe.toml"))["warmup_steps"] == 2
    assert f"{run}: " in answer.err
    assert answer.err.count(" GFLOP a token by 6 N + 12 L T C: N = ") == 1
    assert "; peak not known" in answer.err
    last = [line for line in answer.err.splitlines() if line.startswith("step ")][-1]
    assert " TFLOP/s" in last
    assert "%" not in last
    assert metrics(run, without=())[0]["flops_per_second"] > 0
    typed = gpt2(*words[: -len(TINY)], *TINY, "--warmup-steps", "19")
    assert (typed.code, typed.err.count("\n")) == (2, 1)
    assert "warmup_steps = 19 does not fit into a run of 20 steps" in typed.err


def test_under_torchrun_the_first_process_alone_tells_of_the_warmup(gpt2, text, monkeypatch):
    monkeypatch.setattr("gpt2.cli.train.check_resume", lambda *_: None)
    words = ["train", text, "--recipe", "fast", "--steps", "20", "--learning-rate", "inf"]
    assert "note: the recipe's warm-up" in gpt2(*words).err
    monkeypatch.setenv("RANK", "1")
    assert "note: the recipe's warm-up" in gpt2(*words).err, "there is one process, whatever its number"
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = gpt2(*words).err
    assert "note:" not in said
    assert "learning_rate is inf" in said


def test_a_finished_run_has_nothing_left_to_do(gpt2, text, tmp_path):
    run = tmp_path / "run"
    words = arguments(replace(SHORT, steps=2, warmup_steps=0, trackers="none"), text, run)
    assert gpt2(*words).out.startswith("Done. Try it: gpt2 generate --model ")
    again = gpt2("train", "--resume", run)
    assert again.code == 0
    assert again.out.startswith("Nothing was left to do. ")
    assert f"{run} has made its 2 steps already; gpt2 train --resume {run} --steps N goes on" in again.err


@pytest.mark.parametrize("best", ["step-000004", "step-000010", None])
def test_the_better_checkpoint_is_advised(gpt2, text, monkeypatch, best):
    path = Path("runs/mine")
    found = path / "checkpoints" / best if best else None
    result = Result(10, 3.0, None, path, interrupted=False, best=found)
    monkeypatch.setattr("gpt2.training.train", lambda *_: result)
    monkeypatch.setattr("gpt2.checkpoint.locate", lambda path: path)
    monkeypatch.setattr("gpt2.tokenizer.read_tokenizer", lambda path: byte_tokenizer())
    said = gpt2("train", text).out
    if best == "step-000004":
        assert said == (
            "Done. The lowest validation loss is that of step-000004, not of the last step, 10.\n"
            f"Try it: gpt2 generate --model {found} 'Once upon a time'\n"
        )
    else:
        assert said == f"Done. Try it: gpt2 generate --model {path} 'Once upon a time'\n"
    assert gpt2("train", text, "--json").json["best"] == (str(found) if found else None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "nowhere"], "nowhere is no run folder: there is no such folder.\n"),
        (["x", "--steps", "abc"], "Invalid value for '--steps': it must be a whole number. "),
        (["x", "--learning-rate", "abc"], "Invalid value for '--learning-rate': it must be a number. "),
        (["x", "--n-layers", "3"], "No such option: --n-layers (Possible options: --n-layer). "),
        (["x", "--recipe", "papre"], "no such file; did you mean paper? "),
    ],
)
def test_mistyped_words(gpt2, words, said):
    answer = gpt2("train", *words)
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_bounds_are_told_in_our_words(gpt2):
    assert "Invalid value for '--mfu': it must be at most 1. " in gpt2("plan", "--mfu", "nan").err
    assert "Invalid value for '--mfu': it must be at least 0.01. " in gpt2("plan", "--mfu", "-1").err


def test_the_help_says_what_a_folder_may_hold(gpt2):
    said = " ".join(gpt2("train", "--help").out.split())
    assert "(.txt, .md)" in said
    assert "pages, archives and compressed files" in said
