"""One reader for each kind of source: text files, .jsonl, .parquet, pages, WARC archives, data sets on the hub.

Each is a generator of documents in the order of the source. Which files there are is found in sources.py.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.corpus import documents as kinds
from gpt2.corpus.documents import KEPT_FIELDS, MOST_BYTES, Document, Problems, ReadOptions
from gpt2.corpus.streams import lines, open_stream, pieces
from gpt2.errors import BadData, Unavailable
from gpt2.tokenizer import END_OF_TEXT

# So many records without the text field, and none with it, are a wrong name and not a few odd records.
_MOST_WITHOUT_FIELD = 100
# Characters at the beginning of a text that may have to be replaced.
_MOST_REPLACED = 0.3
_SURROGATE = re.compile("[\\ud800-\\udfff]")


@dataclass(slots=True)
class Reading:
    """One source while it is read: where it is, how its text is mended, and where complaints go."""

    name: str
    where: str
    problems: Problems
    options: ReadOptions
    unit: str = "document"
    number: int = 0
    with_field: int = 0
    without_field: int = 0

    @property
    def place(self) -> str:
        """The document being read, for people."""
        return f"{self.name}, {self.unit} {self.number}" if self.number else self.name

    def problem(self, kind: str, detail: str = "") -> None:
        """Counts a problem, or raises BadData where the options refuse its kind."""
        example = f"{self.place}: {detail}" if detail else self.place
        if kind in (kinds.INVALID_TEXT, kinds.LONE_SURROGATE):
            if self.options.invalid == "refuse":
                raise BadData(f"{self.place}: {kind}{f', {detail}' if detail else ''}. Mend it, or let it be replaced.")
        elif kind not in (kinds.SPELT_END, kinds.EMPTY, kinds.NO_PAGE) and self.options.broken == "refuse":
            raise BadData(f"{self.place}: {kind}{f', {detail}' if detail else ''}. Mend it, or let it be skipped.")
        self.problems.add(kind, example)

    def decode(self, data: bytes) -> str:
        """Bytes as UTF-8, with or without a byte order mark."""
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.problem(kinds.INVALID_TEXT, f"byte {error.start} is {data[error.start]:#04x}")
            return data.decode("utf-8-sig", errors="replace")

    def document(self, text: str, url: object = None, metadata: Mapping[str, str] | None = None) -> Iterator[Document]:
        """The document of a text, or none if it is empty. Line ends and all else stay as they are."""
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            self.problem(kinds.LONE_SURROGATE)
            text = without_surrogates(text)
            size = len(text.encode("utf-8"))
        if size > MOST_BYTES:
            self.problem(kinds.TOO_LARGE)
            return
        if not text or text.isspace():
            self.problem(kinds.EMPTY)
            return
        if END_OF_TEXT in text:
            self.problem(kinds.SPELT_END)
        address = url if isinstance(url, str) and url else None
        yield Document(self.id, text, url=address, metadata=metadata or {})

    @property
    def id(self) -> str:
        """The current document's."""
        return f"{self.name}#{max(1, self.number)}"

    def record(self, record: Mapping[str, Any]) -> Iterator[Document]:
        """The document of a record with fields. Raises BadData where the source has no field of that name at all."""
        field = self.options.text_field
        text = record.get(field)
        if text is None and field in record:
            text = ""
        if not isinstance(text, str):
            self.without_field += 1
            detail = missing_field(field, record) if field not in record else f'"{field}" is {type(text).__name__}'
            if not self.with_field and self.without_field >= _MOST_WITHOUT_FIELD:
                raise BadData(f"{self.place}: {detail}, as in all before it. {_HELP}")
            self.problem(kinds.NO_TEXT_FIELD, detail)
            return
        self.with_field += 1
        yield from self.document(text, record.get(self.options.url_field), kept_fields(record))

    def finish(self) -> None:
        """Raises BadData if there were records and none had the text field."""
        if self.without_field and not self.with_field:
            detail = self.problems.examples[kinds.NO_TEXT_FIELD]
            raise BadData(f"{self.name}: no record has a text field; {detail}. {_HELP}")


_HELP = "Name the right field with --text-field."


def missing_field(field: str, record: Mapping[str, Any]) -> str:
    """Says that a field is missing and which are there."""
    there = ", ".join(f'"{name}"' for name in list(record)[:12]) or "none at all"
    return f'there is no field "{field}"; there are {there}'


