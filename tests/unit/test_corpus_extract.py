"""Pages to text: what is kept, encodings, and accuracy on real pages beside trafilatura."""

import gzip
import json
import re
import statistics
from collections import Counter

import pytest

from gpt2.corpus import documents as kinds
from gpt2.corpus.documents import Document, Problems
from gpt2.corpus.extract import EXTRACTORS, check_extractor, decode, extract, own_address
from gpt2.errors import BadData, BadOption, Unavailable

pytest.importorskip("resiliparse")
trafilatura = pytest.importorskip("trafilatura")

SENTENCE = "The {} ferry crosses the wide river every morning before the market opens its gates. "
ARTICLE = "\n".join(f"<p>{SENTENCE.format(word) * 3}</p>" for word in ("first", "second", "third", "fourth"))
PAGE = f"""<!doctype html><html><head><meta charset="utf-8"><title> Ferries
 of the river</title><script>var hidden = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/a">Menu entry</a></li></ul></nav>
<div class="content"><h1>Ferries</h1>{ARTICLE}</div>
<aside class="newsletter"><p>Subscribe to our letters now, and get one of them each week for free.</p></aside>
<footer>All rights reserved</footer></body></html>"""


def text_of(page: bytes, extractor: str = EXTRACTORS[0]) -> str:
    return extract(Document("a#1", "", html=page), extractor).text


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_article_stays_and_what_stands_beside_it_goes(extractor):
    page = Document("a#1", "", html=PAGE.encode(), url="http://a.org", metadata={"date": "2019"})
    document = extract(page, extractor)
    for word in ("first", "second", "third", "fourth"):
        assert SENTENCE.format(word).strip() in document.text
    for gone in ("Menu entry", "Subscribe", "rights reserved", "hidden", "<p>"):
        assert gone not in document.text
    assert (document.id, document.url, document.html, document.charset) == ("a#1", "http://a.org", None, None)
    assert document.metadata == {"title": "Ferries of the river", "date": "2019"}
    # Paragraphs stay apart.
    assert document.text.count("\n") >= 3


@pytest.mark.parametrize(
    ("head", "address"),
    [
        ('<link rel="canonical" href=" https://a.org/x?a=1&amp;b=2 ">', "https://a.org/x?a=1&b=2"),
        ("<LINK REL='Canonical nofollow' HREF=HTTP://a.org/x>", "HTTP://a.org/x"),
        ('<meta property="og:url" content="http://b.org"><link rel=canonical href=https://a.org>', "https://a.org"),
        ('<link rel=canonical href=/x><meta property="og:url" content="http://b.org">', "http://b.org"),
        ('<link rel=canonical href="//a.org/x">', None),
        ('<link rel=canonical href="ftp://a.org/x">', None),
        ('<link rel=canonical href="https://"><link rel=canonical>', None),
        ('<link rel=stylesheet href="https://a.org/x.css"><meta name=author content=http://b.org>', None),
        ("</head><body><link rel=canonical href=https://a.org>", None),
        ("", None),
    ],
)
def test_a_pages_own_address_is_a_whole_one_in_its_head(head, address):
    page = f"<html><head><title>A page</title>{head}</head><body><p>Text.</p></body></html>"
    assert own_address(page.encode()) == address
    assert own_address(b"\xff\xfe" + page.encode("utf-16-le")) == address


@pytest.mark.parametrize("page", [b"", b"\x00\xff", b"<", b"plain text"])
def test_what_has_no_head_has_no_address(page):
    assert own_address(page) is None


def test_what_is_no_page_comes_back_as_it_is():
    document = Document("a#1", "<p>text</p>\r\n")
    assert extract(document) is document


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize(
    "page", [b"<html></html>", b"<x", b"<html><body><script>x</script></body></html>", b"\xff" * 50]
)
def test_pages_without_text_and_rubbish_do_not_raise(extractor, page):
    assert "<" not in text_of(page, extractor)


