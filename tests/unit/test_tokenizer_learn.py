"""Learning a vocabulary: exact size, always the same, really the most frequent pairs, and clear refusals."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadData, BadOption
from gpt2.tokenizer import Tokenizer, learn
from gpt2.tokenizer.agreement import first_disagreement

module = sys.modules["gpt2.tokenizer.learn"]  # the package gives the function under this name

TEXTS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom...\nit was the age of foolishness,",
    "Ça, c'est l'été: 25 °C à l'ombre.\n\n  Et voilà!  ",
    "<|endoftext|> is what some write between documents: <|endoftext|><|endoftext|>",
    "",
    "👍👍🏽 aaaaaaaaaaaaaaaa \t\n\r\n 1234567890 1234 12",
] * 3

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize("size", [257, 258, 300, 370])
def test_exact_size(size: int) -> None:
    learnt = learn(TEXTS, size)
    assert learnt.vocab_size == size
    assert learnt.special_tokens == {"<|endoftext|>": size - 1}
    assert learnt.ids.tolist() == list(range(size - 1))
    assert [learnt.token_bytes(i) for i in range(256)] == [Tokenizer.gpt2().token_bytes(i) for i in range(256)]
    for text in [*TEXTS, "本", "\x00"]:
        assert learnt.decode(learnt.encode(text)) == text


def test_all_bytes_even_with_nothing_learnt() -> None:
    assert learn(iter(TEXTS), 257) == learn([], 257) == Tokenizer.from_merges([])


def test_each_merge_was_a_most_frequent_pair() -> None:
    """Counted again the slow way, after each merge; ties may go either way."""
    learnt = learn(TEXTS, 330)
    word_counts = Counter(word.encode() for text in TEXTS for word in regex.findall(GPT2_WORDS, text))
    words = {word: [bytes((byte,)) for byte in word] for word in word_counts}
    tokens = [learnt.token_bytes(place) for place in range(329)]
    for left, right in learnt.merges.tolist():
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += word_counts[word]
        chosen = tokens[left], tokens[right]
        # The trainer counts overlapping pairs (aa in aaa) as this does.
        assert pairs[chosen] == max(pairs.values())
        for parts in words.values():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == chosen:
                    parts[at : at + 2] = [chosen[0] + chosen[1]]
                at += 1
    assert {tuple(parts) for parts in words.values()} == {
        tuple(learnt.token_bytes(index) for index in learnt.encode(word.decode())) for word in words
    }


def test_same_in_any_order_and_from_an_iterator() -> None:
    learnt = learn(TEXTS, 370)
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    assert learn(TEXTS, 370) == learn(iter(TEXTS), 370) == learn(shuffled, 370) == learnt


def test_same_on_any_number_of_threads(tmp_path: Path) -> None:
    text = "\n".join(f"{number} {number * 7919 % 1000} word{number % 97}" for number in range(20_000))
    (tmp_path / "text").write_text(text, encoding="utf-8")
    program = (
        "import sys, pathlib; from gpt2.tokenizer import learn;"
        "lines = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8').splitlines(keepends=True);"
        "print(learn(lines, 1000).fingerprint())"
    )
    found = set()
    for threads in ("1", "4"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "text")],
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_nothing_is_learnt_across_documents() -> None:
    tokens = {learn(["ab"] * 50 + ["cd"], 259).token_bytes(index) for index in range(256, 258)}
    assert tokens == {b"ab", b"cd"}


def test_control_token_in_a_text_is_text() -> None:
    learnt = learn(["<|endoftext|>"] * 10, 267)
    assert learnt.decode(learnt.encode("<|endoftext|>")) == "<|endoftext|>"
    assert learnt.end_of_text not in learnt.encode("<|endoftext|>")
    assert b"endoftext" in {learnt.token_bytes(index) for index in range(256, 266)}


def test_long_texts_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    text = "".join(rng.choice(["a", "b ", "\n", " \n", "\n\n", "c\n", "'s", "\x1c\n", "1", "é"]) for _ in range(5000))
    whole = learn([text], 350)
    monkeypatch.setattr(module, "_PIECE", 10)
    pieces = list(module._pieces(text))
    assert len(pieces) > 100
    assert "".join(pieces) == text
    assert learn([text], 350) == whole


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from("ab1 .'s\n\r\t\x1c\x85\u3000é")), size=st.integers(0, 5))
def test_pieces_hold_the_same_words(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", size)
        pieces = list(module._pieces(text))
    gpt2 = Tokenizer.gpt2()
    assert "".join(pieces) == text
    assert [index for piece in pieces for index in gpt2.encode(piece)] == gpt2.encode(text)


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.text("ab ", min_size=20, max_size=60), min_size=3, max_size=10))
def test_learnt_merges_always_agree(texts: list[str]) -> None:
    try:
        learnt = learn(texts, 290)
    except BadData as error:
        size = int(str(error).split("at most ")[1].split()[0])
        learnt = learn(texts, size)  # what it says it can give, it gives
        assert size < 290
        with pytest.raises(BadData):
            learn(texts, size + 1)
    assert first_disagreement(map(tuple, learnt.merges.tolist())) is None


def test_a_refused_merge_is_left_out_with_what_builds_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [("a", "b"), ("b", "c"), ("a", "bc"), ("abc", "d"), ("bc", "d"), ("x", "y")]
    monkeypatch.setattr(module, "_train", lambda texts, size: listed)
    learnt = learn([], 261)
    assert [learnt.token_bytes(place) for place in range(256, 260)] == [b"ab", b"bc", b"bcd", b"xy"]


@pytest.mark.parametrize("size", [256, 0, -5, 300.0, True, None])
def test_bad_size(size: object) -> None:
    with pytest.raises(BadOption, match=f"vocab_size is {size}"):
        learn(TEXTS, size)  # type: ignore[arg-type]


def test_bad_texts() -> None:
    with pytest.raises(BadData, match="at most 260 tokens, and 300 were asked for"):
        learn(["abc abc"], 300)
    with pytest.raises(BadData, match="one text"):
        learn("abc", 300)
    with pytest.raises(BadData, match="text 1 is a bytes"):
        learn(["abc", b"abc"], 300)  # type: ignore[list-item]
    with pytest.raises(BadData, match="text 2 has a lone surrogate at character 1"):
        learn(["abc", "", "x\ud800"], 300)


def test_errors_of_the_texts_come_through() -> None:
    def texts():
        yield "abc"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        learn(texts(), 300)


def test_progress_goes_to_stderr_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    quiet = learn(TEXTS, 300)
    assert tuple(capfd.readouterr()) == ("", "")
    assert learn(TEXTS, 300, progress=True) == quiet
    out, err = capfd.readouterr()
    assert out == ""
    assert "15/15" in err
    assert "43/43" in err


def test_on_real_text(shared: Path) -> None:
    text = (shared / "data/tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000]
    learnt = learn(text.split("\n\n"), 2000)
    assert learnt.vocab_size == 2000
    ids = learnt.encode(text)
    assert learnt.decode(ids) == text
    # A vocabulary of its own does with 2,000 tokens about as well as GPT-2's 50,257 do.
    assert len(ids) < 1.25 * len(Tokenizer.gpt2().encode(text))
