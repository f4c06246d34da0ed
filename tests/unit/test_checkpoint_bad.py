"""Damaged and contradictory checkpoints: each is a BadCheckpoint that names the file and the tensor."""

import json
import os
import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.checkpoint import LanguageModel, load, read_directory, write_directory
from gpt2.config import GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, BadTokenizer, Notice
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer, write_tokenizer
from tests import layouts
from tests.layouts import TINY, State, hub_state, random_network, small_tokenizer, state_of, write_hub


@pytest.fixture
def named() -> State:
    return hub_state(state_of(random_network()), TINY)


def bad(path: Path, *words: str) -> str:
    """The one-line message with which a folder is refused; every word must be in it."""
    with pytest.raises(BadCheckpoint) as caught:
        read_directory(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


def test_a_missing_tensor(named: State, tmp_path: Path) -> None:
    del named["transformer.h.1.mlp.c_proj.bias"]
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, str(tmp_path / "model.safetensors"), "h.1.mlp.c_proj.bias", "missing")


def test_several_missing_tensors_are_counted(named: State, tmp_path: Path) -> None:
    del named["transformer.h.1.mlp.c_proj.bias"], named["transformer.wpe.weight"]
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, "h.1.mlp.c_proj.bias", "1 more", "wpe.weight")


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_hub(tmp_path, {}, TINY)
    bad(tmp_path, str(tmp_path), "missing")


def test_an_unknown_tensor(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named | {"transformer.h.0.attn.q_norm.weight": torch.ones(4)}, TINY)
    bad(tmp_path, "model.safetensors", "transformer.h.0.attn.q_norm.weight", "no GPT-2 has")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("score.weight", "sequence classifier"),
        ("classifier.bias", "token classifier"),
        ("v_head.summary.weight", "value head"),
        ("transformer.h.0.crossattention.c_attn.weight", "encoder"),
        ("transformer.h.0.attn.c_attn.lora_A.default.weight", "LoRA"),
        ("transformer.h.0.attn.c_attn.qweight", "quantised"),
    ],
)
def test_strangers_are_introduced(named: State, name: str, meaning: str, tmp_path: Path) -> None:
    write_hub(tmp_path, named | {name: torch.ones(4)}, TINY)
    bad(tmp_path, "model.safetensors", name, meaning)


def test_the_same_tensor_twice(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named | {"wte.weight": named["transformer.wte.weight"]}, TINY)
    bad(tmp_path, "model.safetensors", "transformer.wte.weight", "only one")


def test_a_head_that_is_not_tied(named: State, tmp_path: Path) -> None:
    head = named["transformer.wte.weight"].clone()
    head[7, 3] += 1e-3
    write_hub(tmp_path, named | {"lm_head.weight": head}, TINY)
    bad(tmp_path, "model.safetensors", "lm_head.weight", "not tied")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_no_numbers(named: State, value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    named = {name: tensor.to(dtype) for name, tensor in named.items()}
    named["transformer.h.1.attn.c_attn.weight"][2, 5] = value
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, "model.safetensors", "transformer.h.1.attn.c_attn.weight", str(value), f"element {2 * 96 + 5}")


def test_large_numbers_are_no_damage(named: State, tmp_path: Path) -> None:
    # Their sum overflows float16, which a check by sums would take for infinity.
    named = {name: tensor.half() for name, tensor in named.items()}
    named["transformer.wpe.weight"][:] = 60000.0
    write_hub(tmp_path, named, TINY)
    assert load(tmp_path).network.wpe.weight[3, 3] == 60000.0


def test_packed_numbers(named: State, tmp_path: Path) -> None:
    named["transformer.h.0.mlp.c_fc.weight"] = torch.ones(32, 128, dtype=torch.int8)
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, "model.safetensors", "transformer.h.0.mlp.c_fc.weight", "int8")


@pytest.mark.parametrize(
    ("changes", "key", "tensor"),
    [
        ({"vocab_size": 301}, "vocab_size", "wte.weight"),
        ({"n_positions": 17}, "n_positions", "wpe.weight"),
        ({"n_embd": 64}, "n_embd", "weight"),
        ({"n_inner": 96}, "n_inner", "mlp.c_fc"),
        ({"n_layer": 3}, "n_layer = 3", "h.1."),
        ({"n_layer": 1}, "n_layer = 1", "h.1."),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    named: State, changes: dict[str, Any], key: str, tensor: str, tmp_path: Path
) -> None:
    write_hub(tmp_path, named, TINY, **changes)
    bad(tmp_path, str(tmp_path / "config.json"), key, tensor, "model.safetensors")


def test_a_tensor_of_another_shape(named: State, tmp_path: Path) -> None:
    named["transformer.h.1.ln_2.weight"] = torch.ones(31)
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, "model.safetensors", "transformer.h.1.ln_2.weight", "(31,)", "(32,)")


