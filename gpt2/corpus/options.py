"""What can be set of a corpus build, and the defaults, which stand nowhere else.

How fast it is built (workers, engine, the faster tokenizer) is not here: it changes nothing in what comes out.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.corpus.documents import ReadOptions
from gpt2.corpus.extract import EXTRACTORS
from gpt2.corpus.filters import FilterOptions
from gpt2.errors import BadOption


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What decides which tokens come out.

    threshold: share of runs of three words that two documents have in common, from which on the later is dropped.
    validation: share of the documents held out, by the hash of their text.
    tokenizer: `gpt2`, or a folder with a vocabulary; vocab_size: learn one of that size from the training documents.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    extractor: str = EXTRACTORS[0]
    filters: FilterOptions = field(default_factory=FilterOptions)
    exact: bool = True
    near: bool = True
    threshold: float = 0.5
    validation: float = 0.005
    tokenizer: str = "gpt2"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise BadOption(f"threshold is {self.threshold}; it must be above 0 and at most 1.")
        if not 0 <= self.validation < 1:
            raise BadOption(f"validation is {self.validation}; it must be at least 0 and below 1.")
        if self.vocab_size is not None and self.tokenizer != "gpt2":
            raise BadOption("tokenizer and vocab_size exclude each other: use a vocabulary, or learn one.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON, flat: the name of each option and its value."""
        flat: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            flat |= value if isinstance(value, dict) else {name: value}
        return {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}
