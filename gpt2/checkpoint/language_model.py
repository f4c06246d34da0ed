"""A network and the tokenizer it was trained with: what everything that generates is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2.config import GPT2Config
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A network, its tokenizer, and where both came from.

    `source` is what was asked for (a name or a path), `path` the file or folder that was read, None for a model that
    was made in memory.
    """

    network: GPT2
    tokenizer: Tokenizer
    source: str = "memory"
    path: Path | None = None

    @property
    def config(self) -> GPT2Config:
        """The network's shape."""
        return self.network.config
