"""What a run says of itself before its first step: the model, how long it goes on, and how often it reads its data.

Nothing is measured here (`meter.py` does that), and nothing is refused.
"""

from collections.abc import Iterator
from pathlib import Path

from gpt2.training.batches import Batches
from gpt2.training.begin import Beginning
from gpt2.training.words import counted, of_the_data

# Read more often than this, a text is learnt by heart where nothing is done against it.
_MANY = 10


def opening(
    start: Beginning, batches: Batches, run: Path, command: str, formula: str, scored: bool = True, stale: bool = False
) -> Iterator[str]:
    """Lines for people. run: its folder; command: what goes on with it; formula: how operations are counted; scored:
    whether anything is held out; stale: whether patience has ended the run."""
    options, config = start.options, start.network.config
    learnt = sum(p.numel() for p in start.network.parameters() if p.requires_grad)
    part = f", of which {learnt:,} parameters are learnt" if learnt < config.parameters else ""
    steps = counted(options.steps, "step")
    if start.first_step >= options.steps:
        yield f"{run} has made its {steps} already; {command} --steps N goes on"
        return
    if stale:
        yield (
            f"{run} was ended at step {start.first_step:,} by --patience {options.patience}; {command} --patience N, "
            f"with more, or 0 for all of its {steps}, goes on"
        )
        return
    epochs = batches.epochs(options.steps)
    where = f"{run}, at step {start.first_step:,}" if start.first_step else str(run)
    yield (
        f"{where}: {config.parameters:,} parameters{part}, a vocabulary of {config.vocab_size:,}; {steps} of "
        f"{counted(batches.tokens, 'token')}, which read{'s' * (options.steps == 1)} {of_the_data(epochs)}"
    )
    yield formula
    if not start.first_step and epochs > _MANY and not (options.patience or options.dropout):
        fewer, dropout = "take fewer --steps", "--dropout 0.2"
        patience = f"{fewer}, {dropout}, or --patience 3, which stops when validation gets no better"
        yield (
            "what is read so often is learnt by heart, and new text is then predicted worse: "
            f"{patience if scored else f'{fewer}, or {dropout}'}"
        )
    if options.compile:
        yield "compiling first, which may take minutes (--no-compile begins at once, and is slower)"
