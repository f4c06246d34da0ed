"""One process or many: which one this is, and what they do together.

A run on many processes is the run on one, its batches shared out: under "ddp" every process has all weights, under
"fsdp" each has a share of every matrix's rows. This file knows torch.distributed, and but for the files that a
sharded optimiser writes nobody else has to.
"""

import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2.errors import BadOption, Error, Unavailable
from gpt2.memory import total_memory
from gpt2.model import GPT2, Block
from gpt2.training.loss import Loss, block_pass
from gpt2.training.processes import first_alone_notices, how_many

Decision = TypeVar("Decision", bool, int, float, str, tuple[float, ...])

# The others wait while the first writes a checkpoint or a sample, and while a slow one reads its data.
_PATIENCE = timedelta(minutes=30)

# Weights, gradients and AdamW's two moments, in float32; and how much of a device they may take beside activations.
_BYTES_PER_PARAMETER = 16
_SHARE_OF_DEVICE = 0.5


@dataclass(slots=True)
class Ranks:
    """This process among all that train together.

    rank: this one's number, `size`: how many there are; local_rank: its number, and local_size: how many, on this
    machine. kind: "single", "ddp" or "fsdp"; "auto" until `wrap` has seen the network and decides.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    kind: str = "single"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    @property
    def gradient_scale(self) -> float:
        """What a loss is multiplied with so that gradients, which DDP and FSDP average, come out as sums."""
        return float(self.size)

    def room(self, device: torch.device) -> int | None:
        """Bytes of memory for each process: those on one CPU share it, every GPU has its own. None where nobody can
        tell."""
        total = total_memory(device)
        return None if total is None else total // (self.local_size if device.type == "cpu" else 1)

    def wrap(self, loss: Loss) -> nn.Module:
        """The loss as this kind of run needs it; alone, as it is. Sharding exchanges the network's parameters, so an
        optimiser is made afterwards."""
        if self.size == 1:
            return loss
        self.decide(sum(p.numel() for p in loss.network.parameters()), loss.network.device)
        if self.kind == "ddp":
            return DistributedDataParallel(loss, gradient_as_bucket_view=True)
        return _sharded(loss, self.size)

    def decide(self, parameters: int, device: torch.device) -> None:
        """Makes "auto" the kind that fits on such a device, the first's. Further calls change nothing. All call it."""
        if self.kind == "auto":
            self.kind = self.agreed(kind_that_fits(parameters, self.room(device)))

    def last_of(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch: under DDP only the last one's exchanges gradients.

        FSDP exchanges every one's: gradients that wait would have to be whole, on processes that shard to save memory.
        """
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        return nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def agreed(self, value: Decision) -> Decision:
        """The first process's value, on every process: what all have to decide alike, one decides. All call it.

        Figures of the same step may differ in a bit from process to process, and memory by far more; where one then
        goes into a collective call and another does not, both wait for ever.
        """
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def heard(self, text: str | None) -> str | None:
        """The first text that a process has to tell, on every process; None if none has. All call it."""
        if self.size == 1:
            return text
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, text)
        return next((text for text in texts if text is not None), None)

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.size > 1:
            dist.barrier()

    def clip(self, parameters: Iterable[Tensor], most: float) -> float:
        """Scales the gradients down to a norm of at most `most` (0: not at all); returns the norm that they had."""
        return float(self.gathered(nn.utils.clip_grad_norm_(parameters, most or math.inf)))

    def here(self, tensor: Tensor) -> Tensor:
        """The part of a parameter (or its gradient, or its state) that lies on this process; what changes it in place
        changes the parameter."""
        # A DTensor under FSDP. Its class takes a second to import, which a run on one process need not wait for.
        return tensor.to_local() if self.kind == "fsdp" else tensor  # type: ignore[attr-defined]

    def gathered(self, tensor: Tensor) -> Tensor:
        """The whole of such a tensor, on every process."""
        return tensor.full_tensor() if self.kind == "fsdp" else tensor  # type: ignore[attr-defined]

    @contextmanager
    def whole(self, network: GPT2) -> Iterator[GPT2 | None]:
        """The network with all of its weights on the first process, None on the others; every process calls it.

        Of a sharded network it is a copy on the CPU, gathered one parameter at a time.
        """
        if self.kind != "fsdp":
            yield network if self.is_first else None
            return
        tensors = {}
        for name, tensor in network.state_dict().items():
            gathered = self.gathered(tensor)
            if self.is_first:
                tensors[name] = gathered.cpu()
        if not self.is_first:
            yield None
            return
        with torch.device("meta"):
            copy = GPT2(network.config)
        copy.load_state_dict(tensors, assign=True)
        yield copy.eval()

    # Matrices that are worked on whole, shared out: what Muon needs.

    def shared_out(self, stack_NRC: Tensor, rows: int) -> Tensor:
        """This process's share, (n, rows, C), of N matrices with `rows` rows, whole.

        stack_NRC: what each process has of them: all rows, the same on each, or under FSDP its own. Where N does not
        divide evenly, matrices of zeros make it up.
        """
        if self.size == 1:
            return stack_NRC
        count, _, columns = stack_NRC.shape
        share = -(-count // self.size)
        if self.kind == "ddp":
            mine = stack_NRC[self.rank * share : (self.rank + 1) * share]
            return F.pad(mine, (0, 0, 0, 0, 0, share - len(mine)))
        block = -(-rows // self.size)
        padded = F.pad(stack_NRC, (0, 0, 0, block - stack_NRC.shape[1], 0, share * self.size - count))
        received = torch.empty_like(padded)
        dist.all_to_all_single(received, padded)
        # (from whom, n, block, C) -> (n, rows, C): every process has sent its block of rows.
        blocks = received.view(self.size, share, block, columns).transpose(0, 1)
        return blocks.reshape(share, self.size * block, columns)[:, :rows]

    def together(self, mine_nRC: Tensor, like_NRC: Tensor) -> Tensor:
        """The way back from `shared_out`: every process's share put together, of the shape of what was shared out."""
        if self.size == 1:
            return mine_nRC
        count, own_rows, columns = like_NRC.shape
        share, rows, _ = mine_nRC.shape
        if self.kind == "ddp":
            whole = mine_nRC.new_empty((share * self.size, rows, columns))
            dist.all_gather(list(torch.split(whole, share)), mine_nRC.contiguous())
            return whole[:count]
        block = -(-rows // self.size)
        padded = F.pad(mine_nRC, (0, 0, 0, self.size * block - rows))
        sent = padded.view(share, self.size, block, columns).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return received.view(share * self.size, block, columns)[:count, :own_rows]


def kind_that_fits(parameters: int, memory: int | None) -> str:
    """What "auto" means: "ddp" while weights, gradients and moments leave half of the memory (bytes) to activations.

    memory: None if it is not known; then whoever runs out of it can say "fsdp".
    """
    return "fsdp" if memory is not None and parameters * _BYTES_PER_PARAMETER > memory * _SHARE_OF_DEVICE else "ddp"


def _sharded(loss: Loss, size: int) -> nn.Module:
    """The loss with its network sharded: each block's matrices by themselves, which are gathered in the pass's width;
    and as one group all that a pass reads in float32, which stays gathered from the forward to the backward pass:
    embeddings (the tied head's, too) and norms."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    network, narrow = loss.network, loss.narrow
    mesh = init_device_mesh(network.device.type, (size,))
    policy = MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
    )
    blocks = cast("list[Block]", list(network.h))
    matrices = {p for block in blocks for part in (block.attn, block.mlp) for p in part.parameters()}
    fully_shard(network, mesh=mesh, ignored_params=matrices)
    for block in blocks:
        block.forward = _pass_of(block, narrow)  # type: ignore[method-assign]
        if loss.compiled:
            block.compile()
        norms = {*block.ln_1.parameters(), *block.ln_2.parameters()}
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=norms)
    register_fsdp_forward_method(network, "hidden")
    return Loss(network, "bfloat16" if narrow else "float32", called=True)


def _pass_of(block: Block, narrow: torch.dtype | None) -> Callable[..., Tensor]:
    """The pass that a block has on one process, as its method `forward`: what gathers weights are hooks around that."""

    def forward(x_BTC: Tensor, cache: None, mask: None) -> Tensor:
        return block_pass(block, x_BTC, narrow or x_BTC.dtype)

    return forward


@contextmanager
def started(parallel: str, device: torch.device) -> Iterator[Ranks]:
    """The processes of this run, for as long as it goes on; torchrun tells each one who it is.

    parallel: "auto", "ddp" or "fsdp". Raises BadOption or Unavailable for a device that they cannot share.
    """
    environment = os.environ
    if how_many() == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise BadOption(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set: "
            "start several processes with `torchrun`, or unset WORLD_SIZE."
        )
    local = int(environment["LOCAL_RANK"])
    ranks = Ranks(
        rank=int(environment["RANK"]),
        size=how_many(),
        local_rank=local,
        local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
        kind=parallel,
    )
    _check_device(device, local)
    if device.type == "cuda":
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=torch.device("cuda", local))
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        with first_alone_notices():
            yield ranks
    except RuntimeError as error:
        if is_of_others(error):
            said = str(error).splitlines()[0] if str(error) else ""
            if "timed out" in said.lower() or "timeout" in said.lower():
                why = f"they had not come after {_PATIENCE.total_seconds():,.0f} seconds, and may hang"
            else:
                why = "one of them has ended, and its own message says why"
            raise Error(f"Process {ranks.rank} lost the others: {why} ({said}).") from error
        raise
    # Only when all went well: closing waits for the others, who may be gone. A process that fails ends anyway.
    if dist.get_backend() == "gloo":
        _let_go()
    dist.destroy_process_group()


def is_of_others(error: BaseException) -> bool:
    """Whether an error says that another process has gone, or does not answer."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in said or "nccl" in said))


def _let_go() -> None:
    """Waits until gloo's threads hold none of the tensors that were sent.

    To let go of one they take Python's lock. Whoever drops a group last, often together with the network that used it,
    holds that lock and waits for these threads to end: for ever, when one of them was still to let go (PyTorch 2.13).
    """
    tensor = torch.zeros(1)
    dist.all_reduce(tensor)
    held = weakref.ref(tensor)
    del tensor
    for _ in range(1000):
        if held() is None:
            break
        time.sleep(0.001)
    # There are several threads, and an earlier tensor may be another one's.
    time.sleep(0.1)


def _check_device(device: torch.device, local_rank: int) -> None:
    if device.type not in ("cpu", "cuda"):
        raise BadOption(f"Several processes cannot train on {device}; choose cpu or cuda.")
    if device.index is not None:
        raise BadOption(f"device is {device}, but under torchrun every process takes a GPU of its own: say cuda.")
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise Unavailable(
            f"Process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. "
            "Start as many processes as there are GPUs."
        )
