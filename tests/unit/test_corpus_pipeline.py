"""A corpus build from end to end: what comes out, that nothing but the input and the options decides it, and what
happens when it is stopped, repeated, given nonsense or has no room.
"""

import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gpt2 import corpus
from gpt2.corpus import CorpusOptions, Document, engine, fates, parts, stages
from gpt2.corpus.filters import FilterOptions
from gpt2.corpus.sources import Source
from gpt2.errors import BadData, BadOption, Notice, Unavailable
from gpt2.shards import open_shards
from gpt2.tokenizer import Tokenizer, write_tokenizer
from gpt2.training.documents import split
from tests.helpers import byte_tokenizer

PLAIN = CorpusOptions(near=False)
needs_rensa = pytest.mark.skipif(
    importlib.util.find_spec("rensa") is None, reason="left out: it needs the extra `corpus`"
)


def sentence(source: random.Random, words: int = 40) -> str:
    return (
        " ".join(source.choices(["the", "old", "house", "stood", "at", "end", "of", "a", "road", "é"], k=words)) + "."
    )


@pytest.fixture
def documents() -> list[str]:
    source = random.Random(1)
    return [sentence(source, source.randint(5, 60)) for _ in range(400)]


@pytest.fixture
def folder(tmp_path, documents) -> Path:
    """Eight files of fifty documents of two sets."""
    made = tmp_path / "sources"
    made.mkdir()
    for number in range(8):
        lines = [
            json.dumps({"text": text, "set": "even" if place % 2 == 0 else "odd"})
            for place, text in enumerate(documents[number * 50 : (number + 1) * 50])
        ]
        (made / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture
def small_parts(monkeypatch):
    """A part for each file, so that few bytes are many tasks."""
    monkeypatch.setattr(parts, "_PART_BYTES", 1)


def texts(out: Path, name: str) -> list[str]:
    """The documents of a split, read back from its shards."""
    shards = open_shards(out, name)
    ids = shards.read(0, len(shards))
    starts = np.flatnonzero(ids == shards.end_of_text)
    tokenizer = Tokenizer.gpt2()
    return [tokenizer.decode(piece[1:]) for piece in np.split(ids, starts[1:])]


def shard_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix == ".safetensors"}


