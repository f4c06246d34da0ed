"""`gpt2 models`, `gpt2 convert` and `gpt2 train` from the command line."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpt2.checkpoint import load

COUNTS = {"gpt2": 124439808, "gpt2-medium": 354823168, "gpt2-large": 774030080, "gpt2-xl": 1557611200}


def test_models_lists_the_four_sizes_with_true_counts(gpt2):
    sizes = {each["name"]: each for each in gpt2("models", "--json").json}
    assert {name: sizes[name]["parameters"] for name in COUNTS} == COUNTS
    assert sizes["gpt2"]["published"] == "117M"
    assert sizes["gpt2"]["parameters_by_part"]["token embedding"] == 38597376
    table = gpt2("models", "--parts").out
    assert all(f"{count:,}" in table for count in COUNTS.values())
    assert "38.6  31%" in table


def test_convert_writes_what_transformers_reads(gpt2, model_path, tmp_path):
    out = tmp_path / "out"
    assert gpt2("convert", model_path, "--to", "hf", "--out", out, "--dtype", "bfloat16").code == 0
    peer = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(peer(ids).logits, load(str(out)).network(ids), rtol=0, atol=1e-4)
    again = gpt2("convert", model_path, "--to", "hf", "--out", out)
    assert again.code == 2
    assert gpt2("convert", model_path, "--to", "hf", "--out", out, "--force").code == 0


def test_an_unwritable_place_is_named_and_no_temporary_one(gpt2, model_path, tmp_path, monkeypatch):
    def refused(*, prefix, suffix, dir):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}abc{suffix}")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    answer = gpt2("convert", model_path, "--to", "hf", "--out", tmp_path / "out")
    assert answer.code == 2
    assert answer.err == f"gpt2: {tmp_path / 'out'} cannot be written: Permission denied. Choose another place.\n"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    answer = gpt2("convert", model_path, "--to", "hf", "--out", tmp_path / "file" / "out")
    assert answer.code == 2
    assert f"{tmp_path / 'file' / 'out'} cannot be written" in answer.err


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return file


SMALL = ("--n-layer", 1, "--n-head", 1, "--n-embd", 16, "--context", 16, "--vocab-size", 270, "--batch-size", 2)


def test_train_then_generate(gpt2, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = gpt2("train", text, "--out", "run", *SMALL, "--steps", 4, "--eval-every", 2)
    assert answer.code == 0
    assert "bits/byte" in answer.err
    assert "gpt2 generate --model ./run" in answer.out
    assert gpt2("generate", "the", "--model", "./run", "--max-tokens", 3).code == 0
    longer = gpt2("train", "--resume", "run", "--steps", 6, "--json").json
    assert longer["step"] == 6
    assert longer["validation_bits_per_byte"] > 0


def test_a_finished_run_that_is_resumed_reports_its_losses(gpt2, text, tmp_path):
    first = gpt2("train", text, "--out", tmp_path / "run", *SMALL, "--steps", 2, "--json").json
    again = gpt2("train", "--resume", tmp_path / "run", "--json").json
    assert again["train_loss"] == first["train_loss"]
    assert again["validation_loss"] == pytest.approx(first["validation_loss"])
    assert again["validation_bits_per_byte"] == pytest.approx(first["validation_bits_per_byte"])


def test_a_recipe_with_an_unknown_key_is_named(gpt2, text, tmp_path):
    (tmp_path / "mine.toml").write_text("n_layer = 3\nwings = 2\n")
    answer = gpt2("train", text, "--out", tmp_path / "run", "--recipe", tmp_path / "mine.toml", *SMALL)
    assert answer.code == 2
    assert f"{tmp_path / 'mine.toml'} sets wings" in answer.err
    assert "command line" not in answer.err


def test_the_largest_seed_trains(gpt2, text, tmp_path):
    assert gpt2("train", text, "--out", tmp_path / "run", *SMALL, "--steps", 1, "--seed", 2**64 - 1).code == 0


def test_flags_win_over_the_recipe(gpt2, text, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("n_layer = 3\nsteps = 2\nseed = 9\n")
    gpt2("train", text, "--out", tmp_path / "run", "--recipe", recipe, *SMALL)
    resolved = (tmp_path / "run" / "recipe.toml").read_text()
    assert "n_layer = 1\n" in resolved
    assert "seed = 9\n" in resolved
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
