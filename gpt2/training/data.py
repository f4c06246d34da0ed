"""Text files in, batches of token ids out.

Documents are separate items: each is preceded by the tokenizer's end-of-text id, and never joined by text. Which
tokens a step reads is a pure function of (seed, step), so resuming needs no replay.

This is the small reader for what fits in memory; it knows nothing of models or of optimisers.
"""

import functools
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2.errors import BadData, Notice
from gpt2.tokenizer import END_OF_TEXT, Tokenizer

TEXT_SUFFIXES = (".txt", ".md")
Ids = npt.NDArray[np.int32]


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that the paths name, a folder standing for the text files in it, in a fixed order. Raises BadData."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in (*TEXT_SUFFIXES, ".jsonl") and p.is_file())
            if not inside:
                raise BadData(f"{path} holds no .txt, .md or .jsonl file.")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise BadData(f"{path} is no file and no folder; give text files, .jsonl files, or folders of them.")
    if not files:
        raise BadData("There is no data: give text files, .jsonl files, or folders of them.")
    # A file that is named twice, or beside its own folder, is read once.
    once: dict[Path, Path] = {}
    for file in files:
        once.setdefault(file.resolve(), file)
    return list(once.values())


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """The documents in files: a text file is one, and a line of a .jsonl file is one (its field `text`).

    Empty documents are skipped. Raises BadData, naming file and line, for what is no UTF-8 or no such JSON. Warns
    (Notice) about text that spells the end-of-text token, which is read as ordinary text.
    """
    for file in find_files(paths):
        warned = False
        for text in _lines(file) if file.suffix == ".jsonl" else [_whole(file)]:
            if END_OF_TEXT in text and not warned:
                warned = True
                warnings.warn(
                    f"{file} spells {END_OF_TEXT} in its text. It is read as ordinary text and separates nothing: "
                    "put documents in files of their own, or on lines of a .jsonl file.",
                    Notice,
                    stacklevel=2,
                )
            if text:
                yield text


def _whole(file: Path) -> str:
    try:
        # With or without the byte order mark that some editors put in front.
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from None


def _lines(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line.removeprefix(b"\xef\xbb\xbf"))["text"]
            except (ValueError, KeyError, TypeError):
                raise BadData(f'{file}, line {number}: expected a JSON object with a field "text".') from None
            if not isinstance(text, str):
                raise BadData(f'{file}, line {number}: the field "text" is {type(text).__name__}, not text.')
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise BadData(f"{file}, line {number}: the text holds a lone surrogate, half a character.")
            yield text


@dataclass(frozen=True, slots=True)
class Split:
    """Documents to train on and documents held out."""

    training: list[str]
    validation: list[str]


def split(documents: Iterable[str], share: float) -> Split:
    """Holds out a share of the documents by the hash of their text, so that the same ones stay out for good.

    A single document is cut instead: its last `share`, by characters, is held out. Raises BadData when there is
    nothing to train on, or nothing to hold out although share > 0.
    """
    documents = list(documents)
    if not documents:
        raise BadData("The data holds no text.")
    if share == 0:
        return Split(documents, [])
    if len(documents) == 1:
        text = documents[0]
        cut = int(len(text) * (1 - share))
        if not 0 < cut < len(text):
            raise BadData(f"A text of {len(text)} characters cannot be split into training and validation.")
        return Split([text[:cut]], [text[cut:]])
    held = [_hash(text) < share for text in documents]
    if all(held) or not any(held):
        # Few documents: chance held out all or none. Take the one with the lowest hash, and its copies.
        lowest = min(documents, key=_hash)
        held = [text == lowest for text in documents]
        if all(held):
            raise BadData(f"All {len(documents)} documents are the same text, so none can be held out.")
    return Split(
        [text for text, out in zip(documents, held, strict=True) if not out],
        [text for text, out in zip(documents, held, strict=True) if out],
    )


def _hash(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def to_ids(documents: Sequence[str], tokenizer: Tokenizer, threads: int = 1) -> Ids:
    """All documents as one array of ids, each document behind the end-of-text id."""
    pieces: list[Ids] = []
    separator = np.array([tokenizer.end_of_text], dtype=np.int32)
    # In portions: the lists of Python integers that a batch gives are large.
    for start in range(0, len(documents), 256):
        for ids in tokenizer.encode_batch(documents[start : start + 256], threads):
            pieces += [separator, np.array(ids, dtype=np.int32)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of `batch_size` windows of `context` tokens from one array of ids, in an order that the seed decides.

    Each epoch cuts the array into windows at an offset of its own and shuffles them; every window is read once an
    epoch. An array shorter than the window gives shorter windows. Raises BadData for fewer than two ids.
    """

    ids: Ids
    context: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.ids) < 2:
            raise BadData(f"The training text has {len(self.ids)} tokens; at least 2 are needed.")

    @property
    def window(self) -> int:
        """Tokens in a window."""
        return min(self.context, len(self.ids) - 1)

    @property
    def windows(self) -> int:
        """Windows in an epoch. One is given up so that every epoch can start at an offset of its own."""
        return max(1, (len(self.ids) - 1) // self.window - 1)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step: two (batch_size, window) int64; the targets are the inputs' next tokens."""
        starts = [self._start(step * self.batch_size + row) for row in range(self.batch_size)]
        rows = np.stack([self.ids[start : start + self.window + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        offsets = min(self.window, len(self.ids) - self.windows * self.window)
        offset, order = _epoch(self.seed, epoch, self.windows, offsets)
        return offset + int(order[place]) * self.window


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, npt.NDArray[np.int64]]:
    """Offset and order of an epoch: a pure function, kept because every row asks for it."""
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(offsets)), random.permutation(windows)
