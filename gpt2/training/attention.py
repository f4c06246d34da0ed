"""Causal attention for training on a CPU: blocks of queries as plain products of matrices, with its own way back.

PyTorch's flash kernel for the CPU spends its time between its small products. Whole products for a block of queries,
with the softmax that `torch.compile` makes of the lines below, took half to a third of its time, forward and backward
(docs/log.md). On a GPU the flash kernels are the best there is, and nothing here is used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# A block sees all keys up to its last query: with few blocks much is computed that the mask throws away, with many
# the products are small, and there is more to compile.
_BLOCKS, _LEAST = 4, 128


def causal_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float | Tensor, dropout: float = 0.0
) -> Tensor:
    """What `F.scaled_dot_product_attention(..., is_causal=True)` gives; (B, H, T, D) in and out, in one dtype.

    Softmax is in float32 at least; products arrive in the dtype of the inputs. scale: a number is a constant of what is
    compiled, so where it differs from layer to layer it has to be a scalar tensor.
    """
    if dropout:
        # Without the quick way back, which would need the masks.
        blocks = [_shares(q_BHTD, k_BHTD, v_BHTD, scale, rows) for rows in _blocks(q_BHTD.shape[2])]
        return torch.cat([F.dropout(share_BHRS, dropout) @ v_BHSD for share_BHRS, v_BHSD, _ in blocks], 2)
    y_BHTD: Tensor = _Attention.apply(q_BHTD, k_BHTD, v_BHTD, scale)[0]  # type: ignore[no-untyped-call]
    return y_BHTD


def _blocks(T: int) -> list[slice]:
    rows = max(_LEAST, -(-T // _BLOCKS))
    return [slice(start, min(start + rows, T)) for start in range(0, T, rows)]


def _shares(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float | Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each value a block's queries take, (B, H, R, S), those values, and the softmax's totals (logarithms).

    Products want operands without gaps: better copied here, with whatever else the compiler does to them.
    """
    q_BHRD, k_BHSD = q_BHTD[:, :, rows].contiguous(), k_BHTD[:, :, : rows.stop].contiguous()
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    score_BHRS = (q_BHRD @ k_BHSD.transpose(2, 3)).to(wide) * scale + _unseen(rows, wide, q_BHTD.device)
    most_BHR1 = score_BHRS.amax(3, keepdim=True)
    power_BHRS = (score_BHRS - most_BHR1).exp()
    sum_BHR1 = power_BHRS.sum(3, keepdim=True)
    share_BHRS = (power_BHRS / sum_BHR1).to(v_BHTD.dtype)
    return share_BHRS, v_BHTD[:, :, : rows.stop].contiguous(), (most_BHR1 + sum_BHR1.log())[..., 0]


def _unseen(rows: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a key comes after the query, (R, S). Adding it is three times as fast as masking when compiled."""
    return torch.full((rows.stop - rows.start, rows.stop), -torch.inf, dtype=dtype, device=device).triu(rows.start + 1)


class _Attention(torch.autograd.Function):
    """The gradient written out: quicker than what autograd makes of the same blocks, and nothing of size T x T is kept.

    The way back makes the shares again, as keys x queries: two of the three products that they enter then read them as
    they lie. (It also looks like another product than the way there, or the compiler would keep that one's result.)
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        blocks = [_shares(q_BHTD, k_BHTD, v_BHTD, scale, rows) for rows in _blocks(q_BHTD.shape[2])]
        y_BHTD = torch.cat([share_BHRS @ v_BHSD for share_BHRS, v_BHSD, _ in blocks], 2)
        total_BHT = torch.cat([total_BHR for *_, total_BHR in blocks], 2)
        ctx.number = None if isinstance(scale, Tensor) else scale
        ctx.save_for_backward(
            q_BHTD, k_BHTD, v_BHTD, y_BHTD, total_BHT, *([scale] if isinstance(scale, Tensor) else [])
        )
        ctx.mark_non_differentiable(total_BHT)
        return y_BHTD, total_BHT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        slope_BHTD = slopes[0]
        q_BHTD, k_BHTD, v_BHTD, y_BHTD, total_BHT, *kept = ctx.saved_tensors
        scale = kept[0] if kept else ctx.number
        narrow, wide = q_BHTD.dtype, total_BHT.dtype
        # What a query's shares add up to with their slopes, so that moving them keeps their sum at 1.
        mean_BHT = (slope_BHTD.to(wide) * y_BHTD).sum(3)
        blocks = _blocks(slope_BHTD.shape[2])
        dq, dk, dv = [], [], []
        for rows in blocks:
            q_BHRD, slope_BHRD = q_BHTD[:, :, rows].contiguous(), slope_BHTD[:, :, rows].contiguous()
            k_BHSD, v_BHSD = k_BHTD[:, :, : rows.stop].contiguous(), v_BHTD[:, :, : rows.stop].contiguous()
            score_BHSR = (k_BHSD @ q_BHRD.transpose(2, 3)).to(wide) * scale
            score_BHSR = score_BHSR + _unseen(rows, wide, q_BHTD.device).t()
            share_BHSR = (score_BHSR - total_BHT[:, :, None, rows]).exp()
            slope_BHSR = (v_BHSD @ slope_BHRD.transpose(2, 3)).to(wide) - mean_BHT[:, :, None, rows]
            slope_BHSR = (share_BHSR * slope_BHSR * scale).to(narrow)
            dq.append(slope_BHSR.transpose(2, 3) @ k_BHSD)
            dk.append(slope_BHSR @ q_BHRD)
            dv.append(share_BHSR.to(narrow) @ slope_BHRD)
        return torch.cat(dq, 2), _joined(dk, blocks), _joined(dv, blocks), None


def _joined(parts: list[Tensor], blocks: list[slice]) -> Tensor:
    """The sum of gradients (B, H, S, D) that reach ever further, as (B, H, T, D)."""
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    columns = []
    for number, rows in enumerate(blocks):
        column_BHRD = parts[number][:, :, rows].to(wide)
        for part in parts[number + 1 :]:
            column_BHRD = column_BHRD + part[:, :, rows]
        columns.append(column_BHRD.to(parts[0].dtype))
    return torch.cat(columns, 2)
