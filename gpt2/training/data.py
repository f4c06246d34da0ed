"""Text files or token shards in, batches of token ids out.

Documents of text are separate items: each is preceded by the tokenizer's end-of-text id, and never joined by text.
Tokens come as they lie: a corpus folder's shards, nanoGPT's `.bin` files, which have that id behind each document, or
llm.c's. Which tokens a step reads is a pure function of (seed, step), so resuming needs no replay.

Text is read whole and so must fit in memory; tokens (`gpt2.shards`) are read where a step asks for them, and may be of
any number. This file knows nothing of models or of optimisers.
"""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpt2.errors import BadData, BadOption, Notice
from gpt2.shards import digest, held_out, is_corpus, is_validation, open_shards, shard_paths
from gpt2.tokenizer import END_OF_TEXT, Tokenizer, learn, read_tokenizer
from gpt2.training.options import TrainingOptions

TEXT_SUFFIXES = (".txt", ".md")
Ids = npt.NDArray[np.int32]


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that the paths name, a folder standing for the text files in it, in a fixed order.

    Raises BadData for what is not there, and for a corpus in a folder: its report and vocabulary are no text to read.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            corpora = sorted(found.parent for found in path.rglob("corpus.json") if is_corpus(found.parent))
            if corpora:
                what = "holds no text to read" if corpora[0] == path else "name it itself"
                raise BadData(f"{corpora[0]} is a corpus; {what}.")
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
            except (ValueError, KeyError, TypeError, RecursionError):
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
    """Holds out a share of the documents by the hash of their text (`shards/heldout.py`).

    A single document is cut instead: its last `share`, by characters, is held out. Where all would be held out, the one
    with the lowest hash is, with its copies. Raises BadData when there is nothing to train on, or nothing to hold out
    although share > 0.
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
    hashes = np.array([digest(text.encode("utf-8", "surrogatepass"))[0] for text in documents], dtype=np.uint64)
    held = held_out(hashes, share)
    if held.all():
        held = hashes == hashes.min()
        if held.all():
            raise BadData(f"All {len(documents)} documents are the same text, so none can be held out.")
    return Split(
        [text for text, out in zip(documents, held, strict=True) if not out],
        [text for text, out in zip(documents, held, strict=True) if out],
    )


def to_ids(documents: Sequence[str], tokenizer: Tokenizer, threads: int = 1) -> Ids:
    """All documents as one array of ids, each document behind the end-of-text id."""
    pieces: list[Ids] = []
    separator = np.array([tokenizer.end_of_text], dtype=np.int32)
    # In portions: the lists of Python integers that a batch gives are large.
    for start in range(0, len(documents), 256):
        for ids in tokenizer.encode_batch(documents[start : start + 256], threads):
            pieces += [separator, np.array(ids, dtype=np.int32)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


class Tokens(Protocol):
    """A row of ids of any length, wherever it lies."""

    def __len__(self) -> int: ...

    def read(self, start: int, count: int) -> Ids:
        """(count,) int32: the ids from `start` on. Raises IndexError outside the row, BadData for damaged files."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """`count` ids from `start` on of an array or of other tokens."""

    tokens: Tokens | Ids
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, count: int) -> Ids:
        """As `Tokens.read`."""
        if not 0 <= start <= start + count <= self.count:
            raise IndexError(f"tokens {start} to {start + count} of {self.count}")
        first = self.start + start
        if isinstance(self.tokens, np.ndarray):
            return self.tokens[first : first + count]
        return self.tokens.read(first, count)


def as_tokens(ids: Tokens | Ids) -> Tokens:
    """An array as `Tokens`; what is `Tokens` already as it is."""
    return Part(ids, 0, len(ids)) if isinstance(ids, np.ndarray) else ids


@dataclass(frozen=True, slots=True)
class Data:
    """The tokens of a run and their vocabulary.

    `validation` may be empty. `validation_bytes` is the length of its text in bytes of UTF-8; None where nobody knows
    (`evaluate.count_bytes` finds out). `fingerprint` changes when any token does; of `.bin` files, which have no
    checksums, it takes samples.
    """

    training: Tokens
    validation: Tokens
    validation_bytes: int | None
    fingerprint: str
    tokenizer: Tokenizer


def open_data(
    paths: Sequence[Path],
    options: TrainingOptions,
    tokenizer: Tokenizer | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Data:
    """The data that paths name: text files or folders of them, or tokens that are read as they lie.

    Tokens are a folder of shards (`train-00000.safetensors`, ..., `validation-00000.safetensors`, ..., with its
    tokenizer), a folder of nanoGPT's or llm.c's `.bin` files, or such files by name. Where none is for validation,
    the last share (`options.validation`) of the tokens is held out.

    tokenizer: the run's, if it has one already; otherwise the shards' own, or for text a learnt one
    (`options.vocab_size`) or GPT-2's. note: is told what was found.

    Raises BadData, naming the file, for data that is missing, empty, damaged or of another tokenizer; BadOption for a
    vocabulary to be learnt from tokens.
    """
    of_tokens = [path for path in paths if _is_tokens(path)]
    if not of_tokens:
        data = _open_text(paths, options, tokenizer, note)
    elif len(of_tokens) < len(paths):
        text = next(path for path in paths if path not in of_tokens)
        raise BadData(f"{of_tokens[0]} holds tokens and {text} text; train on one kind, or build one corpus of both.")
    else:
        data = _open_tokens(paths, options, tokenizer, note)
    note(f"{len(data.training):,} tokens to train on, {len(data.validation):,} held out")
    return data


def _open_text(
    paths: Sequence[Path], options: TrainingOptions, tokenizer: Tokenizer | None, note: Callable[[str], None]
) -> Data:
    parts = split(read_documents(paths), options.validation)
    if tokenizer is None and options.vocab_size:
        note(f"learning a vocabulary of {options.vocab_size:,} tokens")
        tokenizer = learn(parts.training, options.vocab_size)
    tokenizer = tokenizer or Tokenizer.gpt2()
    if tokenizer.end_of_text is None:
        raise BadOption("This tokenizer has no <|endoftext|>, which separates documents.")
    threads = torch.get_num_threads()
    training, validation = to_ids(parts.training, tokenizer, threads), to_ids(parts.validation, tokenizer, threads)
    digest = hashlib.sha256(training.tobytes())
    digest.update(validation.tobytes())
    text_bytes = sum(len(text.encode()) for text in parts.validation)
    return Data(as_tokens(training), as_tokens(validation), text_bytes, digest.hexdigest(), tokenizer)


def _is_tokens(path: Path) -> bool:
    if path.is_dir():
        return bool(shard_paths(path, "train") or shard_paths(path, "validation"))
    return path.suffix in (".safetensors", ".bin")


def _open_tokens(
    paths: Sequence[Path], options: TrainingOptions, tokenizer: Tokenizer | None, note: Callable[[str], None]
) -> Data:
    training, validation = _sorted_out(paths)
    if not training:
        raise BadData(f"{paths[0]} holds tokens for validation alone, and none to train on.")
    shards = open_shards(training)
    if tokenizer is None:
        if options.vocab_size:
            raise BadOption(
                f"vocab_size = {options.vocab_size} asks for a vocabulary to be learnt, but the tokens of "
                f"{training[0]} are made already; set it to 0, or train on the text."
            )
        tokenizer = Tokenizer.gpt2() if training[0].suffix == ".bin" else read_tokenizer(training[0].parent)
    shards.check_tokenizer(tokenizer)
    if validation:
        held = open_shards(validation)
        held.check_tokenizer(tokenizer)
        if len(held) < 2:
            raise BadData(f"{validation[0]} holds {len(held)} token, which is too few for a validation.")
        digest = hashlib.sha256(f"{shards.fingerprint} {held.fingerprint}".encode())
        return Data(shards, held, held.text_bytes, digest.hexdigest(), tokenizer)
    cut = len(shards) if options.validation == 0 else int(len(shards) * (1 - options.validation))
    if options.validation and not 2 <= cut <= len(shards) - 2:
        raise BadData(f"{len(shards)} tokens cannot be split into training and validation.")
    if options.validation:
        share = f"{100 * options.validation:.4g} %"
        note(f"{training[0].parent} has no validation files: the last {share} of its tokens is held out")
    digest = hashlib.sha256(f"{shards.fingerprint} {cut}".encode())
    return Data(Part(shards, 0, cut), Part(shards, cut, len(shards) - cut), None, digest.hexdigest(), tokenizer)


def _sorted_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The token files that paths name, each once: to train on, and for validation."""
    training: dict[Path, Path] = {}
    validation: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = [(file, training) for file in shard_paths(path, "train")]
            inside += [(file, validation) for file in shard_paths(path, "validation")]
        else:
            inside = [(path, validation if is_validation(path) else training)]
        for file, kind in inside:
            kind.setdefault(file.resolve(), file)
    return list(training.values()), list(validation.values())


