"""What a build leaves on disk between its stages: the documents of each part, with what duplicates are found by.

A part is one large source or several small ones in a row, whatever the number of workers. Its folder is written beside
and renamed, so a part that is there is whole:

    text             the documents' UTF-8, one behind the other
    documents        26 bytes each: length, hash, number of its set
    signatures       512 bytes each, and
    bands            256 bytes each, in blocks, so that one band of many documents is read in few pieces
    counts.json      what came in, what was dropped and why

All of it can be deleted once the shards are made. Nothing here knows filters or tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.corpus import duplicates
from gpt2.corpus.sources import Source

# Small sources are bundled up to this size on disk.
_PART_BYTES = 16 * 2**20
# Documents whose signatures are computed and written together.
_BLOCK = 1024
_BLOCK_BYTES = 8 * 2**20

RECORD = np.dtype([("bytes", "<u8"), ("hash", "<u8", (2,)), ("set", "<u2")])
MOST_SETS = 2**16 - 1
# Records that are in memory at once where documents are read one by one.
_RECORDS = 2**16


def bundle(sources: Sequence[Source]) -> list[list[Source]]:
    """Sources in parts, in their order. A function of the sources alone."""
    parts: list[list[Source]] = []
    room = 0
    for source in sources:
        # A streamed source says no size, so it is a part of its own.
        size = source.bytes or _PART_BYTES
        if size > room:
            parts.append([])
            room = _PART_BYTES
        parts[-1].append(source)
        room -= size
    return parts


class PartWriter:
    """Writes the documents of a part into an empty folder, with bounded memory. Use it in a `with`."""

    def __init__(self, folder: Path, signed: bool) -> None:
        self._folder, self._signed = folder, signed
        self._text = (folder / "text").open("wb")
        self._records = (folder / "documents").open("wb")
        self._signatures = (folder / "signatures").open("wb") if signed else None
        self._bands = (folder / "bands").open("wb") if signed else None
        self._sets: dict[str, int] = {}
        self._pending: list[tuple[bytes, int]] = []
        self._pending_bytes = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_block()
        finally:
            for file in (self._text, self._records, self._signatures, self._bands):
                if file is not None:
                    file.close()

    def add(self, text: bytes, set_name: str) -> None:
        """One document. `set_name` beyond the 65,535th counts as "others"."""
        if set_name not in self._sets and len(self._sets) >= MOST_SETS - 1:
            set_name = "others"
        number = self._sets.setdefault(set_name, len(self._sets))
        self._pending.append((text, number))
        self._pending_bytes += len(text)
        if len(self._pending) == _BLOCK or self._pending_bytes >= _BLOCK_BYTES:
            self._write_block()

    def _write_block(self) -> None:
        if not self._pending:
            return
        texts = [text for text, _ in self._pending]
        records = np.zeros(len(texts), RECORD)
        for place, (text, number) in enumerate(self._pending):
            records[place] = (len(text), duplicates.digest(text), number)
            self._text.write(text)
        self._records.write(records.tobytes())
        if self._signatures is not None and self._bands is not None:
            minima = duplicates.signatures(texts)
            self._signatures.write(minima.astype("<u4").tobytes())
            block = duplicates.bands(minima).astype("<u8")
            # The block's length in front, for its reader.
            self._bands.write(np.array([len(texts)], "<u8").tobytes() + block.tobytes())
        self._pending, self._pending_bytes = [], 0

    def finish(self, counts: dict[str, Any]) -> None:
        """Writes counts.json; the sets' names are added."""
        (self._folder / "counts.json").write_text(json.dumps(counts | {"sets": list(self._sets)}), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is written."""

    folder: Path

    def counts(self) -> dict[str, Any]:
        """What counts.json says."""
        counts: dict[str, Any] = json.loads((self.folder / "counts.json").read_text(encoding="utf-8"))
        return counts

    def records(self, start: int = 0, count: int = -1) -> npt.NDArray[Any]:
        """The documents' records, (documents,) of `RECORD`; or `count` of them from `start` on, fewer at the end."""
        return np.fromfile(self.folder / "documents", RECORD, count, offset=start * RECORD.itemsize)

    def band(self, band: int) -> Iterator[duplicates.UInt64s]:
        """One band's numbers, a block at a time."""
        with (self.folder / "bands").open("rb") as file:
            while head := file.read(8):
                (length,) = np.frombuffer(head, "<u8").tolist()
                file.seek(band * length * 8, 1)
                yield np.frombuffer(file.read(length * 8), "<u8")
                file.seek((duplicates.BANDS - 1 - band) * length * 8, 1)

    def read(self, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[bytes, int]]:
        """Texts and numbers of the sets of the documents at `wanted` (rising), one at a time. However many documents
        there are, few records are in memory."""
        place = 0  # in the text, of the block's first document
        with (self.folder / "text").open("rb") as file:
            for first in range(0, int(wanted[-1]) + 1, _RECORDS):
                records = self.records(first, _RECORDS)
                lengths = records["bytes"].astype(np.int64)
                ends = place + np.cumsum(lengths)
                low, high = np.searchsorted(wanted, (first, first + _RECORDS))
                for index in (wanted[low:high] - first).tolist():
                    length = int(lengths[index])
                    start = int(ends[index]) - length
                    if file.tell() != start:
                        file.seek(start)
                    yield file.read(length), int(records["set"][index])
                place = int(ends[-1])


class Parts:
    """All parts as one run of documents, numbered from 0 in the order of the sources."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        sizes = [(part.folder / "documents").stat().st_size // RECORD.itemsize for part in self.parts]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def hashes(self) -> duplicates.UInt64s:
        """(documents, 2) uint64."""
        hashes = np.zeros((len(self), 2), np.uint64)
        for part, start, end in self.spans():
            hashes[start:end] = part.records()["hash"]
        return hashes

    def bands(self, kept: npt.NDArray[np.int64]) -> Iterable[duplicates.UInt64s]:
        """For each band the numbers of the documents at `kept` (rising)."""
        for band in range(duplicates.BANDS):
            numbers = np.zeros(len(self), np.uint64)
            for part, at, _ in self.spans():
                for block in part.band(band):
                    numbers[at : at + len(block)] = block
                    at += len(block)
            yield numbers[kept]

    def signatures(self, indices: npt.NDArray[np.int64]) -> duplicates.UInt32s:
        """The minima of some documents, (indices,) int64 to (indices, 128) uint32."""
        rows = np.zeros((len(indices), duplicates.HASHES), np.uint32)
        where = np.searchsorted(self.offsets, indices, "right") - 1
        for number in np.unique(where).tolist():
            here = where == number
            path = self.parts[number].folder / "signatures"
            stored = np.memmap(path, "<u4", "r").reshape(-1, duplicates.HASHES)
            rows[here] = stored[indices[here] - self.offsets[number]]
        return rows

    def read(self, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[bytes, str]]:
        """Texts and names of the sets of some documents (rising), one at a time."""
        for part, start, end in self.spans():
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)]
            if len(here):
                names = part.counts()["sets"]
                for text, number in part.read(here - start):
                    yield text, names[number]

    def spans(self) -> Iterator[tuple[Part, int, int]]:
        """Each part with the numbers of its first document and of the one behind its last."""
        return zip(self.parts, self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
