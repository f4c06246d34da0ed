"""Rows of named columns out of files: .jsonl, .csv, .tsv, .parquet, and articles of Wikipedia (see wikipedia.py).

Files may be compressed (.gz, .zst); `owner/name`, `owner/name:config` or `owner/name:config:split` is a data set on the
Hugging Face hub, streamed. What is broken is told with its line, all of it at once, or left out and counted.
This file knows nothing of templates.
"""

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.corpus.streams import BrokenStream, open_stream
from gpt2.errors import BadData, Unavailable

COMPRESSED = (".gz", ".zst")
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
WIKIPEDIA = (".xml", ".tokens", ".raw")
_SHOWN = 8

Row = dict[str, str]
# Number and values of each, or what is wrong with it.
_Records = Iterator[tuple[int, Mapping[str, Any] | str]]

_NO_COLUMN = "{source} has no column {name!r}; there are {there}. The template's braces name columns."

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]*){0,2}")


@dataclass(slots=True)
class Problems:
    """Rows that cannot be used, by file. lacking: the columns that some of them lack."""

    skip: bool
    count: int = 0
    rows: int = 0
    said: dict[str, list[str]] = field(default_factory=dict)
    last: tuple[str, int] | None = None
    lacking: set[str] = field(default_factory=set)

    def add(self, source: str, line: int, what: str, unit: str = "line") -> None:
        """Counts a row that cannot be used."""
        if self.last == (source, line):
            return
        self.last = (source, line)
        self.count += 1
        found = self.said.setdefault(source, [])
        if len(found) < _SHOWN:
            found.append(f"{unit} {line} ({what})")

    def check(self) -> str | None:
        """A note for what was left out; raises BadData if nothing may be."""
        if not self.count:
            return None
        told = "; ".join(f"{source}: {', '.join(lines)}" for source, lines in list(self.said.items())[:3])
        more = "" if self.count <= sum(map(len, self.said.values())) else ", and more"
        whole = f"{self.count:,} of {self.rows:,} rows cannot be used: {told}{more}"
        if not self.skip:
            raise BadData(f"{whole}. Mend them, or leave them out with --skip-bad.")
        return f"left out: {whole}"


def find_tables(places: Sequence[str]) -> list[Path | str]:
    """The files with rows that paths name, a folder standing for those in it; names on the hub as they are.

    Raises BadData.
    """
    found: dict[Path | str, Path | str] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if kind_of(file) and file.is_file())
            if not inside:
                raise BadData(f"{path} holds no file with rows ({', '.join((*TABLES, *WIKIPEDIA))}).")
            found |= {file.resolve(): file for file in inside}
        elif path.exists() and kind_of(path):
            found[path.resolve()] = path
        elif path.exists():
            raise BadData(
                f"{path} is of no kind that has rows ({', '.join((*TABLES, *WIKIPEDIA))}); "
                "JSON must be one object a line (.jsonl), and a plain text is trained on without a template."
            )
        elif _HUB_NAME.fullmatch(place) and not kind_of(path):
            found[place] = place
        else:
            raise BadData(f"{place} is no file and no folder.")
    return list(found.values())


