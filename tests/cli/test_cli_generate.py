"""`gpt2 generate` and `gpt2 next`: what is printed is what the Python API gives."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from gpt2.checkpoint import load
from gpt2.errors import Error
from gpt2.generation import generate, next_tokens, rows


def test_the_text_follows_the_prompt(gpt2, model_path):
    expected = generate(load(model_path), "ab", max_tokens=12, seed=3).text
    answer = gpt2("generate", "ab", "--model", model_path, "--max-tokens", "12", "--seed", "3")
    assert answer.code == 0
    assert answer.out == "ab" + expected + "\n"
    assert (
        gpt2("generate", "ab", "--no-echo", "--model", model_path, "--max-tokens", 12, "--seed", 3).out
        == expected + "\n"
    )


def test_json_has_the_stable_fields(gpt2, model_path):
    answer = gpt2("generate", "ab", "--model", model_path, "--max-tokens", 5, "--seed", 3, "--json", "--logprobs", 2)
    expected = generate(load(model_path), "ab", max_tokens=5, seed=3, logprobs=2)
    assert answer.err == ""
    assert answer.json["text"] == expected.text
    assert answer.json["ids"] == expected.ids
    assert answer.json["finish_reason"] == expected.finish_reason
    assert answer.json["seed"] == 3
    assert [each["id"] for each in answer.json["logprobs"]] == expected.ids
    assert all(len(each["top"]) == 2 for each in answer.json["logprobs"])
    assert gpt2("generate", "ab", "--model", model_path, "--max-tokens", 1, "--json").json["logprobs"] is None


def test_a_file_of_prompts_is_a_batch(gpt2, model_path, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\nthree is longer\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": ""}\n{"prompt": "three is longer"}\n')
    flags = ("--model", model_path, "--max-tokens", 6, "--seed", 1, "--json")
    answers = [gpt2("generate", "--prompts", tmp_path / name, *flags).json for name in ("prompts.txt", "prompts.jsonl")]
    assert answers[0] == answers[1]
    assert [each["prompt"] for each in answers[0]] == ["one", "", "three is longer"]
    alone = gpt2("generate", "three is longer", *flags).json
    assert answers[0][2] == alone


def test_samples_use_the_seeds_that_follow(gpt2, model_path):
    flags = ("--model", model_path, "--max-tokens", 6, "--json")
    several = gpt2("generate", "ab", "--n", 3, "--seed", 5, *flags).json
    assert [each["seed"] for each in several] == [5, 6, 7]
    assert several[2] == gpt2("generate", "ab", "--seed", 7, *flags).json
    plain = gpt2("generate", "ab", "--n", 2, "--seed", 5, "--model", model_path, "--max-tokens", 6).out
    assert "--- 1 (seed 5)" in plain
    assert "--- 2 (seed 6)" in plain


def test_standard_input_loses_one_line_end(gpt2, model_path):
    flags = ("--model", model_path, "--max-tokens", 4, "--seed", 1, "--json")
    assert gpt2("generate", "-", *flags, stdin=b"ab\n").json == gpt2("generate", "ab", *flags).json
    assert gpt2("generate", "-", *flags, stdin=b"ab\n\n").json["prompt"] == "ab\n"
    bad = gpt2("generate", "-", *flags, stdin=b"ab\xff")
    assert bad.code == 2
    assert "Standard input is not UTF-8 text: byte 2 is 0xff" in bad.err


def test_output_goes_to_a_file(gpt2, model_path, tmp_path):
    flags = ("--model", model_path, "--max-tokens", 4, "--seed", 1)
    assert gpt2("generate", "ab", *flags, "--out", tmp_path / "a.txt").out == ""
    assert (tmp_path / "a.txt").read_text() == gpt2("generate", "ab", *flags).out
    gpt2("generate", "ab", *flags, "--json", "--out", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["prompt"] == "ab"


def test_a_bad_option_does_not_empty_the_output_file(gpt2, model_path, tmp_path):
    (tmp_path / "a.txt").write_text("precious")
    answer = gpt2("generate", "ab", "--top-p", "7", "--model", model_path, "--out", tmp_path / "a.txt")
    assert answer.code == 2
    assert (tmp_path / "a.txt").read_text() == "precious"


def test_a_window_that_slides_says_so_once_on_stderr(gpt2, model_path):
    flags = ("--model", model_path, "--max-tokens", 100, "--seed", 1, "--logit-bias", "256=-100")
    answer = gpt2("generate", "ab", *flags)
    assert answer.code == 0
    assert answer.err.count("gpt2: note: The text outgrew") == answer.err.count("\n") == 1
    refused = gpt2("generate", "ab", "--model", model_path, "--max-tokens", 100, "--overflow", "error")
    assert refused.code == 2


def test_an_argument_that_is_no_text_is_refused(gpt2, model_path):
    answer = gpt2("generate", "a\udcff", "--model", model_path)
    assert answer.code == 2
    assert "surrogate" in answer.err


def test_next_shows_the_models_own_probabilities(gpt2, model_path):
    expected = next_tokens(load(model_path), "ab", 4)
    candidates = gpt2("next", "ab", "--model", model_path, "-n", 4, "--json").json["candidates"]
    assert [each["id"] for each in candidates] == [each.id for each in expected]
    assert [each["probability"] for each in candidates] == pytest.approx([each.probability for each in expected])
    table = gpt2("next", "ab", "--model", model_path, "-n", 4).out
    assert f"{expected[0].probability:.2%}" in table
    assert "█" in table


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_keeps_what_was_written(model_path):
    # Without end of text, which would end it by chance before the interrupt.
    flags = ["--model", model_path, "--max-tokens", "1000000", "--top-k", "0", "--logit-bias", "256=-100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2", "generate", "ab", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.read(30)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert first.startswith(b"ab")
    assert rest.endswith(b"\n")
    assert b"Traceback" not in error
    assert process.returncode == 130


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_reader_that_leaves_is_no_error(model_path):
    command = f"{sys.executable} -m gpt2 generate ab --model {model_path} --max-tokens 3000 --top-k 0 | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=True)
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_on_a_batch_keeps_the_answers_that_had_finished(model_path, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\n" * 65)  # one more than run side by side: the last waits for the others
    script = f"""