# Up to so many windows an epoch's order is a shuffled array (32 MB, 0.2 s); beyond, it is computed place by place.
_LISTED = 2**22


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of `batch_size` windows of `context` tokens from one row of ids, in an order that the seed decides.

    Each epoch cuts the row into windows at an offset of its own and shuffles them; every window is read once an
    epoch. A row shorter than the window gives shorter windows. Raises BadData for fewer than two ids.
    """

    ids: Tokens | Ids
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
        return self.rows(step, range(self.batch_size))

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Some rows of `at(step)`, and no other is read: two (len(rows), window) int64. For one process of many."""
        tokens, window = as_tokens(self.ids), self.window
        ids = np.empty((len(rows), window + 1), dtype=np.int64)
        for place, row in enumerate(rows):
            if not 0 <= row < self.batch_size:
                raise IndexError(f"row {row} of a batch of {self.batch_size}")
            ids[place] = tokens.read(self._start(step * self.batch_size + row), window + 1)
        both = torch.from_numpy(ids)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows)
        offsets = min(self.window, len(self.ids) - self.windows * self.window)
        offset, order = _epoch(self.seed, epoch, self.windows, offsets)
        return offset + order(place) * self.window


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, offsets: int) -> tuple[int, Callable[[int], int]]:
    """Offset and order of an epoch: a pure function, kept because every row asks for it."""
    random = np.random.default_rng([seed, epoch])
    offset = int(random.integers(offsets))
    if windows <= _LISTED:
        order = random.permutation(windows)
        return offset, lambda place: int(order[place])
    keys: list[int] = random.integers(2**64, size=6, dtype=np.uint64).tolist()
    return offset, lambda place: scattered(place, windows, keys)


def scattered(place: int, size: int, keys: Sequence[int]) -> int:
    """Where `place` goes in a permutation of range(size) that the keys decide: a Feistel network, without a list.

    It permutes the smallest even number of bits that holds `size`, and goes on until it is back inside.
    """
    half = -(-(size - 1).bit_length() // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            # A multiplicative mix of 64 bits, whose upper half depends on all of the right side.
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & (2**64 - 1)
            mixed = ((mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93) & (2**64 - 1)
            left, right = right, left ^ (mixed >> 32 & mask)
        place = left << half | right
        if place < size:
            return place
