"""Answers that are one of a few labels, and nothing else: a `gpt2.generation.Grammar` for tasks that have them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadOption

if TYPE_CHECKING:
    from gpt2.generation.options import GenerationOptions
    from gpt2.tokenizer import Tokenizer


def held_to(labels: Sequence[str], options: "GenerationOptions", tokenizer: "Tokenizer") -> "GenerationOptions":
    """The options, under which only a label is written; as they are where there are none. Raises BadOption."""
    if not labels:
        return options
    grammar = Labels.of(labels, tokenizer)
    return replace(options, grammar=lambda _: grammar)


class Labels:
    """Follows one answer. endings: the ids of each label, its end of text included; size: of the vocabulary."""

    def __init__(self, endings: Sequence[tuple[int, ...]], size: int) -> None:
        self._endings, self._size = endings, size

    @classmethod
    def of(cls, labels: Sequence[str], tokenizer: "Tokenizer") -> "Labels":
        """The labels as a vocabulary spells them. Raises BadOption for one without end of text, which ends a label."""
        end = tokenizer.end_of_text
        if end is None:
            raise BadOption(
                "This task's answers are labels, and the model's vocabulary has no <|endoftext|> to end one."
            )
        return cls([(*tokenizer.encode(label), end) for label in labels], tokenizer.vocab_size)

    def allowed(self, output: Sequence[int]) -> npt.NDArray[np.bool_]:
        """(V,) bool: what goes on with a label that begins with `output`."""
        allowed, begun = np.zeros(self._size, dtype=bool), len(output)
        allowed[[ids[begun] for ids in self._endings if len(ids) > begun and ids[:begun] == tuple(output)]] = True
        return allowed
