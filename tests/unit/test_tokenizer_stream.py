"""The incremental decoder: its pieces joined are the whole, for any bytes, and no character waits without need."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadPrompt
from gpt2.tokenizer import IncrementalDecoder, Tokenizer

gpt2 = Tokenizer.gpt2()

# Every kind of byte that UTF-8 tells apart: ASCII, the ranges of second bytes, and each kind of first byte.
KINDS = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")


def pushed(pieces: list[bytes]) -> list[str]:
    decoder = IncrementalDecoder(gpt2)
    return [*(decoder.push_bytes(piece) for piece in pieces), decoder.finish()]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_kind_of_sequence_byte_by_byte(length: int) -> None:
    decoder = IncrementalDecoder(gpt2)
    for sequence in itertools.product(KINDS, repeat=length):
        pieces = [decoder.push_bytes(bytes((byte,))) for byte in sequence]
        assert "".join(pieces) + decoder.finish() == bytes(sequence).decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=3).map(str.encode)), max_size=12))
def test_any_bytes_cut_anywhere(pieces: list[bytes]) -> None:
    assert "".join(pushed(pieces)) == b"".join(pieces).decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(0, 50256)), max_size=30))
def test_any_tokens_and_every_beginning(ids: list[int]) -> None:
    decoder = IncrementalDecoder(gpt2)
    text = ""
    for count, index in enumerate(ids, 1):
        text += decoder.push(index)
        # What is out is final: it begins the whole, whatever follows; only an unfinished character is missing.
        whole = gpt2.decode(ids[:count])
        assert whole == text or (whole.startswith(text) and set(whole[len(text) :]) == {"\ufffd"})
    assert text + decoder.finish() == gpt2.decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    decoder = IncrementalDecoder(gpt2)
    for character in text:
        *others, last = character.encode()
        assert [decoder.push_bytes(bytes((byte,))) for byte in others] == [""] * len(others)
        assert decoder.push_bytes(bytes((last,))) == character
    assert decoder.finish() == ""


def test_emoji_in_parts() -> None:
    ids = gpt2.encode("👍!")
    decoder = IncrementalDecoder(gpt2)
    assert len(ids) > 2
    assert [decoder.push(index) for index in ids] == [""] * (len(ids) - 2) + ["👍", "!"]


def test_finish_makes_it_new() -> None:
    decoder = IncrementalDecoder(gpt2)
    assert decoder.push_bytes("é".encode()[:1]) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.push_bytes("é".encode()[1:]) == "\ufffd"
    assert decoder.finish() == ""


def test_unknown_id() -> None:
    with pytest.raises(BadPrompt, match="50257"):
        IncrementalDecoder(gpt2).push(50257)
