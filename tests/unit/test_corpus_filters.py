"""Links, hosts, lengths, languages and quality: what is left out, and why."""

import gzip
import json
import pickle

import pytest

from gpt2.corpus.documents import Document
from gpt2.corpus.filters import FilterOptions, QualityFilter, check_filters, detect_language, make_filters
from gpt2.corpus.links import LinkFilter, WikipediaFilter, normalise
from gpt2.errors import BadData, BadOption, Unavailable


def page(url: str | None = None, text: str = "") -> Document:
    return Document("a#1", text, url=url)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://www.Example.COM/Path/", "https://example.com/Path"),
        ("https://example.com:443/a?b=1&c=2#top", "example.com/a?b=1&c=2"),
        ("http://example.com.:80", "//example.com/"),
        (" http://user:word@example.com/a? ", "http://example.com/a"),
    ],
)
def test_addresses_of_the_same_page_are_the_same(url, same):
    assert normalise(url) == normalise(same) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.com/a", "http://example.com/A"),
        ("http://example.com/?a=1&b=2", "http://example.com/?b=2&a=1"),
        ("http://example.com:8080/", "http://example.com/"),
        ("http://en.example.com/", "http://example.com/"),
        ("http://example.com/a%20b", "http://example.com/a b"),
    ],
)
def test_addresses_that_may_be_other_pages_are_not(one, other):
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize("url", ["", "mailto:a@b.org", "ftp://a.org/x", "http://[bad", "no address", "http://a.org:x/"])
def test_what_is_no_web_address_is_nothing(url):
    assert normalise(url) in ("", "b.org")


