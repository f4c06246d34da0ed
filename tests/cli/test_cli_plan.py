"""`gpt2 plan`: numbers with stable names, tables for people, and progress lines of `gpt2 train`."""

import io

import pytest
from rich.console import Console

from gpt2.cli.plan import count
from gpt2.cli.progress import Progress, describe, duration
from gpt2.training.evaluate import Evaluation


def flags(**values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


TINY = flags(n_layer=1, n_head=2, n_embd=32, context=16, vocab_size=300, batch_size=8, threads=1)
XL = flags(n_layer=48, n_head=25, n_embd=1600, context=1024, batch_size=512, dtype="bfloat16")


@pytest.fixture(autouse=True)
def quick_rate(monkeypatch):
    """Measuring the machine takes seconds, and is tested where it belongs."""
    monkeypatch.setattr("gpt2.runners.machine.matrix_rate", lambda dtype: 1e11)


def test_this_machine_as_json(gpt2, tmp_path):
    (tmp_path / "text.txt").write_text("a" * 4000)
    answer = gpt2("plan", tmp_path / "text.txt", *TINY, "--steps", "1000", "--json")
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    document = answer.json
    assert document["tokens"] == 1000 * 8 * 16
    assert document["epochs"] == pytest.approx(128)
    assert document["data_tokens_counted"] is False
    assert document["flops_formula"] == "6 N + 12 L T C"
    assert document["largest_micro_batch"] == document["micro_batch_size"] == 8
    assert document["probe_steps"] == 20
    seconds = document["pass_seconds"] + document["update_seconds"]
    assert document["step_seconds"] == pytest.approx(seconds)
    assert document["tokens_per_second"] == pytest.approx(128 / seconds)
    assert document["hours"] == pytest.approx(seconds * 1000 / 3600)
    memory = document["memory"]
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    # A CPU has no data sheet: a share of what it reached just now, and no utilisation.
    assert "mfu" not in document
    assert document["matrix_rate_share"] > 0


def test_this_machine_for_people(gpt2):
    said = " ".join(gpt2("plan", *TINY).out.split())
    for part in ("weights, float32", "largest micro-batch that fits: 8 of 8", "by estimate", "tokens/s", "to the end:"):
        assert part in said
    assert "that this machine's matrix products reached just now" in said
    without = gpt2("plan", *TINY, "--no-probe")
    assert without.code == 0
    assert "tokens/s" not in without.out


def test_a_recipe_and_a_flag_over_it(gpt2):
    answer = gpt2("plan", "--recipe", "shakespeare", "--steps", "7", "--no-probe", "--json")
    assert answer.json["steps"] == 7
    assert answer.json["optimizer"] == "muon"
    assert answer.json["shape"]["vocab_size"] == 1024


def test_what_is_too_large_for_this_machine_is_told(gpt2):
    answer = gpt2("plan", "--n-layer", "500", "--n-embd", "8000", "--n-head", "8", "--batch-size", "8")
    assert answer.code == 0
    assert "Not even one sequence at a time fits" in answer.out
    assert "--kind" in answer.out


def test_gpus_elsewhere(gpt2):
    answer = gpt2("plan", *XL, "--gpus", "64", "--kind", "h100", "--price", "2", "--json")
    document = answer.json
    assert set(document["plans"]) == {"ddp", "fsdp"}
    assert document["parallel"] == "ddp"
    for planned in document["plans"].values():
        assert planned["fits"]
        assert planned["gpu_hours"] == pytest.approx(64 * planned["hours"])
        assert planned["cost"] == pytest.approx(2 * planned["gpu_hours"])
        parts = ("compute_seconds", "update_seconds", "exposed_seconds")
        assert planned["step_seconds"] == pytest.approx(sum(planned[part] for part in parts))
    shown = gpt2("plan", *XL, "--gpus", "64", "--kind", "h100").out
    for part in ("DDP", "FSDP", "GB a GPU sends in a step", "A model and no measurement", "400 Gbit/s", "data sheet"):
        assert part in shown
    alone = gpt2("plan", *XL, "--kind", "h200", "--json").json
    assert alone["gpus"] == 1
    assert list(alone["plans"]) == ["single"]
    assert alone["plans"]["single"]["bytes_sent_per_step"] == 0


def test_mistakes_are_told_in_a_line(gpt2, tmp_path):
    for arguments, said in (
        (["--gpus", "8"], "--kind"),
        (["--gpus", "8", "--kind", "tpu"], "h100"),
        (["--gpus", "7", "--kind", "h100"], "shared evenly by 7 GPUs"),
        (["--recipe", "nothing"], "no recipe called"),
        ([tmp_path / "missing.txt"], "missing.txt"),
    ):
        answer = gpt2("plan", *arguments)
        assert answer.code == 2, arguments
        assert said in answer.err
        assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600 * 2 + 300, "2 h 05 min"), (86400 * 3 + 4 * 3600, "3 d 4 h")],
)
def test_lengths_of_time(seconds, said):
    assert duration(seconds) == said


def test_large_numbers():
    assert [count(n) for n in (12, 2_000_000, 314.6e9, 1e12)] == ["12", "2.0 million", "314.6 billion", "1.0 trillion"]


FACTS = {"tokens_per_second": 1000.0, "flops_per_second": 2e12, "memory": 3.2e9, "seconds_left": 125.0}


def lines(terminal=False):
    out = io.StringIO()
    return Progress(Console(file=out, width=120, force_terminal=terminal, highlight=False)), out


def test_without_a_terminal_there_is_one_line_an_evaluation():
    progress, out = lines()
    with progress:
        progress.start(0, 4)
        for step, speed in ((1, 1000.0), (2, 3000.0)):
            progress.step(step, 3.5 - step / 10, speed, FACTS | {"tokens_per_second": speed})
        progress.evaluation(2, Evaluation(nats=700.0, tokens=200, text_bytes=800))
    assert out.getvalue() == (
        "step      2  train 3.300  validation 3.500 nats/token, 1.262 bits/byte  "
        # Equal tokens at 1,000 and 3,000 a second take as long as at 1,500; the rate is scaled alike.
        "1,500 tokens/s  1 TFLOP/s  3.2 GB  2 min 05 s left\n"
    )


def test_a_run_that_never_evaluates_still_says_that_it_lives(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gpt2.cli.progress.time.monotonic", lambda: now[0])
    progress, out = lines()
    with progress:
        progress.start(0, 900)
        for step in range(1, 901):
            now[0] += 1
            progress.step(step, 3.0, 1000.0, FACTS)
    assert out.getvalue().count("\n") == 2
    assert out.getvalue().startswith("step    301  train 3.000  1,000 tokens/s")


def test_a_share_of_a_known_peak_is_told_instead_of_the_rate():
    said = describe(FACTS | {"mfu": 0.412})
    assert "41.2% MFU" in said
    assert not any("TFLOP" in part for part in said)
    assert describe({}) == []


def test_a_terminal_gets_a_bar():
    progress, out = lines(terminal=True)
    with progress:
        progress.start(0, 4)
        progress.step(1, 3.0, 1000.0, FACTS)
        progress.note("[not markup]")
    for part in ("1/4", "loss 3.000", "1,000 tokens/s", "2 TFLOP/s", "3.2 GB", "2 min 05 s left", "[not markup]"):
        assert part in out.getvalue()
