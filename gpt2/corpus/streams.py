"""Byte streams out of files, compressed or not, and lines out of streams; memory is bounded whatever the file holds.

It knows nothing of documents.
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from gpt2.errors import BadData, Unavailable

# What stands in one buffer with the damage is lost with it, so it is small.
_BUFFER = 2**16


class BrokenStream(Exception):
    """The compressed bytes are damaged or end too early; what was read before is sound."""


@contextmanager
def open_stream(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, uncompressed if its name ends in .gz or .zst.

    The block raises BrokenStream where compressed bytes are damaged, BadData where the file cannot be read at all, and
    Unavailable where a .zst needs pyarrow and it is not here.
    """
    try:
        if path.suffix == ".gz":
            raw: IO[bytes] = cast(IO[bytes], gzip.open(path, "rb"))  # noqa: SIM115
        elif path.suffix == ".zst":
            raw = _zstd(path)
        else:
            raw = path.open("rb", buffering=0)
        with io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER) as stream:
            yield cast(io.BufferedReader, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenStream(str(error)) from None
    except OSError as error:
        # Arrow reports damage as an OSError without a number; the system's own errors have one.
        if error.errno is None and path.suffix == ".zst":
            raise BrokenStream(str(error)) from None
        raise BadData(f"{path} cannot be read: {error.strerror or error}.") from None


def _zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise Unavailable(f"Reading {path.name} needs pyarrow: install the extra `corpus` (see README).") from None
    return cast(IO[bytes], pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def lines(stream: io.BufferedReader, most: int) -> Iterator[bytes | None]:
    """The lines of a stream without their line ends; None stands for one over `most` bytes, which is passed over."""
    while line := stream.readline(most + 1):
        if len(line.removesuffix(b"\n")) > most:
            while not line.endswith(b"\n") and (line := stream.readline(_BUFFER)):
                pass
            yield None
        else:
            yield line.removesuffix(b"\n")


def pieces(stream: io.BufferedReader, separator: bytes, most: int) -> Iterator[bytes | None]:
    """What lies between separators; None stands for a piece of more than `most` bytes, which is passed over."""
    held, searched, skipping = bytearray(), 0, False
    while block := stream.read(_BUFFER):
        held += block
        while (cut := held.find(separator, searched)) >= 0:
            yield None if skipping or cut > most else bytes(held[:cut])
            del held[: cut + len(separator)]
            searched, skipping = 0, False
        # A separator may lie across two blocks.
        searched = max(0, len(held) - len(separator) + 1)
        if len(held) > most + len(separator):
            skipping = True
            del held[:searched]
            searched = 0
    if skipping:
        yield None
    elif held:
        yield bytes(held)
