"""Web archives, sound and damaged, and data sets from the hub."""

import gzip
import json
import random
import socket
from pathlib import Path

import pytest

from gpt2 import corpus
from gpt2.corpus import documents as kinds
from gpt2.corpus import warc
from gpt2.corpus.documents import Document, Problems, ReadOptions
from gpt2.corpus.extract import extract
from gpt2.corpus.hub import check_hub
from gpt2.corpus.sources import find, read
from gpt2.errors import BadData, Unavailable

HTML = "text/html; charset=utf-8"


def record(kind: str, url: str, body: bytes, content_type: str = "application/http; msgtype=response") -> bytes:
    """One WARC record as the standard writes it."""
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Date: 2019-02-14T00:00:00Z\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def http(body: bytes, content_type: str | None = HTML, status: str = "200 OK", extra: str = "") -> bytes:
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"HTTP/1.1 {status}\r\n{kind}{extra}\r\n".encode() + body


def page(number: int) -> bytes:
    return f"<html><body><p>Page {number}, with a sentence in it.</p></body></html>".encode()


def read_all(path: Path, **options: str) -> tuple[list[Document], Problems]:
    problems = Problems()
    (source,) = find([str(path)])
    return list(read(source, problems, ReadOptions(**options))), problems


@pytest.fixture(autouse=True)
def _needs_fastwarc():
    pytest.importorskip("fastwarc")


@pytest.mark.parametrize("packed", ["none", "whole", "each"])
def test_pages_are_taken_and_other_records_are_not(tmp_path, packed):
    zipped = gzip.compress(page(5))
    bare = http(page(10), extra="Content-Encoding: gzip\r\n").replace(b"\r\n", b"\n")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page(6)), page(6))
    records = [
        record("warcinfo", "", b"software: x\r\n", "application/warc-fields"),
        record(
            "request", "http://a.org/1", b"GET / HTTP/1.1\r\nHost: a.org\r\n\r\n", "application/http; msgtype=request"
        ),
        record("response", "http://a.org/1", http(page(1), "text/html; charset=windows-1251")),
        record("response", "http://a.org/2", http(b"\x89PNG", "image/png")),
        record("response", "http://a.org/3", http(page(3), status="404 Not Found")),
        record("response", "http://a.org/4", http(page(4), content_type=None)),
        record("response", "http://a.org/5", http(zipped, extra="Content-Encoding: gzip\r\n")),
        record("response", "http://a.org/6", http(chunked, extra="Transfer-Encoding: chunked\r\n")),
        record("resource", "http://a.org/7", page(7), "text/html"),
        record("conversion", "http://a.org/8", "Ein Text, wörtlich.\n".encode(), "text/plain"),
        record("response", "http://a.org/9", http(b"")),
        record("response", "http://a.org/10", bare),
        record("response", "http://a.org/11", http(b"\x1f\x8bno gzip", extra="Content-Encoding: gzip\r\n")),
    ]
    data = b"".join(gzip.compress(one) for one in records) if packed == "each" else b"".join(records)
    path = tmp_path / ("a.warc" if packed == "none" else "a.warc.gz")
    path.write_bytes(gzip.compress(data) if packed == "whole" else data)
    documents, problems = read_all(path)
    assert [(d.id, d.url) for d in documents] == [
        (f"{path.name}#{place}", f"http://a.org/{number}")
        for place, number in ((3, 1), (6, 4), (7, 5), (8, 6), (9, 7), (10, 8), (12, 10))
    ]
    assert [d.html for d in documents] == [page(1), page(4), page(5), page(6), page(7), None, page(10)]
    assert (documents[0].charset, documents[5].text) == ("windows-1251", "Ein Text, wörtlich.\n")
    assert documents[0].metadata["date"] == "2019-02-14T00:00:00Z"
    assert problems.counts == {kinds.NO_PAGE: 2, kinds.EMPTY: 1, kinds.BROKEN_RECORD: 1}


@pytest.mark.parametrize("suffix", ["warc", "warc.gz"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.98])
def test_a_truncated_archive_gives_what_stands_before(tmp_path, suffix, share):
    noise = random.Random(0)
    records = [
        record(
            "response", f"http://a.org/{n}", http(page(n) + b"<!--" + noise.randbytes(30000).hex().encode() + b"-->")
        )
        for n in range(40)
    ]
    data = b"".join(gzip.compress(one) if suffix.endswith("gz") else one for one in records)
    (tmp_path / f"a.{suffix}").write_bytes(data[: int(share * len(data))])
    documents, problems = read_all(tmp_path / f"a.{suffix}")
    assert [d.url for d in documents] == [f"http://a.org/{n}" for n in range(len(documents))]
    assert abs(len(documents) - 40 * share) <= 2
    (kind,) = problems.counts
    assert kind == (kinds.BROKEN_FILE if suffix.endswith("gz") else kinds.TRUNCATED)
    assert problems.examples[kind].startswith(f"a.{suffix}, record ")
    with pytest.raises(BadData, match=kind):
        read_all(tmp_path / f"a.{suffix}", broken="refuse")


