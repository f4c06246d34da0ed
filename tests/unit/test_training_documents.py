"""Files to documents: which are read, what is said of broken ones, and which are held out."""

import json

import pytest

from gpt2.corpus.options import CorpusOptions
from gpt2.errors import BadData, Notice
from gpt2.training import TrainingOptions
from gpt2.training.data import open_data, to_ids
from gpt2.training.documents import find_files, named_documents, read_documents, sampled, split
from tests.helpers import byte_tokenizer
from tests.unit.test_training_data import LINES, corpus


def test_a_text_file_is_one_document_and_a_jsonl_line_is_one(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n\n" + json.dumps({"text": "ÿ", "id": 3}) + "\n")
    (tmp_path / "notes.csv").write_text("not text")
    assert list(read_documents([tmp_path])) == ["x", "ÿ", "one\n\ntwo"]


def test_line_ends_are_data(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n")
    assert list(read_documents([tmp_path / "a.txt"])) == ["a\r\nb\rc\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\xff", r"a\.txt is not UTF-8 text: byte 2 is 0xff"),
        ("a.txt", bytes(9000), r"a\.txt is a binary file: it holds zero bytes"),
        ("a.html", b"<p>Markup", r"a\.html is no plain text\. Pages.*`gpt2 corpus build`"),
        ("a.jsonl.gz", b"\x1f\x8b", r"a\.jsonl\.gz is no plain text"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', r'line 2: expected a JSON object with a field "text"'),
        ("a.jsonl", b"[1]\n", "line 1: expected a JSON object"),
        ("a.jsonl", b'{"text": 5}\n', r'line 1: the field "text" is int'),
        ("a.jsonl", b'{"text": "x"\n', "line 1: expected a JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData, match=message):
        list(read_documents([tmp_path / name]))


def test_a_line_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": ' + b"[" * 200_000 + b"\n")
    with pytest.raises(BadData, match="line 2: expected a JSON object"):
        list(read_documents([tmp_path]))


def test_documents_of_nothing_but_spaces_are_none(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n{"text": "\\t"}\n{"text": " x "}\n')
    assert list(read_documents([tmp_path])) == [" x "]


def test_missing_and_empty_places_are_named(tmp_path):
    with pytest.raises(BadData, match="is no file and no folder"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(BadData, match=r"holds no \.txt.*`gpt2 corpus build`"):
        find_files([tmp_path])
    with pytest.raises(BadData, match="There is no data"):
        find_files([])


def test_a_spelt_out_end_of_text_is_warned_about_and_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    with pytest.warns(Notice, match="separates nothing"):
        documents = list(read_documents([tmp_path / "a.txt"]))
    tokenizer = byte_tokenizer()
    assert list(to_ids(documents, tokenizer)).count(tokenizer.end_of_text) == 1


def test_one_document_is_cut_by_characters():
    parts = split(["é" * 90 + "x" * 10], 0.1)
    assert parts.training == ["é" * 90]
    assert parts.validation == ["x" * 10]


def test_many_documents_are_held_out_by_hash_whatever_stands_beside_them():
    documents = [f"document {i}" for i in range(500)]
    first = split(documents, 0.1)
    assert 25 < len(first.validation) < 80
    assert sorted(first.training + first.validation) == sorted(documents)
    later = split([*documents[::-1], "another"], 0.1)
    assert set(first.validation) <= set(later.validation)


def test_few_documents_still_leave_something_on_both_sides():
    for share in (0.001, 0.999):
        parts = split(["a", "b", "c"], share)
        assert parts.training
        assert parts.validation


def test_nothing_to_split():
    with pytest.raises(BadData, match="holds no text"):
        split([], 0.1)
    with pytest.raises(BadData, match=r"cannot be split .* --validation 0"):
        split(["x"], 0.1)
    assert split(["x"], 0).validation == []


def test_a_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert find_files([tmp_path, tmp_path / "a.txt", tmp_path / ".." / tmp_path.name / "a.txt"]) == [tmp_path / "a.txt"]


def test_a_corpus_deeper_down_is_not_read_as_text(tmp_path):
    mine = tmp_path / "all" / "mine"
    mine.mkdir(parents=True)
    (tmp_path / "all" / "a.txt").write_text("text")
    (mine / "corpus.md").write_text("| came in | 5 |")
    (mine / "corpus.json").write_text(json.dumps({"format": "another program's"}))
    assert len(find_files([tmp_path])) == 2
    (mine / "corpus.json").write_text(json.dumps({"format": "gpt2-corpus 1", "shards": {"train": 0, "validation": 0}}))
    with pytest.raises(BadData, match=r"mine is a corpus; name it itself\."):
        open_data([tmp_path], TrainingOptions())
    with pytest.raises(BadData, match=r"mine is a corpus; holds no text to read\."):
        open_data([mine], TrainingOptions())


def test_copies_of_a_text_are_never_on_both_sides():
    parts = split(["a", "a", "b"], 0.0001)
    assert not set(parts.training) & set(parts.validation)
    with pytest.raises(BadData, match="the same text"):
        split(["a", "a"], 0.1)


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n{"text": "\\ud800"}\n')
    with pytest.raises(BadData, match="line 2: the text holds a lone surrogate"):
        list(read_documents([tmp_path]))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\n')
    assert list(read_documents([tmp_path])) == ["one", "two"]


@pytest.fixture
def unfinished(tmp_path):
    """A build that was stopped while it made tokens: settings, a vocabulary, some of the shards, texts."""
    folder = corpus(tmp_path / "all" / "mine", byte_tokenizer(), LINES)
    (folder / "building").mkdir()
    (folder / "building" / "settings.json").write_text(json.dumps({**CorpusOptions().to_dict(), "source_digest": "0"}))
    (folder / "building" / "00000.jsonl").write_text('{"text": "half of it"}\n')
    return folder


@pytest.mark.parametrize("inside", ["", "..", "../.."])
def test_a_corpus_that_was_not_finished_is_neither_text_nor_tokens(unfinished, inside):
    with pytest.raises(BadData, match="mine is a corpus that was begun and not finished; run its `gpt2 corpus build`"):
        open_data([(unfinished / inside).resolve()], TrainingOptions())


def test_a_folder_of_somebody_named_building_is_text_like_any_other(tmp_path):
    house = tmp_path / "building"
    house.mkdir()
    (house / "settings.json").write_text('["bricks"]')
    (house / "house.txt").write_text("four walls")
    assert list(read_documents([tmp_path])) == ["four walls"]


def test_files_of_a_folder_that_are_left_out_are_told(tmp_path):
    for name in ("a.txt", "b.html", "c.html", "d.gz", "e.png"):
        (tmp_path / name).write_text("some text")
    with pytest.warns(Notice, match=r"left out are 1 \.gz, 2 \.html\. Pages, .* `gpt2 corpus build`"):
        assert find_files([tmp_path]) == [tmp_path / "a.txt"]


def test_documents_have_the_names_of_their_files_and_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three"}\n')
    names = [("a.txt", "one"), ("b.jsonl, line 1", "two"), ("b.jsonl, line 3", "three")]
    assert list(named_documents([tmp_path])) == names


@pytest.mark.parametrize("length", [20, 300_000])
def test_a_sample_comes_from_all_over_and_is_as_large_as_asked(tmp_path, length):
    """Long lines, too, of which a stretch has less than one."""
    count = 6_000_000 // (length + 14)
    lines = [json.dumps({"text": f"{number:06}".ljust(length, "x")}) for number in range(count)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.txt").write_text("y" * 2_000_000)
    texts, share, documents = sampled(find_files([tmp_path]), 1_500_000)
    assert documents == pytest.approx(count + 1, rel=0.15)
    assert 0.1 < share < 0.35
    from_lines = [text for text in texts if "x" in text]
    assert all(len(text) == length for text in from_lines)
    numbers = [int(text[:6]) for text in from_lines]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 0.7 * count
    found = sum(map(len, texts)) / share
    assert found == pytest.approx(count * length + 2_000_000, rel=0.15)


def test_a_sample_begins_with_the_line_that_begins_at_its_place(tmp_path, monkeypatch):
    lines = [json.dumps({"text": f"{number:04}"}) + "\n" for number in range(8)]
    assert len(lines[0]) == 17
    (tmp_path / "a.jsonl").write_text("".join(lines))
    # A stretch is then three lines, and every second one is read: the next place is the beginning of the seventh line.
    monkeypatch.setattr("gpt2.training.documents._STRETCH", 34)
    texts, _, documents = sampled([tmp_path / "a.jsonl"], 68)
    assert texts == ["0000", "0001", "0002", "0006", "0007"]
    assert documents == 8


def test_files_that_are_called_the_same_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(f"text of {folder}")
    (tmp_path / "b" / "y.txt").write_text("another")
    names = [name for name, _ in named_documents([tmp_path])]
    assert names == [str(tmp_path / "a" / "x.txt"), str(tmp_path / "b" / "x.txt"), "y.txt"]
