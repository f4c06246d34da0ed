"""Law `save`: what was saved, loaded, exported or brought here, read back by the other program, gives the same logits.

1e-4 absolute in float32. OpenAI's TensorFlow folders are in tests/peers, because TensorFlow is an extra of its own.
"""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from gpt2.checkpoint import LanguageModel, convert, load, read_directory, shipped, write_directory
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from tests import layouts
from tests.helpers import in_its_words
from tests.layouts import TINY, random_network, small_tokenizer, some_ids, state_of

TOLERANCE = 1e-4

SHAPES = {
    "tiny": TINY,
    "one layer, one head": GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=1),
    "odd sizes": GPT2Config(vocab_size=311, n_positions=9, n_embd=15, n_layer=3, n_head=5),
    "Cerebras": GPT2Config(
        vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=2, n_inner=50, activation_function="gelu"
    ),
    "CRFM": GPT2Config(
        vocab_size=300,
        n_positions=16,
        n_embd=32,
        n_layer=3,
        n_head=2,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
    ),
    "unscaled, relu": GPT2Config(
        vocab_size=300,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=4,
        scale_attn_weights=False,
        activation_function="relu",
        layer_norm_epsilon=1e-6,
    ),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def network(request: pytest.FixtureRequest) -> GPT2:
    return random_network(request.param)


def logits_of(network: GPT2) -> Tensor:
    with torch.no_grad():
        return network(some_ids(network.config))


def peer_logits(peer: Any, config: GPT2Config) -> Tensor:
    with torch.no_grad():
        return peer.float().eval()(some_ids(config)).logits


def open_with_transformers(path: Path) -> Any:
    """transformers' model of a folder, which it must find complete."""
    from transformers import AutoModelForCausalLM

    peer, report = AutoModelForCausalLM.from_pretrained(
        path, output_loading_info=True, attn_implementation="eager", local_files_only=True
    )
    assert not any(report.values()), report
    return peer


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    # A trivial network would agree with anything.
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_transformers_reads_what_we_write(network: GPT2, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_directory(network, small_tokenizer(), tmp_path / "model")
    peer = open_with_transformers(tmp_path / "model")
    assert [str(warning.message) for warning in recwarn] == []
    assert peer.dtype == torch.float32
    assert_same(logits_of(network), peer_logits(peer, network.config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_files_hold_the_rounded_weights(network: GPT2, dtype: torch.dtype, tmp_path: Path) -> None:
    write_directory(network, small_tokenizer(), tmp_path / "model", dtype=dtype)
    peer = open_with_transformers(tmp_path / "model")
    assert peer.dtype == dtype
    ours = load(tmp_path / "model").network
    for name, tensor in network.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor.to(dtype).float()), name
    assert_same(logits_of(ours), peer_logits(peer, network.config))


def test_we_read_what_we_write(network: GPT2, tmp_path: Path) -> None:
    write_directory(network, small_tokenizer(), tmp_path / "model")
    again, tokenizer = read_directory(tmp_path / "model")
    assert again.config == network.config
    assert tokenizer == small_tokenizer()
    assert torch.equal(logits_of(again), logits_of(network))


def test_the_files_say_what_others_need(tmp_path: Path) -> None:
    from safetensors import safe_open

    write_directory(random_network(), small_tokenizer(), tmp_path / "model", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 16
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == config["bos_token_id"] == small_tokenizer().end_of_text
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation["eos_token_id"] == small_tokenizer().end_of_text
    with safe_open(tmp_path / "model/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(name.startswith("transformer.") for name in file.keys())  # noqa: SIM118


def test_auto_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_directory(random_network(), small_tokenizer(), tmp_path / "model")
    peer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    for text in ("the cat sat", " on the mat!", "Ünïcode 🙂\n\n\tand spaces  "):
        assert peer(text)["input_ids"] == small_tokenizer().encode(text)
    assert peer.eos_token_id == small_tokenizer().end_of_text


@pytest.mark.parametrize("shard", ["10GB", "10KB"])
def test_we_read_what_transformers_wrote(network: GPT2, shard: str, tmp_path: Path) -> None:
    from gpt2.tokenizer import write_tokenizer

    peer = layouts.peer_model(state_of(network), network.config)
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    write_tokenizer(small_tokenizer(), tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "10KB")
    assert_same(logits_of(load(tmp_path).network), peer_logits(peer, network.config))


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "bare"])
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
@pytest.mark.parametrize("head", ["absent", "tied", "copied"])
@pytest.mark.parametrize(
    ("kind", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3), ("old bin", 1)]
)
def test_every_layout_of_the_hub(
    prefix: bool,
    masks: bool,
    head: Literal["absent", "tied", "copied"],
    kind: Literal["safetensors", "bin", "old bin"],
    shards: int,
    tmp_path: Path,
) -> None:
    state = state_of(random_network())
    named = layouts.hub_state(state, TINY, prefix=prefix, masks=masks, head=head)
    layouts.write_hub(tmp_path, named, TINY, kind=kind, shards=shards)
    ours = load(tmp_path).network
    assert_same(logits_of(ours), peer_logits(layouts.peer_model(state, TINY), TINY))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_width(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state_of(random_network()).items()}
    layouts.write_hub(tmp_path, layouts.hub_state(state, TINY), TINY)
    assert_same(logits_of(load(tmp_path).network), peer_logits(layouts.peer_model(state, TINY), TINY))
    narrow = load(tmp_path, dtype="bfloat16").network
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.wte.weight, state["wte.weight"].to(torch.bfloat16))


