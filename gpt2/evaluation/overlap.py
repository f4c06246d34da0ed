"""How much of a text stands in a corpus word for word: the share of its runs of n words, as in the paper's Table 6.

The paper (section 4) keeps the corpus's 8-grams in Bloom filters that take a foreign one for known once in 10^8, and
looks the test set up. Here it is the other way round, since a test set is small: its n-grams are kept, as 64-bit hashes
in a sorted array, and the corpus is read past them once. Nothing that is there is missed. An n-gram that is not there
is counted if its hash meets another's, with odds of (distinct n-grams of the corpus) / 2^64: below the paper's 10^-8 up
to 1.8 * 10^11 of them. Memory: some 30 bytes for each n-gram of the test set, and one document of the corpus.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, BadOption

if TYPE_CHECKING:
    from gpt2.evaluation.perplexity import Document
    from gpt2.shards.reader import Shards
    from gpt2.tokenizer import Tokenizer

Hashes = npt.NDArray[np.uint64]
# Letters and digits of any script; everything else stands between words, an apostrophe too.
_WORD = re.compile(r"[^\W_]+")
_FACTOR, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
# Characters that are made into words at once, and tokens that are read at once.
_PIECE, _TOKENS = 2**20, 2**20


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of a text is in the corpus.

    grams: its runs of n words, counted as often as they occur; found: those of them that the corpus has. distinct,
    distinct_found: the same, each counted once. longest: the longest part of which every run of n words is in the
    corpus (not always in one place there), as it stands in the text; longest_words: its words; "" and 0 for none.
    """

    name: str
    words: int
    grams: int
    found: int
    distinct: int
    distinct_found: int
    longest_words: int
    longest: str

    @property
    def share(self) -> float | None:
        """The share of its n-grams that are in the corpus, 0 to 1; None for a text that is shorter than one."""
        return self.found / self.grams if self.grams else None


@dataclass(frozen=True, slots=True)
class Study:
    """Texts held against a corpus. total: all texts as one; its longest part is the longest of any of them."""

    n: int
    total: Overlap
    documents: tuple[Overlap, ...]
    corpus_documents: int
    corpus_words: int

    @property
    def protocol(self) -> str:
        """What was counted, in words."""
        return (
            f"{self.n}-grams of words, counted as often as they occur, that are anywhere in a document of the corpus; "
            "words are runs of letters and digits, lower-cased; exact but for collisions of 64-bit hashes"
        )


