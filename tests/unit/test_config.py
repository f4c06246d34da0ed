"""Which keys of config.json are honoured, which are refused by name, and what is written."""

import json

import pytest
import torch
import transformers

from gpt2.config import SIZES, GPT2Config
from gpt2.errors import BadCheckpoint, BadOption, Notice
from gpt2.model import GPT2

# As openai-community/gpt2's file has it.
ON_THE_HUB = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "count"),
    [
        ("gpt2", 12, 768, 12, 124_439_808),
        ("gpt2-medium", 24, 1024, 16, 354_823_168),
        ("gpt2-large", 36, 1280, 20, 774_030_080),
        ("gpt2-xl", 48, 1600, 25, 1_557_611_200),
    ],
)
def test_the_four_sizes(name: str, layers: int, width: int, heads: int, count: int) -> None:
    config = SIZES[name].config
    assert (config.n_layer, config.n_embd, config.n_head) == (layers, width, heads)
    assert (config.n_positions, config.vocab_size) == (1024, 50257)
    with torch.device("meta"):
        made = GPT2(config)
    assert sum(parameter.numel() for parameter in made.parameters()) == count
    assert config.parameters == count
    assert sum(config.parameters_by_part().values()) == count


def test_parameters_by_part() -> None:
    parts = SIZES["gpt2"].config.parameters_by_part()
    assert parts["token embedding"] == 38_597_376
    odd = GPT2Config(vocab_size=11, n_positions=5, n_embd=6, n_layer=3, n_head=2, n_inner=7)
    made = GPT2(odd)
    counted = {
        "token embedding": made.wte.weight.numel(),
        "position embedding": made.wpe.weight.numel(),
        "attention": sum(p.numel() for name, p in made.named_parameters() if ".attn." in name),
        "mlp": sum(p.numel() for name, p in made.named_parameters() if ".mlp." in name),
        "norms": sum(p.numel() for name, p in made.named_parameters() if "ln_" in name),
    }
    assert odd.parameters_by_part() == counted


def test_the_hubs_own_file_is_read_without_a_word() -> None:
    config = GPT2Config.from_json(json.dumps(ON_THE_HUB))
    assert config == GPT2Config(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)


def test_what_hugging_face_writes_is_read_without_a_word() -> None:
    theirs = transformers.GPT2Config(n_layer=3, n_inner=100, scale_attn_by_inverse_layer_idx=True, vocab_size=70)
    config = GPT2Config.from_json(theirs.to_json_string(use_diff=False))
    assert (config.n_layer, config.n_inner, config.vocab_size) == (3, 100, 70)
    assert config.scale_attn_by_inverse_layer_idx
    assert GPT2Config.from_json(theirs.to_json_string(use_diff=True)).n_inner == 100


def test_our_defaults_are_hugging_faces() -> None:
    """But for dropout, which is 0 here until somebody asks for it."""
    theirs = transformers.GPT2Config()
    for field in GPT2Config.__slots__:
        if not field.endswith("pdrop"):
            assert getattr(GPT2Config(), field) == getattr(theirs, field), field


def test_what_is_written_is_read_back_here_and_there() -> None:
    config = GPT2Config(
        vocab_size=300, n_positions=17, n_embd=12, n_layer=1, n_head=3, n_inner=5, activation_function="relu",
        layer_norm_epsilon=1e-4, initializer_range=0.01, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3,
        scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True,
    )  # fmt: skip
    written = config.to_dict(end_of_text=299)
    assert GPT2Config.from_json(json.dumps(written)) == config
    assert written["n_ctx"] == 17
    theirs = transformers.GPT2Config(**written)
    for field in GPT2Config.__slots__:
        assert getattr(theirs, field) == getattr(config, field), field
    assert theirs.eos_token_id == theirs.bos_token_id == 299
    assert theirs.architectures == ["GPT2LMHeadModel"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gptj"),
        ("tie_word_embeddings", False),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
        ("activation_function", "gelu_fast"),
        ("activation_function", None),
        ("scale_attn_weights", 1),
        ("scale_attn_by_inverse_layer_idx", "yes"),
        ("reorder_and_upcast_attn", None),
        ("layer_norm_epsilon", "1e-5"),
        ("layer_norm_epsilon", 0),
        ("layer_norm_epsilon", float("nan")),
        ("n_inner", 0),
        ("n_embd", 769),
        ("n_head", 0),
        ("n_layer", 12.5),
        ("n_positions", "1024"),
        ("vocab_size", True),
        ("vocab_size", None),
        ("attn_pdrop", 1.0),
        ("attn_pdrop", -0.1),
        ("embd_pdrop", True),
    ],
)
def test_a_key_that_is_not_honoured_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(BadCheckpoint) as refusal:
        GPT2Config.from_dict({**ON_THE_HUB, key: value}, "some/config.json")
    assert key in str(refusal.value)
    assert "some/config.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tie_word_embeddings", True),
        ("add_cross_attention", False),
        ("pruned_heads", {}),
        ("pruned_heads", None),
        ("n_inner", None),
        ("layer_norm_epsilon", 1),
        ("attn_pdrop", 0),
    ],
)
def test_a_key_with_the_value_that_is_run_is_no_trouble(key: str, value: object) -> None:
    GPT2Config.from_dict({**ON_THE_HUB, key: value})


@pytest.mark.parametrize("flag", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"])
def test_the_flags_of_attention_are_honoured(flag: str) -> None:
    for value in (True, False):
        assert getattr(GPT2Config.from_dict({**ON_THE_HUB, flag: value}), flag) is value


def test_keys_nobody_knows_are_named() -> None:
    with pytest.warns(Notice, match=r"config\.json has keys that are not known here.*: another_key, rope_theta\."):
        GPT2Config.from_dict({**ON_THE_HUB, "rope_theta": 1, "another_key": 2})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint, match=r"here\.json"):
        GPT2Config.from_json(text, "here.json")


@pytest.mark.parametrize(
    "shape", [{"n_embd": 10, "n_head": 3}, {"n_layer": 0}, {"vocab_size": -1}, {"activation_function": "tanh"}]
)
def test_a_shape_that_no_gpt2_has_is_refused(shape: dict) -> None:
    with pytest.raises(BadOption, match=next(iter(shape))):
        GPT2Config(**shape)