NANO = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=2, activation_function="gelu")


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_nanogpt(wrapper: str, tmp_path: Path) -> None:
    from gpt2.tokenizer import write_tokenizer

    state = state_of(random_network(NANO))
    file = layouts.write_nanogpt(tmp_path / "ckpt.pt", state, NANO, wrapper=wrapper)
    write_tokenizer(small_tokenizer(), tmp_path)
    ours = load(file)
    assert ours.tokenizer == small_tokenizer()
    assert ours.config.resid_pdrop == 0.2
    assert_same(logits_of(ours.network), peer_logits(layouts.peer_model(state, NANO), NANO))
    # nanoGPT's out folder means its ckpt.pt.
    assert torch.equal(logits_of(load(tmp_path).network), logits_of(ours.network))


def test_nanogpt_without_biases(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50304, n_positions=16, n_embd=16, n_layer=1, n_head=2, activation_function="gelu")
    state = state_of(random_network(config))
    for name in state:
        if name.endswith(".bias"):
            state[name].zero_()
    ours = load(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, config, bias=False))
    assert ours.tokenizer.vocab_size == 50257
    assert ours.config.vocab_size == 50304
    assert_same(logits_of(ours.network), peer_logits(layouts.peer_model(state, config), config))


def test_nanogpt_from_before_the_exact_gelu(tmp_path: Path) -> None:
    from gpt2.tokenizer import write_tokenizer

    state = state_of(random_network(TINY))
    write_tokenizer(small_tokenizer(), tmp_path)
    ours = load(layouts.write_nanogpt(tmp_path / "ckpt.pt", state, TINY, bias=None)).network
    assert ours.config.activation_function == "gelu_new"
    assert_same(logits_of(ours), peer_logits(layouts.peer_model(state, TINY), TINY))


@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("shape", ["tiny", "one layer, one head"])
def test_llmc(version: int, shape: str, tmp_path: Path) -> None:
    from gpt2.tokenizer import write_tokenizer

    config = SHAPES[shape]
    state = state_of(random_network(config))
    if version == 5:
        state = {name: tensor.bfloat16().float() for name, tensor in state.items()}
    write_tokenizer(small_tokenizer(), tmp_path)
    ours = load(layouts.write_llmc(tmp_path / "model.bin", state, config, version=version))
    assert ours.config == config
    assert_same(logits_of(ours.network), peer_logits(layouts.peer_model(state, config), config))


def test_llmc_of_gpt2s_vocabulary(tmp_path: Path) -> None:
    config = GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2)
    state = state_of(random_network(config))
    ours = load(layouts.write_llmc(tmp_path / "gpt2.bin", state, config))
    assert ours.tokenizer.vocab_size == ours.config.vocab_size == 50257
    assert_same(logits_of(ours.network), peer_logits(layouts.peer_model(state, config), config))


def test_brought_here_converted_and_opened_by_transformers(tmp_path: Path) -> None:
    from gpt2.tokenizer import write_tokenizer

    state = state_of(random_network(NANO))
    write_tokenizer(small_tokenizer(), tmp_path / "nano")
    brought = load(layouts.write_nanogpt(tmp_path / "nano/ckpt.pt", state, NANO, wrapper="_orig_mod."))
    convert(brought, "hf", tmp_path / "hf")
    assert_same(logits_of(brought.network), peer_logits(open_with_transformers(tmp_path / "hf"), NANO))


@pytest.mark.parametrize("name", shipped())
def test_shipped_models(name: str, tmp_path: Path) -> None:
    model = load(name)
    assert isinstance(model, LanguageModel)
    assert model.path is not None
    peer = open_with_transformers(model.path)
    [text] = in_its_words(model, "The cat sat on the mat, and the dog slept by the fire.")
    ids = torch.tensor([model.tokenizer.encode(text)])
    with torch.no_grad():
        assert_same(model.network(ids), peer.float().eval()(ids).logits)
    convert(model, "hf", tmp_path / "copy")
    again = load(tmp_path / "copy").network
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
