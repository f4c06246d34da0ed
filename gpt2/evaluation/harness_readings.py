"""Two of lm-evaluation-harness' protocols written out, so that its numbers can be had without it: HellaSwag, WikiText.

`lambada_openai` is among the readings of `lambada.py`. What is given here are the texts as those tasks have them when
they reach the model; the harness itself, which prepares them, is `harness.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from gpt2.errors import BadData, BadOption
from gpt2.evaluation.language import in_turn
from gpt2.evaluation.rows import item
from gpt2.generation.score import Item, score
from gpt2.generation.shared import engine_of

if TYPE_CHECKING:
    from gpt2.checkpoint import LanguageModel


@dataclass(frozen=True, slots=True)
class Ending:
    """A beginning, its possible endings, and the right one's number."""

    beginning: str
    endings: tuple[str, ...]
    answer: int


def endings(model: "LanguageModel", questions: Sequence[Ending]) -> tuple[float, float]:
    """`acc` and `acc_norm` of the task hellaswag, 0 to 1. Denominator: questions.

    The ending wins that is likeliest behind the beginning and a space (acc), or likeliest per character of its text
    (acc_norm); of equals the first. Both are encoded as one text; contexts that are too long lose their beginning.
    Raises BadData for no questions, and what `score` raises.
    """
    if not questions:
        raise BadData("There are no questions.")
    engine = engine_of(model)
    encode, window = engine.tokenizer.encode, engine.config.n_positions

    def items() -> Iterator[Item]:
        for question in questions:
            # Spaces at its end would be part of the ending's first token.
            beginning = question.beginning.rstrip()
            context = encode(beginning)
            for ending in question.endings:
                whole = encode(f"{question.beginning} {ending}")
                yield item(context, whole[len(context) :], window)

    scores = (found.total for found in score(engine, items()))
    plain = normed = 0
    for question in questions:
        totals = list(islice(scores, len(question.endings)))
        per_character = [total / len(ending) for total, ending in zip(totals, question.endings, strict=True)]
        plain += totals.index(max(totals)) == question.answer
        normed += per_character.index(max(per_character)) == question.answer
    return plain / len(questions), normed / len(questions)


@dataclass(frozen=True, slots=True)
class DocumentLevel:
    """The metrics of the task wikitext: one cost in nats, over the words and bytes of the texts as published."""

    nats: float
    words: int
    bytes: int

    @property
    def word_perplexity(self) -> float:
        """Per word: what stands between runs of white space, the empty strings at both ends too."""
        return math.exp(self.nats / self.words)

    @property
    def byte_perplexity(self) -> float:
        """Per byte of UTF-8."""
        return math.exp(self.nats / self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Per byte of UTF-8, in bits."""
        return self.nats / self.bytes / math.log(2)


def document_level(model: "LanguageModel", documents: Sequence[tuple[str, str]]) -> DocumentLevel:
    """What documents cost by the task wikitext.

    documents: each as it was published, which is what the cost is divided by, and as it is read (de-tokenised by the
    task's rules). Each is read by itself behind end of text, in windows that do not overlap, but for its last.
    Raises BadData for no documents, BadOption for a vocabulary without end of text, and what `score` raises.
    """
    if not documents:
        raise BadData("There are no documents.")
    engine = engine_of(model)
    end, window = engine.tokenizer.end_of_text, engine.config.n_positions
    if end is None:
        raise BadOption("Documents are read behind end of text, and this model's vocabulary has no <|endoftext|>.")
    texts = ([end, *engine.tokenizer.encode(text)] for _, text in documents)
    nats = -math.fsum(found.total for found in score(engine, (each for ids in texts for each in in_turn(ids, window))))
    words = sum(len(published.split()) + _open_ends(published) for published, _ in documents)
    return DocumentLevel(nats, words, sum(len(published.encode()) for published, _ in documents))


def _open_ends(text: str) -> int:
    """The empty strings that cutting at white space leaves at the ends of a text."""
    if not text.strip():
        return 2 if text else 1
    return text[:1].isspace() + text[-1:].isspace()
