"""Articles as title, lead section and body: out of a dump of Wikipedia, or of WikiText's files.

mwxml reads the dump a page at a time, mwparserfromhell parses its wikitext. Kept are articles (name space 0) that are
no redirects; templates, tables, references, files, categories and links to other languages are no text, but for a few
templates that stand for words in a sentence. WikiText's files have their structure in lines such as " = Title = " and
" = = Section = = ".
"""

import bz2
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpt2.errors import BadData, Unavailable

COLUMNS = ("title", "lead", "body")

_HEADING = re.compile(r"^\s*((?:= )+)(.+?)((?: =)+)\s*$")
_NAMESPACES = re.compile(r"^\s*:?(?:file|image|category|datei|bild|kategorie|fichier|catégorie|archivo)\s*:", re.I)
_OTHER_LANGUAGE = re.compile(r"([a-z]{2,3}(-[a-z]+)*|simple)\s*:")
# In old dumps it is the text alone that says so. The word is each language's own.
_REDIRECT = re.compile(r"\s*#[^\s\[:]+\s*:?\s*\[\[[^\]\n]*\]\]\s*($|\n|\{\{|\[\[|<)")
_SWITCH = re.compile(r"__[A-Z]+__")
_BLANKS = re.compile(r"[ \t\xa0]+")
_EMPTY_BRACKETS = re.compile(r"\s*\(\s*[;,]*\s*\)")
# Templates that stand for words, and which of their unnamed values those are.
_WORDS: Mapping[str, slice] = MappingProxyType(
    {"lang": slice(1, 2), "convert": slice(2), "cvt": slice(2), "nowrap": slice(1), "nobr": slice(1), "small": slice(1)}
)
_RANGES = ("to", "and", "or", "by", "x", "-", "–", "to(-)", "±", "+/-", "and(-)", "*")
_NO_TEXT = ("ref", "gallery", "math", "timeline", "score", "table", "imagemap", "syntaxhighlight", "source")


@dataclass(frozen=True, slots=True)
class Article:
    """An article; lead: the text before the first heading; body: all after it, with its headings on lines of their own.

    Paragraphs are separated by a line end.
    """

    title: str
    lead: str
    body: str


def read_wikitext(file: Path) -> Iterator[Article]:
    """The articles of one of WikiText's files, in any of its versions (raw or tokenised). Raises BadData."""
    title, sections = "", [[], []]  # type: str, list[list[str]]
    inside = False
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in lines:
                heading = _HEADING.match(line)
                levels = (len(heading[1]) // 2, len(heading[3]) // 2) if heading else (0, 0)
                if heading and levels == (1, 1):
                    if title:
                        yield _article(title, sections)
                    title, sections, inside = heading[2].strip(), [[], []], False
                elif heading and levels[0] == levels[1]:
                    inside = True
                    sections[1].append(heading[2].strip())
                elif line.strip() and title:
                    sections[inside].append(line.strip())
    except UnicodeDecodeError as error:
        raise BadData(f"{file} is not UTF-8 text ({error.reason}).") from None
    if not title:
        raise BadData(f'{file} has no line such as " = Title = ", with which WikiText\'s articles begin.')
    yield _article(title, sections)


def _article(title: str, sections: list[list[str]]) -> Article:
    return Article(title, *("\n".join(section) for section in sections))


def from_plain(title: str, text: str) -> Article:
    """An article from text without wikitext, as sets on the hub have it: paragraphs with blank lines between, headings
    among them. What looks like a heading is a short paragraph that ends in no punctuation; there the lead ends."""
    lead, body = [], []  # type: list[str], list[str]
    for paragraph in (part.strip() for part in re.split(r"\n\s*\n", text)):
        is_heading = 0 < len(paragraph) < 80 and "\n" not in paragraph and paragraph[-1] not in ".!?:;,\"')]"
        if body or (lead and is_heading):
            body.append(paragraph)
        elif paragraph:
            lead.append(paragraph)
    return Article(title, "\n".join(lead), "\n".join(part for part in body if part))


def read_dump(file: Path) -> Iterator[Article]:
    """The articles of a dump (`pages-articles.xml` or `.xml.bz2`), a page at a time. Raises BadData, Unavailable."""
    try:
        import mwxml
    except ImportError:
        raise _missing("mwxml") from None
    try:
        with bz2.open(file, "rb") if file.suffix == ".bz2" else file.open("rb") as stream:
            for page in mwxml.Dump.from_file(stream):
                if page.namespace != 0 or page.redirect:
                    continue
                text = None
                for revision in page:
                    text = revision.text
                if text and not _REDIRECT.match(text):
                    yield parse(page.title, text)
    except (OSError, EOFError) as error:
        raise BadData(f"{file} cannot be read ({error}).") from None
    except Exception as error:
        # The library raises its own errors and those of the XML parser under it.
        if type(error).__module__.split(".")[0] in ("mwxml", "xml", "mwtypes"):
            raise BadData(f"{file} is no whole dump of a wiki ({str(error).strip().splitlines()[0]}).") from None
        raise


def parse(title: str, wikitext: str) -> Article:
    """An article from its wikitext. Raises Unavailable."""
    try:
        import mwparserfromhell
    except ImportError:
        raise _missing("mwparserfromhell") from None
    lead, body = [], []  # type: list[str], list[str]
    for section in mwparserfromhell.parse(wikitext).get_sections(flat=True, include_lead=True):
        headings = section.filter_headings()
        words = _plain(section, headings)
        if not headings:
            lead += words
        elif words:
            body += [_cleaned(headings[0].title.strip_code()), *words]
    return Article(title, "\n".join(lead), "\n".join(body))


def _plain(section: Any, headings: list[Any]) -> list[str]:
    """The paragraphs of a section."""
    from mwparserfromhell.nodes import Tag, Wikilink

    for node in headings:
        _replace(section, node)
    for node in section.filter_templates(recursive=section.RECURSE_OTHERS):
        _replace(section, node, _words(node))
    for node in section.filter(forcetype=(Tag, Wikilink)):
        if isinstance(node, Wikilink):
            other = node.text is None and _OTHER_LANGUAGE.match(str(node.title))
            if other or _NAMESPACES.match(str(node.title)):
                _replace(section, node)
        elif isinstance(node, Tag):
            tag = str(node.tag).strip().lower()
            if tag in _NO_TEXT or tag == "br":
                _replace(section, node, " " if tag == "br" else "")
    paragraphs = (_cleaned(line) for line in section.strip_code(normalize=True, collapse=True).splitlines())
    return [paragraph for paragraph in paragraphs if paragraph]


def _words(template: Any) -> str:
    """What a template stands for in a sentence, if it is one of those that do."""
    name = str(template.name).strip().lower()
    values = [str(value.value).strip() for value in template.params if not value.showkey]
    if name in ("convert", "cvt") and (len(values) < 2 or values[1] in _RANGES or any(map(str.isdigit, values[2:]))):
        # Ranges and sums of units have forms of their own: better nothing than half of one.
        return ""
    return " ".join(values[_WORDS.get(name, slice(0))])


def _replace(section: Any, node: Any, words: str = "") -> None:
    # What lay in another node went with it.
    with suppress(ValueError):
        section.replace(node, words)


def _cleaned(line: str) -> str:
    return _BLANKS.sub(" ", _EMPTY_BRACKETS.sub("", _SWITCH.sub("", line))).strip(" *#:;")


def _missing(package: str) -> Unavailable:
    return Unavailable(f"Reading a dump of Wikipedia needs {package}: install the extra `finetune` (see README).")