def write_links(path, *records):
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["links.jsonl", "links.jsonl.gz"])
def test_pages_are_selected_by_the_score_of_their_links(tmp_path, name):
    path = tmp_path / name
    write_links(
        path,
        {"url": "https://www.a.org/one/", "score": 3},
        {"url": "http://a.org/two", "score": 2.5},
        {"url": "http://a.org/three", "score": 1},
        {"url": "http://a.org/three#x", "score": 9},
        {"url": "self post", "score": 99},
    )
    links = pickle.loads(pickle.dumps(LinkFilter(path, 3)))
    reasons = {url: links.reason(page(url)) for url in ("http://a.org/one", "a.org/two", "http://a.org/three/", None)}
    assert list(reasons.values()) == [None, "not linked with a score of 3", None, "page without an address"]
    assert LinkFilter(path, 2.5).reason(page("a.org/two")) is None
    assert links.reason(page("self post")) == "not linked with a score of 3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"url": "a.org"}', 'line 1: expected a JSON object with "url" and "score"'),
        (b'{"url": "a.org", "score": "many"}', "line 1: expected"),
        (b"[]", "line 1: expected"),
        (b"rubbish", "line 1: expected"),
        (b'{"url": "a.org", "score": 1}', "holds no link with a score of 3 or more"),
    ],
)
def test_a_bad_list_of_links_is_refused(tmp_path, line, message):
    (tmp_path / "links.jsonl").write_bytes(line)
    with pytest.raises(BadData, match=message):
        check_filters(FilterOptions(links=tmp_path / "links.jsonl"))
    with pytest.raises(BadData, match="cannot be read: No such file"):
        check_filters(FilterOptions(links=tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(
    ("url", "dropped"),
    [
        ("https://en.wikipedia.org/wiki/Ferry", True),
        ("http://de.m.wikipedia.org/wiki/F%C3%A4hre", True),
        ("https://WIKIPEDIA.org", True),
        ("https://en.wikipedia.org:443?x=1", True),
        ("https://wikipedia.org.example.com/", False),
        ("https://notwikipedia.org/", False),
        ("https://example.com/wikipedia.org", False),
        (None, False),
    ],
)
def test_wikipedia_is_known_by_its_host(url, dropped):
    assert (WikipediaFilter().reason(page(url)) is not None) == dropped


def test_lengths_are_in_characters():
    (length,) = make_filters(FilterOptions(min_characters=3, max_characters=5)).after
    reasons = [length.reason(page(text=text)) for text in ("", " \n ", "éé", "ééé", "abcde", "abcdef")]
    assert reasons == ["no text", "no text", "fewer than 3 characters", None, None, "more than 5 characters"]


def test_only_what_is_asked_for_is_made_and_in_order(tmp_path):
    none = make_filters(FilterOptions())
    assert ([f.name for f in none.before], [f.name for f in none.after]) == ([], ["length"])
    every = make_filters(FilterOptions(links=tmp_path / "x", wikipedia=False, language="en", quality="gopher"))
    assert [f.name for f in every.before] == ["wikipedia", "links"]
    assert [f.name for f in every.after] == ["length", "language", "quality"]
    assert pickle.loads(pickle.dumps(every)) == every


def test_languages_of_real_text(shared):
    pytest.importorskip("resiliparse")
    pytest.importorskip("py3langid")
    folder = shared / "data" / "eval" / "newstest"
    for language in ("en", "fr"):
        lines = (folder / f"newstest2014-fren.{language}").read_text(encoding="utf-8").splitlines()
        (_, keeps) = make_filters(FilterOptions(language=language)).after
        short = [keeps.reason(page(text=line)) is None for line in lines[:100]]
        long = [keeps.reason(page(text="\n".join(lines[at : at + 6]))) is None for at in range(0, 1800, 6)]
        assert sum(short) >= 98
        assert sum(long) >= 298
    other = page(text="Le traversier passe la rivière chaque matin avant que le marché n'ouvre ses portes.")
    (_, keeps) = make_filters(FilterOptions(language="en")).after
    assert keeps.reason(other) == "fr, not en"
    assert detect_language("Паром каждое утро пересекает широкую реку, пока город ещё спит.") == "ru"


PROSE = (
    "The ferry crosses the river in the morning, and it comes back when the market closes. Those who live on the other "
    "bank have known its bell for years. They say that the old captain, who is never late, can tell the hour by the "
    "colour of the water. Nobody has ever checked that, but nobody has missed the boat either.\n\n"
    "In winter there is ice along both banks. Then the crossing takes twice as long, and people talk more. A teacher "
    "with a basket of apples once told the whole story of her village between one bank and the other.\n"
)


@pytest.mark.parametrize("rules", ["gopher", "fineweb"])
def test_prose_stays_and_noise_goes(rules):
    pytest.importorskip("datatrove")
    quality = pickle.loads(pickle.dumps(QualityFilter(rules)))
    assert quality.reason(page(text=PROSE)) is None
    noise = {
        "gopher_short_doc": "Only a few words.",
        "dup_line_frac": "\n".join(["The same line of the page with words.", "Other words to be here and there."] * 20),
        "gopher_too_many_hashes": PROSE.replace(" the", " # # # the").replace(" a", " # # # a"),
        "gopher_enough_stop_words": "colour water apple basket village morning market captain " * 3
        + " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(100)),
        "gopher_above_avg_threshold": " ".join(f"incomprehensibility{chr(97 + n % 26)}{n}x" for n in range(80)),
    }
    for reason, text in noise.items():
        assert quality.reason(page(text=text)) == reason


def test_fineweb_adds_rules_of_its_own():
    pytest.importorskip("datatrove")
    words = PROSE.replace(".", "").replace("\n", " ").split()
    listing = "\n".join(" ".join(words[at : at + 4]) for at in range(0, len(words), 4))
    assert QualityFilter("gopher").reason(page(text=listing)) is None
    assert QualityFilter("fineweb").reason(page(text=listing)) == "line_punct_ratio"


def test_books_are_not_too_long_for_quality(shared):
    pytest.importorskip("datatrove")
    book = (shared / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert len(book.split()) > 100_000
    assert QualityFilter("gopher").reason(page(text=book)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, "There is no quality filter 'best'; there are none, gopher, fineweb"),
        ({"language": "english"}, "give a code of two letters"),
        ({"min_characters": -1}, "cannot be negative"),
        ({"min_characters": 9, "max_characters": 8}, "at least 9 and at most 8"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(BadOption, match=message):
        FilterOptions(**options)


def test_an_unknown_language_and_a_missing_library_are_named(monkeypatch):
    pytest.importorskip("resiliparse")
    with pytest.raises(BadOption, match="'xx' is not known; known are af, ar"):
        check_filters(FilterOptions(language="xx"))
    check_filters(FilterOptions(language="en"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for options in (FilterOptions(language="en"), FilterOptions(quality="gopher")):
        with pytest.raises(Unavailable, match="install the extra `corpus`"):
            check_filters(options)
