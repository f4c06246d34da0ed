"""The text of a web page: the article, without menus, comments and advertisements.

`cascade` takes resiliparse's rules to the part of the page that holds its paragraphs, and hands the pages on which the
result does not read like text to trafilatura. benchmarks/extraction.py measures it beside both alone; the figures are
in docs/corpus.md.
"""

import importlib.util
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from gpt2.corpus.documents import INVALID_TEXT, SPELT_END, Document, Problems
from gpt2.corpus.links import normalise
from gpt2.errors import BadData, BadOption, Unavailable
from gpt2.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

# The first is the default.
EXTRACTORS = ("cascade", "resiliparse", "trafilatura")
_NEEDED = {
    "cascade": ("resiliparse", "trafilatura"),
    "resiliparse": ("resiliparse",),
    "trafilatura": ("resiliparse", "trafilatura"),
}

# Elements that are no part of an article where they are small; a whole page can lie in one of them too.
_BESIDE_TAGS = ("aside", "footer", "nav", "form", "button", "select", "svg")
_BESIDE_CLASSES = (
    *("newsletter", "subscri", "signup", "sign-up", "share", "sharing", "social", "related", "recommend"),
    *("read-more", "readmore", "more-on", "popular", "trending", "outbrain", "taboola"),
)
_BESIDE = ",".join((*_BESIDE_TAGS, *(f"[class*={word} i]" for word in _BESIDE_CLASSES)))
_BESIDE_SHARE = 0.2
_PARAGRAPH = 25  # characters: shorter ones are captions, dates, buttons
_CONTAINER_SHARE = 0.8
_SENTENCES = 0.9
_SENTENCE = re.compile(r".*[.!?…:;。！？][\"'”’»)\]]*", re.DOTALL)


def check_extractor(name: str) -> None:
    """Raises BadOption for a name that is not in `EXTRACTORS`, Unavailable where its libraries are not installed."""
    if name not in EXTRACTORS:
        raise BadOption(f"There is no extractor {name!r}; there are {', '.join(EXTRACTORS)}.")
    for package in _NEEDED[name]:
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"Extracting text from pages needs {package}: install the extra `corpus` (see README).")


def extract(
    document: Document,
    extractor: str = EXTRACTORS[0],
    problems: Problems | None = None,
    invalid: Literal["replace", "refuse"] = "replace",
) -> Document:
    """The document with its page's text, and its title if it had none; what is no page comes back as it is.

    The text is "" where the page has none. Bytes in it that are nothing in the page's encoding become U+FFFD; they and
    a spelt-out end of text are counted in `problems`. Raises BadData for such bytes if `invalid` is refuse.
    """
    if document.html is None:
        return document
    check_extractor(extractor)
    from resiliparse.parse.html import HTMLTree

    page = decode(document.html, document.charset)
    tree = HTMLTree.parse(page)
    title = " ".join((tree.title or "").split())
    text = _extract(page, tree, extractor).strip()
    if invalid == "refuse" and "\ufffd" in text:
        raise BadData(f"{document.id}: {INVALID_TEXT} in the text of a page. Mend it, or let it be replaced.")
    if problems is not None and text:
        if "\ufffd" in text:
            problems.add(INVALID_TEXT, document.id)
        if END_OF_TEXT in text:
            problems.add(SPELT_END, document.id)
    metadata = {"title": title, **document.metadata} if title else document.metadata
    return replace(document, text=text, html=None, charset=None, metadata=metadata)


def own_address(page: bytes, charset: str | None = None) -> str | None:
    """The address that a page's head says is its own: `<link rel=canonical>`, else `og:url`; None where neither is a
    whole address of the web, such as a path."""
    from resiliparse.parse.html import HTMLTree

    head = HTMLTree.parse(decode(page, charset)).head
    for selector, attribute in (("link[rel~=canonical i]", "href"), ("meta[property='og:url' i]", "content")):
        for element in head.query_selector_all(selector).values() if head is not None else []:
            address = (element.getattr(attribute) or "").strip()
            if address.lower().startswith(("http://", "https://")) and normalise(address):
                return str(address)
    return None


def decode(page: bytes, charset: str | None = None) -> str:
    """A page's bytes as text, by its byte order mark, else what HTTP said, else what it says itself, else its bytes."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    known = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    known = known or detect_encoding(page, from_html_meta=True) or "utf-8"
    return str(bytes_to_str(page, known, errors="replace", fallback_encodings=()))


def _extract(page: str, tree: "HTMLTree", extractor: str) -> str:
    if tree.body is None:
        return ""
    if extractor == "resiliparse":
        return _plain(tree)
    if extractor == "cascade":
        _remove_beside(tree)
        found = _container(tree)
        text = _plain(tree if found is None else found)
        if _reads_well(text):
            return text
        return _trafilatura(page) or text
    return _trafilatura(page)


def _plain(part: "HTMLTree | str") -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(part, main_content=True, alt_texts=False, comments=False, post_meta=False)


def _trafilatura(page: str) -> str:
    import trafilatura

    try:
        return trafilatura.extract(page, include_comments=False, favor_precision=True) or ""
    except Exception:
        # One page of millions must not end the build; it then counts as a page without text.
        return ""


def _remove_beside(tree: "HTMLTree") -> None:
    """Takes out what stands beside the article, unless it holds a good part of the page's text itself."""
    assert tree.body is not None
    most = None
    # As a list: the library's own collections make all their nodes anew for each that is asked for.
    for element in tree.body.query_selector_all(_BESIDE).values():
        length = len(element.text or "")
        if length > 300:
            if most is None:
                most = _BESIDE_SHARE * len(_plain(tree))
            if length > most:
                continue
        element.decompose()


def _container(tree: "HTMLTree") -> str | None:
    """The HTML of the innermost element that holds most of the text in paragraphs; None if it is the whole page."""
    body = tree.body
    assert body is not None
    lengths: dict[object, int] = {}
    for paragraph in body.query_selector_all("p").values():
        length = len((paragraph.text or "").strip())
        if length >= _PARAGRAPH:
            # Lists of links are often paragraphs too.
            length -= 2 * sum(len(link.text or "") for link in paragraph.get_elements_by_tag_name("a").values())
            if length > 0:
                lengths[paragraph.parent] = lengths.get(paragraph.parent, 0) + length
    total = sum(lengths.values())
    if total < 200:
        return None
    inside: dict[object, int] = {}
    for parent, length in lengths.items():
        node = parent
        while node is not None and node != body:
            inside[node] = inside.get(node, 0) + length
            node = node.parent  # type: ignore[attr-defined]
    holding = {node for node, length in inside.items() if length >= _CONTAINER_SHARE * total}
    # They lie in one another, so the innermost is the one that is no other's parent.
    innermost = holding - {node.parent for node in holding}  # type: ignore[attr-defined]
    return innermost.pop().html if innermost else None  # type: ignore[attr-defined]


def _reads_well(text: str) -> bool:
    """Whether nearly all of the text stands in lines of six words or more that end as sentences end."""
    lines = [line.strip() for line in text.splitlines()]
    whole = sum(map(len, lines))
    # Scripts without spaces have more than twelve letters to six words.
    sentences = (line for line in lines if (line.count(" ") >= 5 or len(line) >= 60) and _SENTENCE.fullmatch(line))
    return whole > 0 and sum(map(len, sentences)) >= _SENTENCES * whole
