"""Rounding weights to int8 and int4: how far off they may be, and weights that are no ordinary weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2.errors import BadOption
from gpt2.runners import quantise
from gpt2.runners.quantise import dequantise, int4_groups, int8_columns, kind


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """(K, N), its columns and rows of very different sizes, some of them zero."""
    K, N = draw(st.integers(1, 100)), draw(st.integers(1, 40))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    sizes = 10 ** torch.empty(K, 1).uniform_(-3, 0, generator=random)
    sizes = sizes * 10 ** torch.empty(1, N).uniform_(-2, 3, generator=random)
    weights = torch.randn(K, N, generator=random) * sizes
    return weights.masked_fill(torch.rand(K, N, generator=random) < draw(st.sampled_from([0, 0.3, 1])), 0)


@given(matrices())
@settings(deadline=None, max_examples=60)
def test_int8_is_within_half_a_step(weight_KN: Tensor) -> None:
    before = weight_KN.clone()
    q_KN, scale_N = int8_columns(weight_KN)
    assert torch.equal(weight_KN, before)
    assert q_KN.dtype == torch.int8
    assert scale_N.dtype == torch.float32
    assert int(q_KN.min()) >= -127
    error_KN = (dequantise(q_KN, scale_N) - weight_KN).abs()
    assert bool((error_KN <= scale_N * 0.5001).all())
    assert torch.allclose(scale_N * 127, weight_KN.abs().amax(0))


@given(matrices())
@settings(deadline=None, max_examples=60)
def test_int4_is_never_worse_than_the_plain_scale(weight_KN: Tensor) -> None:
    before = weight_KN.clone()
    q_KN, scale_GN = int4_groups(weight_KN)
    K, N = weight_KN.shape
    assert torch.equal(weight_KN, before)
    assert (q_KN.dtype, scale_GN.dtype) == (torch.int8, torch.float16)
    assert scale_GN.shape == (-(-K // 32), N)
    assert int(q_KN.min()) >= -8
    assert int(q_KN.max()) <= 7
    error_KN = (dequantise(q_KN, scale_GN, 32) - weight_KN).square()
    for start in range(0, K, 32):
        part = weight_KN[start : start + 32].double()
        # What llama.cpp's q4_0 does: the largest weight becomes -8.
        largest = part.gather(0, part.abs().argmax(0, keepdim=True))
        plain = largest / -8
        q = torch.where(plain == 0, 0, part / torch.where(plain == 0, 1, plain)).round().clamp(-8, 7)
        theirs = (q * plain - part).square().sum(0)
        # float16 rounds a scale by 1/2048 at most, and below 6e-5 by 3e-8.
        slack = part.square().sum(0) * 2e-6 + 1e-12
        assert bool((error_KN[start : start + 32].double().sum(0) <= theirs * 1.01 + slack).all())


def test_int4_of_a_normal_matrix_is_nearly_as_good_as_a_fine_search() -> None:
    weight_KN = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    q_KN, scale_GN = int4_groups(weight_KN)
    error = float((dequantise(q_KN, scale_GN) - weight_KN).square().mean())
    groups = weight_KN.view(8, 32, 64)
    best = torch.full((8, 64), torch.inf)
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    for tried in [*torch.arange(-10, -4, 0.02).tolist(), *torch.arange(4, 10, 0.02).tolist()]:
        scale = largest / tried
        best = torch.minimum(best, ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(1))
    assert error <= 1.03 * float(best.sum()) / weight_KN.numel()


@pytest.mark.parametrize("K", [1, 31, 32, 33, 95])
def test_a_last_group_may_be_short(K: int) -> None:
    weight_KN = torch.randn(K, 5, generator=torch.Generator().manual_seed(K))
    q_KN, scale_GN = int4_groups(weight_KN)
    assert scale_GN.shape == (-(-K // 32), 5)
    last = (K - 1) // 32 * 32
    alone, alone_scale = int4_groups(weight_KN[last:])
    assert torch.equal(q_KN[last:], alone)
    assert torch.equal(scale_GN[-1:], alone_scale)


def test_constant_columns() -> None:
    for value in (0.0, 0.3, -0.3, 1e-3):
        weight_KN = torch.full((64, 3), value)
        assert torch.allclose(dequantise(*int8_columns(weight_KN)), weight_KN, rtol=1e-6)
        assert torch.allclose(dequantise(*int4_groups(weight_KN)), weight_KN, rtol=1e-3, atol=6e-8)


def test_extreme_values() -> None:
    for size in (1e-45, 1e-38, 1e-20, 3e38):
        weight_KN = torch.tensor([[size, 1.0], [-size, -0.5], [0.0, 0.25]])
        back = dequantise(*int8_columns(weight_KN))
        assert bool(back.isfinite().all())
        assert torch.allclose(back, weight_KN, rtol=0.01, atol=0.005 if size < 1 else size / 200)
    assert torch.allclose(
        dequantise(*int4_groups(torch.tensor([[4e5], [-1e5]]))), torch.tensor([[4e5], [-1e5]]), rtol=0.1
    )
    # Too small for any float16 scale: zero, and not a number that is none.
    assert torch.equal(dequantise(*int4_groups(torch.full((32, 2), 1e-12))), torch.zeros(32, 2))
    with pytest.raises(BadOption, match="int8"):
        int4_groups(torch.tensor([[1e6]]))


def test_memory_order_is_kept_and_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding_VC = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    q_CV, scale_V = int8_columns(embedding_VC.t())
    assert q_CV.t().is_contiguous()
    whole = int4_groups(embedding_VC)
    monkeypatch.setattr(quantise, "_CHUNK", 1000)
    pieces_q, pieces_scale = int8_columns(embedding_VC.t())
    assert torch.equal(pieces_q, q_CV)
    assert torch.equal(pieces_scale, scale_V)
    pieces = int4_groups(embedding_VC)
    # A tie between two scales may go either way.
    assert float((pieces[1] != whole[1]).float().mean()) < 0.01
    for made in (pieces, whole):
        assert abs(float((dequantise(*made) - embedding_VC).square().mean()) - 0.0065) < 0.001


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_rounded_as_what_they_are(width: torch.dtype) -> None:
    weight_KN = torch.randn(64, 10, generator=torch.Generator().manual_seed(2)).to(width)
    for narrow, wide in (
        (int8_columns(weight_KN), int8_columns(weight_KN.float())),
        (int4_groups(weight_KN), int4_groups(weight_KN.float())),
    ):
        assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def test_what_becomes_what() -> None:
    assert kind("h.3.mlp.c_fc.weight", "int8") == "int8"
    assert kind("h.3.attn.c_proj.weight", "int4") == "int4"
    assert kind("wte.weight", "int4") == kind("wte.weight", "int8") == "int8"
    for name in ("wpe.weight", "h.0.ln_1.weight", "h.0.mlp.c_fc.bias", "ln_f.bias"):
        assert kind(name, "int4") is None
    assert kind("wte.weight", "float32") is None
