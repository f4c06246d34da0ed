"""`Shards`: many files of tokens as one long row of ids, read where it is asked for and checked when first touched.

Files are mapped into memory, a few at a time, and a read copies what it was asked for: nothing is loaded whole. A file
that vanishes, is cut or is replaced under a reader is named by the next read that touches it. Other programs' files
(`foreign.py`) are read by the same class. It knows nothing of batches.
"""

import hashlib
import json
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData
from gpt2.shards.foreign import foreign_files, open_foreign
from gpt2.shards.format import TokenFile, file_state, read_header
from gpt2.tokenizer import Tokenizer

# Files mapped at once. Each costs a file handle, and on a full disk cache its pages count as this process's memory.
_MAPPED = 32


def open_shards(source: Path | Sequence[Path], split: str = "train") -> "Shards":
    """Opens a folder's shards of one split ("train" or "validation"), or the given files in their order.

    A folder holds `SPLIT-00000.safetensors` and so on, or `.bin` files as nanoGPT or llm.c write them. Only headers and
    checksums are read. Raises BadData, naming the file, for one that is missing, cut short, damaged, or of another
    tokenizer than the first.
    """
    paths = shard_paths(source, split) if isinstance(source, Path) else list(source)
    if not paths:
        raise BadData(f"{source} holds no {split} shards.")
    return Shards([open_foreign(path) if path.suffix == ".bin" else read_header(path) for path in paths])


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder, in order; none if it has none.

    Raises BadData, naming the file, for a gap in their numbers, and where `corpus.json` lists more or fewer.
    """
    paths, listed = sorted(folder.glob(f"{split}-[0-9]*.safetensors")), listed_shards(folder, split)
    count = len(paths) if listed is None else listed
    expected = [folder / f"{split}-{number:05d}.safetensors" for number in range(count)]
    if missing := next((path for path in expected if path not in paths), None):
        raise BadData(f"{missing} is missing: the folder's {split} shards are not complete. Build or fetch it again.")
    paths = paths or foreign_files(folder, split)
    if listed is not None and (stray := next((path for path in paths if path not in expected), None)):
        raise BadData(
            f"{stray} does not belong to the corpus: {folder / 'corpus.json'} lists {listed} {split} shards. Remove it."
        )
    return paths


def listed_shards(folder: Path, split: str) -> int | None:
    """How many shards of a split `corpus.json` says there are; None if it says nothing of them, or is not there."""
    try:
        count = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["shards"][split]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if isinstance(count, int) else None


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds a finished corpus of ours: by its `corpus.json`, whatever became of its shards."""
    try:
        kind = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return str(kind).startswith("gpt2-corpus ")


