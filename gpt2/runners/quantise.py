"""The arithmetic of int8 and int4 weights: what is rounded to what, and back. It runs nothing and keeps no files.

A matrix W (K, N) is used as x W, so a column holds all weights of one output. int8 has one scale for each column. int4
has one for each group of 32 weights of a column, searched for the least squared error; 7 and -8 are not the same size,
so a scale may be negative. Both are exact functions of what they are given: no randomness, no data.

Letters: K inputs, N outputs, G groups along K.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.errors import BadOption

GROUP = 32

# A group's largest weight w is tried as each of these whole and half numbers: the scale is w / number. Beyond the
# range of -8 to 7 it is cut off, which pays when the others gain more.
_TRIED = (-8.0, -7.5, -8.5, -7.0, -9.0, -6.5, -6.0, -5.5, -9.5, 7.0, 7.5, 6.5, 8.0, 6.0, 8.5, 5.5)

# What is added to the moments' diagonal, as a share of its mean. 0.01 was worse (1.3 % of perplexity for 0.9 %).
_DAMPING = 0.1

# Elements that are worked on at once. They stay in the processor's cache, and PyTorch leaves so few to one thread: with
# more, thousands of short waits between threads collapse beside another busy process (measured: 3 s became 170 s).
_CHUNK = 32_000


def kind(name: str, dtype: str) -> str | None:
    """What a tensor of this name becomes in a model of this dtype ("int8", "int4"): "int8", "int4", None for float32.

    The projections get the model's dtype, the embedding int8 in both: it is the head too, and the rows of rare words
    are read once in a while, so a finer grid costs little time and saves much loss. The rest is small, and stays.
    """
    if dtype not in ("int8", "int4"):
        return None
    if name == "wte.weight":
        return "int8"
    return dtype if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else None


class Matrix(NamedTuple):
    """Whole numbers (K, N) int8, and their scales: (N,) float32 for int8, (G, N) float16 for int4."""

    q_KN: Tensor
    scale: Tensor


def int8_columns(weight_KN: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers q_KN int8 in [-127, 127] and scale_N float32, so that q · scale is near the weights.

    Each column's largest weight becomes ±127; the error is at most half a scale. q lies in memory as the weights do
    (row by row, or column by column for a transposed matrix).
    """
    q_KN = torch.empty_like(weight_KN, dtype=torch.int8)
    K, N = weight_KN.shape
    scale_N = torch.empty(N)
    for columns in _column_chunks(K, N):
        x = weight_KN[:, columns].float()
        low, high = torch.aminmax(x, dim=0)
        scale = torch.maximum(-low, high) / 127
        scale_N[columns] = scale
        q = (x / torch.where(scale > 0, scale, 1.0)).round_()
        # Scales below the normal range are coarse, and the quotient may then pass 127.
        q_KN[:, columns] = q.clamp_(-127, 127)
    return q_KN, scale_N


def int4_groups(weight_KN: Tensor, group: int = GROUP, *, moments_KK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Whole numbers q_KN int8 in [-8, 7] and scale_GN float16, one for each `group` weights along K.

    The last group may be short. Scales are searched for the least squared error, and may be negative.
    moments_KK: sums XᵀX over inputs X of this matrix; each weight's error is then made up for by those after it, so
        that X (W - qs) is small rather than W - qs (Frantar et al., "GPTQ", 2022).
    Raises BadOption for weights beyond ±450,000, for which float16 has no scale.
    """
    if moments_KK is not None and (inverse_KK := _inverse_root(moments_KK)) is not None:
        return _with_feedback(weight_KN, group, inverse_KK)
    K, N = weight_KN.shape
    G = -(-K // group)
    q_KN = torch.empty_like(weight_KN, dtype=torch.int8)
    scale_GN = torch.empty(G, N, dtype=torch.float16)
    for columns in _column_chunks(K, N):
        x = weight_KN[:, columns].float()
        n = x.shape[1]
        if G * group > K:
            x = torch.cat([x, x.new_zeros(G * group - K, n)])
        # The places within a group go first: sums over them then run along the memory.
        x = x.view(G, group, n).transpose(0, 1).reshape(group, G * n)
        q, scale = _search(x)
        q_KN[:, columns] = q.view(group, G, n).transpose(0, 1).reshape(G * group, n)[:K]
        scale_GN[:, columns] = scale.view(G, n)
    return q_KN, scale_GN


def dequantise(q_KN: Tensor, scale: Tensor, group: int | None = None) -> Tensor:
    """The float32 weights (K, N) that whole numbers and scales stand for.

    scale: (N,), or (G, N) with `group`, the number of weights along K that share one (None: as many as fit).
    """
    if scale.ndim == 1:
        return q_KN.float() * scale.float()
    K = q_KN.shape[0]
    scale_KN = scale.float().repeat_interleave(group or GROUP, dim=0)[:K]
    return q_KN.float() * scale_KN


def _inverse_root(moments_KK: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the moments' inverse, float32; None if they have none (they are not finite)."""
    moments_KK = moments_KK.double()
    # Inputs are few and random ones, so the moments are trusted only so far.
    moments_KK.diagonal().add_(_DAMPING * moments_KK.diagonal().mean() + 1e-30)
    try:
        inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(moments_KK))
        root_KK: Tensor = torch.linalg.cholesky(inverse_KK, upper=True)
        return root_KK.float()
    except RuntimeError:  # PyTorch's LinAlgError is one
        return None


