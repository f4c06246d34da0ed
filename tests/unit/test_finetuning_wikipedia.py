import bz2

import pytest

from gpt2.errors import BadData
from gpt2.finetuning.wikipedia import parse, read_dump, read_wikitext

WIKITEXT = """{{Infobox cat|name=Tom {{nested|x}}}}
[[File:Cat.jpg|thumb|A [[cat]] on a mat]]
The '''cat''' ({{lang|la|felis}}) is a [[domestic animal|pet]] of <b>people</b>.<ref name="a">A book</ref>

It [[purr]]s &amp; sleeps.<ref>[http://example.org Page]</ref>

== History ==
{| class="wikitable"
! Year !! Cats
|-
| 1900 || 7
|}
Long ago ''they'' came.
* one
* two

=== Egypt ===
<math>x^2</math> Bast.

== See also ==
[[Category:Cats]]
"""

PAGE = """<page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{redirect}<revision><id>{id}</id>
<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>A</username><id>1</id></contributor>
<model>wikitext</model><format>text/x-wiki</format><text xml:space="preserve">{text}</text></revision></page>"""


def dump(*pages):
    inside = "".join(
        PAGE.format(title=title, ns=ns, id=n, redirect=redirect, text=text.replace("&", "&amp;").replace("<", "&lt;"))
        for n, (title, ns, redirect, text) in enumerate(pages, 1)
    )
    head = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en"><siteinfo>'
        "<sitename>W</sitename><dbname>w</dbname><base>b</base><generator>g</generator><case>first-letter</case>"
        '<namespaces><namespace key="0" case="first-letter" /><namespace key="1" case="first-letter">Talk</namespace>'
        "</namespaces></siteinfo>"
    )
    return f"{head}{inside}</mediawiki>"


def test_an_article_of_wikitext():
    pytest.importorskip("mwparserfromhell")
    article = parse("Cat", WIKITEXT)
    assert article.lead == "The cat (felis) is a pet of people.\nIt purrs & sleeps."
    assert article.body == "History\nLong ago they came.\none\ntwo\nEgypt\nBast."


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("A<br/>B<br>C", "A B C"),
        ("It is {{convert|10|km|mi}} and '''{{lang|fr|Bonjour}}''', {{nowrap|3 m}}.", "It is 10 km and Bonjour, 3 m."),
        ("{{Infobox|x={{lang|fr|No}}}}Text {{citation needed}} here.", "Text here."),
        ("__NOTOC__Text.\n[[fr:Bourg]]\n[[zh-min-nan:X]]", "Text."),
        ("It is {{convert|10|to|20|km|mi}} or {{convert|5|ft|11|in|m}} long.", "It is or long."),
        ("See [[doi:10.1|the paper]].[[simple:Cat]]", "See the paper."),
        ("[[Category:Cats]][[Cat]] and [[War: a history|war]].", "Cat and war."),
    ],
)
def test_what_stands_in_a_sentence_is_kept_and_markup_is_not(wikitext, plain):
    pytest.importorskip("mwparserfromhell")
    assert parse("x", wikitext).lead == plain


@pytest.mark.parametrize("packed", [False, True])
def test_a_dump_gives_its_articles_and_no_redirects_or_talk(tmp_path, packed):
    pytest.importorskip("mwxml")
    text = dump(
        ("Cat", 0, "", "A cat.\n\n== Life ==\nIt sleeps."),
        ("Talk:Cat", 1, "", "No!"),
        ("Cats", 0, '<redirect title="Cat" />', "#REDIRECT [[Cat]]"),
        ("Hound", 0, "", " #REDIRECT [[Dog]]"),
        ("Hund", 0, "", "#पुनर्प्रेषित [[Dog]] {{R}}"),
        ("Dog", 0, "", "#One [[dog]] of many."),
    ).encode()
    path = tmp_path / ("d.xml.bz2" if packed else "d.xml")
    path.write_bytes(bz2.compress(text) if packed else text)
    assert [(a.title, a.lead, a.body) for a in read_dump(path)] == [
        ("Cat", "A cat.", "Life\nIt sleeps."),
        ("Dog", "One dog of many.", ""),
    ]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadData, match=r"d\.xml"):
        list(read_dump(path))


@pytest.mark.parametrize("name", ["wiki.test.raw", "wiki.test.tokens", "wiki.valid.tokens"])
def test_wikitext(shared, name):
    """The structure is WikiText's own: every article has its title, and no word of the file is lost."""
    file = shared / "data" / "eval" / "wikitext2" / name
    found = list(read_wikitext(file))
    lines = [line.split() for line in file.read_text().splitlines()]
    titles = [
        " ".join(words[1:-1])
        for words in lines
        if len(words) > 2 and words[0] == words[-1] == "=" and "=" not in (words[1], words[-2])
    ]
    assert [article.title for article in found] == titles
    assert len(found) > 50
    words = [word for line in lines for word in line if word != "="]
    ours = " ".join(f"{article.title} {article.lead} {article.body}" for article in found).split()
    assert [word for word in ours if word != "="] == words
    assert sum(bool(article.lead and article.body) for article in found) > 0.9 * len(found)


def test_a_byte_order_mark_hides_no_title(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"\xef\xbb\xbf = One = \n a \n = Two = \n b \n")
    assert [article.title for article in read_wikitext(tmp_path / "x.raw")] == ["One", "Two"]


def test_a_text_without_titles_is_told(tmp_path):
    (tmp_path / "x.tokens").write_text("no titles here\n")
    with pytest.raises(BadData, match="= Title ="):
        list(read_wikitext(tmp_path / "x.tokens"))
