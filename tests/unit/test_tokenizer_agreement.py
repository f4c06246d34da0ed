"""The check that merging by pairs and by bytes agree: what passes it does agree, and what does not would not."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import BadTokenizer
from gpt2.tokenizer import Tokenizer
from gpt2.tokenizer.agreement import Agreement, first_disagreement
from gpt2.tokenizer.alphabet import BYTES, CHARACTERS

A, B, C = (BYTES.index(letter) for letter in b"abc")


def by_pairs(merges: list[tuple[int, int]]) -> tokenizers.Tokenizer:
    """Hugging Face's `tokenizers` with these merges: it joins listed pairs."""
    tokens = list(CHARACTERS)
    pairs = []
    for left, right in merges:
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    vocab = {token: place for place, token in enumerate(tokens)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, pairs))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model


@settings(deadline=None, max_examples=200)
@given(
    choices=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30),
    words=st.lists(st.text("abc", max_size=200), max_size=5),
)
def test_what_passes_agrees_with_tokenizers(choices: list[tuple[int, int]], words: list[str]) -> None:
    """Random merges over three letters: the worst there are, since most of them stand in each other's way."""
    agreement, merges, known = Agreement(), [], [A, B, C]
    for left, right in choices:
        pair = known[left % len(known)], known[right % len(known)]
        if agreement.add(*pair):
            known.append(256 + len(merges))
            merges.append(pair)
    assert first_disagreement(merges) is None
    ours, theirs = Tokenizer.from_merges(merges), by_pairs(merges)
    tokens = [ours.token_bytes(index).decode() for index in known]
    for word in [*words, *tokens, "".join(tokens)]:
        assert ours.encode(word) == theirs.encode(word).ids


@pytest.mark.parametrize(
    ("merges", "wrong", "word"),
    [
        # "abc" becomes ab c, so a + bc never meet; tiktoken would take the token "abc" all the same.
        ([(A, B), (B, C), (A, 257)], 2, "abc"),
        # a + ab: "aab" is read aa b, because aa comes first.
        ([(A, A), (A, B), (A, 257)], 2, "aab"),
    ],
)
def test_what_fails_would_differ(merges: list[tuple[int, int]], wrong: int, word: str) -> None:
    import tiktoken

    assert first_disagreement(merges) == wrong
    with pytest.raises(BadTokenizer, match=f"merge {wrong} joins"):
        Tokenizer.from_merges(np.array(merges))
    tokens = [bytes((byte,)) for byte in BYTES]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    ranks = {token: place for place, token in enumerate(tokens)}
    by_bytes = tiktoken.Encoding("wrong", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    assert by_bytes.encode_ordinary(word) != by_pairs(merges).encode(word).ids


def test_a_merge_made_twice_is_refused() -> None:
    assert first_disagreement([(A, B), (A, B)]) == 1
    assert first_disagreement([(A, A), (256, A), (A, 256)]) == 2
