"""`FastEncoder`: what it takes, what it refuses, and that it is missed in one sentence. Its ids: law `tokens`."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from gpt2.errors import BadOption, BadPrompt, Unavailable
from gpt2.tokenizer import Tokenizer, learn
from tests.helpers import byte_tokenizer


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("fastokens", reason="left out: it needs the extra `fast`")
    from gpt2.tokenizer.fast import FastEncoder

    return FastEncoder(byte_tokenizer())


def test_arrays_without_python_numbers(encoder):
    first, empty, last = encoder.encode_batch(("né", "", "<|endoftext|>"))
    assert first.dtype == np.uint32
    assert first.tolist() == byte_tokenizer().encode("né")
    assert empty.shape == (0,)
    assert byte_tokenizer().end_of_text not in last
    assert encoder.encode_batch([]) == []


def test_half_a_character_and_what_is_no_text(encoder):
    with pytest.raises(BadPrompt, match=r"character 1 of the text is the lone surrogate U\+D800"):
        encoder.encode_batch(["fine", "a\ud800"])
    with pytest.raises(BadPrompt, match="this is a int"):
        encoder.encode_batch(["fine", 3])
    with pytest.raises(BadPrompt, match="got one text"):
        encoder.encode_batch("text")


def test_it_travels_to_other_processes(encoder):
    again = pickle.loads(pickle.dumps(encoder))
    assert again.encode_batch(["text"])[0].tolist() == byte_tokenizer().encode("text")


def test_a_vocabulary_with_its_own_numbering():
    pytest.importorskip("fastokens", reason="left out: it needs the extra `fast`")
    from gpt2.tokenizer.fast import FastEncoder

    learnt = learn(["the cat and the other cat"] * 3, 262)
    ids = np.arange(262)[::-1]
    other = Tokenizer.from_merges(learnt.merges, {"<|endoftext|>": 0}, ids=ids[: 256 + len(learnt.merges)])
    text = "the other cat sat <|endoftext|>"
    assert FastEncoder(other).encode_batch([text])[0].tolist() == other.encode(text)


def test_a_release_that_gives_other_ids_is_refused(monkeypatch):
    pytest.importorskip("fastokens", reason="left out: it needs the extra `fast`")
    from gpt2.tokenizer import fast

    made = fast._plain_json
    monkeypatch.setattr(fast, "_plain_json", lambda t: made(t).replace('"use_regex": true', '"use_regex": false'))
    with pytest.raises(Unavailable, match="gives other ids than tiktoken"):
        fast.FastEncoder(Tokenizer.gpt2())
    monkeypatch.setattr(fast, "_plain_json", lambda t: made(t).replace('"BPE"', '"Unigram"'))
    with pytest.raises(Unavailable, match="does not take this vocabulary"):
        fast.FastEncoder(byte_tokenizer())


def test_threads(encoder):
    with pytest.raises(BadOption, match="at least 1"):
        type(encoder)(byte_tokenizer(), threads=0)


def test_without_the_library_one_sentence_names_the_extra(monkeypatch):
    from gpt2.tokenizer.fast import FastEncoder

    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(Unavailable, match="needs fastokens: install the extra `fast`"):
        FastEncoder(byte_tokenizer())


def test_importing_it_imports_nothing_heavy():
    script = "import sys, gpt2.tokenizer.fast; assert not {'torch', 'tiktoken', 'fastokens'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
