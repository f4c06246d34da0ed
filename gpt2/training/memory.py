"""How much memory a run takes, part by part, whether the machine has it, and what would fit: from the options alone.

Weights, gradients and the optimiser's moments are counted exactly. What a pass keeps for its way back was measured on
the plain pass (compiled, it keeps less); logits exist a piece at a time. It knows no allocator.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpt2.config import GPT2Config
from gpt2.errors import BadOption
from gpt2.memory import no_room, total_memory
from gpt2.training.flops import block_matrices
from gpt2.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch

    from gpt2.training.ranks import Ranks

# Of a machine's memory, what a run is planned to fill: the rest is for others, and for what is not counted here.
USABLE = 0.8
# A CPU is no faster with more tokens at a time than this.
_CPU_TOKENS = 2**12


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a process, by what they are for.

    copy: the bfloat16 weights that a pass computes with. activations: what a micro-batch keeps for its way back.
    head: a piece of the logits with what its loss and gradient take, and the head's own gradient of this pass.
    """

    weights: int
    gradients: int
    optimizer: int
    copy: int
    activations: int
    head: int

    @property
    def state(self) -> int:
        """What is there whatever the batch: weights, their copy, gradients, optimiser."""
        return self.weights + self.gradients + self.optimizer + self.copy

    @property
    def batch(self) -> int:
        """What a micro-batch takes besides."""
        return self.activations + self.head

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batch


