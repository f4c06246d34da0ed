"""Texts to ids, and tokens that are read as they lie."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt2.errors import BadData, BadOption
from gpt2.shards import ShardWriter
from gpt2.tokenizer import Tokenizer, learn, write_tokenizer
from gpt2.training import TrainingOptions
from gpt2.training.data import Part, open_data, to_ids
from gpt2.training.documents import read_documents, split
from tests.helpers import byte_tokenizer
from tests.unit.test_shards_foreign import TEXTS, llmc, nanogpt


def corpus(folder, tokenizer, training, validation=()):
    """A corpus folder as `gpt2 corpus build` makes it, in small shards."""
    for prefix, texts in (("train", training), ("validation", validation)):
        with ShardWriter(folder, prefix, tokenizer, 50, block_tokens=16) as writer:
            for text in texts:
                writer.add(tokenizer.encode(text))
    write_tokenizer(tokenizer, folder)
    return folder


LINES = [f"line {number} of a small corpus" for number in range(60)]


def test_documents_are_joined_by_the_end_of_text_id():
    tokenizer = byte_tokenizer()
    ids = to_ids(["ab", "c"], tokenizer)
    end = tokenizer.end_of_text
    assert list(ids) == [end, *tokenizer.encode("ab"), end, *tokenizer.encode("c")]


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

    def test_what_is_held_out_of_few_documents_is_told_by_name_and_share(self, tmp_path):
        for number in range(6):
            (tmp_path / f"{number}.txt").write_text(f"chapter {number} " * 30)
        notes = []
        options = TrainingOptions(validation=0.1)
        opened = open_data([tmp_path], options, byte_tokenizer(), notes.append)
        parts = split(read_documents([tmp_path]), 0.1)
        names = [f"{n}.txt" for n in range(6) if f"chapter {n} " * 30 in parts.validation]
        assert 0 < len(names) <= 5
        assert (
            f"{len(names)} of 6 documents are held out, chosen by the hash of their text: {'; '.join(names)}"
            in notes[0]
        )
        assert "of the text, not 10.0%" in notes[0]
        assert (
            f"held out ({100 * len(opened.validation) / (len(opened.validation) + len(opened.training)):.2g} %)"
            in (notes[-1])
        )

    def test_what_is_held_out_of_many_is_counted(self, tmp_path):
        lines = [json.dumps({"text": f"page {number} of a book"}) for number in range(400)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        notes = []
        open_data([tmp_path], TrainingOptions(validation=0.1), byte_tokenizer(), notes.append)
        count = len(split(read_documents([tmp_path]), 0.1).validation)
        assert notes[0] == f"{count} of 400 documents are held out, chosen by the hash of their text"

    def test_gpt2s_vocabulary_is_large_for_a_small_text_and_that_is_told(self, tmp_path):
        (tmp_path / "a.txt").write_text("the cat sat on the mat " * 50)
        notes = []
        open_data([tmp_path], TrainingOptions(), note=notes.append)
        assert any("--vocab-size 1024 learns one of its own" in note for note in notes)
        for options, tokenizer in ((TrainingOptions(vocab_size=260), None), (TrainingOptions(), byte_tokenizer())):
            notes.clear()
            open_data([tmp_path], options, tokenizer, notes.append)
            assert not any("--vocab-size" in note for note in notes)

    def test_a_corpus_folder(self, tmp_path):
        tokenizer = learn(LINES, 280)
        folder = corpus(tmp_path, tokenizer, LINES[6:], LINES[:6])
        notes = []
        opened = open_data([folder], TrainingOptions(), note=notes.append)
        assert opened.tokenizer == tokenizer
        assert opened.validation_bytes == sum(map(len, LINES[:6]))
        assert opened.validation.read(0, len(opened.validation)).tolist() == to_ids(LINES[:6], tokenizer).tolist()
        assert opened.training.read(0, len(opened.training)).tolist() == to_ids(LINES[6:], tokenizer).tolist()
        held = len(opened.validation)
        share = 100 * held / (len(opened.training) + held)
        assert notes == [f"{len(opened.training):,} tokens to train on, {held:,} held out ({share:.2g} %)"]
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
        with pytest.raises(BadOption, match=r"vocab_size = 300 asks for a vocabulary .* are made already, of 257;"):
            open_data([folder], TrainingOptions(vocab_size=300))

    def test_a_recipe_that_learns_as_many_tokens_as_the_shards_have_is_no_contradiction(self, tmp_path):
        folder = corpus(tmp_path, learn(LINES, 280), LINES)
        assert open_data([folder], TrainingOptions(vocab_size=280)).tokenizer == learn(LINES, 280)

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

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("train.bin", "no file for validation was named: the last 10 % of the tokens is held out"),
            (".", "the folder {here} has no validation files: the last 10 % of its tokens is held out"),
            ("../tokens", "../tokens has no validation files: the last 10 % of its tokens is held out"),
        ],
    )
    def test_what_has_no_validation_files_is_named_in_words(self, tmp_path, monkeypatch, given, said):
        here = tmp_path / "tokens"
        here.mkdir()
        nanogpt(here / "train.bin", TEXTS * 10)
        monkeypatch.chdir(here)
        notes = []
        open_data([Path(given)], TrainingOptions(), note=notes.append)
        assert notes[0] == said.format(here=here)

    def test_what_cannot_be_used(self, tmp_path):
        nanogpt(tmp_path / "val.bin")
        with pytest.raises(BadData, match="validation alone"):
            open_data([tmp_path], TrainingOptions())
        (tmp_path / "text.txt").write_text("text")
        with pytest.raises(BadData, match=r"holds tokens and .*text\.txt text"):
            open_data([tmp_path / "val.bin", tmp_path / "text.txt"], TrainingOptions())
        (tmp_path / "train.bin").write_bytes(b"\x01\x00" * 3)
        (tmp_path / "val.bin").unlink()
        with pytest.raises(BadData, match=r"train\.bin: 3 tokens cannot be split .* --validation 0 holds nothing out"):
            open_data([tmp_path], TrainingOptions())
        assert len(open_data([tmp_path], TrainingOptions(validation=0.0)).training) == 3
        with pytest.raises(BadData, match=r"nowhere\.bin cannot be read"):
            open_data([tmp_path / "nowhere.bin"], TrainingOptions())


def test_a_part_is_bounded():
    part = Part(np.arange(10, dtype=np.int32), 3, 4)
    assert (len(part), part.read(1, 3).tolist()) == (4, [4, 5, 6])
    for start, count in ((-1, 2), (3, 2)):
        with pytest.raises(IndexError):
            part.read(start, count)
