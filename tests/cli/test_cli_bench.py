"""`gpt2 bench`: one JSON line with stable names, or a small table."""

import pytest

from gpt2.config import SIZES, GPT2Config, Size


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_one_line_of_json(gpt2, model_path, dtype):
    arguments = ["--prompt", "8", "--tokens", "8", "--repeats", "1", "--threads", "1"]
    answer = gpt2("bench", "--model", model_path, "--dtype", dtype, *arguments, "--json")
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    document = answer.json
    for name in ("decode_tokens_per_second", "prefill_tokens_per_second", "ceiling_share", "read_bytes_per_second"):
        assert document[name] > 0, name
    assert (document["dtype"], document["prompt"], document["tokens"]) == (dtype, 8, 8)
    assert document["threads"] == 1
    assert document["runner"] in ("native", "compiled", "plain", "aten")
    share = document["decode_tokens_per_second"] * document["weight_bytes"] / document["read_bytes_per_second"]
    assert document["ceiling_share"] == pytest.approx(share)
    assert document["machine"]["cores"] >= 1


def test_a_small_table(gpt2, model_path):
    answer = gpt2("bench", "--model", model_path, "--prompt", "4", "--tokens", "4", "--repeats", "1", "--no-compile")
    assert answer.code == 0
    # Wherever a line was broken: the model's path may be long, and so may a rate.
    said = " ".join(answer.out.split())
    assert "runner plain" in said
    for word in ("decode", "prefill", "of the memory limit"):
        assert word in said


def test_random_weights_of_a_named_size(gpt2, monkeypatch):
    small = Size(GPT2Config(n_layer=1, n_embd=64, n_head=2, n_positions=64), "small")
    monkeypatch.setattr("gpt2.cli.bench.SIZES", {**SIZES, "gpt2": small})
    answer = gpt2("bench", "--random", "gpt2", "--dtype", "bfloat16", "--tokens", "4", "--repeats", "1", "--json")
    assert answer.code == 0
    assert answer.json["model"] == "random gpt2"
    assert answer.json["dtype"] == "bfloat16"


def test_what_cannot_be_measured_is_told(gpt2, model_path):
    assert gpt2("bench", "--model", model_path, "--random", "gpt2").code == 2
    answer = gpt2("bench", "--model", model_path, "--tokens", "100")
    assert answer.code == 2
    assert "window of 32" in answer.err
    assert gpt2("bench", "--random", "gpt3").code == 2