import sys, _thread
import gpt2.generation.api as api
from gpt2.cli import run
real, seen = api._completion, []
def completion(*arguments, **options):
    seen.append(1)
    if len(seen) == 65:
        raise KeyboardInterrupt
    return real(*arguments, **options)
api._completion = completion
flags = ["--model", {model_path!r}, "--max-tokens", "2", "--json"]
sys.exit(run(["generate", "--prompts", {str(tmp_path / "prompts.txt")!r}, *flags]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert len(json.loads(done.stdout)) == 64


INTERRUPTED = """
import sys
import gpt2.generation.rows as rows
from gpt2.cli import run
real, calls = rows.draw, []
def draw(*arguments):
    calls.append(1)
    if len(calls) == 3:
        raise KeyboardInterrupt
    return real(*arguments)
rows.draw = draw
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_before_any_answer_prints_no_json(model_path):
    flags = ["generate", "ab", "--model", model_path, "--logit-bias", "256=-100", "--json"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *flags], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("more", [[], ["--json"], ["--n", "2"]])
def test_ctrl_c_says_that_the_file_is_not_whole(model_path, tmp_path, more):
    out = str(tmp_path / "a.txt")
    flags = ["generate", "ab", "--model", model_path, "--logit-bias", "256=-100", "--out", out, *more]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == f"gpt2: note: {out} is not whole: it ends where Ctrl-C came.\n"


def test_a_note_stands_behind_the_text_and_not_in_it(model_path):
    flags = ["generate", "ab", "--model", model_path, "--max-tokens", "60", "--seed", "1", "--logit-bias", "256=-100"]
    command = [sys.executable, "-m", "gpt2", *flags]
    both = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout
    alone = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    assert both.startswith(alone)
    assert both[len(alone) :].startswith(b"gpt2: note: The text outgrew")


def test_texts_that_fail_in_a_batch_are_told(gpt2, model_path, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("ab\ncd\nef\n")
    flags = ("generate", "--prompts", tmp_path / "prompts.txt", "--model", model_path, "--max-tokens", 3, "--json")
    whole = gpt2(*flags, "--seed", 1).json
    real = rows.draw

    def draw(logits, places, requests, vocabulary):
        choices = real(logits, places, requests, vocabulary)
        return [Error("odd") if request.row == 1 else each for each, request in zip(choices, requests, strict=True)]

    monkeypatch.setattr(rows, "draw", draw)
    answer = gpt2(*flags, "--seed", 1)
    assert answer.code == 2
    assert answer.err == "gpt2: 1 of 3 texts failed; number 2: odd\n"
    assert [each["finish_reason"] == "error" for each in answer.json] == [False, True, False]
    assert (answer.json[0], answer.json[2]) == (whole[0], whole[2])
    alone = gpt2("generate", "ab", "--n", 2, "--model", model_path)
    assert alone.code == 2


def test_guesses_change_nothing_and_are_told(gpt2, model_path):
    flags = ("generate", "abcabcabcabc", "--model", model_path, "--max-tokens", 15, "--temperature", 0)
    plain = gpt2(*flags)
    for more in (["--lookup"], ["--draft", model_path]):
        guessed = gpt2(*flags, *more)
        assert (guessed.code, guessed.out) == (0, plain.out)
    assert re.fullmatch(r"gpt2: note: (\d+) of \1 guessed tokens held \(100%\)\n", guessed.err)
    both = gpt2(*flags, "--lookup", "--draft", model_path)
    assert both.code == 2
    assert "not both" in both.err


def test_files_from_windows(gpt2, model_path, tmp_path):
    (tmp_path / "plain.txt").write_bytes(b"one\r\ntwo\r\n")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two"}\r\n')
    for name in ("plain.txt", "marked.txt", "marked.jsonl"):
        answer = gpt2("generate", "--prompts", tmp_path / name, "--model", model_path, "--max-tokens", 1, "--json")
        assert [each["prompt"] for each in answer.json] == ["one", "two"]


def test_an_output_file_that_cannot_be_opened_costs_no_work(gpt2, model_path, tmp_path):
    answer = gpt2("generate", "ab", "--model", model_path, "--out", tmp_path / "nowhere" / "a.txt")
    assert answer.code == 2
    assert "No such file or directory" in answer.err


def test_an_empty_model_name_is_not_the_default(gpt2):
    answer = gpt2("generate", "ab", "--model", "")
    assert answer.code == 2


def test_json_is_utf8_whatever_the_locale(model_path):
    command = [sys.executable, "-m", "gpt2", "tokenize", "--json", "naïve 日本 🙂"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True)
    assert "".join(json.loads(done.stdout.decode())["tokens"]).startswith("naïve")
