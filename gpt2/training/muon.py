"""Muon: every matrix moves along its momentum with all singular values made alike (Keller Jordan, 2024).

What torch.optim.Muon does, and two things that it does not: query, key and value, which GPT-2 keeps in one matrix,
are made alike each on its own, and the work is shared among processes. Matrices of one shape go through the iteration
together. Tested equal to torch's where both apply. Nothing here knows which parameters are a network's matrices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from gpt2.training.ranks import Ranks

MOMENTUM = 0.95
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5

# Numbers that a process takes through the iteration at a time: more would cost memory and gain nothing.
_AT_A_TIME = 1 << 25


def orthogonal(stack_NRC: Tensor) -> Tensor:
    """The matrices with singular values of about 1 (0.7 to 1.2), in their own dtype, by Newton and Schulz's iteration.

    A matrix of zeros stays one.
    """
    wide = stack_NRC.shape[1] <= stack_NRC.shape[2]
    x = stack_NRC if wide else stack_NRC.mT
    # The largest singular value is at most the norm.
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A parameter's columns that are a matrix of their own; shape: of all its rows, wherever they lie."""

    parameter: Tensor
    columns: slice
    shape: tuple[int, int]


class Muon(torch.optim.Optimizer):
    """Moves matrices (rows, columns), float32. State: `momentum_buffer`, of the parameter's shape.

    parts: for every parameter, how many matrices stand in it side by side. width: the dtype of the iteration, and of
    what processes exchange. The learning rate is matched to AdamW's step size, as torch's `match_rms_adamw`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        parts: Sequence[int],
        *,
        lr: float,
        weight_decay: float,
        width: torch.dtype,
        ranks: Ranks,
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "weight_decay": weight_decay})
        self._width, self._ranks = width, ranks
        self._batches = _batches(parameters, parts, ranks.size)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Moves the parameters by their gradients; every process calls it. `closure` is there for torch's sake."""
        (group,) = self.param_groups
        rate, decay, ranks = group["lr"], group["weight_decay"], self._ranks
        for batch in self._batches:
            stack_NRC = torch.stack([self._direction(matrix) for matrix in batch])
            rows, columns = batch[0].shape
            moves_NRC = ranks.together(orthogonal(ranks.shared_out(stack_NRC, rows)), stack_NRC)
            for matrix, move in zip(batch, moves_NRC, strict=True):
                weight = ranks.here(matrix.parameter)[:, matrix.columns]
                weight.mul_(1 - rate * decay).add_(move, alpha=-rate * 0.2 * math.sqrt(max(rows, columns)))

    def _direction(self, matrix: _Matrix) -> Tensor:
        """A matrix's gradient taken into its momentum, and where both together point (Nesterov)."""
        parameter = matrix.parameter
        if parameter.grad is None:
            raise RuntimeError("Muon needs the gradient of every matrix.")
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = self._ranks.here(state["momentum_buffer"])[:, matrix.columns]
        gradient = self._ranks.here(parameter.grad)[:, matrix.columns]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).to(self._width)


def _batches(parameters: Sequence[Tensor], parts: Sequence[int], processes: int) -> list[list[_Matrix]]:
    """The matrices, those of one shape together, so many that no process has more than `_AT_A_TIME` to work on."""
    matrices = []
    for parameter, count in zip(parameters, parts, strict=True):
        width = parameter.shape[1] // count
        matrices += [
            _Matrix(parameter, slice(i * width, (i + 1) * width), (parameter.shape[0], width)) for i in range(count)
        ]
    batches = []
    for shape, alike in groupby(sorted(matrices, key=lambda matrix: matrix.shape), key=lambda matrix: matrix.shape):
        most = max(1, _AT_A_TIME // math.prod(shape)) * processes
        every = list(alike)
        batches += [every[start : start + most] for start in range(0, len(every), most)]
    return batches