def kind_of(file: Path) -> str:
    """The suffix that says how a file is read, without that of its compression; empty for a kind without rows."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    kinds: Sequence[str] = (*TABLES, *WIKIPEDIA)
    if suffixes and suffixes[-1] in (*COMPRESSED, ".bz2"):
        # Parquet compresses by itself.
        kinds = (".xml",) if suffixes.pop() == ".bz2" else TABLES[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in kinds else ""


def read_rows(places: Sequence[str], columns: Sequence[str], problems: Problems) -> Iterator[tuple[str, int, Row]]:
    """The rows that `find_tables` finds: source, line (or row, or article) number, the values of `columns` as text.

    Numbers become text as JSON writes them, and null the empty text. Raises BadData, listing the columns that are
    there, where a table has not all of them; BadData for files that cannot be read at all; Unavailable for extras.
    """
    for place in find_tables(places):
        source, unit = str(place), unit_of(place)
        records = _hub(place, columns) if isinstance(place, str) else _READERS[kind_of(place)](place, columns)
        lacking: Counter[str] = Counter()
        before, there = problems.rows, ""
        for number, record in records:
            problems.rows += 1
            if isinstance(record, str):
                problems.add(source, number, record, unit)
                continue
            missing = [name for name in columns if name not in record]
            if missing:
                lacking.update(missing)
                problems.lacking.update(missing)
                there = _listed(record)
                problems.add(source, number, f"no column {missing[0]!r}, there are {_listed(record)}", unit)
                continue
            row = {name: value for name in columns if (value := _text(record[name])) is not None}
            if len(row) < len(columns):
                wrong = next(name for name in columns if name not in row)
                problems.add(source, number, f"column {wrong!r} holds {_kind(record[wrong])}", unit)
                continue
            yield source, number, row
        name, count = lacking.most_common(1)[0] if lacking else ("", 0)
        if count and count == problems.rows - before:
            raise BadData(_NO_COLUMN.format(source=source, name=name, there=there))


def columns_of(file: Path) -> list[str]:
    """The columns of a table, of JSON lines those of any object; none where there is no row. Raises as above."""
    kind = kind_of(file)
    records = (record for _, record in _READERS[kind](file, ()) if not isinstance(record, str))
    # Of all other kinds each row has the same.
    looked_at = itertools.islice(records, None if kind == ".jsonl" else 1)
    return list(dict.fromkeys(name for record in looked_at for name in record))


def _kind(value: Any) -> str:
    return "half characters" if isinstance(value, str) else f"{_name_of(value)}, not text"


def _name_of(value: Any) -> str:
    """What JSON calls a value that is no text and no number."""
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def unit_of(place: Path | str) -> str:
    """What the numbers of a table count."""
    kind = ".parquet" if isinstance(place, str) else kind_of(place)
    return "row" if kind == ".parquet" else "article" if kind in WIKIPEDIA else "line"


def _text(value: Any) -> str | None:
    """A value as text; None for what is none."""
    if isinstance(value, str):
        whole = value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
        return value if whole else None
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    found = list(names)
    return (", ".join(map(repr, found[:20])) + (", ..." if len(found) > 20 else "")) or "none"


@contextmanager
def _bytes(file: Path) -> Iterator[io.BufferedReader]:
    try:
        with open_stream(file) as stream:
            yield stream
    except BrokenStream as error:
        raise BadData(f"{file} is damaged ({error}); its compressed bytes end too early or are wrong.") from None


def _jsonl(file: Path, columns: Sequence[str]) -> _Records:
    with _bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, f"no UTF-8 at byte {error.start}"
                continue
            except (ValueError, RecursionError) as error:
                yield number, f"no JSON: {str(error).split(':')[0]}"
                continue
            yield number, record if isinstance(record, dict) else f"{_name_of(record)}, not an object"


def _csv(file: Path, columns: Sequence[str]) -> _Records:
    with _bytes(file) as raw, _long_fields():
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        # strict: a quote that is never closed would else swallow the rest of the file as one value.
        reader = csv.reader(stream, delimiter="\t" if kind_of(file) == ".tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            _check_columns(file, header, columns)
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise BadData(f"{file} has two columns called {twice!r}; rename one.")
            while True:
                number = reader.line_num + 1
                try:
                    values = next(reader, None)
                except csv.Error as error:
                    if "unexpected end" in str(error):
                        raise BadData(
                            f"{file}: the quote that opens in the row at line {number} is never closed; mend it."
                        ) from None
                    yield number, f"quoting: {error}"
                    continue
                if values is None:
                    break
                if not values:
                    continue
                same = len(values) == len(header)
                yield (
                    number,
                    dict(zip(header, values, strict=True)) if same else f"{len(values)} values, not {len(header)}",
                )
        except UnicodeDecodeError as error:
            raise BadData(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
        finally:
            stream.detach()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Articles are longer than the library's limit, which it keeps for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, columns: Sequence[str]) -> _Records:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise Unavailable(f"Reading {file.name} needs pyarrow: install the extra `finetune` (see README).") from None
    try:
        with parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            _check_columns(file, table.schema_arrow.names, columns)
            number = 0
            # No names ask for all.
            for batch in table.iter_batches(batch_size=256, columns=list(columns) or None, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadData(f"{file} cannot be read as parquet ({str(error).splitlines()[0]}).") from None


def _check_columns(file: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        hint = ""
        if (
            kind_of(file) == ".csv"
            and len(there) == 1
            and (other := next((mark for mark in ";\t|" if mark in there[0]), None))
        ):
            hint = f" Its columns seem to be separated by {other!r}; save it with commas."
        raise BadData(_NO_COLUMN.format(source=file, name=missing[0], there=_listed(there)) + hint)


def _hub(place: str, columns: Sequence[str]) -> _Records:
    from gpt2.corpus.hub import stream
    from gpt2.finetuning import wikipedia

    name, config, split = ([*place.split(":"), "", ""])[:3]
    for number, record in enumerate(stream(name, config or None, split or "train"), 1):
        if {"title", "text"} <= record.keys() and not set(columns) <= record.keys():
            # Articles of Wikipedia as the hub has them: their text without wikitext.
            article = wikipedia.from_plain(str(record["title"]), str(record["text"]))
            record = {**record, "lead": article.lead, "body": article.body}
        yield number, record


def _articles(file: Path, columns: Sequence[str]) -> _Records:
    from gpt2.finetuning import wikipedia

    _check_columns(file, wikipedia.COLUMNS, columns)
    read = wikipedia.read_dump if kind_of(file) == ".xml" else wikipedia.read_wikitext
    for number, article in enumerate(read(file), 1):
        yield number, {"title": article.title, "lead": article.lead, "body": article.body}


_READERS: Mapping[str, Callable[[Path, Sequence[str]], _Records]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    **dict.fromkeys(WIKIPEDIA, _articles),
}
