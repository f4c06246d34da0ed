"""The two stages that workers share: reading a part, and making the shards of a stretch of kept documents.

Each task writes one folder, whole or not at all, and what it writes depends on the input and the options alone.
What comes between the two needs all documents at once, and is in pipeline.py.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy.typing as npt

from gpt2.corpus.documents import NO_ADDRESS, OWN_ADDRESS, Document, Problems
from gpt2.corpus.extract import extract, own_address
from gpt2.corpus.fates import SPLITS, Stretch, numbers
from gpt2.corpus.filters import make_filters
from gpt2.corpus.options import CorpusOptions
from gpt2.corpus.parts import Part, Parts, PartWriter
from gpt2.corpus.report import EXTRACTED, IN, Tally
from gpt2.corpus.sources import Source, read
from gpt2.files import new_directory
from gpt2.tokenizer import Tokenizer, read_tokenizer

# Text that is encoded at once.
_BATCH_BYTES = 4 * 2**20

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ReadParts:
    """Sources to parts: read, extract, filter, and sign for the search of duplicates."""

    folder: Path
    parts: tuple[tuple[Source, ...], ...]
    options: CorpusOptions

    def sizes(self) -> Sequence[int]:
        return [sum(source.bytes for source in part) for part in self.parts]

    def finished(self, number: int) -> bool:
        return self.part(number).folder.is_dir()

    def part(self, number: int) -> Part:
        """Where a part is, or will be."""
        return Part(self.folder / f"{number:05d}")

    def __call__(self, number: int, tell: Tell) -> None:
        options, problems, tally = self.options, Problems(), Tally()
        filters = make_filters(options.filters)
        clock = _Clock()
        with (
            new_directory(self.part(number).folder) as folder,
            PartWriter(folder, signed=options.near) as writer,
        ):
            for document, set_name, done in self._documents(number, problems, clock):
                tell(done)
                size = _size(document)
                tally.add(set_name, IN, size)
                if document.html is not None and not document.url and filters.before:
                    document = replace(document, url=own_address(document.html, document.charset))
                    if document.url:
                        problems.add(OWN_ADDRESS, document.id)
                if reason := _refused(filters.before, document):
                    tally.add(set_name, reason, size)
                    if document.html is not None:
                        # So that the report knows of pages, whose bytes are no text.
                        tally.add(set_name, EXTRACTED, 0, documents=0)
                    continue
                if not document.url and not options.filters.wikipedia:
                    problems.add(NO_ADDRESS, document.id)
                clock.lap("filters")
                if document.html is not None:
                    document = extract(document, options.extractor, problems, options.read.invalid)
                    tally.add(set_name, EXTRACTED, _size(document))
                    clock.lap("extraction")
                reason = _refused(filters.after, document)
                clock.lap("filters")
                text = document.text.encode("utf-8", "replace")
                if reason:
                    tally.add(set_name, reason, len(text))
                else:
                    writer.add(text, set_name)
                    clock.lap("signatures" if options.near else "hashes")
            writer.finish({"tally": tally.to_dict(), "problems": problems.to_dict(), "seconds": clock.seconds})

    def _documents(self, number: int, problems: Problems, clock: "_Clock") -> Iterator[tuple[Document, str, int]]:
        """Documents, the name of their set, and the bytes of sources read so far (roughly, inside a source)."""
        done = 0
        for source in self.parts[number]:
            inside = 0
            for document in read(source, problems, self.options.read):
                inside += _size(document)
                clock.lap("reading")
                yield document, set_of(document, source), done + min(inside, source.bytes)
                clock.lap("writing")
            done += source.bytes
            clock.lap("reading")


@dataclass(frozen=True, slots=True)
class MakeShards:
    """Kept documents to tokens to shards, a stretch at a time."""

    folder: Path
    parts: tuple[Part, ...]
    fates: Path
    tokenizer: Path
    plan: tuple[Stretch, ...]
    fast: bool

    def sizes(self) -> Sequence[int]:
        return [stretch.bytes for stretch in self.plan]

    def finished(self, number: int) -> bool:
        return self.shards(number).is_dir()

    def shards(self, number: int) -> Path:
        """The folder of a stretch's shards."""
        return self.folder / f"{number:05d}"

    def counts(self, number: int) -> dict[str, Any]:
        """What a finished stretch came to."""
        counts: dict[str, Any] = json.loads((self.shards(number) / "counts.json").read_text(encoding="utf-8"))
        return counts

    def __call__(self, number: int, tell: Tell) -> None:
        from gpt2.shards import ShardWriter

        stretch = self.plan[number]
        tokenizer, encode = _tokenizer(self.tokenizer, self.fast)
        parts = Parts(self.parts)
        wanted = numbers(self.fates, stretch)
        tally = Tally()
        clock = _Clock()
        done = 0
        name = SPLITS[stretch.fate]
        with (
            new_directory(self.shards(number)) as folder,
            ShardWriter(folder, name, tokenizer) as writer,
        ):
            for batch in _batches(parts.read(wanted)):
                clock.lap("reading")
                rows = encode([text.decode() for text, _ in batch])
                clock.lap("tokens")
                for (text, set_name), ids in zip(batch, rows, strict=True):
                    writer.add(ids)
                    tally.add(set_name, name, len(text), len(ids) + 1)
                    done += len(text)
                clock.lap("writing")
                tell(done)
            paths = writer.close()
            counts = {
                "shards": [path.name for path in paths],
                "documents": writer.documents,
                "tokens": writer.tokens,
                "text_bytes": writer.text_bytes,
                "tally": tally.to_dict(),
                "seconds": clock.seconds,
            }
            (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def set_of(document: Document, source: Source) -> str:
    """The set that a document counts for: its own field `set`, else the folder, file or data set that was given."""
    return document.metadata.get("set") or (source.name if source.kind == "hub" else source.name.partition("/")[0])


def _size(document: Document) -> int:
    if document.html is not None:
        return len(document.html)
    return len(document.text) if document.text.isascii() else len(document.text.encode("utf-8", "replace"))


def _refused(filters: Iterable[Any], document: Document) -> str | None:
    for one in filters:
        if reason := one.reason(document):
            return f"{one.name}: {reason}"
    return None


def _batches(items: Iterable[tuple[bytes, str]]) -> Iterator[list[tuple[bytes, str]]]:
    batch: list[tuple[bytes, str]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[0])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


Encode = Callable[[Sequence[str]], Sequence[npt.NDArray[Any]]]


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, fast: bool) -> tuple[Tokenizer, Encode]:
    """The vocabulary and what encodes by it; kept, because a worker makes many stretches."""
    tokenizer = read_tokenizer(folder)
    if fast:
        from gpt2.tokenizer.fast import FastEncoder

        return tokenizer, FastEncoder(tokenizer).encode_batch
    return tokenizer, lambda texts: [tokenizer.encode_array(text) for text in texts]


class _Clock:
    """Where the seconds of a worker go."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap under a name."""
        now = perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
