"""Pages out of web archives (.warc), and texts out of Common Crawl's .wet files, record by record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2.corpus import documents as kinds
from gpt2.corpus.documents import MOST_BYTES, Document
from gpt2.corpus.readers import Reading
from gpt2.corpus.streams import open_stream
from gpt2.errors import Unavailable

_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(reading: Reading) -> Iterator[Document]:
    """A response or resource that is a page is a document still to be extracted; a conversion record is a text.

    Other records (requests, images, redirects, error pages) are counted. Records are numbered from 1, all of them.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise Unavailable(f"Reading {reading.name} needs fastwarc: install the extra `corpus` (see README).") from None
    carrying = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    reading.unit = "record"
    with open_stream(Path(reading.where)) as stream:
        # Damaged compression is met in our own stream, which knows truncation; the library passes over a short end.
        watched = _Watched(stream)
        try:
            for record in ArchiveIterator(watched, parse_http=False, fsspec_args=False):
                reading.number += 1
                if not record.record_type & carrying:
                    continue
                if record.content_length > MOST_BYTES:
                    reading.problem(kinds.TOO_LARGE)
                    continue
                block = record.reader.read(record.content_length)
                if len(block) < record.content_length:
                    reading.problem(kinds.TRUNCATED, f"{len(block)} of {record.content_length} bytes are there")
                    return
                yield from _document(reading, record, block, record.record_type == WarcRecordType.conversion)
        except (OSError, ValueError) as error:
            if watched.error is None:
                reading.problem(kinds.BROKEN_WARC, str(error))
                return
        if watched.error is not None:
            raise watched.error
        # A record ends with an empty line.
        if not watched.last.replace(b"\r", b"").endswith(b"\n\n"):
            reading.problem(kinds.TRUNCATED, "the file ends inside a record")


def _document(reading: Reading, record: Any, block: bytes, is_text: bool) -> Iterator[Document]:
    url = record.headers.get("WARC-Target-URI")
    date = record.headers.get("WARC-Date")
    metadata = {"date": date} if date else {}
    if is_text:
        yield from reading.document(reading.decode(block), url, metadata)
        return
    charset = None
    kind = record.headers.get("Content-Type") or ""
    if kind.startswith("application/http"):
        answer = _answer(reading, block)
        if answer is None:
            return
        block, kind, charset = answer
    is_page = kind.lower().startswith(_PAGES) if kind else _looks_like_page(block)
    if not is_page:
        reading.problem(kinds.NO_PAGE)
    elif not block or block.isspace():
        reading.problem(kinds.EMPTY)
    else:
        yield Document(reading.id, "", html=block, charset=charset, url=url, metadata=metadata)


def _answer(reading: Reading, block: bytes) -> tuple[bytes, str, str | None] | None:
    """What an HTTP answer carries, its encodings undone, its type and charset; None for an error and what is broken."""
    from fastwarc.warc import WarcRecord, WarcRecordType

    # Old archives end the lines of HTTP headers with a bare line feed.
    bare = not block.partition(b"\n")[0].endswith(b"\r")
    broken = "no HTTP answer"
    for decoding in ("all", "none"):
        # A record of its own: what goes wrong in it must not stop the archive.
        record = WarcRecord()
        record.init_headers(WarcRecordType.response)
        record.is_http = True
        record.set_bytes_content(block)
        try:
            record.parse_http(auto_decode=decoding, quirks_mode=bare)
            # A few bytes can be packed gigabytes.
            headers, body = record.http_headers, bytes(record.reader.read(MOST_BYTES + 1))
            kind, charset = record.http_content_type or "", record.http_charset
        except (OSError, ValueError) as error:
            broken = str(error)
            continue
        if headers.status_code not in (None, 200):
            reading.problem(kinds.NO_PAGE)
            return None
        if len(body) > MOST_BYTES:
            reading.problem(kinds.TOO_LARGE)
            return None
        # Some undid the encodings when they stored the page, and left its headers as they were.
        if decoding == "all" or _looks_like_page(body):
            return body, kind, charset
    reading.problem(kinds.BROKEN_RECORD, broken)
    return None


def _looks_like_page(body: bytes) -> bool:
    start = body[:2048].lower()
    return b"<html" in start or b"<!doctype html" in start


class _Watched:
    """A stream that remembers its last bytes, and its error: that does not come through the library as it was."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: BaseException | None = None
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        try:
            data = bytes(self.stream.read(size))
        except BaseException as error:
            self.error = error
            raise
        self.last = (self.last + data[-4:])[-4:]
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def close(self) -> None:
        """The stream is closed by who opened it."""
