"""What a run says of itself before its first step: the model, how long it goes on, and how often it reads its data.

Nothing is measured here (`meter.py` does that), and nothing is refused.
"""

from collections.abc import Iterator
from pathlib import Path

from gpt2.training.batches import Batches
from gpt2.training.begin import Beginning

# Read more often than this, a text is learnt by heart where nothing is done against it.
_MANY = 10


def opening(start: Beginning, batches: Batches, run: Path, command: str) -> Iterator[str]:
    """Lines for people. run: its folder; command: what goes on with it."""
    options, config = start.options, start.network.config
    learnt = sum(p.numel() for p in start.network.parameters() if p.requires_grad)
    part = f", of which {learnt:,} parameters are learnt" if learnt < config.parameters else ""
    steps = f"{options.steps:,} step{'s' * (options.steps != 1)}"
    if start.first_step >= options.steps:
        yield f"{run} has made its {steps} already; {command} --steps N goes on"
        return
    epochs = batches.epochs(options.steps)
    where = f"{run}, at step {start.first_step:,}" if start.first_step else str(run)
    yield (
        f"{where}: {config.parameters:,} parameters{part}, a vocabulary of {config.vocab_size:,}; {steps} of "
        f"{batches.tokens:,} tokens, {reads(epochs)}"
    )
    if not start.first_step and epochs > _MANY and not (options.patience or options.dropout):
        yield (
            "what is read so often is learnt by heart, and new text is then predicted worse: take fewer --steps, "
            "--dropout 0.2, or --patience 3, which stops when validation gets no better"
        )


def reads(epochs: float) -> str:
    """How often the data is read, in words."""
    if epochs < 1:
        return f"which read {100 * epochs:.2g} % of the data"
    return f"which read the data {epochs:,.{0 if epochs >= 10 else 1}f} times"
