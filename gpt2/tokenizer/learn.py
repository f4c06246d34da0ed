"""`learn`: a new vocabulary from texts, by Hugging Face's `tokenizers` (a fast, well-kept trainer of byte-level BPE).

The trainer counts words as GPT-2 cuts them and joins the most frequent pair, again and again. What is taken from it is
its list of merges, each checked to mean the same to tiktoken (`agreement.py`). Texts are separate documents: nothing is
learnt across their borders, and a control token's name in a text is ordinary text.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from gpt2.errors import BadData, BadOption
from gpt2.tokenizer.agreement import Agreement
from gpt2.tokenizer.alphabet import CHARACTERS
from gpt2.tokenizer.bpe import END_OF_TEXT, Tokenizer

# Longer texts are handed over in pieces of about so many characters; the trainer needs many times a piece's size.
_PIECE = 1 << 20

# A lone newline between two characters that are no white space is a word of its own, whatever stands around it, so a
# text can be cut behind it without changing a word.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")

# Merges asked for beyond those needed, to make up for any that the check refuses (none was ever seen).
_SLACK = 16


def learn(texts: Iterable[str], vocab_size: int, *, progress: bool = False) -> Tokenizer:
    """Learns a vocabulary of exactly `vocab_size` tokens: 256 bytes, the merges, and `<|endoftext|>` as the last id.

    texts: documents, read once. The same texts, in any order and on any number of threads, give the same vocabulary.
    progress: shows on stderr how far it is.

    Raises BadOption for a vocab_size below 257, BadData for texts that are too small to give so many tokens (it says
    how many they can give) or that are no text.
    """
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 257:
        raise BadOption(
            f"vocab_size is {vocab_size!r}, but it must be a whole number of at least 257: 256 bytes and {END_OF_TEXT}."
        )
    if isinstance(texts, str):
        raise BadData("learn takes a list of texts, and got one text; put it in a list.")
    wanted = vocab_size - 257
    n_texts = len(texts) if isinstance(texts, Sized) else None
    with _bar(progress, n_texts, wanted) as counted:
        merges = _agreeing(_train(counted(_checked(texts)), 256 + wanted + _SLACK), wanted)
    if len(merges) < wanted:
        raise BadData(
            f"the texts can give a vocabulary of at most {257 + len(merges)} tokens, and {vocab_size} were asked for; "
            "give more text, or ask for fewer."
        )
    return Tokenizer.from_merges(merges)


def _train(texts: Iterator[str], size: int) -> list[tuple[str, str]]:
    """The trainer's merges, spelled as in vocabulary files."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, special_tokens=[], initial_alphabet=list(CHARACTERS), show_progress=False
    )
    trained.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    # Written as pairs or as one text, depending on the release.
    merges = json.loads(trained.to_str())["model"]["merges"]
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]


def _agreeing(merges: Iterable[tuple[str, str]], wanted: int) -> list[tuple[int, int]]:
    """The first `wanted` merges that pass the check, as pairs of places; what builds on a refused one is left out."""
    places = {character: place for place, character in enumerate(CHARACTERS)}
    agreement = Agreement()
    kept: list[tuple[int, int]] = []
    for left, right in merges:
        if len(kept) == wanted:
            break
        if left in places and right in places and agreement.add(places[left], places[right]):
            kept.append((places[left], places[right]))
            places[left + right] = len(places)
    return kept


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadData(f"text {number} is a {type(text).__name__}, but texts must be strings.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadData(
                f"text {number} has a lone surrogate at character {error.start}; "
                "read it with errors='replace', or leave it out."
            ) from None
        yield text


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


@contextmanager
def _bar(shown: bool, n_texts: int | None, n_merges: int) -> Iterator[Callable[[Iterator[str]], Iterator[str]]]:
    """Gives a function that passes texts on and counts them in a bar on stderr; then the bar waits for the merges."""
    if not shown:
        yield lambda texts: texts
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        reading = progress.add_task("reading texts", total=n_texts)
        # The trainer does not say how far it is, so this bar only moves, and fills at the end.
        joining = progress.add_task("joining pairs", total=None, start=False)

        def counted(texts: Iterator[str]) -> Iterator[str]:
            number = 0
            for number, text in enumerate(texts, 1):
                yield text
                progress.update(reading, completed=number)
            progress.update(reading, total=number)
            progress.start_task(joining)

        yield counted
        progress.update(joining, total=n_merges, completed=n_merges)
