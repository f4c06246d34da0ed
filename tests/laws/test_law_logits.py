"""Law `logits`: ours and transformers.GPT2LMHeadModel give the same logits on the same weights, to 1e-4 in float32."""

import pytest
import torch

from gpt2.checkpoint import load, shipped
from gpt2.config import SIZES, GPT2Config
from gpt2.model import GPT2
from tests.generation_models import network, peer


def ids(config: GPT2Config, rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


@torch.inference_mode()
def assert_equal_logits(ours: GPT2, rows: int, tokens: int, attention: str = "eager") -> None:
    batch = ids(ours.config, rows, tokens)
    mine, theirs = ours(batch), peer(ours, attention)(batch).logits
    assert mine.shape == theirs.shape == (rows, tokens, ours.config.vocab_size)
    assert mine.std() > 0.1, "logits that are all alike would prove nothing"
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


SHAPES = [
    {},
    {"n_layer": 1, "n_head": 1, "vocab_size": 300, "n_positions": 16},
    {"n_layer": 3, "n_head": 5, "n_embd": 35, "vocab_size": 101, "n_positions": 9},
    {"n_layer": 1, "n_head": 4, "n_embd": 4, "vocab_size": 2, "n_positions": 3},
    {"n_inner": 24},
    {"n_inner": 1},
    {"n_positions": 200, "n_embd": 64, "n_head": 8},
    {"layer_norm_epsilon": 0.1},
    *[{"activation_function": name} for name in ("gelu", "gelu_pytorch_tanh", "relu", "silu", "swish")],
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu", "n_inner": 7},
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_every_flag(shape: dict, attention: str) -> None:
    made = network(seed=len(str(shape)), **shape)
    for rows, tokens in [(1, 1), (3, made.config.n_positions)]:
        assert_equal_logits(made, rows, tokens, attention)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 0.1),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_each_flag_changes_the_logits(flag: str, value: object) -> None:
    """So that the law above cannot hold by both ignoring it."""
    plain = network()
    other = network(**{flag: value})
    batch = ids(plain.config, 2, 20)
    assert (plain(batch) - other(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("name", SIZES)
def test_two_layers_of_each_size(name: str) -> None:
    """The widths and heads of the four sizes, GPT-2's initialisation and a longer text."""
    size = SIZES[name].config
    config = GPT2Config(vocab_size=1009, n_embd=size.n_embd, n_head=size.n_head, n_layer=2)
    assert_equal_logits(GPT2(config).initialise(1).eval(), 1, 150, "sdpa")


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_each_size_whole(name: str) -> None:
    assert_equal_logits(GPT2(SIZES[name].config).initialise(1).eval(), 1, 64, "sdpa")


@pytest.mark.parametrize("name", shipped() or ["none"])
def test_the_shipped_models(name: str) -> None:
    if name == "none":
        pytest.skip("left out: no model is shipped yet")
    shipped_model = load(name)
    assert_equal_logits(shipped_model.network, 2, shipped_model.config.n_positions, "sdpa")


def test_the_loss_is_theirs() -> None:
    """Theirs is a mean over shifted labels; ours a sum over given targets."""
    made = network()
    batch = ids(made.config, 3, 20)
    labels = batch.clone()
    labels[0, 5:] = -100
    labels[2, :] = -100
    with torch.inference_mode():
        theirs = peer(made)(batch, labels=labels).loss
        ours = made.loss(batch[:, :-1], labels[:, 1:])
    torch.testing.assert_close(ours / (labels[:, 1:] != -100).sum(), theirs)
