"""Which documents stay: by links and host before their text is extracted, by length, language and quality after.

A filter says why a document is left out; counting is the pipeline's. No filter alters a text: mojibake, odd spaces and
line ends stay as they are, because a repair that is wrong cannot be seen afterwards.
"""

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gpt2.corpus.documents import Document
from gpt2.corpus.links import LinkFilter, WikipediaFilter, read_links
from gpt2.errors import BadOption, Unavailable

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

QUALITIES = ("none", "gopher", "fineweb")
# So much of a document is looked at for its language and for its quality, in characters.
_LANGUAGE_SAMPLE = 10_000
_QUALITY_SAMPLE = 2**20
# From this length on the fast detector was right on all but 3 of 1,000 documents; on single sentences it is not.
_ENOUGH_FOR_FAST = 500


class Filter(Protocol):
    """Something that leaves documents out."""

    @property
    def name(self) -> str:
        """Under which its reasons are counted."""

    def reason(self, document: Document) -> str | None:
        """Why the document is left out, in a few words that are always the same; None if it stays."""


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """What is asked of documents.

    `links` is a list of links (see links.py) of which those with `min_score` select the pages; `wikipedia` False drops
    Wikipedia's pages; lengths are in characters; `language` is a code of two letters (ISO 639-1); `quality` is one of
    `QUALITIES`. Raises BadOption for values that cannot be.
    """

    links: Path | None = None
    min_score: float = 3
    wikipedia: bool = True
    min_characters: int = 1
    max_characters: int | None = None
    language: str | None = None
    quality: Literal["none", "gopher", "fineweb"] = "none"

    def __post_init__(self) -> None:
        if self.min_characters < 0:
            raise BadOption(f"The least length is {self.min_characters} characters; it cannot be negative.")
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise BadOption(
                f"No document can have at least {self.min_characters} and at most {self.max_characters} characters."
            )
        if self.quality not in QUALITIES:
            raise BadOption(f"There is no quality filter {self.quality!r}; there are {', '.join(QUALITIES)}.")
        if self.language is not None and not re.fullmatch("[a-z]{2}", self.language):
            raise BadOption(f"The language is {self.language!r}; give a code of two letters such as en.")


@dataclass(frozen=True, slots=True)
class Filters:
    """`before` need a document's address alone and run before its text is extracted, `after` need the text."""

    before: tuple[Filter, ...]
    after: tuple[Filter, ...]


def make_filters(options: FilterOptions) -> Filters:
    """The filters that the options ask for, the cheapest first."""
    before: list[Filter] = []
    if not options.wikipedia:
        before.append(WikipediaFilter())
    if options.links is not None:
        before.append(LinkFilter(options.links, options.min_score))
    after: list[Filter] = [LengthFilter(options.min_characters, options.max_characters)]
    if options.language is not None:
        after.append(LanguageFilter(options.language))
    if options.quality != "none":
        after.append(QualityFilter(options.quality))
    return Filters(tuple(before), tuple(after))


def check_filters(options: FilterOptions) -> None:
    """Raises Unavailable for a library that is missing, BadData for a list of links that cannot be read, BadOption for
    a language that is not known: before hours of work, not after.
    """
    if options.language is not None:
        _need("resiliparse", "py3langid")
        from resiliparse.parse.lang import supported_langs

        if options.language not in supported_langs():
            raise BadOption(
                f"The language {options.language!r} is not known; known are {', '.join(supported_langs())}."
            )
    if options.quality != "none":
        _need("datatrove")
    if options.links is not None:
        read_links(options.links, options.min_score)


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"This filter needs {package}: install the extra `corpus` (see README).")


@dataclass(frozen=True, slots=True)
class LengthFilter:
    """Drops documents without text, and those outside the limits, in characters."""

    least: int
    most: int | None = None
    name: str = "length"

    def reason(self, document: Document) -> str | None:
        """Why the document is left out."""
        if not document.text or document.text.isspace():
            return "no text"
        if len(document.text) < self.least:
            return f"fewer than {self.least} characters"
        if self.most is not None and len(document.text) > self.most:
            return f"more than {self.most} characters"
        return None


@dataclass(frozen=True, slots=True)
class LanguageFilter:
    """Keeps documents of one language, by their first 10,000 characters.

    resiliparse's detector is asked, which reads 160 MB/s here; below 500 characters, where it is right nine times in
    ten, py3langid, which is slower and right 199 times in 200.
    """

    language: str
    name: str = "language"

    def reason(self, document: Document) -> str | None:
        """Why the document is left out."""
        found = detect_language(document.text)
        return None if found == self.language else f"{found}, not {self.language}"


def detect_language(text: str) -> str:
    """The language of a text as a code of two letters (a few are longer, such as `zxx` for what is no language)."""
    if len(text) < _ENOUGH_FOR_FAST:
        import py3langid

        return str(py3langid.classify(text)[0])
    from resiliparse.parse.lang import detect_fast

    return str(detect_fast(text[:_LANGUAGE_SAMPLE])[0])


@dataclass(frozen=True, slots=True)
class QualityFilter:
    """Rules that tell prose from lists, menus and noise: `gopher`, or `fineweb`, which adds its own to them.

    They are datatrove's (Rae et al. 2021, appendix A.1.1; Penedo et al. 2024), and the reasons are its words. Three
    things differ: words are what stands between spaces, so no English tokeniser need be installed; there is no upper
    limit in words, since books are welcome; and a document is judged by its first 2^20 characters.
    """

    rules: Literal["gopher", "fineweb"]
    name: str = "quality"

    def reason(self, document: Document) -> str | None:
        """Why the document is left out."""
        sample = document.text[:_QUALITY_SAMPLE]
        return next((found for rule in _rules(self.rules) if (found := _ask(rule, sample))), None)


def _ask(rule: "BaseFilter", text: str) -> str | None:
    from datatrove.data import Document as Judged

    answer: Any = rule.filter(Judged(text=text, id=""))
    kept, why = answer if isinstance(answer, tuple) else (answer, "dropped")
    return None if kept else str(why)


@functools.lru_cache(maxsize=2)
def _rules(name: str) -> "list[BaseFilter]":
    """datatrove's filters, made once a process."""
    _need("datatrove")
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        """What stands between spaces, as in the paper: signs of their own would count as words without letters."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    language: Any = Words()
    rules: list[BaseFilter] = [
        GopherQualityFilter(max_doc_words=None, language=language),
        GopherRepetitionFilter(language=language),
    ]
    return [*rules, FineWebQualityFilter(language=language)] if name == "fineweb" else rules
