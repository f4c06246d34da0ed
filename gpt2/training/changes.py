"""What may have changed when a run goes on: its options and data against those of its checkpoint, and what is told.

It decides nothing of what a run does (`begin.py`), and writes nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpt2.errors import BadData, BadOption
from gpt2.training.options import HOW, TrainingOptions
from gpt2.training.run import RunFolder

# What the weights and the optimiser's state of a checkpoint are made for.
_FIXED = ("init", "n_layer", "n_head", "n_embd", "context", "vocab_size", "optimizer")


def check_steps(run: RunFolder, steps: object) -> None:
    """Raises BadOption for a run that is past so many steps."""
    if isinstance(steps, int) and run.checkpoints.pointed() is not None:
        done = run.checkpoints.state()["step"]
        if steps < done:
            raise BadOption(f"{run.path} is at step {done:,} already, past {steps:,} steps; choose more --steps.")


def check_unchanged(run: RunFolder, options: TrainingOptions, state: Mapping[str, Any], allow: bool) -> None:
    """Raises BadOption for a recipe that is not the checkpoint's, unless that is allowed and can be."""
    now, then = dataclasses.asdict(options), state.get("options", {})
    changed = [name for name in then if name in now and name not in HOW and now[name] != then[name]]
    fixed = [name for name in changed if name in _FIXED]
    told = ", ".join(f"{name} = {now[name]!r} (was {then[name]!r})" for name in fixed or changed)
    if fixed:
        raise BadOption(
            f"The recipe of {run.path} has changed since its checkpoint, in what a run cannot go on with: {told}. "
            "Put it back in recipe.toml, or start anew (--init takes the weights of this run)."
        )
    if changed and not allow:
        raise BadOption(
            f"The recipe of {run.path} has changed since its checkpoint: {told}. Put it back in recipe.toml, or go on "
            "with it all the same with --allow-changes."
        )


def check_data(run: RunFolder, data: Sequence[str], fingerprint: str, state: Mapping[str, Any], allow: bool) -> None:
    """Raises BadData for data that are not the checkpoint's, unless that is allowed."""
    if fingerprint != state["data"] and not allow:
        raise BadData(
            f"The data of {run.path} has changed since the checkpoint: {', '.join(data)}. Restore it, start anew, or "
            "go on with it all the same with --allow-changes."
        )


def tell_rate(stored: Mapping[str, Any], options: TrainingOptions, step: int, note: Callable[[str], None]) -> None:
    """Notes a learning rate that is not what it was to be by the options `stored`, those of the checkpoint."""
    known = {item.name: stored[item.name] for item in dataclasses.fields(options) if item.name in stored}
    # What an older version wrote down may be no options today; the run's own were checked.
    with suppress(BadOption):
        if known and (told := rate_change(TrainingOptions(**known), options, step)):
            note(told)


def rate_change(then: TrainingOptions, now: TrainingOptions, step: int) -> str | None:
    """A sentence for a run that goes on at `step` with another learning rate than it would have had; None: the same.

    A cosine, and a decay under way, depend on how many steps there are: whoever changes those changes the rate.
    """
    before, after = then.learning_rate_at(step), now.learning_rate_at(step)
    if math.isclose(before, after, rel_tol=1e-6):
        return None
    why = f" ({now.steps:,} steps, and no longer {then.steps:,})" if now.steps != then.steps else ""
    return f"the learning rate goes on at {after:.3g}, where it would have been {before:.3g}{why}"