def test_a_deep_page_does_not_raise():
    assert "end" in text_of(b"<div>" * 5000 + b"<p>the end</p>", "resiliparse")
    text_of(b"<div>" * 5000 + b"<p>the end</p>")


def test_an_article_inside_an_element_named_like_an_aside_is_not_thrown_away():
    page = f"<html><body><div class='related-stories'>{ARTICLE}</div></body></html>".encode()
    assert "fourth ferry" in text_of(page)


@pytest.mark.parametrize(
    ("encoding", "said", "charset"),
    [
        ("utf-8", "utf-8", None),
        ("windows-1251", "windows-1251", None),
        ("windows-1251", None, "windows-1251"),
        ("windows-1251", "utf-8", "windows-1251"),
        ("koi8-r", None, None),
        ("utf-8", None, None),
        ("utf-8-sig", "windows-1251", "koi8-r"),
        ("utf-16", None, None),
        ("utf-8", None, "no-such-charset"),
    ],
)
def test_encodings_are_found(encoding, said, charset):
    words = "Паром каждое утро пересекает широкую реку, пока рынок ещё закрыт и город спит. " * 4
    meta = f'<meta charset="{said}">' if said else ""
    page = f"<html><head>{meta}</head><body><p>{words}</p></body></html>"
    assert words.strip() in decode(page.encode(encoding), charset)


def test_bytes_that_are_nothing_and_spelt_ends_of_text_are_counted():
    problems = Problems()
    page = PAGE.replace("first ferry", "first\x00\x01 ferry <|endoftext|>".replace("<", "&lt;")).encode()
    page = page.replace(b"\x00\x01", b"\xff")
    document = extract(Document("a#7", "", html=page, charset="utf-8"), problems=problems)
    assert "first\ufffd ferry <|endoftext|>" in document.text
    assert problems.counts == {kinds.INVALID_TEXT: 1, kinds.SPELT_END: 1}
    assert problems.examples[kinds.SPELT_END] == "a#7"


def test_bytes_that_are_nothing_are_refused_where_they_are_to_be():
    page = PAGE.replace("first ferry", "first ? ferry").encode().replace(b"?", b"\xff")
    with pytest.raises(BadData, match="a#7: invalid UTF-8"):
        extract(Document("a#7", "", html=page, charset="utf-8"), problems=Problems(), invalid="refuse")
    assert "first ferry" in extract(Document("a#7", "", html=PAGE.encode()), invalid="refuse").text


def test_extractors_are_checked_up_front(monkeypatch):
    for name in EXTRACTORS:
        check_extractor(name)
    with pytest.raises(BadOption, match="There is no extractor 'magic'; there are cascade"):
        check_extractor("magic")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="needs resiliparse: install the extra `corpus`"):
        check_extractor("cascade")


def token_f1(found: str, wanted: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (found, wanted))
    return 2 * (a & b).total() / (a.total() + b.total()) if a or b else 1.0


def test_accuracy_on_real_pages_is_trafilaturas(shared):
    """Every fourth page; benchmarks/extraction.py has them all, and the speed."""
    folder = shared / "data" / "html" / "article_extraction"
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    scores: dict[str, list[float]] = {"cascade": [], "resiliparse": [], "alone": []}
    for name in sorted(truth)[::4]:
        page = gzip.decompress((folder / "pages" / f"{name}.html.gz").read_bytes())
        wanted = truth[name]["articleBody"]
        for extractor in ("cascade", "resiliparse"):
            scores[extractor].append(token_f1(text_of(page, extractor), wanted))
        scores["alone"].append(token_f1(trafilatura.extract(page, include_comments=False) or "", wanted))
    means = {name: statistics.mean(values) for name, values in scores.items()}
    assert means["cascade"] > 0.95
    assert means["resiliparse"] > 0.92
    assert means["cascade"] > means["alone"] - 0.01
