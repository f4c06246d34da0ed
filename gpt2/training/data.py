"""Where a run's tokens come from: texts that are made into ids, or ids that are read as they lie.

Documents of text are separate items: each is preceded by the tokenizer's end-of-text id, and never joined by text.
Tokens come as they lie: a corpus folder's shards, nanoGPT's `.bin` files, which have that id behind each document, or
llm.c's. Text is read whole and so must fit in memory; tokens (`gpt2.shards`) are read where they are asked for, and may
be of any number. Which of them a step reads is `batches.py`'s; nothing here knows of models or optimisers.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from gpt2.errors import BadData, BadOption
from gpt2.shards import is_validation, open_shards, shard_paths
from gpt2.tokenizer import Tokenizer, learn, read_tokenizer
from gpt2.training.documents import Split, named_documents, refuse_unfinished, split
from gpt2.training.options import TrainingOptions
from gpt2.training.words import figure

Ids = npt.NDArray[np.int32]

# So few tokens of text are far from teaching each token of GPT-2's vocabulary, which has 50,257.
_FEW_TOKENS = 1_000_000
# Documents that are held out are named up to here.
_FEW_NAMES = 5


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
    of_tokens = [path for path in paths if is_tokens(path)]
    if not of_tokens:
        data = _open_text(paths, options, tokenizer, note)
    elif len(of_tokens) < len(paths):
        text = next(path for path in paths if path not in of_tokens)
        raise BadData(f"{of_tokens[0]} holds tokens and {text} text; train on one kind, or build one corpus of both.")
    else:
        data = _open_tokens(paths, options, tokenizer, note)
    held = len(data.validation)
    share = f" ({figure(100 * held / (len(data.training) + held), 2)} %)" if held else ""
    note(f"{len(data.training):,} tokens to train on, {held:,} held out{share}")
    return data


def _open_text(
    paths: Sequence[Path], options: TrainingOptions, tokenizer: Tokenizer | None, note: Callable[[str], None]
) -> Data:
    named = list(named_documents(paths))
    parts = split([text for _, text in named], options.validation)
    if said := _held_out(named, parts, options.validation):
        note(said)
    if tokenizer is None and options.vocab_size:
        note(f"learning a vocabulary of {options.vocab_size:,} tokens")
        tokenizer = learn(parts.training, options.vocab_size)
    theirs = tokenizer is None
    tokenizer = tokenizer or Tokenizer.gpt2()
    if tokenizer.end_of_text is None:
        raise BadOption("This tokenizer has no <|endoftext|>, which separates documents.")
    threads = torch.get_num_threads()
    training, validation = to_ids(parts.training, tokenizer, threads), to_ids(parts.validation, tokenizer, threads)
    if theirs and len(training) < _FEW_TOKENS:
        note(
            f"GPT-2's vocabulary of {tokenizer.vocab_size:,} tokens is large for so little text; --vocab-size 1024 "
            "learns one of its own, and spares most of a small model's parameters"
        )
    digest = hashlib.sha256(training.tobytes())
    digest.update(validation.tobytes())
    text_bytes = sum(len(text.encode()) for text in parts.validation)
    return Data(as_tokens(training), as_tokens(validation), text_bytes, digest.hexdigest(), tokenizer)


def _held_out(named: Sequence[tuple[str, str]], parts: Split, share: float) -> str | None:
    """How many of several documents are held out, and which where they are few; None where there is nothing to say."""
    held = set(parts.validation)
    if not held or len(named) < 2:
        return None
    names = [name for name, text in named if text in held]
    said = f"{len(names):,} of {len(named):,} documents are held out, chosen by the hash of their text"
    if len(names) <= _FEW_NAMES:
        said += f": {'; '.join(names)}"
    reached = sum(map(len, parts.validation)) / sum(len(text) for _, text in named)
    if not 2 / 3 < reached / share < 3 / 2:
        said += f" ({reached:.1%} of the text, not {share:.1%}: documents are few, or uneven; see --validation)"
    return said


def is_tokens(path: Path) -> bool:
    """Whether a path holds tokens, and no text. Raises BadData for a corpus that is not whole, or not finished."""
    if path.is_dir():
        refuse_unfinished(path)
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
        if options.vocab_size not in (0, shards.vocab_size):
            raise BadOption(
                f"vocab_size = {options.vocab_size} asks for a vocabulary to be learnt, but the tokens of "
                f"{training[0]} are made already, of {shards.vocab_size:,}; set it to 0, or train on the text."
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
        raise BadData(
            f"{training[0]}: {len(shards)} tokens cannot be split into training and validation. Give more, another "
            "share (--validation), or a file for validation; --validation 0 holds nothing out."
        )
    if options.validation:
        share = f"{100 * options.validation:.4g} %"
        if training[0] in paths:
            note(f"no file for validation was named: the last {share} of the tokens is held out")
        else:
            folder = training[0].parent
            where = folder if folder.name not in ("", "..") else f"the folder {folder.resolve()}"
            note(f"{where} has no validation files: the last {share} of its tokens is held out")
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
