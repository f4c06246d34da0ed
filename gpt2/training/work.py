"""What a run learns from, and what of it is kept: text and all weights, unless somebody says otherwise.

The trainer asks a `Work` for these and knows no more of them, so that examples with a prompt and a target, or an
adapter beside weights that stay (`finetuning/`), are trained by the same loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpt2.checkpoint import read_directory, write_directory
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer
from gpt2.training.batches import Batches, Windows
from gpt2.training.data import Data, open_data
from gpt2.training.evaluate import Evaluation
from gpt2.training.options import TrainingOptions
from gpt2.training.step import Step
from gpt2.training.validation import Validation

Note = Callable[[str], None]


class Scoring(Protocol):
    """What a run scores, and when (`validation.py`). Parts are whatever `due` gives and `score` takes."""

    def due(self, step: int, last: bool) -> Sequence[Any]:
        """What is scored after a step, the run's last or another: first that by whose losses checkpoints are compared,
        and after the last one all there is."""
        ...

    def score(self, part: Any, step: Step, window: int) -> Evaluation:
        """Its loss with the weights of `step`; every process calls it."""
        ...


class Material(Protocol):
    """What a run learns from. fingerprint: changes when any of it does."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def fingerprint(self) -> str: ...

    def batches(self, options: TrainingOptions) -> Batches:
        """What a step reads."""
        ...

    def scoring(self, options: TrainingOptions) -> Scoring:
        """What is held out. Raises BadData or BadOption where nothing of it can be scored."""
        ...


class Form(Protocol):
    """What of a network is learnt, and how a checkpoint holds it."""

    def check(self, options: TrainingOptions) -> TrainingOptions:
        """The options, with what this form decides. Raises BadOption for what cannot be."""
        ...

    def adapt(self, network: GPT2, options: TrainingOptions, checkpoint: Path | None) -> GPT2:
        """The network that is trained: of a base or of what `read` gave, on its device. checkpoint: to go on from."""
        ...

    def plain(self, network: GPT2) -> GPT2:
        """The network as generation reads it."""
        ...

    def write(self, network: GPT2, tokenizer: Tokenizer, path: Path, beside: Callable[[Path], None]) -> None:
        """Writes a checkpoint's directory, whole or not at all; `beside` puts more into it."""
        ...

    def read(self, path: Path) -> tuple[GPT2, Tokenizer]:
        """What `adapt` begins with, for a checkpoint."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens in one long row, all of them learnt."""

    data: Data

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's."""
        return self.data.tokenizer

    @property
    def fingerprint(self) -> str:
        """As `Data` has it."""
        return self.data.fingerprint

    def batches(self, options: TrainingOptions) -> Windows:
        """Windows of the text."""
        return Windows(self.data.training, options.context, options.batch_size, options.seed)

    def scoring(self, options: TrainingOptions) -> Validation:
        """The held-out text."""
        return Validation(self.data, options)


class Whole:
    """All weights are learnt, and a checkpoint is a Hugging Face directory."""

    def check(self, options: TrainingOptions) -> TrainingOptions:
        return options

    def adapt(self, network: GPT2, options: TrainingOptions, checkpoint: Path | None) -> GPT2:
        return network.requires_grad_(True)

    def plain(self, network: GPT2) -> GPT2:
        return network

    def write(self, network: GPT2, tokenizer: Tokenizer, path: Path, beside: Callable[[Path], None]) -> None:
        write_directory(network, tokenizer, path, beside=beside)

    def read(self, path: Path) -> tuple[GPT2, Tokenizer]:
        return read_directory(path)


def open_text(paths: Sequence[Path], options: TrainingOptions, tokenizer: Tokenizer | None, note: Note) -> Text:
    """The text or tokens that paths name."""
    return Text(open_data(paths, options, tokenizer, note))


@dataclass(frozen=True, slots=True)
class Work:
    """A run's work. open: the material that paths name; record: what recipe.toml keeps of it for who resumes, flat
    values in a table [run.finetune]; files: what every checkpoint holds beside, by names; command: the one whose
    --resume goes on with it."""

    open: Callable[[Sequence[Path], TrainingOptions, Tokenizer | None, Note], Material] = open_text
    form: Form = field(default_factory=Whole)
    record: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    command: str = "gpt2 train"
