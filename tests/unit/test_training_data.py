"""Files to documents to ids to batches."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData, Notice
from gpt2.training.data import Batches, find_files, read_documents, split, to_ids
from tests.helpers import byte_tokenizer


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


def test_missing_and_empty_places_are_named(tmp_path):
    with pytest.raises(BadData, match="is no file and no folder"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(BadData, match=r"holds no \.txt"):
        find_files([tmp_path])
    with pytest.raises(BadData, match="There is no data"):
        find_files([])


def test_a_spelt_out_end_of_text_is_warned_about_and_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    with pytest.warns(Notice, match="separates nothing"):
        documents = list(read_documents([tmp_path / "a.txt"]))
    tokenizer = byte_tokenizer()
    assert list(to_ids(documents, tokenizer)).count(tokenizer.end_of_text) == 1


def test_documents_are_joined_by_the_end_of_text_id():
    tokenizer = byte_tokenizer()
    ids = to_ids(["ab", "c"], tokenizer)
    end = tokenizer.end_of_text
    assert list(ids) == [end, *tokenizer.encode("ab"), end, *tokenizer.encode("c")]


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
    with pytest.raises(BadData, match="cannot be split"):
        split(["x"], 0.1)
    assert split(["x"], 0).validation == []


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 300),
    context=st.integers(1, 40),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_an_epoch_reads_every_window_once_and_targets_are_next_tokens(length, context, batch_size, seed):
    ids = np.arange(length, dtype=np.int32)
    batches = Batches(ids, context, batch_size, seed)
    starts = []
    for step in range(-(-batches.windows // batch_size)):
        inputs, targets = batches.at(step)
        assert inputs.shape == targets.shape == (batch_size, min(context, length - 1))
        assert torch.equal(targets, inputs + 1)
        starts += inputs[:, 0].tolist()
    epoch = sorted(starts[: batches.windows])
    assert len(set(epoch)) == batches.windows
    assert all(b - a == batches.window for a, b in itertools.pairwise(epoch))


def test_a_step_is_a_pure_function_of_seed_and_step():
    ids = np.arange(1000, dtype=np.int32)
    forwards = [Batches(ids, 10, 4, 7).at(step)[0] for step in range(60)]
    backwards = [Batches(ids, 10, 4, 7).at(step)[0] for step in reversed(range(60))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(forwards[0], Batches(ids, 10, 4, 8).at(0)[0])
    first_epoch, second_epoch = torch.cat(forwards[:24]), torch.cat(forwards[25:49])
    assert not torch.equal(first_epoch, second_epoch)


def test_one_token_is_too_few():
    with pytest.raises(BadData, match="at least 2"):
        Batches(np.zeros(1, dtype=np.int32), 8, 1, 0)


def test_a_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert find_files([tmp_path, tmp_path / "a.txt", tmp_path / ".." / tmp_path.name / "a.txt"]) == [tmp_path / "a.txt"]


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
