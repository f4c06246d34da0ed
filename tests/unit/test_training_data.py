"""Files to documents to ids to batches."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData, BadOption, Notice
from gpt2.shards import ShardWriter, open_shards
from gpt2.tokenizer import Tokenizer, learn, write_tokenizer
from gpt2.training import TrainingOptions, data
from gpt2.training.data import Batches, Part, find_files, open_data, read_documents, scattered, split, to_ids
from tests.helpers import byte_tokenizer
from tests.unit.test_shards_foreign import TEXTS, llmc, nanogpt


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


def test_a_line_that_is_nested_too_deep_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": ' + b"[" * 200_000 + b"\n")
    with pytest.raises(BadData, match="line 2: expected a JSON object"):
        list(read_documents([tmp_path]))


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


def corpus(folder, tokenizer, training, validation=()):
    """A corpus folder as `gpt2 corpus build` makes it, in small shards."""
    for prefix, texts in (("train", training), ("validation", validation)):
        with ShardWriter(folder, prefix, tokenizer, 50, block_tokens=16) as writer:
            for text in texts:
                writer.add(tokenizer.encode(text))
    write_tokenizer(tokenizer, folder)
    return folder


LINES = [f"line {number} of a small corpus" for number in range(60)]


class TestBatchesOfShards:
    def test_equal_to_those_of_the_array(self, tmp_path):
        tokenizer = byte_tokenizer()
        shards = open_shards(corpus(tmp_path, tokenizer, LINES))
        ids = to_ids(LINES, tokenizer)
        assert len(shards.paths) > 20
        for context in (1, 10, 64, 5000):
            ours, theirs = Batches(shards, context, 3, seed=2), Batches(ids, context, 3, seed=2)
            assert (ours.window, ours.windows) == (theirs.window, theirs.windows)
            for step in (0, 1, 7, 100):
                assert all(torch.equal(a, b) for a, b in zip(ours.at(step), theirs.at(step), strict=True))

    def test_the_order_of_an_array_is_what_it_was_in_the_first_release(self):
        # Figures from the first release: a run that was begun with it goes on with the same data.
        batches = Batches(np.arange(1000, dtype=np.int32), 10, 4, 7)
        assert batches.at(3)[0][:, 0].tolist() == [19, 29, 949, 919]
        assert batches.at(30)[0][:, 0].tolist() == [938, 618, 928, 38]

    def test_a_step_opens_only_what_it_reads(self, tmp_path):
        shards = open_shards(corpus(tmp_path, byte_tokenizer(), LINES))
        read = []

        class Watched:
            def __len__(self):
                return len(shards)

            def read(self, start, count):
                read.append((start, count))
                return shards.read(start, count)

        batches = Batches(Watched(), 8, 6, seed=0)
        inputs, targets = batches.rows(5, range(2, 4))
        assert len(read) == 2
        assert {count for _, count in read} == {9}
        whole = batches.at(5)
        assert torch.equal(inputs, whole[0][2:4])
        assert torch.equal(targets, whole[1][2:4])

    def test_the_rows_of_all_ranks_are_the_batch(self):
        batches = Batches(np.arange(500, dtype=np.int32), 8, 6, seed=3)
        parts = [batches.rows(4, range(start, start + 2))[0] for start in (0, 2, 4)]
        assert torch.equal(torch.cat(parts), batches.at(4)[0])
        assert batches.rows(4, range(0))[0].shape == (0, 8)
        with pytest.raises(IndexError):
            batches.rows(4, range(5, 7))

    def test_an_array_that_cannot_be_written_to_is_read_without_a_warning(self, recwarn):
        ids = np.arange(100, dtype=np.int32)
        ids.flags.writeable = False
        Batches(ids, 8, 2, 0).at(0)
        assert not recwarn.list


class TestManyWindows:
    @settings(max_examples=50, deadline=None)
    @given(size=st.integers(1, 3000), seed=st.integers(0, 9))
    def test_scattered_is_a_permutation(self, size, seed):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64).tolist()
        assert sorted(scattered(place, size, keys) for place in range(size)) == list(range(size))

    def test_scattered_leaves_no_order_behind(self):
        size, keys = 10**9, np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64).tolist()
        places = np.array([scattered(place, size, keys) for place in range(4000)])
        assert abs(np.corrcoef(np.arange(4000), places)[0, 1]) < 0.08
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.08
        counts = np.histogram(places, bins=20, range=(0, size))[0]
        assert counts.min() > 120
        assert counts.max() < 280

    def test_an_epoch_of_many_windows_reads_each_once(self, monkeypatch):
        monkeypatch.setattr(data, "_LISTED", 10)
        batches = Batches(np.arange(1000, dtype=np.int32), 10, 7, seed=11)
        data._epoch.cache_clear()
        try:
            steps = range(-(-batches.windows // 7))
            starts = torch.cat([batches.at(step)[0][:, 0] for step in steps])[: batches.windows].tolist()
        finally:
            data._epoch.cache_clear()
        assert len(set(starts)) == batches.windows
        assert starts != sorted(starts)

    def test_billions_of_tokens_cost_neither_time_nor_memory(self):
        class Endless:
            def __len__(self):
                return 10**12

            def read(self, start, count):
                return np.arange(start % 1000, start % 1000 + count, dtype=np.int32)

        batches = Batches(Endless(), 1024, 512, seed=1)
        import tracemalloc

        tracemalloc.start()
        inputs, _ = batches.at(10**6)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        tracemalloc.stop()
        assert inputs.shape == (512, 1024)


class TestOpenData:
    def test_text_as_ever(self, tmp_path):
        for number, line in enumerate(LINES):
            (tmp_path / f"{number}.txt").write_text(line)
        options = TrainingOptions(validation=0.2)
        opened = open_data([tmp_path], options, byte_tokenizer())
        parts = split(read_documents([tmp_path]), 0.2)
        assert (
            opened.training.read(0, len(opened.training)).tolist() == to_ids(parts.training, byte_tokenizer()).tolist()
        )
        assert opened.validation_bytes == sum(map(len, parts.validation))
        assert opened.tokenizer == byte_tokenizer()

    def test_text_learns_a_vocabulary_or_takes_gpt2s(self, tmp_path):
        (tmp_path / "a.txt").write_text("the cat sat on the mat " * 50)
        notes = []
        options = TrainingOptions(vocab_size=260)
        opened = open_data([tmp_path], options, note=notes.append)
        assert opened.tokenizer.vocab_size == 260
        assert notes[0] == "learning a vocabulary of 260 tokens"
        assert open_data([tmp_path], TrainingOptions()).tokenizer == Tokenizer.gpt2()

    def test_a_corpus_folder(self, tmp_path):
        tokenizer = learn(LINES, 280)
        folder = corpus(tmp_path, tokenizer, LINES[6:], LINES[:6])
        notes = []
        opened = open_data([folder], TrainingOptions(), note=notes.append)
        assert opened.tokenizer == tokenizer
        assert opened.validation_bytes == sum(map(len, LINES[:6]))
        assert opened.validation.read(0, len(opened.validation)).tolist() == to_ids(LINES[:6], tokenizer).tolist()
        assert opened.training.read(0, len(opened.training)).tolist() == to_ids(LINES[6:], tokenizer).tolist()
        assert notes == [f"{len(opened.training):,} tokens to train on, {len(opened.validation):,} held out"]
        by_name = open_data(sorted(folder.glob("*.safetensors")), TrainingOptions())
        assert by_name.fingerprint == opened.fingerprint

    def test_the_fingerprint_tells_changed_shards(self, tmp_path):
        tokenizer = byte_tokenizer()
        first = open_data([corpus(tmp_path / "a", tokenizer, LINES, LINES[:3])], TrainingOptions())
        same = open_data([corpus(tmp_path / "b", tokenizer, LINES, LINES[:3])], TrainingOptions())
        other = open_data([corpus(tmp_path / "c", tokenizer, LINES, LINES[:4])], TrainingOptions())
        assert first.fingerprint == same.fingerprint != other.fingerprint

    def test_no_vocabulary_is_learnt_from_tokens(self, tmp_path):
        folder = corpus(tmp_path, byte_tokenizer(), LINES)
        with pytest.raises(BadOption, match="vocab_size = 300 asks for a vocabulary to be learnt, but the tokens"):
            open_data([folder], TrainingOptions(vocab_size=300))

    def test_shards_of_another_tokenizer_are_refused(self, tmp_path):
        folder = corpus(tmp_path, byte_tokenizer(), LINES)
        with pytest.raises(BadData, match="holds tokens of another tokenizer"):
            open_data([folder], TrainingOptions(), Tokenizer.gpt2())
        write_tokenizer(Tokenizer.from_merges([(0, 1)]), folder)
        with pytest.raises(BadData, match="holds tokens of another tokenizer"):
            open_data([folder], TrainingOptions())

    @pytest.mark.parametrize("make", [nanogpt, llmc])
    def test_other_programs_tokens(self, tmp_path, make):
        ids, held = make(tmp_path / "train.bin", TEXTS * 3), make(tmp_path / "val.bin", TEXTS[:1])
        opened = open_data([tmp_path], TrainingOptions())
        assert opened.tokenizer == Tokenizer.gpt2()
        assert opened.training.read(0, len(opened.training)).tolist() == ids.tolist()
        assert opened.validation.read(0, len(opened.validation)).tolist() == held.tolist()
        assert opened.validation_bytes is None
        named = open_data([tmp_path / "val.bin", tmp_path / "train.bin"], TrainingOptions())
        assert named.fingerprint == opened.fingerprint

    def test_tokens_without_validation_give_up_their_last_share(self, tmp_path):
        ids = nanogpt(tmp_path / "train.bin", TEXTS * 10)
        notes = []
        opened = open_data([tmp_path], TrainingOptions(validation=0.25), note=notes.append)
        cut = int(len(ids) * 0.75)
        assert opened.training.read(0, cut).tolist() == ids[:cut].tolist()
        assert opened.validation.read(0, len(opened.validation)).tolist() == ids[cut:].tolist()
        assert "the last 25 % of its tokens is held out" in notes[0]
        with pytest.raises(IndexError):
            opened.training.read(cut - 1, 2)
        whole = open_data([tmp_path], TrainingOptions(validation=0.0))
        assert (len(whole.training), len(whole.validation)) == (len(ids), 0)
        assert whole.fingerprint != opened.fingerprint

    def test_what_cannot_be_used(self, tmp_path):
        nanogpt(tmp_path / "val.bin")
        with pytest.raises(BadData, match="validation alone"):
            open_data([tmp_path], TrainingOptions())
        (tmp_path / "text.txt").write_text("text")
        with pytest.raises(BadData, match=r"holds tokens and .*text\.txt text"):
            open_data([tmp_path / "val.bin", tmp_path / "text.txt"], TrainingOptions())
        (tmp_path / "train.bin").write_bytes(b"\x01\x00" * 3)
        (tmp_path / "val.bin").unlink()
        with pytest.raises(BadData, match="3 tokens cannot be split"):
            open_data([tmp_path], TrainingOptions())
        with pytest.raises(BadData, match=r"nowhere\.bin cannot be read"):
            open_data([tmp_path / "nowhere.bin"], TrainingOptions())


def test_a_part_is_bounded():
    part = Part(np.arange(10, dtype=np.int32), 3, 4)
    assert (len(part), part.read(1, 3).tolist()) == (4, [4, 5, 6])
    for start, count in ((-1, 2), (3, 2)):
        with pytest.raises(IndexError):
            part.read(start, count)
