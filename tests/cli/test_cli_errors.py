"""Mistakes: one line on stderr, the right exit code, no traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'. See `gpt2 --help`."),
        (["generate", "--colour", "red"], "No such option: --colour"),
        (["generate", "x", "--temperature", "hot"], "--temperature"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "x", "--top-p", "2"], "top_p is 2.0"),
        (["generate", "x", "--max-tokens", "-1"], "max_tokens is -1"),
        (["generate", "x", "--logit-bias", "five=1"], "--logit-bias is 'five=1'"),
        (["generate", "x", "--logprobs", "2"], "with --json only"),
        (["generate", "x", "--prompts", "file.txt"], "not both"),
        (["generate", "--prompts", "/nowhere/file.txt"], "/nowhere/file.txt: No such file"),
        (["generate", "x", "--model", "no-such-model"], "There is no model 'no-such-model'"),
        (["generate", "x", "--model", "./no/such/folder"], "There is no file or folder"),
        (["generate", "x", "--device", "cuda:77"], "cuda:77"),
        (["generate", "x", "--dtype", "float8"], "--dtype"),
        (["generate", "x", "--threads", "100000"], "--threads is 100000"),
        (["next"], "prompt"),
        (["tokenize"], "Give a text"),
        (["tokenize", "--decode", "one two"], "--decode expects token ids"),
        (["tokenize", "--decode", "60000"], "60000"),
        (["tokenizer", "train", "/nowhere", "--vocab-size", "300", "--out", "x"], "is no file and no folder"),
        (["convert", "./nowhere", "--to", "hf", "--out", "x"], "There is no file or folder"),
        (["convert", "./nowhere", "--to", "msword", "--out", "x"], "--to"),
        (["train"], "Give text files"),
        (["train", "/nowhere"], "is no file and no folder"),
        (["train", "x.txt", "--recipe", "cake"], "no recipe called 'cake'"),
        (["train", "x.txt", "--n-head", "5"], "n_head"),
        (["train", "x.txt", "--seed", str(2**64)], f"seed is {2**64}, but it must be below 2**64"),
        (["train", "x.txt", "--n-embd", "6000000"], "GB for weights, gradients and optimiser"),
        (["train", "--resume", "/nowhere"], "is no run folder"),
        (["train", "x.txt", "--resume", "run", "--n-layer", "2"], "leave out --n-layer, DATA"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(gpt2, model_path, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments and arguments[0] in ("generate", "next"):
        arguments = [*arguments, "--model", model_path]
    answer = gpt2(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert answer.err.startswith("gpt2: ")
    assert answer.err.count("\n") == 1


def test_our_own_fault_is_exit_code_1_and_debug_shows_where(gpt2, monkeypatch, model_path):
    def broken(*_, **__):
        raise RuntimeError("something\nof ours")

    monkeypatch.setattr("gpt2.checkpoint.load", broken)
    answer = gpt2("generate", "x", "--model", model_path)
    assert answer.code == 1
    assert answer.err == "gpt2: RuntimeError: something of ours (our fault; --debug shows where)\n"
    long = "g++ said: " + "no " * 100_000
    monkeypatch.setattr("gpt2.checkpoint.load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(long)))
    assert len(gpt2("generate", "x", "--model", model_path).err) < 400
    monkeypatch.setattr("gpt2.checkpoint.load", broken)
    with pytest.raises(RuntimeError, match="of ours"):
        gpt2("generate", "x", "--model", model_path, "--debug")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["generate", "--nope"], ["train", "--steps", "x"], ["--version"]]
)
def test_help_and_wrong_flags_do_not_import_torch(arguments):
    script = (
        "import sys\nfrom gpt2.cli import run\ncode = run(sys.argv[1:])\n"
        "bad = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr
    assert done.returncode == (2 if "--nope" in arguments or "x" in arguments else 0)


def test_no_command_shows_the_help(gpt2):
    answer = gpt2()
    assert answer.code == 2
    assert "Commands:" in answer.err


def test_every_command_has_help(gpt2):
    for command in ("generate", "next", "tokenize", "tokenizer", "models", "convert", "train"):
        answer = gpt2(command, "--help")
        assert answer.code == 0
        assert "Usage: gpt2 " + command in answer.out
