"""`gpt2 plan`: numbers with stable names, tables for people, and progress lines of `gpt2 train`."""

import io
import json
import re

import pytest
from rich.console import Console
from rich.text import Text

from gpt2.cli.plan import in_words
from gpt2.cli.progress import Progress, describe, duration
from gpt2.shards import open_shards
from gpt2.training import TrainingOptions, read_recipe
from gpt2.training.data import open_data
from gpt2.training.evaluate import Evaluation
from tests.helpers import byte_tokenizer, tiny_model
from tests.runs import TEXT
from tests.unit.test_training_data import LINES, corpus


def flags(**values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


TINY = flags(n_layer=1, n_head=2, n_embd=32, context=16, vocab_size=300, batch_size=8, threads=1)
XL = flags(n_layer=48, n_head=25, n_embd=1600, context=1024, batch_size=512, dtype="bfloat16")


@pytest.fixture(autouse=True)
def quick_rate(monkeypatch):
    """Measuring the machine takes seconds, and is tested where it belongs."""
    monkeypatch.setattr("gpt2.runners.machine.matrix_rate", lambda dtype: 1e11)


def test_this_machine_as_json(gpt2, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    answer = gpt2("plan", tmp_path / "text.txt", *TINY, "--vocab-size", "270", "--steps", "1000", "--json")
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    document = answer.json
    assert document["tokens"] == 1000 * 8 * 16
    # What a run would count.
    opened = open_data([tmp_path / "text.txt"], TrainingOptions(vocab_size=270))
    assert document["data_tokens"] == len(opened.training) < 0.9 * len(TEXT)
    assert document["epochs"] == pytest.approx(128_000 / len(opened.training))
    assert document["data_tokens_counted"] is True
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
    answer = gpt2("plan", "--recipe", "shakespeare", "--steps", "200", "--no-probe", "--json")
    assert answer.json["steps"] == 200
    assert answer.json["optimizer"] == "muon"
    assert answer.json["shape"]["vocab_size"] == 1024


def test_a_model_to_begin_with_has_its_own_shape(gpt2, model_path):
    tuned = gpt2("plan", "--recipe", "finetune", "--no-probe", "--json").json
    assert tuned["parameters"] == 124_439_808
    tiny = gpt2("plan", "--init", model_path, "--context", "32", "--no-probe", "--json").json
    assert tiny["shape"] == {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 257}
    assert tiny["memory"]["weights"] == 4 * tiny["parameters"]
    longer = gpt2("plan", "--init", model_path, "--context", "64")
    assert (longer.code, longer.err.count("\n")) == (2, 1)
    assert "has a window of 32" in longer.err
    nowhere = gpt2("plan", "--init", "./nowhere", "--no-probe")
    assert (nowhere.code, nowhere.err.count("\n")) == (2, 1)
    assert "no file or folder ./nowhere" in nowhere.err


def test_a_corpus_has_its_own_vocabulary(gpt2, tmp_path):
    folder = corpus(tmp_path / "corpus", byte_tokenizer(), LINES)
    document = gpt2("plan", folder, "--no-probe", "--json").json
    assert document["shape"]["vocab_size"] == 257
    assert document["data_tokens"] == len(open_data([folder], TrainingOptions()).training) < len(open_shards(folder))
    assert document["data_tokens_counted"] is True


@pytest.mark.parametrize("vocab_size", [0, 300])
def test_of_much_text_a_sample_is_tokenised(gpt2, tmp_path, monkeypatch, vocab_size):
    words = [f"word{number % 97} and {number % 31} more, " for number in range(20_000)]
    (tmp_path / "text.txt").write_text("".join(words))
    size = ("--vocab-size", str(vocab_size))
    whole = gpt2("plan", tmp_path / "text.txt", *TINY, *size, "--no-probe", "--json").json
    monkeypatch.setattr("gpt2.cli.plan._SAMPLE", 150_000)
    guessed = gpt2("plan", tmp_path / "text.txt", *TINY, *size, "--no-probe", "--json").json
    assert (whole["data_tokens_counted"], guessed["data_tokens_counted"]) == (True, False)
    assert guessed["data_tokens"] == pytest.approx(whole["data_tokens"], rel=0.05)
    assert guessed["shape"]["vocab_size"] == whole["shape"]["vocab_size"] == (vocab_size or 50257)
    said = gpt2("plan", tmp_path / "text.txt", *TINY, *size, "--no-probe").out
    assert re.search(
        r"it reads (the data once|the data [\d.,]+ times|[\d.]+ % of the data) \(about ", " ".join(said.split())
    )


def test_short_documents_are_counted_with_their_ends(gpt2, tmp_path, monkeypatch):
    lines = "".join(json.dumps({"text": f"{number % 89} and {number % 31}"}) + "\n" for number in range(8000))
    (tmp_path / "text.jsonl").write_text(lines)
    words = ("plan", tmp_path / "text.jsonl", *TINY, "--vocab-size", "0", "--no-probe", "--json")
    whole = gpt2(*words).json
    monkeypatch.setattr("gpt2.cli.plan._SAMPLE", 100_000)
    guessed = gpt2(*words).json
    assert (whole["data_tokens_counted"], guessed["data_tokens_counted"]) == (True, False)
    assert guessed["data_tokens"] == pytest.approx(whole["data_tokens"], rel=0.03)


def test_a_sample_that_is_too_uniform_for_its_vocabulary_is_counted_by_gpt2s(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2.cli.plan._SAMPLE", 10_000)
    monkeypatch.setattr("gpt2.training.data.open_data", lambda *_: pytest.fail("all of the text was read"))
    (tmp_path / "text.txt").write_text("la " * 40_000)
    document = gpt2("plan", tmp_path / "text.txt", *TINY, "--vocab-size", "900", "--no-probe", "--json").json
    assert document["data_tokens_counted"] is False
    assert document["shape"]["vocab_size"] == 900
    assert document["data_tokens"] > 1000


@pytest.mark.parametrize("sample", [2_000_000, 1_000])
def test_what_is_left_out_of_a_folder_is_told_once(gpt2, tmp_path, monkeypatch, sample):
    monkeypatch.setattr("gpt2.cli.plan._SAMPLE", sample)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "page.html").write_text("<p>left out")
    assert gpt2("plan", tmp_path, *TINY, "--no-probe").err.count("left out are 1 .html") == 1


def test_a_model_of_another_program_is_read_once(gpt2, tmp_path, monkeypatch):
    model, asked = tiny_model(), []
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr("gpt2.checkpoint.load", lambda name, **_: asked.append(name) or model)
    words = ("--init", f"{tmp_path}/theirs", "--context", "32", "--no-probe", "--json")
    monkeypatch.setattr("gpt2.checkpoint.locate", lambda name, **_: tmp_path / "theirs")
    assert gpt2("plan", tmp_path / "text.txt", *words).json["shape"]["vocab_size"] == 257
    assert len(asked) == 1


def test_text_is_counted_by_the_vocabulary_of_the_model_to_begin_with(gpt2, tmp_path, model_path):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ("--init", model_path, "--context", "32", "--no-probe", "--json")
    document = gpt2("plan", tmp_path / "text.txt", *words).json
    opened = open_data([tmp_path / "text.txt"], TrainingOptions(), byte_tokenizer())
    assert document["data_tokens"] == len(opened.training)


def test_one_is_no_plural(gpt2):
    said = gpt2("plan", *TINY, "--n-head", "1", "--steps", "1", "--no-probe").out
    for part in (": 1 block, ", ", 1 head, ", "1 step of 8 x"):
        assert part in said


@pytest.mark.parametrize("flags", [["--batch-size", "600"], ["--batch-size", "12", "--micro-batch-size", "3"]])
def test_the_run_takes_the_micro_batch_that_was_planned(gpt2, tmp_path, flags):
    (tmp_path / "text.txt").write_text("a stitch in time saves nine; " * 400)
    words = [tmp_path / "text.txt", *TINY[:8], "--vocab-size", "260", *flags, "--steps", "1", "--trackers", "none"]
    planned = gpt2("plan", *words, "--no-probe", "--json").json["micro_batch_size"]
    assert gpt2("train", *words, "--out", tmp_path / "run").code == 0
    assert read_recipe(str(tmp_path / "run" / "recipe.toml"))["micro_batch_size"] == planned
    assert planned == (3 if len(flags) > 2 else 200)  # of 600, the most that are no more than 4,096 tokens


def test_the_trial_keeps_freed_memory_as_a_run_does(gpt2, monkeypatch):
    asked = []
    monkeypatch.setattr("gpt2.training.allocator.keep_freed_memory", lambda: asked.append(1))
    assert gpt2("plan", *TINY).code == 0
    assert asked == [1]


def test_a_micro_batch_that_is_not_free_now_is_told_and_not_tried(gpt2, monkeypatch):
    monkeypatch.setattr("gpt2.runners.machine.available_memory", lambda device: 40_000_000)
    answer = gpt2("plan", *TINY, "--n-embd", "256", "--batch-size", "256")
    assert "`gpt2 train` would take 256: free some memory, or say --micro-batch-size" in " ".join(answer.out.split())
    assert "tokens/s" not in answer.out


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
    assert [in_words(n) for n in (12, 2_000_000, 314.6e9, 1e12)] == [
        "12",
        "2.0 million",
        "314.6 billion",
        "1.0 trillion",
    ]


FACTS = {"tokens_per_second": 1000.0, "flops_per_second": 2e12, "memory": 3.2e9, "seconds_left": 125.0}


def lines(terminal=False):
    out = io.StringIO()
    return Progress(Console(file=out, width=120, force_terminal=terminal, highlight=False)), out


def test_without_a_terminal_there_is_one_line_an_evaluation():
    progress, out = lines()
    with progress:
        progress.start(0, 4)
        for step, speed in ((1, 1000.0), (2, 3000.0)):
            progress.step(
                step, 3.5 - step / 10, speed, FACTS | {"tokens_per_second": speed, "flops_per_second": 2e9 * speed}
            )
        progress.evaluation(2, Evaluation(nats=700.0, tokens=200, text_bytes=800))
    assert out.getvalue() == (
        "step      2  train 3.300  validation 3.500 nats/token, 1.262 bits/byte (200 tokens)  "
        # Equal tokens at 1,000 and 3,000 a second take as long as at 1,500.
        "1,500 tokens/s  3 TFLOP/s  3.2 GB  2 min 05 s left\n"
    )


def test_a_narrow_terminal_keeps_the_step_and_the_time_left():
    out = io.StringIO()
    with Progress(Console(file=out, width=60, force_terminal=True, highlight=False)) as progress:
        progress.start(0, 1000)
        progress.step(12, 5.986, 1199.0, FACTS | {"seconds_left": 385.0})
    last = Text.from_ansi(out.getvalue()).plain.splitlines()[-1]
    assert "12/1000" in last
    assert last.rstrip().endswith("1,199 tokens/s  6 min 25 s left")


def test_what_a_terminal_would_obey_is_not_printed():
    progress, out = lines()
    with progress:
        progress.sample(3, "one\x1b[2J\a\ntwo\x7f")
    assert out.getvalue() == "sample at step 3:\n    one\ufffd[2J\ufffd\n    two\ufffd\n"


def test_the_share_of_a_line_is_that_of_its_speed():
    progress, out = lines()
    with progress:
        for step, speed in ((1, 1000.0), (2, 3000.0)):
            progress.step(step, 3.0, speed, FACTS | {"tokens_per_second": speed, "mfu": speed / 10_000})
        progress.evaluation(2, Evaluation(nats=700.0, tokens=200, text_bytes=800))
    assert "15.0% MFU" in out.getvalue()


def test_no_bar_is_left_behind_the_lines():
    progress, out = lines(terminal=True)
    with progress:
        progress.start(0, 4)
        progress.step(4, 3.0, 1000.0, FACTS)
        progress.note("the end")
    # The last that is done is to delete the bar's line.
    assert out.getvalue().rstrip().endswith("\x1b[2K")


def test_a_terminal_gets_whole_words():
    out = io.StringIO()
    with Progress(Console(file=out, width=60, force_terminal=True, highlight=False)) as progress:
        progress.note("runs/w1: a sentence that is much longer than the sixty columns of a narrow terminal")
    assert out.getvalue().splitlines()[0].rstrip().endswith(" the sixty")


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


def test_a_rate_is_told_and_a_share_of_a_known_peak_alone():
    assert describe(FACTS | {"mfu": 0.412})[:3] == ["1,000 tokens/s", "2 TFLOP/s", "41.2% MFU"]
    assert not any("%" in part for part in describe(FACTS))
    assert describe(FACTS | {"flops_per_second": 1.23e6})[1] == "0.00000123 TFLOP/s"
    assert describe({}) == []


def test_a_terminal_gets_a_bar():
    progress, out = lines(terminal=True)
    with progress:
        progress.start(0, 4)
        progress.step(1, 3.0, 1000.0, FACTS)
        progress.note("[not markup]")
    for part in ("1/4", "loss 3.000", "1,000 tokens/s", "2 TFLOP/s", "3.2 GB", "2 min 05 s left", "[not markup]"):
        assert part in out.getvalue()