def test_a_tensor_of_another_rank(named: State, tmp_path: Path) -> None:
    named["transformer.h.1.ln_2.weight"] = torch.ones(1, 32)
    write_hub(tmp_path, named, TINY)
    bad(tmp_path, "transformer.h.1.ln_2.weight", "(1, 32)", "(32,)")


def test_transposed_projections(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, layouts.linear(named), TINY)
    bad(tmp_path, "model.safetensors", "c_attn.weight", "transpose")


def test_a_truncated_file_names_the_tensor_it_ends_in(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named, TINY)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    # safetensors puts tensors in the order of their names here, so the last one is the position embedding.
    bad(
        tmp_path,
        str(file),
        "cut short",
        "transformer.wte.weight" if _last(whole) == "wte" else "transformer.wpe.weight",
    )
    for length in (0, 5, 8, 60, 5000, len(whole) // 2):
        file.write_bytes(whole[:length])
        message = bad(tmp_path, str(file))
        assert length < 60 or "cut short" in message


def _last(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return str(max(header, key=lambda name: header[name]["data_offsets"][1])).split(".")[-2]


@pytest.mark.parametrize("junk", [b"\xff" * 64, b"<html>not found</html>" * 9, b"PK\x03\x04" + b"\0" * 50])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_files_of_something_else(named: State, junk: bytes, name: str, tmp_path: Path) -> None:
    write_hub(tmp_path, named, TINY)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(junk)
    bad(tmp_path, str(tmp_path / name))


def test_a_truncated_pickle(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named, TINY, kind="bin")
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-3000])
    bad(tmp_path, str(file))


def test_a_pointer_instead_of_weights(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named, TINY)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    bad(tmp_path, "model.safetensors", "git lfs pull")


class Evil:
    """Runs a command of its choice when Python unpickles it."""

    def __init__(self, command: Callable[..., Any], argument: str) -> None:
        self.what = (command, (argument,))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.what


# PyTorch remarks on the pickle's protocol, on its way to refusing it.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("command", [os.system, os.mkdir, subprocess.getoutput, eval])
@pytest.mark.parametrize("form", ["bin", "old bin", "plain pickle", "nanoGPT"])
def test_a_pickle_that_wants_to_run_code(named: State, command: Callable[..., Any], form: str, tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    argument = {"mkdir": str(trace), "eval": f"__import__('os').mkdir({str(trace)!r})"}.get(
        command.__name__, f"touch {trace}"
    )
    evil = {**named, "payload": Evil(command, argument)}
    folder = tmp_path / "model"
    write_hub(folder, named, TINY, kind="bin")
    file = folder / "pytorch_model.bin"
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(evil))
    elif form == "nanoGPT":
        file = folder / "ckpt.pt"
        torch.save({"model": evil, "model_args": {}}, file)
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=form == "bin")
    with pytest.raises(BadCheckpoint, match=re.escape(str(file))) as caught:
        load(file if form == "nanoGPT" else folder)
    assert not trace.exists()
    assert "code" in str(caught.value)
    if form != "plain pickle":
        assert command.__name__ in str(caught.value)
    # The trap is real: Python's own unpickling springs it.
    pickle.loads(pickle.dumps(Evil(command, argument)))
    assert trace.exists()


def test_a_pickle_of_something_else(named: State, tmp_path: Path) -> None:
    write_hub(tmp_path, named, TINY, kind="bin")
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    bad(tmp_path, "pytorch_model.bin", "list")
    torch.save({"transformer.wte.weight": "words"}, tmp_path / "pytorch_model.bin")
    bad(tmp_path, "pytorch_model.bin", "transformer.wte.weight", "str")


