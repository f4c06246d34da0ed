"""Attention in blocks of queries: PyTorch's own is the reference, in values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from gpt2.training import attention
from gpt2.training.attention import causal_attention


def inputs(length, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    # Heads lie between one another, as a projection leaves them.
    packed = torch.randn(2, length, 3, 3, 8, generator=random, dtype=torch.float64).to(dtype)
    return [part.transpose(1, 2).detach().requires_grad_() for part in packed.unbind(2)]


def both(length, dtype, scale=0.3):
    slope = torch.randn(2, 3, length, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for function in (
        lambda q, k, v: causal_attention(q, k, v, scale),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale),
    ):
        parts = inputs(length, dtype)
        y = function(*parts)
        results.append([y, *torch.autograd.grad(y, parts, slope.to(dtype))])
    return results


@pytest.mark.parametrize("length", [1, 2, 31, 128, 129, 300, 515])
def test_values_and_gradients_are_those_of_pytorchs_attention(length):
    ours, theirs = both(length, torch.float64)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


def test_every_block_border_is_right(monkeypatch):
    monkeypatch.setattr(attention, "_LEAST", 1)
    for length in range(1, 14):
        ours, theirs = both(length, torch.float64)
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


def test_bfloat16_is_as_close_to_the_truth_as_pytorchs_own():
    truth = both(257, torch.float64)[1]
    ours, theirs = both(257, torch.bfloat16)
    for mine, reference, true in zip(ours, theirs, truth, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).norm() < 2 * (reference - true).norm() + 1e-3 * true.norm()


def test_dropout_draws_from_the_seed_keeps_its_share_and_its_mean():
    parts = inputs(40)
    torch.manual_seed(3)
    first = causal_attention(*parts, 0.3, dropout=0.25)
    torch.manual_seed(3)
    assert torch.equal(first, causal_attention(*parts, 0.3, dropout=0.25))
    assert not torch.equal(first, causal_attention(*parts, 0.3, dropout=0.25))

    # The first token sees itself alone: it is there, scaled, or it is not.
    value = parts[2][:, :, :1]
    draws = torch.stack([causal_attention(*parts, 0.3, dropout=0.25)[:, :, :1] / value for _ in range(400)])
    kept = draws[..., 0] > 0
    torch.testing.assert_close(draws[kept], torch.full_like(draws[kept], 1 / 0.75))
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.03)

    mean = torch.stack([causal_attention(*parts, 0.3, dropout=0.25) for _ in range(600)]).mean(0)
    assert (mean - causal_attention(*parts, 0.3)).abs().max() < 0.25


def test_layers_with_scales_of_their_own_share_one_program():
    graphs = []

    def counted(graph, examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(causal_attention, backend=counted, dynamic=False)
    slope = torch.randn(2, 3, 31, 8, dtype=torch.float64)
    for layer in range(4):
        scale = torch.tensor(0.3 / (layer + 1), dtype=torch.float64)
        results = []
        for function, given in ((compiled, scale), (causal_attention, float(scale))):
            parts = inputs(31)
            y = function(*parts, given)
            results.append([y, *torch.autograd.grad(y, parts, slope)])
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)
    assert len(graphs) == 1
