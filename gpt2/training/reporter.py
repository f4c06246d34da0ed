"""What a run tells while it goes on, what it came to, and who writes its samples. Nothing here takes a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel
    from gpt2.training.evaluate import Evaluation

Sample = Callable[["LanguageModel"], str]
"""Writes a text with a model."""


class Reporter(Protocol):
    """What a run says while it goes on.

    facts of a step, each only where it is known: flops_per_second, mfu (a share), memory (bytes), seconds_left,
    learning_rate, gradient_norm. tokens_per_second is of all processes together. What a subclass does not define says
    nothing.
    """

    def note(self, text: str) -> None:
        return

    def start(self, step: int, steps: int) -> None:
        return

    def step(self, step: int, loss: float, tokens_per_second: float, facts: Mapping[str, float]) -> None:
        return

    def evaluation(self, step: int, evaluation: "Evaluation") -> None:
        return

    def sample(self, step: int, text: str) -> None:
        return


class Silent(Reporter):
    """A reporter that says nothing: that of every process but the first."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: its last step, the last batch's loss and the last validation (None: there was none; of a
    run that was resumed, also those from before), and the run folder. is_first: whether this process reports;
    first_step: steps that were done before; best: the checkpoint with the lowest validation loss (None: there is none).
    """

    step: int
    train_loss: float | None
    validation: "Evaluation | None"
    path: Path
    interrupted: bool
    is_first: bool = True
    first_step: int = 0
    best: Path | None = None
