"""What travels through a corpus build: a document, how it is read, and the count of what was wrong with the input.

Not reading (sources.py), not choosing (filters.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from gpt2.errors import BadOption

# No document is larger: what is held in memory at once must have a bound.
MOST_BYTES = 256 * 2**20
# What a corpus keeps of a record beside its text and its address. Other fields are left behind.
KEPT_FIELDS = ("title", "licence", "license", "source", "author", "set", "language", "date")


@dataclass(frozen=True, slots=True)
class Document:
    """One document: text, or a page from which the text is still to be extracted.

    `id` is unique in a build and the same in every build from the same sources: the source's name and the number of
    the line, row or record, from 1. `charset` is what HTTP said of the page. `metadata` holds `KEPT_FIELDS` as text.
    """

    id: str
    text: str
    html: bytes | None = None
    charset: str | None = None
    url: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How sources are read.

    `text_field` and `url_field` name the fields of .jsonl lines, .parquet rows and hub rows. A text file is one
    document unless `separator` is given, at which it is cut (the separator is in no document). `invalid` says what
    happens to bytes that are no UTF-8 and to lone surrogates, `broken` to everything else that cannot be read.
    """

    text_field: str = "text"
    url_field: str = "url"
    separator: str | None = None
    invalid: Literal["replace", "refuse"] = "replace"
    broken: Literal["skip", "refuse"] = "skip"

    def __post_init__(self) -> None:
        if self.invalid not in ("replace", "refuse"):
            raise BadOption(f"invalid is {self.invalid!r}; it must be replace or refuse.")
        if self.broken not in ("skip", "refuse"):
            raise BadOption(f"broken is {self.broken!r}; it must be skip or refuse.")
        if self.separator == "":
            raise BadOption("The separator between documents is empty; leave it out, or name one.")


KEPT = "kept"
DROPPED = "dropped"
REST_LOST = "the rest of the file is lost"
FILE_SKIPPED = "the file is skipped"

INVALID_TEXT = "invalid UTF-8"
LONE_SURROGATE = "lone surrogate"
SPELT_END = "spells <|endoftext|>"
EMPTY = "empty document"
TOO_LARGE = "over 256 MiB"
BAD_JSON = "broken JSON"
NO_TEXT_FIELD = "no text field"
NO_PAGE = "not a page"
NO_ADDRESS = "no address, by which Wikipedia is known"
OWN_ADDRESS = "address as the page itself says it"
BROKEN_RECORD = "broken WARC record"
BROKEN_FILE = "broken compression"
TRUNCATED = "truncated WARC"
BROKEN_WARC = "broken WARC"
BROKEN_PARQUET = "broken parquet"
BINARY = "binary file"

# What can be wrong with a document, a line or a file, and what is done about it where it is not refused.
KINDS: Mapping[str, str] = {
    INVALID_TEXT: KEPT,  # each bad sequence becomes U+FFFD
    LONE_SURROGATE: KEPT,  # each becomes U+FFFD
    SPELT_END: KEPT,  # as ordinary text: it separates nothing
    NO_ADDRESS: KEPT,  # met where Wikipedia is to be dropped
    OWN_ADDRESS: KEPT,  # asked for only where addresses choose
    EMPTY: DROPPED,
    TOO_LARGE: DROPPED,
    BAD_JSON: DROPPED,
    NO_TEXT_FIELD: DROPPED,  # a source in which no record has it is refused whole
    NO_PAGE: DROPPED,  # a WARC record that is an image, a redirect, an error page
    BROKEN_RECORD: DROPPED,
    BROKEN_FILE: REST_LOST,
    TRUNCATED: REST_LOST,
    BROKEN_WARC: REST_LOST,
    BROKEN_PARQUET: REST_LOST,
    BINARY: FILE_SKIPPED,
}


@dataclass(slots=True)
class Problems:
    """How often each of `KINDS` was met, and where it was met first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Counts one kind; `where` names a file and, if there is one, a line."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, where)

    def merge(self, other: "Problems") -> None:
        """Adds another's counts. Merged in the order of the sources, the result does not depend on who read what."""
        for kind, count in other.counts.items():
            self.add(kind, other.examples[kind], count)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """As JSON: kind to count, first example, and what was done about it."""
        return {
            kind: {"count": count, "example": self.examples[kind], "what": KINDS[kind]}
            for kind, count in sorted(self.counts.items())
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, Any]]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            {kind: int(entry["count"]) for kind, entry in data.items()},
            {kind: str(entry["example"]) for kind, entry in data.items()},
        )
