"""Low-rank adapters (LoRA, Hu et al. 2021): a matrix W stays as it is, and A·B of a small rank is learnt beside it.

A module of ours and no `peft`: training reads weights as tensors (`training/loss.py`), which a layer with its own
forward pass would hide from it, and a run needs nothing installed. On disk an adapter is peft's
(`checkpoint/adapter.py`). What is adapted reads as one weight, W + scale·A·B, so model and trainer have no branch for
it. Spared are the optimiser's state and the checkpoints, not arithmetic: a pass computes the gradient of that weight.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.checkpoint.adapter import Adapter, base_mark, read_adapter, write_adapter
from gpt2.errors import BadCheckpoint, BadOption
from gpt2.model import GPT2, Projection
from gpt2.tokenizer import Tokenizer
from gpt2.training.options import TrainingOptions


class Adapted(nn.Module):
    """A projection with an adapter. lora_A: (rank, in), lora_B: (out, rank), as peft has them; base: the projection's
    own weight (in, out) and bias, which stay as they are."""

    def __init__(self, projection: Projection, rank: int, scale: float, random: torch.Generator) -> None:
        super().__init__()
        n_in, n_out = projection.weight.shape
        device = projection.weight.device
        self.scale = scale
        self.base = projection.requires_grad_(False)
        # peft's first values: B is zero, so that the model begins as the base; A is uniform within 1/√in.
        first = torch.empty(rank, n_in).uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=random)
        self.lora_A = nn.Parameter(first.to(device))
        self.lora_B = nn.Parameter(torch.zeros(n_out, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """W + scale·(B·A)ᵀ, (in, out)."""
        return torch.addmm(self.base.weight, self.lora_A.t(), self.lora_B.t(), alpha=self.scale)

    @property
    def bias(self) -> Tensor:
        """The projection's own."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


def adapt(network: GPT2, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Gives the matrices of every block that `targets` name an adapter, in place; nothing else can be learnt then."""
    network.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for block in network.h:
        for part in (block.attn, block.mlp):
            for name in targets:
                if isinstance(projection := getattr(part, name, None), Projection):
                    setattr(part, name, Adapted(projection, rank, alpha / rank, random))


def adapters(network: nn.Module) -> dict[str, Adapted]:
    """The adapted projections of a network by their names, such as h.0.attn.c_attn."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Adapted)}


def plain(network: GPT2) -> GPT2:
    """A GPT2 with the adapters added to its weights. What has none is shared and not copied."""
    found = adapters(network)
    state = {name: tensor for name, tensor in network.state_dict().items() if not _within(name, found)}
    for name, module in found.items():
        state |= {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias.detach()}
    with torch.device("meta"):
        made = GPT2(network.config)
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False).train(network.training)


def _within(name: str, found: dict[str, Adapted]) -> bool:
    return any(name.startswith(f"{module}.") for module in found)


@dataclass(frozen=True, slots=True)
class Lora:
    """How a run keeps an adapter instead of weights (a `Form` of `training/work.py`).

    base: the model's name or absolute path, which adapter_config.json will say; read_base: gives it anew, plain.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str
    read_base: Callable[[], tuple[GPT2, Tokenizer]]

    def check(self, options: TrainingOptions) -> TrainingOptions:
        """The options, with what an adapter decides. Raises BadOption for what it cannot be trained with."""
        if options.optimizer != "adamw":
            raise BadOption(f"optimizer is {options.optimizer!r}, but an adapter is trained with adamw.")
        if options.parallel == "fsdp":
            raise BadOption("parallel is 'fsdp', but an adapter's base lies whole on every process; use ddp.")
        return dataclasses.replace(options, parallel="ddp")

    def adapt(self, network: GPT2, options: TrainingOptions, checkpoint: Path | None) -> GPT2:
        """The network with adapters, new ones or a checkpoint's. Raises BadCheckpoint for one of another base."""
        adapt(network, self.rank, self.alpha, self.targets, options.seed)
        if checkpoint is not None:
            kept, found = read_adapter(checkpoint), adapters(network)
            if kept.mark and kept.mark != base_mark(
                {f"{name}.weight": each.base.weight for name, each in found.items()}
            ):
                raise BadCheckpoint(
                    f"{checkpoint} was learnt on other weights than {self.base} has now; give it the former ones back, "
                    "or begin a new run."
                )
            for name, module in found.items():
                lora_a, lora_b = kept.parts(name)
                with torch.no_grad():
                    module.lora_A.copy_(lora_a)
                    module.lora_B.copy_(lora_b)
        return network

    def plain(self, network: GPT2) -> GPT2:
        """A network of plain weights, to write samples with."""
        return plain(network)

    def write(self, network: GPT2, tokenizer: Tokenizer, path: Path, beside: Callable[[Path], None]) -> None:
        """Writes adapter and tokenizer as a directory, whole or not at all."""
        found = {name: (module.lora_A, module.lora_B) for name, module in adapters(network).items()}
        adapter = Adapter.made(found, self.rank, self.alpha, self.targets, self.base)
        write_adapter(adapter, network, tokenizer, path, beside)

    def read(self, path: Path) -> tuple[GPT2, Tokenizer]:
        """The base; `adapt` adds what the checkpoint has learnt."""
        return self.read_base()
