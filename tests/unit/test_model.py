"""The model beside its laws: initialisation, dropout, refusals. That its logits are right is law `logits`."""

import math

import pytest
import torch
import transformers

from gpt2.config import SIZES, GPT2Config
from gpt2.errors import BadPrompt, ContextOverflow
from gpt2.model import GPT2
from tests.generation_models import network

MEDIUM = GPT2Config(vocab_size=2000, n_positions=256, n_embd=128, n_layer=3, n_head=4)


def spread(parameter: torch.Tensor) -> float:
    return float(parameter.detach().std())


def test_initialisation() -> None:
    made = GPT2(MEDIUM).initialise(seed=3)
    residual = 0.02 / math.sqrt(2 * 3)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = residual if name.endswith("c_proj.weight") else 0.02
            assert math.isclose(spread(parameter), expected, rel_tol=0.02), name
            assert abs(float(parameter.detach().mean())) < 4 * expected / math.sqrt(parameter.numel()), name
            # Normal, and not cut off: some values lie beyond three deviations.
            share = float((parameter.abs() > 3 * expected).float().mean())
            assert 0.001 < share < 0.006, name


def test_initialisation_is_spread_as_hugging_faces_is() -> None:
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**MEDIUM.to_dict())).transformer.state_dict()
    for name, parameter in GPT2(MEDIUM).initialise(seed=1).state_dict().items():
        assert math.isclose(spread(parameter), spread(theirs[name]), rel_tol=0.05, abs_tol=1e-9), name
        assert math.isclose(float(parameter.mean()), float(theirs[name].mean()), abs_tol=1e-3), name


def test_openais_positions() -> None:
    made = GPT2(MEDIUM).initialise(seed=3, position_std=0.01)
    assert math.isclose(spread(made.wpe.weight), 0.01, rel_tol=0.02)
    assert math.isclose(spread(made.wte.weight), 0.02, rel_tol=0.02)


def test_initialisation_is_the_seeds_alone() -> None:
    torch.manual_seed(1)
    one = GPT2(MEDIUM).initialise(seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = GPT2(MEDIUM).initialise(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.wte.weight, GPT2(MEDIUM).initialise(seed=6).wte.weight)


def test_a_fresh_model_knows_nothing() -> None:
    """Its loss is that of an even guess: ln(vocabulary)."""
    made = GPT2(MEDIUM).initialise(seed=0).eval()
    ids = torch.randint(2000, (2, 101), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        loss = float(made.loss(ids[:, :-1], ids[:, 1:])) / 200
    assert math.isclose(loss, math.log(2000), abs_tol=0.1)


def test_the_names_are_those_of_the_files() -> None:
    names = set(GPT2(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5, n_positions=3)).state_dict())
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    tensors = [f"h.0.{part}.{kind}" for part in block for kind in ("weight", "bias")]
    assert names == {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", *tensors}


def test_any_size_costs_nothing_on_the_meta_device() -> None:
    with torch.device("meta"):
        made = GPT2(SIZES["gpt2-xl"].config)
    assert made.device.type == "meta"
    assert made.h[47].attn.c_attn.weight.shape == (1600, 4800)


@pytest.mark.parametrize("bad", [-1, 257, 10**9])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    with pytest.raises(BadPrompt, match=f"{bad} is not in this model's vocabulary of 257"):
        network()(torch.tensor([[1, bad, 2]]))


def test_more_tokens_than_positions_are_refused() -> None:
    tiny = network(n_positions=8)
    assert tiny(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 257)
    with pytest.raises(ContextOverflow, match="9 tokens do not fit in this model's window of 8"):
        tiny(torch.zeros(1, 9, dtype=torch.int64))


def test_no_token_sees_what_comes_after_it() -> None:
    tiny, ids = network(), torch.arange(20)[None]
    with torch.inference_mode():
        whole = tiny(ids)
        changed = ids.clone()
        changed[0, 12] = 200
        other = tiny(changed)
    assert torch.equal(whole[:, :12], other[:, :12])
    assert not torch.allclose(whole[:, 12:], other[:, 12:])


def test_dropout_acts_in_training_only() -> None:
    ids = torch.arange(20)[None]
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        tiny = network(**{name: 0.5})
        assert torch.equal(tiny(ids), network()(ids))
        tiny.train()
        torch.manual_seed(0)
        one = tiny(ids)
        torch.manual_seed(1)
        assert not torch.equal(one, tiny(ids)), name
        torch.manual_seed(0)
        assert torch.equal(one, tiny(ids)), name


def test_the_loss_is_a_sum_in_nats() -> None:
    tiny, ids = network(), torch.arange(12).reshape(2, 6)
    targets = ids.clone()
    targets[1, 3:] = -100
    logprobs = tiny(ids).double().log_softmax(-1).gather(2, ids[:, :, None])[:, :, 0]
    expected = -(logprobs[0].sum() + logprobs[1, :3].sum())
    assert math.isclose(float(tiny.loss(ids, targets)), float(expected), rel_tol=1e-5)
    assert tiny.bfloat16().loss(ids, targets).dtype == torch.float32
    assert float(tiny.loss(ids, torch.full_like(ids, -100))) == 0


def test_a_gradient_reaches_every_parameter() -> None:
    tiny = network().requires_grad_(True)
    ids = torch.arange(32)[None]
    tiny.loss(ids, ids.roll(1)).backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