class TestShards:
    def test_a_shard_that_is_not_there(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY, shards=3)
        (tmp_path / "model-00002-of-00003.safetensors").unlink()
        bad(tmp_path, "model.safetensors.index.json", "model-00002-of-00003.safetensors", "transformer.")

    def test_a_shard_without_a_tensor_that_the_index_names(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY, shards=2)
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        index["weight_map"]["transformer.h.7.ln_1.bias"] = "model-00001-of-00002.safetensors"
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        bad(tmp_path, "model-00001-of-00002.safetensors", "transformer.h.7.ln_1.bias")

    @pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "", "..", 3, "a/b"])
    def test_an_index_that_points_elsewhere(self, named: State, file: Any, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY, shards=2)
        index = {"weight_map": {"transformer.wte.weight": file}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        bad(tmp_path, "model.safetensors.index.json", "transformer.wte.weight", "no file name")

    @pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
    def test_a_broken_index(self, named: State, text: str, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY, shards=2)
        (tmp_path / "model.safetensors.index.json").write_text(text)
        bad(tmp_path, "model.safetensors.index.json")


class TestFolders:
    def test_without_a_config(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        (tmp_path / "config.json").unlink()
        bad(tmp_path, str(tmp_path), "config.json")

    def test_without_weights(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        (tmp_path / "model.safetensors").unlink()
        bad(tmp_path, str(tmp_path), "model.safetensors", "pytorch_model.bin")

    @pytest.mark.parametrize(
        ("file", "word"),
        [("adapter_model.safetensors", "LoRA"), ("tf_model.h5", "Keras"), ("flax_model.msgpack", "Flax")],
    )
    def test_with_other_weights(self, named: State, file: str, word: str, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        (tmp_path / "model.safetensors").rename(tmp_path / file)
        bad(tmp_path, file, word)

    def test_without_a_tokenizer(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        for file in ("tokenizer.json", "vocab.json", "merges.txt"):
            (tmp_path / file).unlink()
        with pytest.raises(BadTokenizer, match=r"tokenizer\.json.*300"):
            read_directory(tmp_path)

    def test_without_a_tokenizer_but_with_gpt2s_vocabulary(self, tmp_path: Path) -> None:
        config = GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=1)
        write_hub(tmp_path, hub_state(state_of(random_network(config)), config), config)
        for file in ("tokenizer.json", "vocab.json", "merges.txt"):
            (tmp_path / file).unlink()
        with pytest.warns(Notice, match=r"no tokenizer files.*GPT-2's own"):
            _, tokenizer = read_directory(tmp_path)
        assert tokenizer == Tokenizer.gpt2()

    def test_a_tokenizer_larger_than_the_embedding(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY, tokenizer=Tokenizer.gpt2())
        with pytest.raises(BadTokenizer, match=r"50257 tokens.*wte\.weight.*300 rows"):
            read_directory(tmp_path)

    def test_a_tokenizer_smaller_than_the_embedding_is_fine(self, tmp_path: Path) -> None:
        config = GPT2Config(vocab_size=320, n_positions=16, n_embd=16, n_layer=1, n_head=1)
        write_hub(tmp_path, hub_state(state_of(random_network(config)), config), config)
        assert load(tmp_path).tokenizer.vocab_size == 300

    def test_a_broken_tokenizer(self, named: State, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(BadTokenizer, match=r"tokenizer\.json"):
            read_directory(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"model_type": "gpt_neox"}, "model_type"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings"),
            ({"activation_function": "mish"}, "mish"),
            ({"n_head": 5}, "n_head"),
        ],
    )
    def test_a_config_that_is_not_honoured(
        self, named: State, changes: dict[str, Any], word: str, tmp_path: Path
    ) -> None:
        write_hub(tmp_path, named, TINY, **changes)
        bad(tmp_path, "config.json", word)

    @pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"{"])
    def test_a_config_that_is_none(self, named: State, data: bytes, tmp_path: Path) -> None:
        write_hub(tmp_path, named, TINY)
        (tmp_path / "config.json").write_bytes(data)
        bad(tmp_path, str(tmp_path / "config.json"))


class TestOneFile:
    """nanoGPT's and llm.c's files."""

    def test_nanogpt_of_another_vocabulary(self, tmp_path: Path) -> None:
        file = layouts.write_nanogpt(tmp_path / "ckpt.pt", state_of(random_network()), TINY)
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": {}}))
        with pytest.raises(BadTokenizer, match=r"ckpt\.pt.*300.*meta\.pkl.*not opened"):
            load(file)

    def test_nanogpt_without_a_tensor(self, tmp_path: Path) -> None:
        state = state_of(random_network())
        del state["h.1.ln_2.bias"]
        with pytest.raises(BadCheckpoint, match=r"h\.1\.ln_2\.bias.*ckpt\.pt"):
            load(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, TINY))

    def test_nanogpt_that_says_otherwise(self, tmp_path: Path) -> None:
        state = state_of(random_network())
        other = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=3, n_head=2)
        with pytest.raises(BadCheckpoint, match=r"model_args.*n_layer = 3.*2 layers"):
            load(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, other))

    @pytest.mark.parametrize(
        "content",
        [
            {"model": 3},
            [],
            {"model": {}, "model_args": {}},
            {"model": {}},
            {
                "model": {},
                "model_args": dict.fromkeys(["n_layer", "n_head", "n_embd", "block_size", "vocab_size"], "x"),
            },
            {"model": {}, "model_args": dict.fromkeys(["n_layer", "n_head", "n_embd", "block_size", "vocab_size"], 3)},
        ],
    )
    def test_other_pickles(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "ckpt.pt")
        with pytest.raises(BadCheckpoint, match=r"ckpt\.pt"):
            load(tmp_path / "ckpt.pt")

    def test_llmc_cut_short_or_too_long(self, tmp_path: Path) -> None:
        file = layouts.write_llmc(tmp_path / "m.bin", state_of(random_network()), TINY)
        whole = file.read_bytes()
        for length, word in ((len(whole) - 4, "ln_f.bias"), (1024 + 384 * 32 * 4, "wpe.weight"), (700, "header")):
            file.write_bytes(whole[:length])
            with pytest.raises(BadCheckpoint, match=rf"m\.bin is cut short.*{word}"):
                load(file)
        file.write_bytes(whole + b"\0\0\0\0")
        with pytest.raises(BadCheckpoint, match=rf"{len(whole) + 4} bytes.*must have {len(whole)}"):
            load(file)

    @pytest.mark.parametrize(
        ("place", "value", "word"),
        [(1, 1, "version 1"), (3, -5, "vocab_size"), (7, 10, "padding"), (5, 3, "n_head"), (4, 0, "n_layer")],
    )
    def test_llmc_with_another_header(self, place: int, value: int, word: str, tmp_path: Path) -> None:
        file = layouts.write_llmc(tmp_path / "m.bin", state_of(random_network()), TINY)
        data = bytearray(file.read_bytes())
        data[4 * place : 4 * place + 4] = value.to_bytes(4, "little", signed=True)
        file.write_bytes(data)
        with pytest.raises(BadCheckpoint, match=rf"m\.bin.*{word}"):
            load(file)

    def test_llmc_of_another_vocabulary(self, tmp_path: Path) -> None:
        with pytest.raises(BadTokenizer, match=r"m\.bin.*300.*beside"):
            load(layouts.write_llmc(tmp_path / "m.bin", state_of(random_network()), TINY))

    def test_llmc_with_nan(self, tmp_path: Path) -> None:
        state = state_of(random_network())
        state["h.0.mlp.c_fc.bias"][3] = float("nan")
        write_tokenizer(small_tokenizer(), tmp_path)
        with pytest.raises(BadCheckpoint, match=r"m\.bin: h\.0\.mlp\.c_fc\.bias holds nan"):
            load(layouts.write_llmc(tmp_path / "m.bin", state, TINY))


class TestWriting:
    def test_a_tokenizer_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(BadTokenizer, match="50257"):
            write_directory(random_network(), Tokenizer.gpt2(), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_a_dtype_that_nobody_reads(self, tmp_path: Path) -> None:
        with pytest.raises(BadOption, match="int8"):
            write_directory(random_network(), small_tokenizer(), tmp_path / "out", dtype=torch.int8)
        assert not list(tmp_path.iterdir())

    def test_a_failure_leaves_the_old_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_directory(random_network(), small_tokenizer(), tmp_path / "out")
        before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

        def fail(*_: object, **__: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("safetensors.torch.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            write_directory(random_network(seed=9), small_tokenizer(), tmp_path / "out")
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_it_can_be_written_over_its_own_source(self, tmp_path: Path) -> None:
        write_directory(random_network(), small_tokenizer(), tmp_path / "out")
        model = load(tmp_path / "out")
        before = state_of(model.network)
        write_directory(model.network, model.tokenizer, tmp_path / "out")
        assert isinstance(model, LanguageModel)
        for network in (model.network, load(tmp_path / "out").network):
            assert isinstance(network, GPT2)
            assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
