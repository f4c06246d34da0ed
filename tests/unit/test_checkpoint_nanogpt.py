"""nanoGPT's files from when its GELU changed: what is guessed is said."""

import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from gpt2.checkpoint import convert, load
from gpt2.config import GPT2Config
from gpt2.errors import Notice
from tests import layouts
from tests.layouts import random_network, state_of

CONFIG = GPT2Config(vocab_size=50304, n_positions=8, n_embd=8, n_layer=1, n_head=1, activation_function="gelu")


def as_older_pytorch(file: Path) -> Path:
    """The file without what PyTorch 2.1 and later put into it."""
    older = file.with_name("older.pt")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(older, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith("/byteorder"):
                target.writestr(entry, source.read(entry))
    return older


def as_oldest_pytorch(file: Path) -> Path:
    older = file.with_name("oldest.pt")
    torch.save(torch.load(file, weights_only=True), older, _use_new_zipfile_serialization=False)
    return older


@pytest.mark.parametrize("rewrite", [as_older_pytorch, as_oldest_pytorch])
def test_a_file_that_may_be_from_early_2023_says_what_was_guessed(tmp_path, rewrite) -> None:
    state = state_of(random_network(CONFIG))
    file = rewrite(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, CONFIG))
    with pytest.warns(Notice, match="does not say which GELU") as caught:
        model = load(file)
    assert len(caught) == 1
    assert model.config.activation_function == "gelu"
    # What the notice advises works.
    assert "set activation_function to gelu_new in config.json" in str(caught[0].message)
    convert(model, "hf", tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"activation_function": "gelu_new"}))
    assert load(tmp_path / "out").config.activation_function == "gelu_new"


def test_other_files_say_nothing(tmp_path) -> None:
    state = state_of(random_network(CONFIG))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, CONFIG)).config.activation_function == "gelu"
        old = as_older_pytorch(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, CONFIG, bias=None))
        assert load(old).config.activation_function == "gelu_new"
