"""The loss over a large vocabulary without its logits: a piece of the batch at a time, gradient and all.

Logits of a whole batch are the largest thing that training would make (8,192 tokens x 50,257: 1.6 GB in float32). Here
a piece's logits are made, its loss and gradient taken from them at once, and their memory is used again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Products of matrices are quickest when every width is a multiple of this.
_PADDING = 64
# Logits that exist at once. With fewer, the embedding's gradient is added up more often.
_MOST_LOGITS = 2**25


def summed_cross_entropy(
    hidden_NC: Tensor, embedding_VC: Tensor, targets_N: Tensor, piece: "Callable[..., Piece] | None" = None
) -> Tensor:
    """Summed cross-entropy in nats, a scalar, of hidden @ embedding.T against the targets that are not -100.

    hidden_NC: (N, C); products take its dtype. embedding_VC: (V, C), of that dtype or a wider one; its gradient is
    added up and comes in its own. targets_N: int64. Softmax and sums are in float32, or in float64 for a float64
    `hidden_NC`. piece: `one_piece`, or what it compiles to.
    """
    if not torch.is_grad_enabled():
        return _summed(hidden_NC, embedding_VC, targets_N, piece or one_piece, gradients=False)[0]
    loss: Tensor = _CrossEntropy.apply(hidden_NC, embedding_VC, targets_N, piece or one_piece)  # type: ignore[no-untyped-call]
    return loss


Piece = tuple[Tensor, Tensor | None, Tensor | None]


def one_piece(hidden_NC: Tensor, embedding_PC: Tensor, targets_N: Tensor, vocab_size: int, gradients: bool) -> Piece:
    """Loss of some tokens, and its gradients by `hidden_NC` and by the padded embedding (P, C), as products give them.

    Rows of `embedding_PC` from `vocab_size` on are padding, and no token is ever predicted there.
    """
    logits_NP = F.linear(hidden_NC, embedding_PC)
    wide_NP = logits_NP.to(torch.promote_types(logits_NP.dtype, torch.float32))
    place_P = torch.arange(wide_NP.shape[1], device=wide_NP.device)
    if vocab_size < len(place_P):
        wide_NP = wide_NP.masked_fill(place_P >= vocab_size, -torch.inf)
    total_N1 = wide_NP.logsumexp(1, keepdim=True)
    scored_N1 = (targets_N != -100)[:, None]
    target_N1 = wide_NP.gather(1, targets_N.clamp(min=0)[:, None])
    loss = torch.where(scored_N1, total_N1 - target_N1, 0).sum()
    if not gradients:
        return loss, None, None
    # d loss / d logits: the probabilities, less 1 at the target. Where nothing is scored, the probabilities are 0.
    probability_NP = (wide_NP - torch.where(scored_N1, total_N1, torch.inf)).exp()
    slope_NP = (probability_NP - (place_P == targets_N[:, None]).to(wide_NP.dtype)).to(logits_NP.dtype)
    return loss, slope_NP @ embedding_PC, slope_NP.t() @ hidden_NC


def _summed(
    hidden_NC: Tensor, embedding_VC: Tensor, targets_N: Tensor, piece: Callable[..., Piece], gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and its gradients by both."""
    V = len(embedding_VC)
    wide = torch.promote_types(hidden_NC.dtype, torch.float32)
    embedding_PC = F.pad(embedding_VC.to(hidden_NC.dtype), (0, 0, 0, -V % _PADDING))
    # A power of two, as batches mostly are: every shape of a piece is compiled once.
    rows = 1 << max(_PADDING, _MOST_LOGITS // len(embedding_PC)).bit_length() - 1
    loss = hidden_NC.new_zeros((), dtype=wide)
    if not gradients:
        for start in range(0, len(hidden_NC), rows):
            here = slice(start, start + rows)
            loss = loss + piece(hidden_NC[here], embedding_PC, targets_N[here], V, False)[0]
        return loss, None, None
    slopes = []
    slope_PC = torch.zeros_like(embedding_PC, dtype=wide)
    # Of no tokens there is one piece, too: it has a gradient, of zeros.
    for start in range(0, max(1, len(hidden_NC)), rows):
        here = slice(start, start + rows)
        one, slope_RC, one_slope_PC = piece(hidden_NC[here], embedding_PC, targets_N[here], V, True)
        assert slope_RC is not None
        assert one_slope_PC is not None
        loss = loss + one
        slopes.append(slope_RC)
        slope_PC += one_slope_PC
    return loss, torch.cat(slopes), slope_PC[:V].to(embedding_VC.dtype)


class _CrossEntropy(torch.autograd.Function):
    """Takes the gradients with the loss, while a piece's logits are there; the way back only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, embedding_VC: Tensor, targets_N: Tensor, piece: Callable[..., Piece]
    ) -> Tensor:
        loss, slope_NC, slope_VC = _summed(hidden_NC, embedding_VC, targets_N, piece, gradients=True)
        ctx.save_for_backward(slope_NC, slope_VC)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope_NC, slope_VC = ctx.saved_tensors
        return slope_NC * slopes[0], slope_VC * slopes[0], None, None
