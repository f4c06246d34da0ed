"""The token step's operations as Triton kernels, for CUDA: few and fused, since at one row a GPU waits for launches.

A block of few rows is six kernels: norm and projection, attention in two, projection and residual, norm, projection
and activation, projection and residual. Attention reads only as far as each row's length, which lies on the device.
Every operation gives what `static.Operations` (or `graph.choose`) gives, and is tested against it.

This file imports triton, which comes with PyTorch's CUDA builds, and is imported where a GPU is used.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpt2.runners.noise import FACTORS, STEP
from gpt2.runners.static import Operations

# Above this many rows a matrix product of the library's is faster than reading the weights once for all rows.
MOST_ROWS = 8

_ACTIVATIONS = {"gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu": 2, "relu": 3, "silu": 4, "swish": 4}
_BLOCKS = 264  # programs that keep a large GPU busy: two for each multiprocessor
_TILE = 8192  # weights that one program holds in registers
_PLACES = 64  # places that attention reads at a time
_IDS = 1024  # ids that one program of the choice looks at

_STEP = tl.constexpr(STEP)
_FACTOR0, _FACTOR1 = tl.constexpr(FACTORS[0]), tl.constexpr(FACTORS[1])


class KernelOperations(Operations):
    """`static.Operations` on CUDA. Buffers between two kernels belong to this object: one stream at a time."""

    def project(
        self,
        x_BI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        *,
        norm: tuple[Tensor, Tensor] | None = None,
        act: bool = False,
        residual_BO: Tensor | None = None,
    ) -> Tensor:
        if x_BI.ndim > 2 or len(x_BI) > MOST_ROWS:
            return super().project(x_BI, weight_OI, bias_O, norm=norm, act=act, residual_BO=residual_BO)
        (rows, inputs), outputs = x_BI.shape, len(weight_OI)
        # The head has neither bias nor residual, and its logits are wanted in float32.
        is_head = bias_O is None
        y_BO = torch.empty(rows, outputs, dtype=torch.float32 if is_head else x_BI.dtype, device=x_BI.device)
        width = triton.next_power_of_2(inputs)
        tile = max(1, min(8, _TILE // width))
        while tile > 1 and triton.cdiv(outputs, tile) < _BLOCKS:
            tile //= 2
        _project[(triton.cdiv(outputs, tile),)](
            x_BI,
            weight_OI,
            weight_OI if is_head else bias_O,
            norm[0] if norm else x_BI,
            norm[1] if norm else x_BI,
            x_BI if residual_BO is None else residual_BO,
            y_BO,
            outputs,
            inputs,
            self.config.layer_norm_epsilon,
            ROWS=rows,
            TILE=tile,
            WIDTH=width,
            NORM=norm is not None,
            ACT=_ACTIVATIONS[self.config.activation_function] if act else 0,
            BIAS=not is_head,
            ADD=residual_BO is not None,
        )
        return y_BO

    def attend(
        self,
        qkv_B3C: Tensor,
        keys: Tensor,
        values: Tensor,
        slots_B: Tensor,
        lengths_B: Tensor,
        places_S: Tensor,
        scale: Tensor,
    ) -> Tensor:
        B, H, D = len(slots_B), self.config.n_head, self.config.head_dim
        pieces = 1
        while pieces < 16 and 2 * pieces * B * H <= _BLOCKS and pieces * _PLACES < keys.shape[2]:
            pieces *= 2
        width, device = triton.next_power_of_2(D), qkv_B3C.device
        y_BC = torch.empty(B, H * D, dtype=qkv_B3C.dtype, device=device)
        part = torch.empty(B * H, pieces, width, dtype=torch.float32, device=device)
        weight = torch.empty(2, B * H, pieces, dtype=torch.float32, device=device)
        _attend[(B * H, pieces)](
            qkv_B3C, keys, values, slots_B, lengths_B, scale, part, weight[0], weight[1], H, D, keys.shape[2],
            PIECES=pieces, PLACES=_PLACES, WIDTH=width,
        )  # fmt: skip
        _join[(B * H,)](part, weight[0], weight[1], y_BC, D, PIECES=pieces, WIDTH=width)
        return y_BC


def choose(
    logits_BV: Tensor,
    floors_B: Tensor,
    seeds_B: Tensor,
    numbers_B: Tensor,
    temperatures_B: Tensor,
) -> Tensor:
    """`graph.choose` in two kernels. floors_B: the lowest score that top_k leaves, -inf for all."""
    B, V = logits_BV.shape
    pieces = triton.cdiv(V, _IDS)
    device = logits_BV.device
    best = torch.empty(B, pieces, dtype=torch.float64, device=device)
    where = torch.empty(B, pieces, dtype=torch.int64, device=device)
    chosen_B = torch.empty(B, dtype=torch.int64, device=device)
    _choose[(B, pieces)](
        logits_BV, floors_B, seeds_B, numbers_B, temperatures_B, best, where, V, logits_BV.stride(0), IDS=_IDS
    )
    _choose_best[(B,)](best, where, chosen_B, pieces, WIDTH=triton.next_power_of_2(pieces))
    return chosen_B


@triton.jit
def _project(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, residual_ptr, y_ptr, outputs, inputs, epsilon,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Each program computes TILE outputs of every row; it asks for its weights first, which is what takes time."""
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    place = tl.arange(0, WIDTH)
    is_out, is_in = out < outputs, place < inputs
    weight = tl.load(
        weight_ptr + out[:, None].to(tl.int64) * inputs + place[None, :],
        mask=is_out[:, None] & is_in[None, :],
        other=0.0,
    )
    if NORM:
        scale = tl.load(scale_ptr + place, mask=is_in, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + place, mask=is_in, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + out, mask=is_out, other=0.0).to(tl.float32)
    for row in tl.static_range(ROWS):
        x = tl.load(x_ptr + row * inputs + place, mask=is_in, other=0.0).to(tl.float32)
        if NORM:
            mean = tl.sum(x, 0) / inputs
            x = tl.where(is_in, x - mean, 0.0)
            x = x / tl.sqrt(tl.sum(x * x, 0) / inputs + epsilon) * scale + shift
        y = tl.sum(weight.to(tl.float32) * x[None, :], 1)
        if BIAS:
            y += bias
        if ACT == 1:
            y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))  # 2·√(2/π)
        if ACT == 2:
            y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
        if ACT == 3:
            y = tl.where(y > 0, y, tl.where(y == y, 0.0, y))
        if ACT == 4:
            y = y * tl.sigmoid(y)
        if ADD:
            y += tl.load(residual_ptr + row * outputs + out, mask=is_out, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * outputs + out, y.to(y_ptr.dtype.element_ty), mask=is_out)