def test_pages_that_are_too_large_once_unpacked_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MOST_BYTES", 300_000)
    pages = [b"<html>" + b"x" * (size - 6) for size in (300_000, 300_001, 50_000_000)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (b"<html>", *[b"y" * 9000] * 30, b"")) + b"\r\n"
    records = [http(gzip.compress(one), extra="Content-Encoding: gzip\r\n") for one in pages]
    records.append(http(chunks, extra="Transfer-Encoding: chunked\r\n"))
    (tmp_path / "a.warc").write_bytes(b"".join(record("response", "http://a.org/1", one) for one in records))
    documents, problems = read_all(tmp_path / "a.warc")
    assert [len(d.html) for d in documents] == [300_000, 270_006]
    assert problems.counts == {kinds.TOO_LARGE: 2}
    with pytest.raises(BadData, match="over 256 MiB"):
        read_all(tmp_path / "a.warc", broken="refuse")


def test_damage_inside_an_archive_is_counted(tmp_path):
    whole = record("response", "http://a.org/0", http(page(0)))
    for name, data, kind in (
        ("a.warc", b"This is no archive.\n" * 20, kinds.BROKEN_WARC),
        ("b.warc", whole + b"rubbish\r\n" + whole, kinds.BROKEN_WARC),
        ("c.warc.gz", gzip.compress(whole)[:-20] + b"\xff" * 20, kinds.BROKEN_FILE),
    ):
        (tmp_path / name).write_bytes(data)
        documents, problems = read_all(tmp_path / name)
        assert {d.url for d in documents} <= {"http://a.org/0"}
        assert problems.counts == {kind: 1}, name


def test_real_archives(shared):
    folder = shared / "data" / "html" / "warc"
    for name, pages in (
        ("warcio_example.warc", 1),
        ("warcio_example.warc.gz", 1),
        ("warcio_example-iana.org-chunked.warc", 1),
        ("warcio_post-test.warc.gz", 0),
    ):
        documents, problems = read_all(folder / name)
        assert len(documents) == pages, (name, problems)
    documents, _ = read_all(folder / "warcio_example.warc.gz")
    assert documents[0].url == "http://example.com/"
    assert "illustrative examples" in extract(documents[0], "resiliparse").text
    for name in ("resiliparse_clueweb-quirk.warc.gz", "resiliparse_warcfile.warc.gz"):
        documents, problems = read_all(folder / name)
        assert len(documents) > 10, (name, problems)
        assert all(document.html and document.url for document in documents)


# The hub


def test_a_data_set_is_streamed_row_by_row(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"row {number}", "url": f"http://a.org/{number}", "title": "t"} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []
    load = datasets.load_dataset

    def local(name: str, config: str | None, split: str, streaming: bool) -> object:
        # The real library streams; only where the rows lie is not the hub.
        asked.append((name, config, split, streaming))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        return load("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    (source,) = find(["owner/name:config:test"])
    documents = list(read(source, Problems()))
    assert asked == [("owner/name", "config", "test", True)]
    assert [(d.id, d.text, d.url) for d in documents[:2]] == [
        ("owner/name:config:test#1", "row 0", "http://a.org/0"),
        ("owner/name:config:test#2", "row 1", "http://a.org/1"),
    ]
    assert len(documents) == 5
    with pytest.raises(BadData, match='no field "body"; there are "text", "url", "title"'):
        list(read(source, Problems(), ReadOptions(text_field="body")))


def test_a_hub_that_does_not_answer_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (offline)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    (source,) = find(["owner/name"])
    with pytest.raises(Unavailable, match=r"owner/name is no file or folder here, .* on the Hub \(offline\)$"):
        list(read(source, Problems()))


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that refuses every connection, and a library that must not be asked to stream from it."""
    datasets = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub").constants
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it would try again and again"))
        yield constants


def test_a_name_that_is_no_path_is_asked_for_once(no_hub, tmp_path, capfd):
    with pytest.raises(Unavailable, match=r"^my/pages is no file or folder here, and the hub did not give it: .+$"):
        corpus.build(["my/pages"], tmp_path / "out", workers=1)
    assert "etry" not in "".join(capfd.readouterr())
    assert not (tmp_path / "out" / "building").exists()


def test_without_a_network_what_the_library_keeps_is_not_barred(no_hub, monkeypatch):
    monkeypatch.setattr(no_hub, "HF_HUB_OFFLINE", True)
    check_hub("owner/name:config")


def test_without_the_library_a_name_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (source,) = find(["owner/name"])
    with pytest.raises(Unavailable, match="needs datasets: install the extra `corpus`"):
        list(read(source, Problems()))
