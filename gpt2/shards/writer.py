"""`ShardWriter`: documents as ids in, token shards out, each file whole or not there at all.

Memory stays small whatever comes in: one block of tokens, and eight bytes for each document of the shard under way.
Tokens go to the disk as they come, behind room for the header, which can be written only when all is known; then the
file gets its name. It knows nothing of text.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData, BadOption, Error
from gpt2.shards.format import BLOCK_TOKENS, HEADER_BYTES, MOST_TOKENS, header, token_dtype, token_lengths
from gpt2.tokenizer import Tokenizer

Numbers = npt.NDArray[np.integer]


class ShardWriter:
    """Writes `PREFIX-00000.safetensors`, `PREFIX-00001.safetensors`, ... into a folder, each full but the last.

    As a context manager it closes itself; after an error it leaves the shards that were finished, and nothing else.
    The same documents in the same order give the same bytes.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        tokenizer: Tokenizer,
        most_tokens: int = MOST_TOKENS,
        *,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """most_tokens: tokens in a full shard, end-of-text ids included. block_tokens: tokens under one checksum.

        Raises BadOption for a tokenizer without `<|endoftext|>`, and for sizes below 1.
        """
        if tokenizer.end_of_text is None:
            raise BadOption("This tokenizer has no <|endoftext|>, which separates documents; shards cannot hold it.")
        if most_tokens < 1 or block_tokens < 1:
            raise BadOption(f"most_tokens is {most_tokens} and block_tokens {block_tokens}; both must be at least 1.")
        self.tokens = 0
        """Tokens taken so far, end-of-text ids included."""
        self.documents = 0
        """Documents taken so far."""
        self.text_bytes = 0
        """Bytes of their text, as far as it has been written: all of it after `close`."""
        self._folder, self._prefix, self._tokenizer = folder, prefix, tokenizer
        self._end = np.array([tokenizer.end_of_text], dtype=np.uint32)
        self._most, self._block_tokens = most_tokens, block_tokens
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._lengths = token_lengths(tokenizer)
        self._block = np.empty(min(block_tokens, most_tokens), dtype=np.uint32)
        self._filled = 0
        self._file: IO[bytes] | None = None
        self._paths: list[Path] = []
        self._begin_shard()

    def add(self, ids: Numbers | Sequence[int]) -> None:
        """One document, without end-of-text; the writer puts it in front. A document without ids is left out.

        Raises BadData, at the latest in `close`, for an id outside the vocabulary; for an end-of-text id at once.
        """
        array = self._checked(ids)
        if not len(array):
            return
        if (array == self._tokenizer.end_of_text).any():
            raise BadData(f"A document holds the end-of-text id {self._end[0]} itself; documents are added one by one.")
        self.documents += 1
        if self._filled + len(array) + 1 < self._room:
            # Nearly every document: no border lies in it.
            self._block[self._filled] = self._end[0]
            self._block[self._filled + 1 : self._filled + 1 + len(array)] = array
            self._filled += len(array) + 1
            self.tokens += len(array) + 1
            return
        self._put(self._end)
        self._put(array)

    def close(self) -> list[Path]:
        """Finishes the last shard and returns the paths of all, in order; none if there was no document."""
        if self._shard_tokens + self._filled:
            self._end_shard()
        return list(self._paths)

    def discard(self) -> None:
        """Drops the shard under way."""
        if self._file is not None:
            # On a full disk what is still to be written fails once more; the file is closed all the same.
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
        self._filled = 0
        self._begin_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _checked(self, ids: Numbers | Sequence[int]) -> Numbers:
        array = np.asarray(ids)
        if not array.size:
            return np.zeros(0, dtype=np.uint32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise BadData(f"A document must be a flat row of whole numbers, and this is {array.dtype}{array.shape}.")
        # Narrower numbers stay wrong when they are copied into 32 bits, and are found with their block.
        if array.itemsize > 4 and (array.min() < 0 or array.max() >= self._tokenizer.vocab_size):
            raise self._outside(int(array.min() if array.min() < 0 else array.max()))
        return array

    def _put(self, array: Numbers) -> None:
        self.tokens += len(array)
        while len(array):
            part, array = array[: self._room - self._filled], array[self._room - self._filled :]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == self._room:
                self._end_block()
                if self._shard_tokens == self._most:
                    self._end_shard()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._prefix}-{len(self._paths):05d}.safetensors"

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")

    def _begin_shard(self) -> None:
        self._file = None
        self._shard_tokens = self._shard_bytes = 0
        self._documents: list[npt.NDArray[np.int64]] = []
        self._checksums: list[int] = []
        self._room = len(self._block)  # tokens that the block under way may hold

    def _end_block(self) -> None:
        block = self._block[: self._filled]
        self._filled = 0
        if block.max() >= self._tokenizer.vocab_size:
            raise self._outside(int(block.view(np.int32)[block.argmax()]))
        # Counting first takes a third of the time that looking up every token's length takes.
        self._shard_bytes += int(np.bincount(block, minlength=len(self._lengths)) @ self._lengths)
        self._documents.append(np.flatnonzero(block == self._end[0]).astype("<i8") + self._shard_tokens)
        self._shard_tokens += len(block)
        self._room = min(len(self._block), self._most - self._shard_tokens)
        data = block.astype(self._dtype).tobytes()
        self._checksums.append(zlib.crc32(data))
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = self._temporary.open("wb")
                self._file.write(bytes(HEADER_BYTES))
            self._file.write(data)
        except OSError as error:
            raise self._unwritten(error) from None

    def _end_shard(self) -> None:
        if self._filled:
            self._end_block()
        assert self._file is not None
        documents, checksums = np.concatenate(self._documents), np.array(self._checksums, dtype="<u4")
        start, padding = header(
            self._tokenizer, self._shard_tokens, documents, checksums, self._block_tokens, self._shard_bytes
        )
        temporary, path = self._temporary, self._path
        try:
            with self._file as file:
                file.write(padding + documents.tobytes() + checksums.tobytes())
                file.seek(0)
                file.write(start)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise self._unwritten(error) from None
        self._paths.append(path)
        self.text_bytes += self._shard_bytes
        self._begin_shard()

    def _outside(self, index: int) -> BadData:
        most = self._tokenizer.vocab_size
        return BadData(f"A document holds {index}, which is no id: this vocabulary has the ids 0 to {most - 1}.")

    def _unwritten(self, error: OSError) -> Error:
        self.discard()
        return Error(f"The shards in {self._folder} cannot be written ({error.strerror}).")
