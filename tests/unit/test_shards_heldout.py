"""What is held out: by the text alone, and by the same rule for a corpus and for text that is trained on."""

import hashlib
import warnings

import numpy as np
import pytest

from gpt2.corpus import fates
from gpt2.errors import Notice
from gpt2.shards import digest, held_out
from gpt2.training.documents import split

TEXTS = [f"document {number}" for number in range(300)]


def hashes(texts):
    return np.array([digest(text.encode())[0] for text in texts], dtype=np.uint64)


def test_a_text_is_out_where_its_sha256_as_a_fraction_is_below_the_share():
    fractions = [int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16 for text in TEXTS]
    for share in (0.01, 0.1, 0.5):
        assert held_out(hashes(TEXTS), share).tolist() == [fraction < share for fraction in fractions]


def test_of_few_the_lowest_and_its_copies_are_out_and_without_a_share_none():
    texts = ["a", "b", "c", "b", "a", "c"]
    lowest = min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert held_out(hashes(texts), 1e-9).tolist() == [text == lowest for text in texts]
    assert not held_out(hashes(texts), 0).any()
    assert held_out(hashes([]), 0.1).shape == (0,)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.6])
def test_a_corpus_and_training_hold_out_the_same(share):
    corpus = fates._held_out(hashes(TEXTS), share)
    assert split(TEXTS, share).validation == [text for text, out in zip(TEXTS, corpus, strict=True) if out]


def test_the_exceptions_when_all_would_be_out():
    texts = TEXTS[:3]
    assert held_out(hashes(texts), 1.0).all()
    with pytest.warns(Notice, match="Nothing is held out"):
        assert not fates._held_out(hashes(texts), 1.0).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split(texts, 1.0).validation == [min(texts, key=lambda text: digest(text.encode()))]
