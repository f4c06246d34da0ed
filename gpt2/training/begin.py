"""What a run has before its first step: options as they were resolved, data, network, and where it stands.

It opens data and makes or reads the network, and refuses what cannot be trained while there is no folder yet that would
be in the way of the next try. It trains nothing and writes nothing.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2.checkpoint import find_device, load, shipped
from gpt2.config import SIZES
from gpt2.errors import Unavailable
from gpt2.model import GPT2
from gpt2.training.changes import tell_rate
from gpt2.training.memory import check_memory, explained, micro_batch
from gpt2.training.options import GPT2_VOCABULARY, TrainingOptions
from gpt2.training.ranks import Ranks
from gpt2.training.run import RunFolder
from gpt2.training.trackers import check_installed
from gpt2.training.work import Material, Text, Work


@dataclass(frozen=True, slots=True)
class Beginning:
    """A run before its next step. state, optimizer_files: of the checkpoint that it goes on from, if any."""

    options: TrainingOptions
    data: Material
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


def anew(
    options: TrainingOptions, data: Sequence[Path], note: Note, ranks: Ranks, work: Work | None = None
) -> Beginning:
    """A run at step 0. Raises BadData, BadOption or Unavailable."""
    device = device_of(options)
    work = work or Work()
    options = work.form.check(options)
    _check_here(options, device, ranks)
    model = load(options.init) if options.init else None
    if model is not None:
        options = dataclasses.replace(options.of_shape(model.config), init=_from_anywhere(options.init))
    guess = model.config.vocab_size if model is not None else options.vocab_size or GPT2_VOCABULARY
    check_memory(options, device, guess, ranks=ranks)
    tokens = work.open(data, options, model.tokenizer if model is not None else None, note)
    options, vocab_size, window = _resolved(options, device, tokens, note, ranks)
    with explained(options, device, vocab_size, window, ranks=ranks):
        if model is not None:
            network = _with_dropout(model.network, options)
        else:
            network = GPT2(options.model_config(vocab_size)).initialise(options.seed)
        return Beginning(options, tokens, work.form.adapt(network.to(device), options, None))


def again(options: TrainingOptions, data: Sequence[Path], run: RunFolder, note: Note, ranks: Ranks) -> Beginning:
    """A run where its latest checkpoint left it. Raises BadData, BadOption, BadCheckpoint or Unavailable."""
    device = device_of(options)
    _check_here(options, device, ranks)
    network, tokenizer, state, files = run.checkpoints.load()
    tell_rate(state.get("options", {}), options, state["step"], note)
    tokens = run.work.open(data, options, tokenizer, note)
    then = f" Change it {run.again}."
    options, vocab_size, window = _resolved(options, device, tokens, note, ranks, then)
    with explained(options, device, vocab_size, window, then, ranks):
        # A checkpoint has the recipe's dropout in its own configuration, but an adapter's base has another's.
        config = network.config
        now = (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop)
        if now != (options.dropout, options.dropout, options.attention_dropout):
            network = _with_dropout(network, options)
        network = run.work.form.adapt(network.to(device), options, files.parent)
        return Beginning(options, tokens, network, state, files)


def _check_here(options: TrainingOptions, device: torch.device, ranks: Ranks) -> None:
    """Raises BadOption or Unavailable for what these processes or this machine cannot do, whatever the data."""
    options.share(ranks.size)
    if ranks.is_first:
        check_installed(options.trackers)
    if options.compile and (missing := _missing_compiler(device)):
        raise Unavailable(
            f"compile is on, but it needs {missing}, which is not found here: install it, or train without by "
            "--no-compile, which is slower and learns the same."
        )


def _missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks for a device; None: nothing. Looked for as PyTorch will do it when the first step is
    made, which would be after the run's folder."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError, OSError):  # Windows has its own words for it
            return f"the C++ compiler {os.environ['CXX']} (from CXX)" if "CXX" in os.environ else "a C++ compiler"
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton (the package triton)"
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
            return "a C compiler, for Triton"
    return None


def _from_anywhere(init: str) -> str:
    """A model's name as it is; a path so that it means the same in another folder, where the run is resumed."""
    return str(Path(init).expanduser().absolute()) if is_path(init) else init


def is_path(model: str) -> bool:
    """Whether a model's name means a path, as `locate` reads it: a model that ships, or OpenAI's, goes before."""
    return model not in (*SIZES, *shipped()) and Path(model).expanduser().exists()


def _resolved(
    options: TrainingOptions, device: torch.device, data: Material, note: Note, ranks: Ranks, then: str = ""
) -> tuple[TrainingOptions, int, int]:
    """The options with a micro-batch, size of the vocabulary, tokens in a row; how the run is shared is decided.

    The micro-batch is written down with the run: dropout is a function of it, so a resumed run has to have the same,
    and where it has too many processes for that, it is told. Raises BadOption, which `then` ends, if a step cannot fit
    into memory.
    """
    vocab_size, window = data.tokenizer.vocab_size, data.batches(options).window
    if window < options.context and isinstance(data, Text):
        note(f"the text to train on is shorter than a window of {options.context:,} tokens: rows have {window:,}")
    ranks.decide(options.model_config(vocab_size).parameters, device)
    rows = ranks.agreed(micro_batch(options, vocab_size, window, device, ranks))
    options = dataclasses.replace(options, micro_batch_size=rows)
    check_memory(options, device, vocab_size, window, ranks, then)
    if (options.dropout or options.attention_dropout) and (fewer := options.rows_at_once(ranks.size)) < rows:
        note(
            f"dropout is drawn for {rows} sequences at a time, but each of {ranks.size} processes has "
            f"{options.share(ranks.size)}, so it is drawn for {fewer}: the losses are not those of fewer processes "
            f"(--micro-batch-size {fewer} from the start makes them so)"
        )
    return options, vocab_size, window


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
