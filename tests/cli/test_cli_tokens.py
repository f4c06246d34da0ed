"""`gpt2 tokenize` and `gpt2 tokenizer train`."""

import pytest

from gpt2.tokenizer import read_tokenizer

SENTENCE = "GPT2 is a large language model developed by OpenAI."
IDS = [38, 11571, 17, 318, 257, 1588, 3303, 2746, 4166, 416, 4946, 20185, 13]


def test_gpt2s_own_vocabulary_is_the_default(gpt2):
    answer = gpt2("tokenize", "--json", SENTENCE)
    assert answer.json["ids"] == IDS
    assert "".join(answer.json["tokens"]) == SENTENCE
    assert answer.json["offsets"][:3] == [[0, 1], [1, 3], [3, 4]]
    assert gpt2("tokenize", "--json", SENTENCE, "--model", "gpt2-xl").json["ids"] == IDS


def test_pieces_and_ids_are_shown(gpt2):
    answer = gpt2("tokenize", "The cat sat")
    assert "The| cat| sat" in answer.out
    assert "464 3797 3332" in answer.out
    assert "3 tokens, 11 characters, 11 bytes" in answer.out


def test_ids_become_text(gpt2):
    assert gpt2("tokenize", "--decode", " ".join(map(str, IDS))).out == SENTENCE + "\n"
    assert gpt2("tokenize", "--decode", str(IDS), "--json").json == {"ids": IDS, "text": SENTENCE}


@pytest.mark.parametrize(
    "ids",
    [
        "464 3797 3332\n",
        "464, 3797, 3332",
        "[464, 3797, 3332]\r\n",
        "\t[464,\n 3797,\n 3332]\n",
        '{"ids": [464,3797,3332]}',
    ],
)
def test_ids_are_read_as_numbers_a_json_list_or_our_own_json(gpt2, ids):
    assert gpt2("tokenize", "--decode", "-", stdin=ids.encode()).out == "The cat sat\n"


def test_what_tokenize_prints_it_reads_back(gpt2):
    printed = gpt2("tokenize", "--json", SENTENCE).out
    assert gpt2("tokenize", "--decode", "-", stdin=printed.encode()).out == SENTENCE + "\n"


@pytest.mark.parametrize(
    "ids", ["[464, true]", "[464.0]", "[[464], [3797]]", "{}", '{"ids": "464"}', '{"ids": [null]}', "{"]
)
def test_what_is_no_list_of_ids_is_refused(gpt2, ids):
    answer = gpt2("tokenize", "--decode", "-", stdin=ids.encode())
    assert answer.code == 2
    assert "--decode expects token ids such as" in answer.err


def test_control_tokens_are_text_unless_asked_for(gpt2):
    assert 50256 not in gpt2("tokenize", "--json", "<|endoftext|>").json["ids"]
    assert gpt2("tokenize", "--json", "--special", "<|endoftext|>").json["ids"] == [50256]


def test_a_file_and_standard_input(gpt2, tmp_path):
    (tmp_path / "a.txt").write_text("The cat sat\n")
    assert gpt2("tokenize", "--json", "--file", tmp_path / "a.txt").json["ids"] == [464, 3797, 3332, 198]
    assert gpt2("tokenize", "--json", "-", stdin=b"The cat sat\n").json["ids"] == [464, 3797, 3332]


def test_another_models_vocabulary(gpt2, model_path):
    ids = gpt2("tokenize", "--json", "é", "--model", model_path).json["ids"]
    assert len(ids) == 2


@pytest.mark.parametrize("layout", ["hf", "openai"])
def test_a_vocabulary_is_learnt_and_used(gpt2, tmp_path, layout):
    (tmp_path / "a.txt").write_text("low lower lowest new newer newest wide wider widest " * 20)
    flags = ("--vocab-size", 270, "--layout", layout)
    answer = gpt2("tokenizer", "train", tmp_path / "a.txt", "--out", tmp_path / "one", *flags)
    assert answer.code == 0
    assert "270 tokens" in answer.out
    again = gpt2("tokenizer", "train", tmp_path / "a.txt", "--out", tmp_path / "one", *flags)
    assert again.code == 2
    assert "is there already" in again.err
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.doc").write_text("years of work")
    assert gpt2("tokenizer", "train", tmp_path / "a.txt", "--out", tmp_path / "two", "--force", *flags).code == 0
    assert (tmp_path / "two" / "thesis.doc").read_text() == "years of work"
    assert read_tokenizer(tmp_path / "one") == read_tokenizer(tmp_path / "two")


def test_force_leaves_no_older_vocabulary_to_be_read(gpt2, tmp_path):
    (tmp_path / "a.txt").write_text("low lower lowest new newer newest wide wider widest " * 20)
    gpt2("tokenizer", "train", tmp_path / "a.txt", "--out", tmp_path / "v", "--vocab-size", 260)
    more = ("--vocab-size", 270, "--layout", "openai", "--force")
    assert gpt2("tokenizer", "train", tmp_path / "a.txt", "--out", tmp_path / "v", *more).code == 0
    assert read_tokenizer(tmp_path / "v").vocab_size == 270