class Shards:
    """Files of tokens in order, as one row of ids. Threads may share it."""

    def __init__(self, files: Sequence[TokenFile]) -> None:
        """For `open_shards`. Raises BadData if two files are of different tokenizers."""
        first = files[0]
        for file in files:
            if file.tokenizer != first.tokenizer:
                raise BadData(f"{file.path} and {first.path} hold tokens of different tokenizers.")
        self._files = tuple(files)
        # Where each file's tokens begin in the row, and where the row ends.
        self._begins = np.concatenate([[0], np.cumsum([file.tokens for file in files], dtype=np.int64)])
        self._checked = [np.zeros(file.blocks, dtype=bool) for file in files]
        self._mapped: OrderedDict[int, npt.NDArray[np.unsignedinteger]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Tokens in all files, end-of-text ids included."""
        return int(self._begins[-1])

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [file.path for file in self._files]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the headers and checksums say: other tokens, another fingerprint. Reads no tokens."""
        return hashlib.sha256(" ".join(file.content for file in self._files).encode()).hexdigest()

    @property
    def tokenizer_fingerprint(self) -> str:
        """`Tokenizer.fingerprint()` of the vocabulary whose ids these are."""
        return self._files[0].tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens in that vocabulary."""
        return self._files[0].vocab_size

    @property
    def end_of_text(self) -> int:
        """The id in front of each document."""
        return self._files[0].end_of_text

    @property
    def text_bytes(self) -> int | None:
        """Bytes of UTF-8 that the tokens stand for; None in other programs' files, which do not say."""
        counts = [file.text_bytes for file in self._files]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def document_count(self) -> int:
        """Documents that begin in these files. Other programs' files are read through for it."""
        return sum(
            len(self._separators(index)) if file.documents is None else file.documents
            for index, file in enumerate(self._files)
        )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises BadData, naming a shard, unless these are this tokenizer's ids."""
        if tokenizer.fingerprint() != self.tokenizer_fingerprint:
            raise BadData(
                f"{self._files[0].path} holds tokens of another tokenizer ({self.vocab_size:,} tokens, "
                f"{self.tokenizer_fingerprint[:12]}) than this one ({tokenizer.vocab_size:,} tokens, "
                f"{tokenizer.fingerprint()[:12]})."
            )

    def read(self, start: int, count: int) -> npt.NDArray[np.int32]:
        """(count,) int32: the ids from `start` on, across files.

        Raises IndexError outside the row; BadData, naming file and block, for tokens that are not what was written,
        and for a file that was deleted, cut or replaced since it was opened.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        ids = np.empty(count, dtype=np.int32)
        done = 0
        index = int(np.searchsorted(self._begins, start, side="right")) - 1
        while done < count:
            begin = start + done - int(self._begins[index])
            part = min(count - done, self._files[index].tokens - begin)
            ids[done : done + part] = self._read_file(index, begin, part)
            done += part
            index += 1
        return ids

    def damage(self) -> Iterator[str]:
        """Reads everything; a sentence for each block, index or file that is not what was written."""
        for index, file in enumerate(self._files):
            try:
                found = [np.zeros(0, dtype=np.int64)]
                for block in range(file.blocks):
                    self._checked[index][block] = False
                    begin = block * file.block_tokens
                    try:
                        ids = self._read_file(index, begin, min(file.block_tokens, file.tokens - begin))
                        found.append(np.flatnonzero(ids == file.end_of_text) + begin)
                    except _Damaged as error:
                        yield str(error)
                if file.checksums is not None and not np.array_equal(self._separators(index), np.concatenate(found)):
                    yield f"{file.path}: its index of documents is not where its end-of-text ids stand."
            except BadData as error:
                yield str(error)
            # Forgets the mapping, so that memory stays flat however much there is to read.
            self._forget(index)

    def _separators(self, index: int) -> npt.NDArray[np.int64]:
        """Where in a file the end-of-text ids stand: in front of documents (nanoGPT: behind them)."""
        file = self._files[index]
        if file.documents is None:
            found = [np.zeros(0, dtype=np.int64)]
            for begin in range(0, file.tokens, file.block_tokens):
                ids = self._read_file(index, begin, min(file.block_tokens, file.tokens - begin))
                found.append(np.flatnonzero(ids == file.end_of_text) + begin)
            return np.concatenate(found)
        self._map(index)
        with file.path.open("rb") as stream:
            stream.seek(file.documents_offset)
            data = stream.read(8 * file.documents)
        if zlib.crc32(data) != file.documents_crc32:
            raise BadData(f"{file.path} is damaged: its index of documents is not what was written.")
        return np.frombuffer(data, dtype="<i8").astype(np.int64, copy=False)

    def _read_file(self, index: int, begin: int, count: int) -> npt.NDArray[np.unsignedinteger]:
        """A view of a file's tokens, checked."""
        file, tokens, checked = self._files[index], self._map(index), self._checked[index]
        for block in range(begin // file.block_tokens, -(-(begin + count) // file.block_tokens)):
            if not checked[block]:
                _check(file, block, tokens[block * file.block_tokens : (block + 1) * file.block_tokens])
                checked[block] = True
        return tokens[begin : begin + count]

    def _map(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        file = self._files[index]
        try:
            # Touching a mapped page that is no longer in the file would end the process, so look at the file first.
            state = file_state(file.path)
            if state != file.state:
                raise BadData(f"{file.path} was {_what_happened(file, state)} while it was in use; restore it.")
            with self._lock:
                tokens = self._mapped.get(index)
                if tokens is None:
                    tokens = np.memmap(file.path, dtype=file.dtype, mode="r", offset=file.offset, shape=(file.tokens,))
                    self._mapped[index] = tokens
                    if len(self._mapped) > _MAPPED:
                        self._mapped.popitem(last=False)
                self._mapped.move_to_end(index)
                return tokens
        except FileNotFoundError:
            raise BadData(f"{file.path} was deleted while it was in use; restore it.") from None
        except OSError as error:
            raise BadData(f"{file.path} cannot be read any more ({error.strerror}).") from None

    def _forget(self, index: int) -> None:
        with self._lock:
            self._mapped.pop(index, None)


class _Damaged(BadData):
    """A block that is wrong, in a file that can be read on."""


def _check(file: TokenFile, block: int, tokens: npt.NDArray[np.unsignedinteger]) -> None:
    where = f"{file.path}, block {block} of {file.blocks} (tokens {block * file.block_tokens:,} and on)"
    if file.checksums is not None and zlib.crc32(tokens.data) != file.checksums[block]:
        raise _Damaged(f"{where} is damaged: its checksum is not what was written. Build or fetch this shard again.")
    if tokens.max() >= file.vocab_size:
        raise _Damaged(f"{where} holds {tokens.max()}, which is no id: the vocabulary has 0 to {file.vocab_size - 1}.")


def _what_happened(file: TokenFile, state: tuple[int, int, int]) -> str:
    if state[1] < file.state[1]:
        return f"cut short, from {file.state[1]:,} to {state[1]:,} bytes,"
    return "replaced or changed"
