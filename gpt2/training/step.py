"""One optimiser step: gradients of micro-batches added up, looked at, clipped, and the weights moved.

Everything random in it is a function of (seed, step, micro-batch), so a step can be made again, and a rank makes
exactly its share of what one process would have made.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.model import GPT2
from gpt2.training.guard import SpikeGuard
from gpt2.training.loss import Loss
from gpt2.training.optimizer import Optimizer
from gpt2.training.options import TrainingOptions
from gpt2.training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: the batch's mean in nats; norm: the gradient's, before clipping; skipped: a spike, the weights stayed."""

    loss: float
    norm: float
    skipped: bool = False

    @property
    def finite(self) -> bool:
        """Whether the step could be taken: the norm tells of a bad gradient even where the loss is finite."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Step:
    """Takes the steps of a run. rows: those of a batch that this rank reads; micro_batch_size: so many at a time."""

    def __init__(self, network: GPT2, options: TrainingOptions, ranks: Ranks) -> None:
        self.options, self.ranks, self.network = options, ranks, network
        share = options.share(ranks.size)
        self.micro_batch_size = options.rows_at_once(ranks.size)
        self.rows = range(ranks.rank * share, (ranks.rank + 1) * share)
        self._device = network.device
        self.loss = ranks.wrap(Loss(network, options.dtype, options.compile))
        # Held-out windows have many lengths, each of which would be compiled anew.
        self.evaluation_loss = self.loss if ranks.kind == "fsdp" else Loss(network, options.dtype)
        self.optimizer = Optimizer(network, options, ranks)
        self.guard = SpikeGuard(options.skip_spikes)

    def __call__(self, step: int, inputs_BT: Tensor, targets_BT: Tensor) -> StepResult:
        """Step number `step`, counted from 0, with this rank's rows of its batch. A result that is not finite, and a
        spike, leave the weights as they are."""
        options, ranks = self.options, self.ranks
        self.network.train()
        first, last = self.rows.start // self.micro_batch_size, len(self.rows) // self.micro_batch_size - 1

        def before(number: int) -> AbstractContextManager[None]:
            torch.manual_seed(_dropout_seed(options.seed, step, first + number))
            return ranks.last_of(self.loss, number == last)

        loss = accumulate_gradients(
            self.loss, inputs_BT.to(self._device), targets_BT.to(self._device), self.micro_batch_size, before, ranks
        )
        mean, norm = ranks.agreed((float(loss), ranks.clip(self.network.parameters(), options.grad_clip)))
        result = StepResult(mean, norm)
        if not result.finite or self.guard.is_spike(result.loss, result.norm):
            self.optimizer.forget_gradients()
            return StepResult(result.loss, result.norm, skipped=True)
        self.optimizer.step(options.learning_rate_at(step))
        return result


def accumulate_gradients(
    network: Callable[[Tensor, Tensor], Tensor],
    inputs_BT: Tensor,
    targets_BT: Tensor,
    micro_batch_size: int,
    before_each: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
    ranks: Ranks | None = None,
) -> Tensor:
    """Adds the gradients of the batch's mean loss to the parameters, `micro_batch_size` rows at a time.

    `network` gives the summed loss of (inputs, targets). Every micro-batch is divided by the number of targets in the
    whole batch, of all ranks, so the sum is the big batch's gradient however unevenly the targets (-100: none) are
    spread. `before_each` is told the number of each micro-batch, and its context is around it. Returns the mean loss
    in nats, a scalar.
    """
    ranks = ranks or Ranks()
    count = ranks.total((targets_BT != -100).sum()).clamp(min=1)
    total = torch.zeros((), device=inputs_BT.device)
    for number, start in enumerate(range(0, len(inputs_BT), micro_batch_size)):
        rows = slice(start, start + micro_batch_size)
        with before_each(number):
            loss = network(inputs_BT[rows], targets_BT[rows]) / count
            (loss * ranks.gradient_scale).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    return ranks.total(total)


def _dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
