"""What a run has before its first step: options as they were resolved, data, network, and where it stands.

It opens data and makes or reads the network; it trains nothing and writes nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.checkpoint import find_device, load
from gpt2.errors import BadOption
from gpt2.memory import total_memory
from gpt2.model import GPT2
from gpt2.training.data import Data, open_data
from gpt2.training.memory import check_memory, explained, largest_micro_batch
from gpt2.training.options import GPT2_VOCABULARY, TrainingOptions
from gpt2.training.ranks import Ranks
from gpt2.training.run import RunFolder

_CPU_TOKENS = 2**12


@dataclass(frozen=True, slots=True)
class Beginning:
    """A run before its next step. state, optimizer_files: of the checkpoint that it goes on from, if any."""

    options: TrainingOptions
    data: Data
    network: GPT2
    state: dict[str, Any] | None = None
    optimizer_files: Path | None = None

    @property
    def first_step(self) -> int:
        """Steps that are done already."""
        return self.state["step"] if self.state else 0


Note = Callable[[str], None]


def device_of(options: TrainingOptions) -> torch.device:
    """The device of a run, threads set. Raises BadOption or Unavailable."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return find_device(options.device)


def anew(options: TrainingOptions, data: Sequence[Path], note: Note, ranks: Ranks) -> Beginning:
    """A run at step 0. Raises BadData, BadOption or Unavailable."""
    device = device_of(options)
    model = load(options.init) if options.init else None
    if model is not None:
        # Whatever the recipe says of the shape, the weights that are there decide.
        shape = model.config
        if options.context > shape.n_positions:
            raise BadOption(f"context is {options.context}, but {options.init} has a window of {shape.n_positions}.")
        options = dataclasses.replace(
            options, n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd, vocab_size=0
        )
    check_memory(options, device, options.vocab_size or GPT2_VOCABULARY, ranks=ranks.size)
    tokens = open_data(data, options, model.tokenizer if model is not None else None, note)
    options = _with_micro_batch(options, device, tokens, ranks)
    vocab_size, window = _checked(options, device, tokens, ranks)
    with explained(options, device, vocab_size, window):
        if model is not None:
            network = _with_dropout(model.network, options)
        else:
            network = GPT2(options.model_config(vocab_size)).initialise(options.seed)
        return Beginning(options, tokens, network.to(device).requires_grad_(True))


def again(options: TrainingOptions, data: Sequence[Path], run: RunFolder, note: Note, ranks: Ranks) -> Beginning:
    """A run where its latest checkpoint left it. Raises BadData, BadOption, BadCheckpoint or Unavailable."""
    device = device_of(options)
    check_memory(options, device, options.vocab_size or GPT2_VOCABULARY, ranks=ranks.size)
    network, tokenizer, state, files = run.checkpoints.load()
    tokens = open_data(data, options, tokenizer, note)
    vocab_size, window = _checked(options, device, tokens, ranks)
    with explained(options, device, vocab_size, window):
        if (network.config.embd_pdrop, network.config.attn_pdrop) != (options.dropout, options.attention_dropout):
            network = _with_dropout(network, options)
        return Beginning(options, tokens, network.to(device).requires_grad_(True), state, files)


def _with_micro_batch(options: TrainingOptions, device: torch.device, data: Data, ranks: Ranks) -> TrainingOptions:
    """The options with a micro-batch that fits, where they name none. It is written down with the run: dropout is a
    function of the micro-batch, so a resumed run has to have the same."""
    total = total_memory(device)
    if options.micro_batch_size or total is None or options.batch_size % ranks.size:
        return options
    window = _window(options, data)
    rows = largest_micro_batch(options, data.tokenizer.vocab_size, window, 0.8 * total, ranks.size)
    if device.type == "cpu":
        # More tokens at a time are no faster there.
        share = options.batch_size // ranks.size
        rows = max(
            (n for n in range(1, rows + 1) if share % n == 0 and n * window <= _CPU_TOKENS), default=min(rows, 1)
        )
    return dataclasses.replace(options, micro_batch_size=rows)


def _with_dropout(network: GPT2, options: TrainingOptions) -> GPT2:
    """The network with the recipe's dropout, its own weights copied: files are mapped, and training writes."""
    config = dataclasses.replace(
        network.config,
        embd_pdrop=options.dropout,
        resid_pdrop=options.dropout,
        attn_pdrop=options.attention_dropout,
    )
    made = GPT2(config)
    made.load_state_dict(network.float().state_dict())
    return made


def _checked(options: TrainingOptions, device: torch.device, data: Data, ranks: Ranks) -> tuple[int, int]:
    """Size of the vocabulary, and tokens in a row. Raises BadOption if a step cannot fit into memory."""
    window = _window(options, data)
    check_memory(options, device, data.tokenizer.vocab_size, window, ranks.size)
    return data.tokenizer.vocab_size, window


def _window(options: TrainingOptions, data: Data) -> int:
    return min(options.context, max(1, len(data.training) - 1))