def _with_feedback(weight_KN: Tensor, group: int, inverse_KK: Tensor) -> tuple[Tensor, Tensor]:
    K, N = weight_KN.shape
    left_KN = weight_KN.to(torch.float32, copy=True)
    q_KN = torch.empty(K, N, dtype=torch.int8)
    scale_GN = torch.empty(-(-K // group), N, dtype=torch.float16)
    for number, start in enumerate(range(0, K, group)):
        end = min(start + group, K)
        here_IN, root_II = left_KN[start:end], inverse_KK[start:end, start:end]
        _, scale_GN[number] = _search(here_IN)
        scale_N = scale_GN[number].float()
        by_N = torch.where(scale_N != 0, 1 / scale_N, 0.0)
        errors_IN = torch.empty_like(here_IN)
        for i in range(end - start):
            q_N = (here_IN[i] * by_N).round_().clamp_(-8, 7)
            q_KN[start + i] = q_N
            errors_IN[i] = (here_IN[i] - q_N * scale_N) / root_II[i, i]
            here_IN[i + 1 :].addr_(root_II[i, i + 1 :], errors_IN[i], alpha=-1)
        left_KN[end:].addmm_(inverse_KK[start:end, end:].t(), errors_IN, alpha=-1)
    return q_KN, scale_GN


def _column_chunks(K: int, N: int) -> list[slice]:
    step = max(1, _CHUNK // max(K, 1))
    return [slice(start, min(start + step, N)) for start in range(0, N, step)]


def _search(x_IM: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (I, M) float32 and scales (M,) float16 for M groups of I weights each."""
    low, high = torch.aminmax(x_IM, dim=0)
    largest = torch.where(-low > high, low, high)
    if float(largest.abs().max()) > 450_000:
        raise BadOption(
            f"A weight of {float(largest.abs().max()):.3g} is too large for int4, whose scales are float16; use int8."
        )
    # Powers of two put any group near 1, so that squares neither vanish nor overflow.
    _, exponent = torch.frexp(largest)
    unit = torch.ldexp(torch.ones_like(largest), exponent)
    x = x_IM / unit
    largest = largest / unit
    inverse = torch.where(largest == 0, 0.0, 1 / largest)
    best_scale = torch.zeros_like(largest)
    best_gain = torch.full_like(largest, -1.0)
    q = torch.empty_like(x)
    product = torch.empty_like(x)
    for tried in _TRIED:
        torch.mul(x, inverse * tried, out=q).round_().clamp_(-8, 7)
        # For fixed whole numbers the best scale is <x,q>/<q,q>, and it explains <x,q>²/<q,q> of the squares.
        xq = torch.mul(x, q, out=product).sum(0)
        qq = torch.mul(q, q, out=product).sum(0).clamp_min_(1e-30)
        gain = xq.square() / qq
        better = gain > best_gain
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, xq / qq, best_scale)
    scale = (best_scale * unit).half()
    usable = scale != 0
    inverse = torch.where(usable, 1 / torch.where(usable, scale.float(), 1.0), 0.0)
    return torch.mul(x_IM, inverse, out=q).round_().clamp_(-8, 7), scale