@triton.jit
def _attend(
    qkv_ptr, keys_ptr, values_ptr, slots_ptr, lengths_ptr, scale_ptr, part_ptr, most_ptr, sum_ptr, heads, head_dim,
    room, PIECES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one row, over one piece of its places; softmax as it goes. The first piece has the new token too."""
    row, head, piece = tl.program_id(0) // heads, tl.program_id(0) % heads, tl.program_id(1)
    length = tl.load(lengths_ptr + row)
    wide = tl.arange(0, WIDTH)
    inside = wide < head_dim
    new = qkv_ptr + row * 3 * heads * head_dim + head * head_dim + wide
    q = tl.load(new, mask=inside, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    k_new = tl.load(new + heads * head_dim, mask=inside, other=0.0)
    v_new = tl.load(new + 2 * heads * head_dim, mask=inside, other=0.0)
    start = (tl.load(slots_ptr + row) * heads + head) * room * head_dim
    # No other program reads where the new token goes: they stop before it.
    own = inside & (piece == 0)
    tl.store(keys_ptr + start + length * head_dim + wide, k_new, mask=own)
    tl.store(values_ptr + start + length * head_dim + wide, v_new, mask=own)

    most = tl.where(piece == 0, tl.sum(q * k_new.to(tl.float32), 0), float("-inf"))
    total = tl.where(piece == 0, 1.0, 0.0)
    y = tl.where(own, v_new.to(tl.float32), 0.0)
    span = tl.cdiv(tl.cdiv(length, PIECES), PLACES) * PLACES
    end = tl.minimum((piece + 1) * span, length)
    for first in range(piece * span, end, PLACES):
        place = first + tl.arange(0, PLACES)
        seen = place < end
        at = start + place[:, None] * head_dim + wide[None, :]
        mask = seen[:, None] & inside[None, :]
        k = tl.load(keys_ptr + at, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(values_ptr + at, mask=mask, other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(q[None, :] * k, 1), float("-inf"))
        higher = tl.maximum(most, tl.max(score, 0))
        fade, weight = tl.exp(most - higher), tl.exp(score - higher)
        total = total * fade + tl.sum(weight, 0)
        y = y * fade + tl.sum(weight[:, None] * v, 0)
        most = higher
    here = tl.program_id(0) * PIECES + piece
    tl.store(part_ptr + here * WIDTH + wide, y)
    tl.store(most_ptr + here, most)
    tl.store(sum_ptr + here, total)


@triton.jit
def _join(part_ptr, most_ptr, sum_ptr, y_ptr, head_dim, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    """The pieces of one head of one row together."""
    here = tl.program_id(0) * PIECES + tl.arange(0, PIECES)
    wide = tl.arange(0, WIDTH)
    most = tl.load(most_ptr + here)
    weight = tl.exp(most - tl.max(most, 0))
    part = tl.load(part_ptr + here[:, None] * WIDTH + wide[None, :])
    y = tl.sum(part * weight[:, None], 0) / tl.sum(weight * tl.load(sum_ptr + here), 0)
    tl.store(y_ptr + tl.program_id(0) * head_dim + wide, y.to(y_ptr.dtype.element_ty), mask=wide < head_dim)


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 30)) * _FACTOR0
    x = (x ^ (x >> 27)) * _FACTOR1
    return x ^ (x >> 31)


@triton.jit
def _choose(
    logits_ptr, floors_ptr, seeds_ptr, numbers_ptr, temperatures_ptr, best_ptr, where_ptr, vocabulary, stride,
    IDS: tl.constexpr,
):  # fmt: skip
    """The highest sum among IDS ids of one row, and where; NaN if a score is not finite."""
    row, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    id = piece * IDS + tl.arange(0, IDS)
    is_id = id < vocabulary
    temperature = tl.load(temperatures_ptr + row).to(tl.float32)
    score = tl.load(logits_ptr + row * stride + id, mask=is_id, other=float("-inf"))
    damaged = tl.max(((score != score) | (score == float("inf"))).to(tl.int32), 0)
    score = score / tl.where(temperature > 0, temperature, 1.0)
    damaged = tl.maximum(damaged, tl.max((score == float("inf")).to(tl.int32), 0))
    # `noise.gumbel_noise`, in whole numbers without a sign, whose shifts fill with zeros.
    seed, number = tl.load(seeds_ptr + row).to(tl.uint64), tl.load(numbers_ptr + row).to(tl.uint64)
    key = _mixed(seed + number * _STEP)
    bits = _mixed(_mixed(key + (id + 1).to(tl.uint64) * _STEP))
    uniform = ((bits >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2^-52
    noise = -tl.log(-tl.log(uniform))
    kept = score >= tl.load(floors_ptr + row)
    drawn = tl.where(kept, score.to(tl.float64) + noise, float("-inf"))
    total = tl.where(is_id, tl.where(temperature > 0, drawn, score.to(tl.float64)), float("-inf"))
    best = tl.max(total, 0)
    first = tl.min(tl.where(total == best, id, vocabulary), 0)
    tl.store(best_ptr + row * pieces + piece, tl.where(damaged > 0, float("nan"), best))
    tl.store(where_ptr + row * pieces + piece, first.to(tl.int64))


@triton.jit
def _choose_best(best_ptr, where_ptr, chosen_ptr, pieces, WIDTH: tl.constexpr):
    """The best of one row's pieces; -1 if any was damaged, or all are -inf."""
    row, piece = tl.program_id(0), tl.arange(0, WIDTH)
    total = tl.load(best_ptr + row * pieces + piece, mask=piece < pieces, other=float("-inf"))
    where = tl.load(where_ptr + row * pieces + piece, mask=piece < pieces, other=0)
    damaged = tl.max((total != total).to(tl.int32), 0)
    best = tl.max(tl.where(total == total, total, float("-inf")), 0)
    first = tl.min(tl.where(total == best, where, 9223372036854775807), 0)
    tl.store(chosen_ptr + row, tl.where((damaged > 0) | (best == float("-inf")), -1, first))