def kept_fields(record: Mapping[str, Any]) -> dict[str, str]:
    """What a corpus keeps of a record's other fields; `license` becomes `licence`."""
    kept: dict[str, str] = {}
    for name in KEPT_FIELDS:
        value = record.get(name)
        if isinstance(value, str | int | float) and value != "":
            kept.setdefault("licence" if name == "license" else name, without_surrogates(str(value)))
    return kept


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no encoding can write."""
    return _SURROGATE.sub("\ufffd", text)


def read_text(reading: Reading) -> Iterator[Document]:
    """A text file is one document, or several where a separator is given."""
    separator = reading.options.separator
    with open_stream(Path(reading.where)) as stream:
        if _is_binary(stream):
            return reading.problem(kinds.BINARY, "it holds zero bytes; text must be UTF-8")
        if reading.options.invalid == "replace" and _is_mostly_replaced(stream):
            return reading.problem(kinds.BINARY, "few of its bytes are UTF-8; another encoding has to be converted")
        if separator is None:
            data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                return reading.problem(kinds.TOO_LARGE, "cut it into documents, by --separator or as .jsonl")
            yield from reading.document(reading.decode(data))
            return
        reading.unit = "piece"
        for piece in pieces(stream, separator.encode("utf-8"), MOST_BYTES):
            reading.number += 1
            if piece is None:
                reading.problem(kinds.TOO_LARGE)
            else:
                yield from reading.document(reading.decode(piece))


def read_jsonl(reading: Reading) -> Iterator[Document]:
    """A line is a document: a JSON object with the text in a field."""
    reading.unit = "line"
    with open_stream(Path(reading.where)) as stream:
        if _is_binary(stream):
            return reading.problem(kinds.BINARY, "it holds zero bytes; .jsonl must be UTF-8")
        for line in lines(stream, MOST_BYTES):
            reading.number += 1
            if line is None:
                reading.problem(kinds.TOO_LARGE)
                continue
            if not line or line.isspace():
                continue
            try:
                record = json.loads(reading.decode(line))
            except (ValueError, RecursionError) as error:
                reading.problem(kinds.BAD_JSON, str(error))
                continue
            if isinstance(record, dict):
                yield from reading.record(record)
            else:
                reading.problem(kinds.BAD_JSON, f"expected an object, not {type(record).__name__}")
    reading.finish()


def read_page(reading: Reading) -> Iterator[Document]:
    """An .html file is one page, in whatever encoding."""
    with open_stream(Path(reading.where)) as stream:
        if _is_binary(stream) and not stream.peek(4).startswith((b"\xff\xfe", b"\xfe\xff")):
            return reading.problem(kinds.BINARY, "it holds zero bytes, so it is no page")
        data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            return reading.problem(kinds.TOO_LARGE)
        if not data or data.isspace():
            return reading.problem(kinds.EMPTY)
        yield Document(reading.id, "", html=data)


def _is_binary(stream: io.BufferedReader) -> bool:
    return b"\0" in stream.peek(8192)[:8192]


def _is_mostly_replaced(stream: io.BufferedReader) -> bool:
    """Whether replacing what is no UTF-8 would leave little: random bytes, or letters in an older encoding. Single
    letters of one, as in Western European text, are less than a tenth."""
    start = stream.peek(8192)[:8192].decode("utf-8", "replace")
    return start.count("\ufffd") > _MOST_REPLACED * len(start)


def read_parquet(reading: Reading) -> Iterator[Document]:
    """A row is a document; rows are read a few at a time."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise Unavailable(f"Reading {reading.name} needs pyarrow: install the extra `corpus` (see README).") from None
    options = reading.options
    try:
        # A buffer, and no reading ahead: else a whole row group lies in memory, often a gigabyte.
        with parquet.ParquetFile(reading.where, buffer_size=2**20, pre_buffer=False) as file:
            schema = file.schema_arrow
            _check_column(reading.name, schema, options.text_field)
            names = [n for n in schema.names if n in (options.text_field, options.url_field, *KEPT_FIELDS)]
            reading.unit = "row"
            for batch in file.iter_batches(batch_size=64, columns=names, use_threads=False):
                columns = {name: _values(batch.column(name)) for name in names}
                for row in zip(*columns.values(), strict=True):
                    reading.number += 1
                    record = dict(zip(columns, row, strict=True))
                    for name, value in record.items():
                        if isinstance(value, bytes):
                            record[name] = reading.decode(value)
                    yield from reading.record(record)
    except FileNotFoundError:
        raise BadData(f"{reading.where} is gone: it was there when the sources were listed.") from None
    except (arrow.ArrowException, OSError) as error:
        reading.problem(kinds.BROKEN_PARQUET, str(error).split("\n")[0])


def _check_column(name: str, schema: Any, field: str) -> None:
    from pyarrow import types

    if field not in schema.names:
        raise BadData(f"{name}: {missing_field(field, dict.fromkeys(schema.names))}. {_HELP}")
    kind = schema.field(field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise BadData(f'{name}: the field "{field}" is {kind}, not text. {_HELP}')


def _values(column: Any) -> list[Any]:
    """A column's values, text as bytes: Arrow's own conversion would stop at the first that is no UTF-8."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string_view(column.type):
        column = column.cast(arrow.binary_view())
    elif arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    return list(column.to_pylist())
