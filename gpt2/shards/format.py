"""What a token shard looks like on disk. It reads headers alone: `reader.py` reads tokens, `writer.py` writes them.

A shard is a safetensors file, so that any tool opens it, with these tensors in this order:

    tokens      uint16, or uint32 for a vocabulary of more than 65,536
    padding     uint8   as many as make what follows begin at a multiple of eight bytes
    documents   int64   index of each document's first id, which is the end-of-text id
    checksums   uint32  CRC-32 of the bytes of each block of `block_tokens` tokens

and with metadata that says whose tokens they are. A document may begin in one shard and end in the next. Nothing in a
shard tells of time or place: the same documents give the same bytes.
"""

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import BadData
from gpt2.tokenizer import Tokenizer

FORMAT = "gpt2-shard 1"
BLOCK_TOKENS = 2**20
MOST_TOKENS = 2**26
HEADER_BYTES = 1024

_DTYPES = {"I64": "<i8", "U32": "<u4", "U16": "<u2", "U8": "u1"}
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of tokens, opened and not read. `text_bytes` and `documents` are None in files that do not say."""

    path: Path
    tokens: int
    dtype: str
    offset: int
    """Bytes in front of the tokens."""
    vocab_size: int
    end_of_text: int
    tokenizer: str
    """The tokenizer's fingerprint."""
    block_tokens: int
    checksums: npt.NDArray[np.uint32] | None
    documents: int | None
    documents_offset: int
    documents_crc32: int
    text_bytes: int | None
    content: str
    """A digest that changes when the tokens change."""
    state: tuple[int, int, int]
    """The file's number, size and time of change, by which a change under a reader is found."""

    @property
    def blocks(self) -> int:
        """Blocks of `block_tokens` tokens, the last of which may be shorter."""
        return -(-self.tokens // self.block_tokens)


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """(vocab_size,) int32: how many bytes of text each id stands for; a control token for none."""
    lengths = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)], dtype=np.int32)
    lengths[list(tokenizer.special_tokens.values())] = 0
    return lengths


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def header(
    tokenizer: Tokenizer,
    tokens: int,
    documents: npt.NDArray[np.int64],
    checksums: npt.NDArray[np.uint32],
    block_tokens: int,
    text_bytes: int,
) -> tuple[bytes, bytes]:
    """What stands in front of the tokens (HEADER_BYTES), and the padding behind them.

    Made here because the library wants whole tensors, and writes metadata in no fixed order.
    """
    metadata = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint(),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "block_tokens": block_tokens,
        "text_bytes": text_bytes,
        "documents_crc32": zlib.crc32(documents.tobytes()),
        "checksums_crc32": zlib.crc32(checksums.tobytes()),
    }
    entries: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in metadata.items()}}
    names = {dtype: name for name, dtype in _DTYPES.items()}
    narrowest = token_dtype(tokenizer.vocab_size)
    padding = -tokens * np.dtype(narrowest).itemsize % 8
    start = 0
    for name, dtype, count in (
        ("tokens", narrowest, tokens),
        ("padding", "u1", padding),
        ("documents", "<i8", len(documents)),
        ("checksums", "<u4", len(checksums)),
    ):
        end = start + count * np.dtype(dtype).itemsize
        entries[name] = {"dtype": names[dtype], "shape": [count], "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    assert len(text) <= HEADER_BYTES - 8
    return struct.pack("<Q", HEADER_BYTES - 8) + text.ljust(HEADER_BYTES - 8), bytes(padding)


def read_header(path: Path) -> TokenFile:
    """Opens a shard: its header and its checksums. Raises BadData, naming it, if it is missing or damaged."""
    try:
        state = file_state(path)
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 0 < length <= _LONGEST_HEADER else b""
            if state[1] < 8 + length or len(text) < length:
                raise BadData(_strange(path, state[1]))
            try:
                found = _entries(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadData(f"{path} is no token shard of the kind '{FORMAT}', or its header is damaged.") from None
            metadata, places = found
            base = 8 + length
            whole = base + max(end for _, _, end, _ in places.values())
            if state[1] != whole:
                short = "cut short" if state[1] < whole else "longer than its header says"
                raise BadData(f"{path} is {short}: it has {state[1]:,} bytes and should have {whole:,}. {_AGAIN}")
            _, begin, end, _ = places["checksums"]
            file.seek(base + begin)
            checksums = np.frombuffer(file.read(end - begin), dtype="<u4")
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}).") from None
    dtype, offset, _, tokens = places["tokens"]
    blocks = -(-tokens // int(metadata["block_tokens"]))
    if zlib.crc32(checksums.tobytes()) != int(metadata["checksums_crc32"]) or len(checksums) != blocks:
        raise BadData(f"{path} is damaged: its list of checksums is not what was written. {_AGAIN}")
    digest = hashlib.sha256(json.dumps([metadata, tokens], sort_keys=True).encode() + checksums.tobytes())
    return TokenFile(
        path=path,
        tokens=tokens,
        dtype=dtype,
        offset=base + offset,
        vocab_size=int(metadata["vocab_size"]),
        end_of_text=int(metadata["end_of_text"]),
        tokenizer=metadata["tokenizer"],
        block_tokens=int(metadata["block_tokens"]),
        checksums=checksums,
        documents=places["documents"][3],
        documents_offset=base + places["documents"][1],
        documents_crc32=int(metadata["documents_crc32"]),
        text_bytes=int(metadata["text_bytes"]),
        content=digest.hexdigest(),
        state=state,
    )


_AGAIN = "Build or fetch this shard again."


def file_state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced, cut or written to. Raises OSError for one that is not there."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _entries(data: Any) -> tuple[dict[str, str], dict[str, tuple[str, int, int, int]]]:
    """The metadata, and (dtype, begin, end, count) of each tensor. Raises what wrong JSON makes Python raise."""
    metadata = data["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError
    numbers = ("vocab_size", "end_of_text", "block_tokens", "text_bytes", "documents_crc32", "checksums_crc32")
    if any(int(metadata[name]) < 0 for name in numbers) or not int(metadata["block_tokens"]):
        raise ValueError
    if not isinstance(metadata["tokenizer"], str):
        raise ValueError
    places = {}
    kinds = {"tokens": ("U16", "U32"), "documents": ("I64",), "checksums": ("U32",)}
    for name, allowed in kinds.items():
        entry = data[name]
        begin, end = entry["data_offsets"]
        (count,) = entry["shape"]
        dtype = _DTYPES[entry["dtype"]]
        if not all(type(number) is int and number >= 0 for number in (begin, end, count)):
            raise ValueError
        if entry["dtype"] not in allowed or end - begin != count * np.dtype(dtype).itemsize:
            raise ValueError
        places[name] = (dtype, begin, end, count)
    return metadata, places


def _strange(path: Path, size: int) -> str:
    return f"{path} is no token shard, or it is cut short: it ends inside its header, after {size:,} bytes."