def test_the_documents_come_out_as_they_went_in_and_in_their_order(folder, documents, tmp_path):
    report = corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    expected = split(documents, 0.005)
    assert texts(tmp_path / "out", "train") == expected.training
    assert texts(tmp_path / "out", "validation") == expected.validation
    assert report["total"]["documents"] == 400
    assert report["total"]["bytes"] == sum(len(text.encode()) for text in documents)
    tokenizer = Tokenizer.gpt2()
    assert report["total"]["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in documents)


def test_a_finished_folder_holds_what_it_says_and_nothing_else(folder, tmp_path):
    out = tmp_path / "out"
    report = corpus.build([str(folder)], out, PLAIN, workers=1)
    assert json.loads((out / "corpus.json").read_text()) == report
    assert {path.name for path in out.iterdir()} - {"lock"} == {
        *("corpus.json", "corpus.md", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"),
        *("train-00000.safetensors", "validation-00000.safetensors"),
    }
    assert "| came in " in (out / "corpus.md").read_text()
    found = corpus.check(out)
    assert found["damage"] == []
    assert sum(one["tokens"] for one in found["splits"].values()) == report["total"]["tokens"]


@needs_rensa
def test_what_came_in_is_what_was_dropped_and_what_went_out(folder, documents, tmp_path):
    copy = documents[3]
    near = documents[5].rsplit(" ", 1)[0] + " gate."
    long = sentence(random.Random(2), 300)
    longer = long.replace(long.split(" ")[150], "chimney", 1)
    lines = [copy, near, long, longer, "short"]
    (folder / "9.jsonl").write_text("".join(json.dumps({"text": text, "set": "more"}) + "\n" for text in lines))
    options = CorpusOptions(filters=FilterOptions(min_characters=10))
    report = corpus.build([str(folder)], tmp_path / "out", options, workers=1)
    sets = report["sets"]
    assert sets["more"]["in"][0] == 5
    assert sets["more"]["exact duplicates"] == [1, len(copy.encode()), 0]
    assert sets["more"]["near duplicates"][0] >= 1
    for steps in sets.values():
        out = [name for name in steps if name not in ("in", "extracted")]
        assert steps["in"][0] == sum(steps[name][0] for name in out)
        assert steps["in"][1] == sum(steps[name][1] for name in out)
    kept = texts(tmp_path / "out", "train") + texts(tmp_path / "out", "validation")
    assert long in kept
    assert longer not in kept
    assert "short" not in kept
    assert kept.count(copy) == 1


def test_tokens_of_markup_are_not_guessed(tmp_path):
    (tmp_path / "page.html").write_text("<html><body><p>" + "A page without an address. " * 9 + "</p></body></html>")
    (tmp_path / "links.jsonl").write_text('{"url": "https://example.org/a", "score": 3}\n')
    lines = [{"text": f"Text number {number}.", "url": "http://example.org/a"} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = CorpusOptions(near=False, filters=FilterOptions(links=tmp_path / "links.jsonl"))
    sources = [str(tmp_path / name) for name in ("page.html", "a.jsonl")]
    steps = {row["step"]: row for row in corpus.build(sources, tmp_path / "out", options, workers=1)["steps"]}
    assert "tokens" not in steps["in"]
    assert "tokens" not in steps["links: page without an address"]


def test_without_addresses_wikipedia_cannot_be_known_and_that_is_counted(tmp_path):
    lines = [{"text": "Text of its own.", "url": "http://example.org"}, {"text": "Another one.", "url": ""}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = CorpusOptions(near=False, filters=FilterOptions(wikipedia=False))
    report = corpus.build([str(tmp_path / "a.jsonl")], tmp_path / "out", options, workers=1)
    problem = report["problems"]["no address, by which Wikipedia is known"]
    assert problem == {"count": 1, "example": "a.jsonl#2", "what": "kept"}
    assert report["total"]["documents"] == 2


def test_saved_pages_are_chosen_by_the_addresses_that_they_say_are_theirs(tmp_path):
    pytest.importorskip("resiliparse")
    addresses = {
        "linked": "https://www.example.org/linked/",
        "poor": "https://example.org/poor",
        "other": "https://example.org/other",
        "wiki": "https://de.wikipedia.org/wiki/Haus",
        "none": "/linked",
    }
    pages = tmp_path / "pages"
    pages.mkdir()
    for name, address in addresses.items():
        head = f'<link rel="canonical" href="{address}">'
        body = f"<p>The page called {name} has a sentence or two. They are its own, and no other page has them.</p>"
        (pages / f"{name}.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>")
    scores = {"http://example.org/linked": 3, "http://example.org/poor": 2, "http://de.wikipedia.org/wiki/Haus": 9}
    lines = [json.dumps({"url": url, "score": score}) + "\n" for url, score in scores.items()]
    (tmp_path / "links.jsonl").write_text("".join(lines))

    def built(name: str, **filters: object) -> tuple[list[str], dict]:
        options = CorpusOptions(near=False, validation=0.0, extractor="resiliparse", filters=FilterOptions(**filters))
        report = corpus.build([str(pages)], tmp_path / name, options, workers=1)
        return [text.split()[3] for text in texts(tmp_path / name, "train")], report

    kept, report = built("links", links=tmp_path / "links.jsonl", wikipedia=False)
    assert kept == ["linked"]
    dropped = {step: row[0] for step, row in report["sets"]["pages"].items() if ":" in step}
    assert dropped == {
        "links: not linked with a score of 3": 2,
        "links: page without an address": 1,
        "wikipedia: page of Wikipedia": 1,
    }
    assert report["problems"] == {
        "address as the page itself says it": {"count": 4, "example": "pages/linked.html#1", "what": "kept"}
    }
    kept, report = built("wikipedia", wikipedia=False)
    assert sorted(kept) == ["linked", "none", "other", "poor"]
    assert report["problems"]["no address, by which Wikipedia is known"]["example"] == "pages/none.html#1"
    kept, report = built("all")
    assert (len(kept), report["problems"]) == (5, {}), "addresses that choose nothing are not looked for"


def test_what_a_worker_holds_does_not_grow_with_the_documents(tmp_path, monkeypatch):
    """Of few documents and of many, a stretch of the same size costs the same."""
    monkeypatch.setattr(fates, "_STRETCH_BYTES", (5_000, 5_000))
    monkeypatch.setattr(fates, "_FATES", 1000)
    monkeypatch.setattr(parts, "_RECORDS", 1000)
    write_tokenizer(byte_tokenizer(), tmp_path / "tokenizer")
    most = {}
    for count in (10_000, 500_000):
        part = parts.Part(tmp_path / f"{count}")
        part.folder.mkdir()
        (part.folder / "text").write_bytes(b"".join(b"%09d\n" % number for number in range(count)))
        (part.folder / "counts.json").write_text('{"sets": ["one"]}')
        records = np.zeros(count, parts.RECORD)
        records["bytes"] = 10
        records.tofile(part.folder / "documents")
        chosen = np.full(count, fates.TRAIN, np.uint8)
        chosen[::2] = fates.EXACT
        chosen.tofile(tmp_path / f"fates-{count}")
        plan = tuple(fates.share_out(parts.Parts([part]), chosen))
        making = stages.MakeShards(
            tmp_path / f"shards-{count}", (part,), tmp_path / f"fates-{count}", tmp_path / "tokenizer", plan, False
        )
        del records, chosen
        making(0, lambda done: None)  # what is read once and kept
        tracemalloc.start()
        making(len(plan) - 1, lambda done: None)
        most[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shards = open_shards(making.shards(len(plan) - 1))
        last = byte_tokenizer().decode_bytes(shards.read(len(shards) - 10, 10).tolist())
        assert last == b"%09d\n" % (count - 1)
    assert most[500_000] < most[10_000] + 100_000, f"{(most[500_000] - most[10_000]) / 490_000:.1f} bytes a document"


def test_how_sources_are_bundled_changes_no_byte(folder, tmp_path, monkeypatch):
    corpus.build([str(folder)], tmp_path / "few", PLAIN, workers=1)
    monkeypatch.setattr(parts, "_PART_BYTES", 1)
    corpus.build([str(folder)], tmp_path / "many", PLAIN, workers=1)
    assert shard_bytes(tmp_path / "few") == shard_bytes(tmp_path / "many")


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, int]] = []
        self.done: list[int] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def progress(self, done: int) -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_it_tells_how_far_it_is(folder, tmp_path):
    notes = Notes()
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1, watcher=notes)
    totals = dict(notes.stages)
    assert list(totals) == ["reading", "duplicates", "vocabulary", "tokens", "moving in"]
    assert totals["reading"] == sum(path.stat().st_size for path in folder.iterdir())
    assert max(notes.done) == max(totals.values())


def test_names_that_no_encoding_can_write_are_stored(tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    try:
        (sources / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"coffee \xff")
    except OSError:
        pytest.skip("left out: this file system takes UTF-8 names alone")
    (sources / "b.jsonl").write_text('{"text": "tea", "set": "a\\ud800b"}\n')
    report = corpus.build([str(sources)], tmp_path / "out", PLAIN, workers=1)
    assert set(report["sets"]) == {"a\ufffdb", "sources"}
    assert json.loads((tmp_path / "out" / "corpus.json").read_bytes().decode("ascii")) == report
    assert "a\ufffdb" in (tmp_path / "out" / "corpus.md").read_text(encoding="utf-8")
    assert "sources/caf\\udce9.txt" in (tmp_path / "out" / "corpus.md").read_text(encoding="utf-8")


def test_pages_that_are_not_in_their_encoding_are_refused_where_they_are_to_be(tmp_path):
    pytest.importorskip("resiliparse")
    page = (
        b"<html><head><meta charset='utf-8'></head><body><p>A ferry \xff crosses the river, slowly.</p></body></html>"
    )
    (tmp_path / "a.html").write_bytes(page)
    options = CorpusOptions(
        read=corpus.ReadOptions(invalid="refuse"), extractor="resiliparse", near=False, validation=0.0
    )
    with pytest.raises(BadData, match=r"a\.html#1: invalid UTF-8"):
        corpus.build([str(tmp_path / "a.html")], tmp_path / "out", options, workers=1)


def test_sets_are_named_by_what_was_given():
    document = Document("x#1", "text")
    assert stages.set_of(document, Source("owner/name:en", "hub", "owner/name:en", 0)) == "owner/name:en"
    assert stages.set_of(document, Source("folder/a.txt", "text", "/x/folder/a.txt", 1)) == "folder"


def test_files_of_other_kinds_are_told_in_one_note(folder, tmp_path):
    for name in ("one.png", "two.exe"):
        (folder / name).write_bytes(b"\0")
    notes = Notes()
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1, watcher=notes)
    assert notes.notes == ["Files of other kinds are left out: 2, such as sources/one.png."]


def test_when_nothing_is_left_it_says_what_took_it(folder, tmp_path):
    options = CorpusOptions(near=False, filters=FilterOptions(min_characters=100_000))
    with pytest.raises(BadData, match=r"Nothing is left of 400 documents. What took them: length.*\(400\)"):
        corpus.build([str(folder)], tmp_path / "out", options, workers=1)
    # And the folder is free for other options.
    corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)


def test_a_corpus_without_a_document_is_said(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(BadData, match="hold no document"):
        corpus.build([str(tmp_path / "empty.jsonl")], tmp_path / "out", PLAIN, workers=1)


def test_a_folder_of_binaries_is_said(tmp_path):
    (tmp_path / "binaries").mkdir()
    (tmp_path / "binaries" / "program.exe").write_bytes(bytes(range(256)))
    with pytest.raises(BadData, match=r"program\.exe"):
        corpus.build([str(tmp_path / "binaries")], tmp_path / "out", PLAIN, workers=1)


def test_broken_gzip_is_counted_and_the_rest_is_built(folder, documents, tmp_path):
    data = gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in documents).encode())
    (folder / "broken.jsonl.gz").write_bytes(data[: len(data) // 2])
    report = corpus.build([str(folder)], tmp_path / "out", PLAIN, workers=1)
    assert report["total"]["documents"] == 400
    assert report["problems"]["broken compression"]["count"] == 1
    assert report["problems"]["broken compression"]["example"].startswith("sources/broken.jsonl.gz")


def test_a_spelt_end_of_text_separates_nothing_and_is_told(tmp_path):
    spelt = "one<|endoftext|>two"
    (tmp_path / "a.txt").write_text(spelt)
    (tmp_path / "b.txt").write_text("three")
    with pytest.warns(Notice, match=r"1 documents spell <\|endoftext\|>"):
        corpus.build([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tmp_path / "out", PLAIN, workers=1)
    assert sorted(texts(tmp_path / "out", "train") + texts(tmp_path / "out", "validation")) == [spelt, "three"]


def test_one_document_is_not_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("only this")
    with pytest.warns(Notice, match="Nothing is held out"):
        report = corpus.build([str(tmp_path / "a.txt")], tmp_path / "out", PLAIN, workers=1)
    assert report["shards"] == {"train": 1, "validation": 0}
    assert corpus.check(tmp_path / "out")["damage"] == []


def test_a_vocabulary_of_the_caller(folder, tmp_path):
    write_tokenizer(byte_tokenizer(), tmp_path / "bytes")
    options = CorpusOptions(near=False, tokenizer=str(tmp_path / "bytes"))
    report = corpus.build([str(folder)], tmp_path / "out", options, workers=1)
    assert report["total"]["tokens"] == report["total"]["bytes"] + report["total"]["documents"]
    assert report["tokenizer"]["vocab_size"] == 257


def test_a_vocabulary_learnt_from_the_corpus(folder, tmp_path):
    options = CorpusOptions(near=False, vocab_size=280)
    report = corpus.build([str(folder)], tmp_path / "out", options, workers=1)
    assert report["tokenizer"]["vocab_size"] == 280
    assert report["total"]["tokens"] < report["total"]["bytes"] / 2
    assert corpus.check(tmp_path / "out")["damage"] == []


@pytest.mark.skipif(os.name == "nt", reason="left out: Windows has no limit on the size of a file")
def test_no_room_is_said_and_the_build_goes_on_when_there_is(folder, tmp_path):
    """A limit on the size of a file fails a write in the middle, as a full disk does."""
    out = tmp_path / "out"
    script = f"""
import resource
from pathlib import Path
from gpt2 import corpus
from gpt2.errors import Unavailable
from gpt2.corpus import parts
parts._PART_BYTES = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    corpus.build([{str(folder)!r}], Path({str(out)!r}), corpus.CorpusOptions(near=False), workers=1)
except Unavailable as error:
    print(error)
"""
    with (folder / "3.jsonl").open("a") as file:
        file.write(json.dumps({"text": "long " * 10_000}) + "\n")
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "run the same command again: what is finished is kept" in said
    assert len(list((out / "building" / "parts").glob("0*"))) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_PART_BYTES", 1)
        corpus.build([str(folder)], out, PLAIN, workers=1)
    corpus.build([str(folder)], tmp_path / "whole", PLAIN, workers=1)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_missing_libraries_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_installed", lambda module: False)
    with pytest.raises(Unavailable, match="needs ray: install the extra `ray`"):
        corpus.build([str(folder)], tmp_path / "out", PLAIN, engine="ray")
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(Unavailable, match="needs rensa: install the extra `corpus`"):
        corpus.build([str(folder)], tmp_path / "near", CorpusOptions())


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 0.0},
        {"threshold": 1.1},
        {"validation": 1.0},
        {"validation": -0.1},
        {"vocab_size": 300, "tokenizer": "x"},
    ],
)
def test_absurd_options_are_refused(values):
    with pytest.raises(BadOption, match=next(iter(values))):
        CorpusOptions(**values)