def need(options: TrainingOptions, vocab_size: int, window: int, ranks: int = 1, parallel: str = "ddp") -> Need:
    """What each process of a run takes with a vocabulary of this size and micro-batches of `window` tokens a row.

    ranks: processes that share the batch. parallel: "ddp" (each holds all weights) or "fsdp" (each holds its share,
    and of the others' what it computes with: the embeddings and two blocks at a time).
    """
    config = options.model_config(vocab_size)
    count = config.parameters
    moments = 2 * count
    if options.optimizer == "muon":
        # One moment for the blocks' matrices.
        moments -= block_matrices(config)
    narrow = options.dtype == "bfloat16"
    width = 2 if narrow else 4
    share = ranks if parallel == "fsdp" else 1
    copy = 2 * count if narrow else 0
    if share > 1:
        embeddings, blocks = (
            (vocab_size + config.n_positions) * config.n_embd,
            2 * block_matrices(config) // config.n_layer,
        )
        # Whole, embeddings in float32 and matrices as they are computed with; and their gradients, whole, before those
        # are summed and shared out.
        copy = embeddings * (4 + 4) + blocks * (width + 4)
    rows = options.micro_batch_size or -(-options.batch_size // ranks)
    tokens = rows * window
    return Need(
        weights=4 * count // share,
        gradients=4 * count // share,
        optimizer=4 * moments // share,
        copy=copy,
        activations=tokens * _kept(options, config, window, width),
        head=_head(tokens, config, width),
    )


def _kept(options: TrainingOptions, config: GPT2Config, window: int, width: int) -> int:
    """Bytes that a token keeps for the way back.

    Per layer in units of the model width: what both norms read (2), query, key, value (3), attention's output (1) and
    the inputs of the four projections (1 + 1 + 1 + 4) and of the activation (4), less what two of them share.
    """
    kept = config.n_layer * config.n_embd * 16 * width
    if options.attention_dropout:
        # Attention with dropout writes its weights down, the mask and the product of both.
        kept += 3 * config.n_layer * config.n_head * window * 4
    if options.dropout:
        # The masks of the embedding and of both parts of each block, as wide as what they mask (on CUDA one byte).
        kept += (2 * config.n_layer + 1) * config.n_embd * width
    return kept


# As training/cross_entropy.py has them (a test compares): logits that exist at once, and what widths are padded to.
MOST_LOGITS, PADDING = 2**25, 64


def _head(tokens: int, config: GPT2Config, width: int) -> int:
    """Bytes that the loss takes beside the activations: logits of a piece in the pass's width, three times in float32,
    and their gradient; the padded embedding, and its gradient in float32 and in the pass's width."""
    rows = -(-config.vocab_size // PADDING) * PADDING
    piece = min(tokens, max(PADDING, MOST_LOGITS // rows)) * rows
    return piece * (3 * 4 + 2 * width) + rows * config.n_embd * (4 + 2 * width)


def largest_micro_batch(
    options: TrainingOptions, vocab_size: int, window: int, budget: float, ranks: int = 1, parallel: str = "ddp"
) -> int:
    """Most sequences of a pass that fit into `budget` bytes and share a process's part of the batch; 0: none fit."""
    share = options.batch_size // ranks

    def fits(rows: int) -> bool:
        return need(options.with_rows(rows, ranks), vocab_size, window, ranks, parallel).total <= budget

    rows = _largest(share, fits)
    while rows and share % rows:
        rows -= 1
    return rows


def room(device: "torch.device", ranks: "Ranks | None" = None) -> int | None:
    """Bytes of memory for this process, or for each of those; None where nobody can tell."""
    return total_memory(device) if ranks is None else ranks.room(device)


def micro_batch(
    options: TrainingOptions, vocab_size: int, window: int, device: "torch.device", ranks: "Ranks | None" = None
) -> int:
    """Sequences of a pass: those that the options name, or as many as fit and make it quicker, at least one.

    ranks: with its kind decided. Raises BadOption for a batch that the processes cannot share.
    """
    size, kind = _shared_by(ranks)
    share, memory = options.share(size), room(device, ranks)
    if options.micro_batch_size:
        return options.micro_batch_size
    rows = share
    if memory is not None:
        rows = max(1, largest_micro_batch(options, vocab_size, window, USABLE * memory, size, kind))
    if device.type == "cpu":
        rows = max((n for n in range(1, rows + 1) if share % n == 0 and n * window <= _CPU_TOKENS), default=1)
    return rows


def _shared_by(ranks: "Ranks | None") -> tuple[int, str]:
    """How many processes there are, and the kind to count with; while that is undecided, the one that takes least."""
    if ranks is None or ranks.size == 1:
        return 1, "ddp"
    return ranks.size, "ddp" if ranks.kind == "ddp" else "fsdp"


def check_memory(
    options: TrainingOptions,
    device: "torch.device",
    vocab_size: int,
    window: int | None = None,
    ranks: "Ranks | None" = None,
    then: str = "",
) -> None:
    """Raises BadOption, with what would fit, for a run that this machine has no room for. `then` ends the message.

    window: tokens a row, None before the data is known: then the weights alone are weighed. What a pass keeps is
    counted half, since compiling saves some of it: only what cannot work is refused. ranks: the processes, each on a
    device like this one.
    """
    total = room(device, ranks)
    # Inputs and targets of a whole batch are made at once, in 8 bytes a token each.
    row = 16 * (window or 1)
    if total is not None and options.batch_size * row > total:
        size = _gigabytes(options.batch_size * row)
        raise BadOption(
            f"The token ids alone of {options.batch_size:,} sequences a step take {size}, but there are "
            f"{_gigabytes(total)} of memory in all; --batch-size {total // 4 // row} would fit.{then}"
        )
    needed = need(options, vocab_size, window or options.context, *_shared_by(ranks))
    if total is not None and needed.state + (needed.batch // 2 if window else 0) > total:
        raise BadOption(_advice(options, device, vocab_size, window or options.context, ranks) + then)


@contextmanager
def explained(
    options: TrainingOptions,
    device: "torch.device",
    vocab_size: int,
    window: int,
    then: str = "",
    ranks: "Ranks | None" = None,
) -> Iterator[None]:
    """Turns an allocator's error into BadOption: how much is needed, and what would fit. `then` ends the message."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if no_room(error):
            raise BadOption(_advice(options, device, vocab_size, window, ranks) + then) from error
        raise


def _advice(
    options: TrainingOptions, device: "torch.device", vocab_size: int, window: int, ranks: "Ranks | None"
) -> str:
    size, kind = _shared_by(ranks)
    needed, total = need(options, vocab_size, window, size, kind), room(device, ranks)
    whole = needed.total
    # Where it should have fitted, others have taken it: then half as much might.
    budget = whole // 2 if total is None or whole <= total else int(USABLE * total)
    rows = options.micro_batch_size or -(-options.batch_size // size)
    place = "this machine" if device.type == "cpu" else str(device)
    if ranks is not None and device.type == "cpu" and ranks.local_size > 1:
        place = f"each of the {ranks.local_size} processes on this machine"
    has = f"{place} has {'less' if total is None else f'{_gigabytes(total)} in all'}"
    return (
        f"Training this takes about {_gigabytes(whole)} of memory ({_gigabytes(needed.state)} for weights, gradients "
        f"and optimiser, {_gigabytes(needed.batch)} for {rows:,} x {window:,} tokens at a time), but {has}; "
        f"{_what_fits(options, vocab_size, window, budget, size, kind)}."
    )


def _what_fits(options: TrainingOptions, vocab_size: int, window: int, budget: int, size: int, kind: str) -> str:
    def fits(candidate: TrainingOptions) -> bool:
        return need(candidate, vocab_size, window, size, kind).total <= budget

    rows = largest_micro_batch(options, vocab_size, window, budget, size, kind)
    if rows:
        return f"--micro-batch-size {rows} would fit"
    single = replace(options, micro_batch_size=1)
    layers = _largest(options.n_layer, lambda n: fits(replace(single, n_layer=n)))
    if layers:
        return f"--n-layer {layers} with --micro-batch-size 1 would fit"
    heads, head_width = options.n_head, options.n_embd // options.n_head
    width = _largest(head_width, lambda n: fits(replace(single, n_embd=n * heads))) * heads
    if width:
        return f"--n-embd {width} with --micro-batch-size 1 would fit"
    return "choose a much smaller model"


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does; what fits must do so with less, too."""
    return bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