def overlap(
    documents: Sequence["Document"],
    corpus: Iterable[str],
    n: int = 8,
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Study:
    """Which n-grams of the documents the corpus has.

    corpus: its documents, taken one at a time. progress: called with the documents and words of it that were read.

    Raises BadOption for n below 1, BadData where no document has n words or the corpus has no words.
    """
    if n < 1:
        raise BadOption(f"n is {n}; runs of words have at least 1.")
    words = [np.concatenate([_NONE, *word_hashes(each.text)]) for each in documents]
    grams = [gram_hashes(each, n) for each in words]
    wanted = Wanted(np.concatenate([_NONE, *grams]))
    if not len(wanted.known):
        most = max((len(each) for each in words), default=0)
        raise BadData(
            f"None of the texts has {n} words in a row (the longest has {most:,}), so there is nothing "
            "to look for. Take a smaller n, or longer texts (of samples more of them, --samples, or --max-tokens)."
        )
    read = read_words = 0
    for text in corpus:
        before = _NONE
        for part in word_hashes(text):
            # Runs that begin in the part before this one are seen too.
            before = np.concatenate([before, part])
            wanted.look(gram_hashes(before, n))
            before = before[max(0, len(before) - n + 1) :]
            read_words += len(part)
        read += 1
        progress(read, read_words)
    if not read_words:
        raise BadData("The corpus holds no words.")
    found = [_overlap(each, len(w), g, wanted, n) for each, w, g in zip(documents, words, grams, strict=True)]
    longest = max(found, key=lambda each: each.longest_words)
    total = Overlap(
        "all",
        sum(each.words for each in found),
        sum(each.grams for each in found),
        sum(each.found for each in found),
        len(wanted.known),
        int(wanted.met.sum()),
        longest.longest_words,
        longest.longest,
    )
    return Study(n, total, tuple(found), read, read_words)


def _overlap(document: "Document", words: int, grams: Hashes, wanted: "Wanted", n: int) -> Overlap:
    met = wanted.found(grams)
    # Where runs of found n-grams begin and end.
    turns = np.flatnonzero(np.diff(np.concatenate([[False], met, [False]]).astype(np.int8)))
    begins, ends = turns[::2], turns[1::2]
    count, text = 0, ""
    if len(begins):
        best = int((ends - begins).argmax())
        count = int(ends[best] - begins[best]) + n - 1
        spans = [each.span() for each in _WORD.finditer(document.text)]
        text = document.text[spans[begins[best]][0] : spans[begins[best] + count - 1][1]]
    distinct = np.unique(grams)
    seen = int(wanted.found(distinct).sum())
    return Overlap(document.name, words, len(grams), int(met.sum()), len(distinct), seen, count, text)


_NONE: Hashes = np.zeros(0, dtype=np.uint64)


def word_hashes(text: str) -> Iterator[Hashes]:
    """The words of a text as 64-bit hashes (of this process alone), in order, a part of the text at a time."""
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        # Not within a word.
        if rest := _WORD.match(text, end):
            end = rest.end()
        found = _WORD.findall(text, start, end)
        yield np.fromiter(map(hash, map(str.lower, found)), dtype=np.int64, count=len(found)).view(np.uint64)
        start = end


def gram_hashes(words: Hashes, n: int) -> Hashes:
    """A hash for every run of n words, in order; none for a shorter text."""
    count = len(words) - n + 1
    if count <= 0:
        return _NONE
    mixed = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        mixed = (mixed ^ (mixed >> _HALF)) * _FACTOR + words[place : place + count]
    return mixed ^ (mixed >> _HALF)


class Wanted:
    """N-grams that are looked for: known, their sorted distinct hashes; met, which of them were seen."""

    def __init__(self, hashes: Hashes) -> None:
        self.known = np.unique(hashes)
        self.met = np.zeros(len(self.known), dtype=bool)
        # Which beginnings of hashes there are: it spares nearly all of a corpus the search.
        bits = max(8, (8 * len(self.known)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._beginnings = np.zeros(2**bits, dtype=bool)
        self._beginnings[self.known >> self._shift] = True

    def look(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Marks those that are among these; their places in `known`, one for each of these that is there."""
        likely = hashes[self._beginnings[hashes >> self._shift]]
        places: npt.NDArray[np.int64] = np.searchsorted(self.known, likely)
        places[places == len(self.known)] = 0
        places = places[self.known[places] == likely]
        self.met[places] = True
        return places

    def found(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Whether each of these, all of them known, was met."""
        return self.met[np.searchsorted(self.known, hashes)]


def corpus_texts(path: str, text_field: str = "text") -> Iterator[str]:
    """The documents of a corpus, one at a time: of its training shards, or of files, folders and globs of text.

    Text is what `gpt2 corpus build` reads (.txt, .md, .jsonl and .parquet, compressed too); pages must be built into a
    corpus first. text_field: of .jsonl and .parquet files. Raises BadData, naming the place, for what is not there, is
    damaged or cannot be read.
    """
    from gpt2.evaluation.texts import read_texts
    from gpt2.training.data import is_tokens

    place = Path(path).expanduser()
    if place.exists() and is_tokens(place):
        return _shard_texts(place)
    return (document.text for document in read_texts([path], text_field, strict=False))


def _shard_texts(place: Path) -> Iterator[str]:
    from gpt2.shards import open_shards
    from gpt2.tokenizer import Tokenizer, read_tokenizer

    shards = open_shards(place if place.is_dir() else [place])
    folder = place if place.is_dir() else place.parent
    tokenizer = Tokenizer.gpt2() if shards.paths[0].suffix == ".bin" else read_tokenizer(folder)
    shards.check_tokenizer(tokenizer)
    return _decoded(shards, tokenizer)


def _decoded(shards: "Shards", tokenizer: "Tokenizer") -> Iterator[str]:
    """The texts between end-of-text ids."""
    pending: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(shards), _TOKENS):
        ids = shards.read(start, min(_TOKENS, len(shards) - start))
        *whole, last = np.split(ids, np.flatnonzero(ids == shards.end_of_text))
        for part in whole:
            if text := _text([*pending, part], shards.end_of_text, tokenizer):
                yield text
            pending = []
        pending.append(last)
    if text := _text(pending, shards.end_of_text, tokenizer):
        yield text


def _text(parts: Sequence[npt.NDArray[np.int32]], end: int, tokenizer: "Tokenizer") -> str:
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return tokenizer.decode(ids[ids != end])
