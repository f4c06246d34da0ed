"""A closed vocabulary of words: the face of a tokenizer, files that Hugging Face's programs read alike, refusals."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import BadOption, BadPrompt, BadTokenizer
from gpt2.tokenizer import END_OF_TEXT, IncrementalDecoder, WordTokenizer, read_tokenizer, write_tokenizer
from gpt2.tokenizer.fast import FastEncoder

WORDS = ["C4", "/C4", "10ms", "v1", "é"]
TOKENIZER = WordTokenizer(WORDS)


@given(st.lists(st.integers(0, len(WORDS))))
def test_ids_come_back_from_their_text(ids):
    text = TOKENIZER.decode(ids)
    assert TOKENIZER.encode(text, allowed_special=[END_OF_TEXT]) == ids if len(WORDS) not in ids else True
    assert "".join(map(TOKENIZER.decode, ([index] for index in ids))) == text
    decoder = IncrementalDecoder(TOKENIZER)
    assert "".join(decoder.push(index) for index in ids) + decoder.finish() == text


def test_words_are_told_from_each_other_by_white_space_alone():
    text = "  C4\n/C4\t v1 é "
    assert TOKENIZER.encode(text) == TOKENIZER.encode_array(text).tolist() == [0, 1, 3, 4]
    assert TOKENIZER.encode_batch([text, "v1"], 2) == [[0, 1, 3, 4], [3]]
    assert [text[begin:end] for begin, end in TOKENIZER.offsets(text)] == ["C4", "/C4", "v1", "é"]
    assert TOKENIZER.decode([0, 1]) == " C4 /C4"
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.encode(f"C4 {END_OF_TEXT} v1", allowed_special=[END_OF_TEXT]) == [0, 5, 3]


def test_a_word_that_it_does_not_have_is_named():
    for text in ("C4 C5", "C4/C4", END_OF_TEXT):
        with pytest.raises(BadPrompt, match="is no word of this model's vocabulary, whose 5 words are such as C4"):
            TOKENIZER.encode(text)


@pytest.mark.parametrize(
    ("words", "special", "said"),
    [
        (["a", "a"], None, "there twice"),
        (["a", ""], None, "is no word"),
        (["a", "b c"], None, "is no word"),
        ([END_OF_TEXT], None, "there twice"),
        (["a"], {END_OF_TEXT: 2}, "must follow"),
        (["a"], {END_OF_TEXT: 0}, "must follow"),
    ],
)
def test_what_is_no_vocabulary_is_refused(words, special, said):
    with pytest.raises(BadTokenizer, match=said):
        WordTokenizer(words, special)


def test_equal_words_are_an_equal_vocabulary():
    assert WordTokenizer(WORDS) == TOKENIZER == pickle.loads(pickle.dumps(TOKENIZER))
    assert WordTokenizer(WORDS[::-1]) != TOKENIZER
    assert WordTokenizer(WORDS, {}) != TOKENIZER
    assert WordTokenizer(WORDS, {}).end_of_text is None


def test_files_say_the_same_to_transformers(tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(TOKENIZER, tmp_path, model_max_length=64)
    assert read_tokenizer(tmp_path) == TOKENIZER
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "v1 C4 10ms é /C4"
    assert theirs.encode(text) == TOKENIZER.encode(text)
    assert theirs.decode(TOKENIZER.encode(text)) == text == TOKENIZER.decode(TOKENIZER.encode(text)).strip()
    assert (theirs.eos_token_id, len(theirs), theirs.model_max_length) == (5, 6, 64)


def test_a_word_that_looks_like_an_unknown_one_is_a_word(tmp_path):
    odd = WordTokenizer(["<unk0>", "a"])
    write_tokenizer(odd, tmp_path)
    assert read_tokenizer(tmp_path) == odd


def test_a_vocabulary_of_another_kind_in_the_folder_is_replaced(tmp_path):
    from tests.helpers import byte_tokenizer

    write_tokenizer(byte_tokenizer(), tmp_path)
    write_tokenizer(TOKENIZER, tmp_path)
    assert read_tokenizer(tmp_path) == TOKENIZER
    write_tokenizer(byte_tokenizer(), tmp_path)
    assert read_tokenizer(tmp_path) == byte_tokenizer()
    with pytest.raises(BadOption, match="no layout but 'hf'"):
        write_tokenizer(TOKENIZER, tmp_path, "openai")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(pre_tokenizer={"type": "Whitespace"}), "cut at white space and nowhere else"),
        (lambda data: data.update(normalizer={"type": "Lowercase"}), "has a normalizer"),
        (lambda data: data.update(decoder={"type": "ByteLevel"}), "has a decoder"),
        (lambda data: data["model"].update(unk_token="C4"), "unknown words become 'C4'"),
        (lambda data: data["model"]["vocab"].update(C4=7), "from 0 on, with no gap"),
        (lambda data: data["model"]["vocab"].update(C4=1), "is no id, or another word's"),
        (lambda data: data["model"]["vocab"].update(C4="x"), "is no id, or another word's"),
        (lambda data: data.update(added_tokens=[]), None),
    ],
)
def test_files_that_mean_something_else_are_refused(tmp_path, change, said):
    write_tokenizer(TOKENIZER, tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    if said is None:
        assert read_tokenizer(tmp_path).end_of_text is None
        return
    with pytest.raises(BadTokenizer, match=said):
        read_tokenizer(tmp_path)


def test_the_quick_encoder_does_not_take_words_for_merges():
    with pytest.raises(BadOption, match="words"):
        FastEncoder(TOKENIZER)


def test_shards_of_words_are_read_by_their_vocabulary(tmp_path):
    from gpt2.shards import ShardWriter, open_shards

    with ShardWriter(tmp_path, "train", TOKENIZER) as writer:
        writer.add(TOKENIZER.encode_array("v1 C4 10ms /C4"))
    shards = open_shards(tmp_path)
    shards.check_tokenizer(TOKENIZER)
    assert np.array_equal(shards.read(0, len(shards)), [5, 3, 0, 2, 1])
